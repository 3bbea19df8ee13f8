"""What a pass shows, put into the step that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fanin.adapters.torch import statistics
from fanin.adapters.torch.describe import output_axis, tensors_in
from fanin.adapters.torch.drafting import Draft, Needed, has_no_values
from fanin.adapters.torch.hooks import Handles, Hook
from fanin.adapters.torch.listening import KnownParameter
from fanin.adapters.torch.together import Together
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
        self._gradients: Together[KnownParameter] = Together()
        self._activations: Together[tuple[str, Role, str]] = Together()
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
        backward pass is over."""
        if not (stays and self._gradients.add(known, gradient)):
            self._observe_gradient(known, gradient)

    def _observe_gradient(self, known: KnownParameter, gradient: Tensor, stays: bool = False) -> None:
        if self.draft is not None:
            place = known.layer, Role.WEIGHT_GRAD, f"gradient/{known.full_name}"
            self.draft.observe(*place, gradient, known.unit_axis, again=True, stays=stays)

    def backward_ended(self) -> None:
        """All gradients of a backward pass are there. One that somebody has written to while it waited is not
        recorded, rather than wrong."""
        whole, lost = self._gradients.over()
        if self.draft is not None:
            for known, gradient in whole:
                self._observe_gradient(known, gradient, stays=True)
            for known in lost:
                self.draft.forget(Role.WEIGHT_GRAD, f"gradient/{known.full_name}")
            self.draft.gather()

    def forward_ended(self) -> None:
        """Look at what has waited for that, and let go of activations, which are the network's to keep or to free."""
        whole, _ = self._activations.over()
        if self.draft is not None:
            for place, value in whole:
                self.draft.observe(*place, value, None)
            self.draft.forward_ended()

    def pass_failed(self) -> None:
        """A pass has raised, or is forgotten: what has waited for its end is let go."""
        self._gradients.failed()
        self._activations.failed()

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
        if self.draft is None:
            return
        place = path, Role.ACTIVATION_INPUT, tensor
        if self._may_wait(value) and self._activations.add(place, value):
            return
        with torch.no_grad():
            self.draft.observe(*place, value, unit_axis)

    def _may_wait(self, value: Tensor) -> bool:
        """Whether an activation is looked at as a whole on a CPU, and small."""
        index = 0 if self.draft is None else self.draft.index
        here = statistics.on_cpu(value) and not has_no_values(value)
        return here and self._needed.only_activations(index) and self._activations.has_room_for(value)

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
