"""What a pass shows, put into the step that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fanin.adapters.torch.describe import output_axis, tensors_in
from fanin.adapters.torch.drafting import Draft, Needed
from fanin.adapters.torch.hooks import Handles, Hook
from fanin.adapters.torch.listening import KnownParameter
from fanin.trial import Role


class Sight:
    """Listens to a tracer.

    Attributes:
        draft: The step in the making; None where none is.
        scale: By how much the loss is multiplied of the backward pass that runs; None where no scaler does.
    """

    def __init__(self, needed: Needed, handles: Handles, hook: Callable[..., Hook]) -> None:
        self.draft: Draft | None = None
        self.scale: Tensor | None = None
        self._arrived: list[tuple[KnownParameter, Tensor | None, int]] = []
        self._waits: bool | None = None
        self._needed = needed
        self._handles = handles
        self._hook = hook

    def parameters(self, known: tuple[KnownParameter, ...]) -> None:
        """The parameters as they are now; those that only their uses tell are looked at again."""
        for one in known:
            if self.draft is not None and not nn.parameter.is_lazy(one.tensor):
                place = one.layer, one.role, one.full_name
                self.draft.observe(*place, one.tensor, one.unit_axis, again=one.is_bare, stays=True)
        if self.draft is not None:
            self.draft.gather()

    def gradient(self, known: KnownParameter, gradient: Tensor, stays: bool) -> None:
        """The gradient of a weight has arrived; `stays` says that nobody is seen who might write to it before the
        backward pass is over.

        Then it may wait for that: a look between two matrix products, which have emptied the cache, takes nearly
        twice as long as one after another look (`benchmarks/looks.py`). None waits in the first pass, which shows
        whether somebody writes to them unseen, nor from then on where somebody does.
        """
        stays = stays and not gradient.is_inference()  # of which nobody can tell when it is written to
        if stays:  # in the first pass without the tensor, which others may free before the pass is over
            held = gradient if self._waits else None
            self._arrived.append((known, held, gradient._version))
        if not (stays and self._waits):
            self._observe_gradient(known, gradient)

    def _observe_gradient(self, known: KnownParameter, gradient: Tensor, stays: bool = False) -> None:
        if self.draft is not None:
            place = known.layer, Role.WEIGHT_GRAD, known.gradient_name
            self.draft.observe(*place, gradient, known.unit_axis, again=True, stays=stays)

    def backward_ended(self) -> None:
        """A backward pass is over, or has raised. A gradient that somebody has written to while it waited is not
        recorded, rather than wrong."""
        arrived, self._arrived = self._arrived, []
        if self.draft is None:
            return
        if self._waits:
            lost = [
                known for known, tensor, version in arrived if tensor is None or tensor._version != version
            ]
            for known in lost:
                self.draft.forget(Role.WEIGHT_GRAD, known.gradient_name)
            for known, tensor, version in arrived:
                if tensor is not None and tensor._version == version:
                    self._observe_gradient(known, tensor, stays=True)
            self._waits = not lost
        elif self._waits is None and arrived:
            self._waits = all(self._is_untouched(known, version) for known, _, version in arrived)
        self.draft.gather()

    def _is_untouched(self, known: KnownParameter, version: int) -> bool:
        """Whether a parameter's gradient is what it was when it arrived: the version counter does not see what is
        written through `.data`, NumPy or an address."""
        now = known.tensor.grad
        if now is None or now._version != version or self.draft is None:
            return False
        place = known.layer, Role.WEIGHT_GRAD, known.gradient_name
        return self.draft.is_as_seen(*place, now, known.unit_axis)

    def forget(self) -> None:
        """Let go of what has arrived."""
        self._arrived = []

    def layer_ran(
        self, path: str, module: nn.Module, call: int, inputs: tuple[Any, ...], output: Any
    ) -> None:
        """Tracer: a layer has returned, for the call-th time in this pass."""
        if self.draft is None:
            return
        taken, made = next(tensors_in(inputs), None), next(tensors_in(output), None)
        if taken is not None and taken.is_floating_point():
            axis = output_axis(module, taken)
            self.draft.observe(path, Role.INPUT, f"{path}_input_{call}", taken, axis)
        if made is not None:
            self._observe_output(path, f"{path}_output_{call}", made, output_axis(module, made))

    def _observe_output(self, path: str, tensor: str, made: Tensor, axis: int | None) -> None:
        if self.draft is not None:
            self.draft.observe(path, Role.OUTPUT, tensor, made, axis)
            if self._awaits_gradient(made, Role.OUTPUT_GRAD, self.draft):
                see = self._hook(self._has_output_gradient, path, f"gradient/{tensor}", axis)
                self._handles.add(made.register_hook(see))

    def _awaits_gradient(self, value: Tensor, role: Role, draft: Draft) -> bool:
        return value.requires_grad and self._needed.detail(role, draft.index) is not None

    def weight_used(
        self, path: str, taken: Tensor, axis: int | None, made: Tensor, made_axis: int | None
    ) -> None:
        """Tracer: a bare weight has been used like a layer's."""
        if self.draft is not None:
            if taken.is_floating_point():
                self.draft.observe(path, Role.INPUT, f"{path}_input_0", taken, _within(axis, taken))
            self._observe_output(path, f"{path}_output_0", made, _within(made_axis, made))

    def effective_weight(self, path: str, name: str, value: Tensor, unit_axis: int | None) -> None:
        """Tracer: a weight has been computed from its parts."""
        if self.draft is not None:
            self.draft.observe(path, Role.WEIGHT, name, value, unit_axis)
            if self._awaits_gradient(value, Role.WEIGHT_GRAD, self.draft):
                see = self._hook(self._has_effective_gradient, path, f"gradient/{name}", unit_axis)
                self._handles.add(value.register_hook(see))

    def _has_effective_gradient(self, path: str, tensor: str, axis: int | None, gradient: Tensor) -> None:
        if self.draft is not None and not self.draft.closed:
            self.draft.scale = self.scale
            self.draft.observe(path, Role.WEIGHT_GRAD, tensor, gradient, axis, again=True)

    def activation_runs(self, tensor: str, path: str, value: Tensor, unit_axis: int | None) -> None:
        """Tracer: an activation is about to run."""
        if self.draft is not None:
            with torch.no_grad():
                self.draft.observe(path, Role.ACTIVATION_INPUT, tensor, value, unit_axis)

    def attention_runs(self, path: str, call: int, entropy: Callable[[], Tensor | None]) -> None:
        """Tracer: attention may be about to run."""
        draft = self.draft
        if draft is None or self._needed.detail(Role.ATTENTION_ENTROPY, draft.index) is None:
            return
        with torch.no_grad():
            values = entropy()
        if values is not None:
            draft.observe(path, Role.ATTENTION_ENTROPY, f"{path}_attention_entropy_{call}", values, None)

    def _has_output_gradient(self, path: str, tensor: str, axis: int | None, gradient: Tensor) -> None:
        if self.draft is not None:
            self.draft.scale = self.scale
            self.draft.observe(path, Role.OUTPUT_GRAD, tensor, gradient, axis)


def _within(axis: int | None, tensor: Tensor) -> int | None:
    """The axis that counts units, where there are samples beside it."""
    return axis if axis is not None and tensor.ndim > 1 and -axis <= tensor.ndim else None
