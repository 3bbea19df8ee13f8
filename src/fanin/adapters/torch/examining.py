"""A model looked at before it trains: as it is, after a few steps of its optimizer, and soundly drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.batches import (
    batches,
    detached,
    examples_in,
    has_positions,
    loss_if_any,
    loss_of,
    one_line,
    part,
    parts,
    require_examples,
    require_same_device,
)
from fanin.adapters.torch.describe import is_compiled, module_at, output_axis, tensors_in, uncompiled
from fanin.adapters.torch.looks import beside, optimizer_for, reference_step, updates
from fanin.adapters.torch.restore import COPY_LIMIT, beside_untouched, can_be_changed, untouched
from fanin.adapters.torch.statistics import summarize
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import BatchError, LossError, UsageError
from fanin.measures import head
from fanin.rule import Need
from fanin.trial import RECHECK, ModelSpec, Observation, Role, Step, Trial

CAN_RUN_EAGERLY = hasattr(torch.compiler, "set_stance")
"""Whether this torch (2.6 and later) can run a compiled model as it was written."""

TOO_LARGE = (
    f"the model has more than {COPY_LIMIT // 2**20} MiB of parameters, which are not copied: no optimizer took steps, "
    "and there is no re-draw to compare with"
)
"""A note in the spec."""

ENOUGH = 4
"""Examples that can stand for the batch on the re-draw, where each has many positions; twice as many where it has
none. Over n samples the mean square of a Gaussian is known to a factor of 1 + sqrt(2 / n) where what is looked for is a
factor of 10, and a unit that is off for half of them is off for all with a probability of 2^-n (8: 0.4 %)."""

LEAST = 2
"""Examples in a half below which it has no variance over the batch."""


def examine(
    model: nn.Module, batch: Any, loss_fn: Any, needs: frozenset[Need], optimizer: Any = None
) -> Trial:
    """See `fanin.adapters.base.Adapter.examine`."""
    plain = uncompiled(model)
    _require_gradients(plain)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        untouched(plain),
        beside_untouched(plain, loss_fn, batch),
        run_eagerly(plain),
    ):
        put_in_train_mode(plain)
        looking = Looking(plain, loss_fn, needs, batches(batch, 1 if optimizer is None else RECHECK + 1))
        steps, spec = looking.train(optimizer) if optimizer is not None else looking.start()
        if can_be_changed(plain) and any(need.reference for need in needs):
            found = looking.reference(spec)
            steps = (*steps, found) if found is not None else steps
    return Trial(spec, steps, about={"optimizer": looking.stepping} if looking.stepping else {})


def trace(model: nn.Module, batch: Any, loss_fn: Any) -> Trial:
    """See `fanin.adapters.base.Adapter.trace`."""
    plain = uncompiled(model)
    _require_gradients(plain)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        untouched(plain),
        beside_untouched(plain, loss_fn, batch),
        run_eagerly(plain),
    ):
        put_in_train_mode(plain)
        args, kwargs, target = parts(batches(batch, 1)[0], loss_fn)
        require_examples((args, kwargs))
        require_same_device(plain, (args, kwargs))
        plan = WatchPlan(frozenset(), 1, lambda *_: None, on_error="raise")
        watching = TorchWatching(plain, plan, runs_eagerly=CAN_RUN_EAGERLY)
        try:
            output = detached(_run(plain, watching, args, kwargs))
            spec = watching.spec
        finally:
            watching.detach()
        seen = (*_parameters_seen(plain, spec), *_beside(plain, spec, output, target, loss_fn))
        return Trial(spec, (Step(0, losses={0: loss_if_any(output, target, loss_fn)}, observations=seen),))


def _require_gradients(model: nn.Module) -> None:
    """That its parameters can be trained at all.

    Raises:
        UsageError: One was made under inference_mode.
    """
    for name, parameter in model.named_parameters():
        if not nn.parameter.is_lazy(parameter) and parameter.is_inference():
            raise UsageError(
                "the model was made under torch.inference_mode, and no gradient can be had of it",
                where=name,
                got="an inference tensor",
                expected="parameters that can be trained",
                next_step="build the model outside of inference_mode",
            )


def _parameters_seen(model: nn.Module, spec: ModelSpec) -> Iterator[Observation]:
    known = dict(model.named_parameters())
    for layer in spec.layers:
        for parameter in layer.parameters:
            tensor = known.get(name := layer.parameter_path(parameter))
            if tensor is not None and not nn.parameter.is_lazy(tensor):
                yield Observation(layer.path, parameter.role, name, summarize(tensor))


Parts = tuple[tuple[Any, ...], dict[str, Any], Any]
"""Positional and named arguments of the model, and the target."""


class Looking:
    """The passes of one check.

    Attributes:
        model: In train mode, its state kept by the caller.
        batches: What it is given, one after the other and then from the start.
        stepping: Class of the optimizer that took steps; empty when none did.
        examples: In the first batch; 0 where that cannot be told.
    """

    def __init__(self, model: nn.Module, loss_fn: Any, needs: frozenset[Need], given: Sequence[Any]) -> None:
        self.model = model
        self.batches = given
        self.stepping = ""
        self.examples = examples_in(given[0])
        self._loss_fn = loss_fn
        self._needs = needs
        self._parts: Parts | None = None
        self._output: Any = None

    def start(self) -> tuple[tuple[Step, ...], ModelSpec]:
        """Step 0: one pass on the model as it is."""
        return self._watched(1, lambda watching: self.once(watching))

    def train(self, optimizer: Any) -> tuple[tuple[Step, ...], ModelSpec]:
        """Steps 0 to RECHECK as the user's optimizer would take them."""
        stepping = optimizer_for(self.model, optimizer)
        self.stepping = type(stepping).__name__
        if not can_be_changed(self.model):
            steps, spec = self.start()
            return steps, replace(spec, notes=(*spec.notes, TOO_LARGE))
        kept = self._weights()
        ended: list[str] = []

        def take(watching: TorchWatching) -> None:
            for index in range(RECHECK + 1):
                try:
                    if index:
                        stepping.step()
                        self.model.zero_grad(set_to_none=True)
                    self.once(watching, index)
                except Exception as error:
                    if index == 0 or watching.fault is not None:
                        raise
                    ended.append(
                        f"after {index} steps of {self.stepping} the network could not go on: {error}"
                    )
                    return

        steps, spec = self._watched(RECHECK + 1, take)
        if ended:
            return steps, replace(spec, notes=(*spec.notes, " ".join(ended[0].split())[:200]))
        last = replace(steps[-1], observations=(*steps[-1].observations, *updates(kept)))
        return (*steps[:-1], last), spec

    def reference(self, spec: ModelSpec) -> Step | None:
        """One pass on a sound re-draw, on a part of the batch where that is enough and the model takes it: what the
        re-draw is asked for is the scale of things, which a part of the batch shows for a part of the time."""
        count = max(self.examples // 4, ENOUGH if has_positions(self.batches[0]) else 2 * ENOUGH)
        if 2 * count <= self.examples:
            few = part(self.batches[0], slice(count))
            found = reference_step(self.model, spec, self._needs, lambda watching: self._pass(watching, few))
            if found is not None:
                extent = self._extent(count)
                return replace(found, losses={rank: extent * loss for rank, loss in found.losses.items()})
        return reference_step(self.model, spec, self._needs, self.once)

    def _extent(self, count: int) -> float:
        """The loss over the whole batch in terms of that over so many examples, by its value for zeros: their quotient
        for a sum over examples, about 1 for a mean; 1 where that cannot be told."""
        if self._loss_fn is None or self._parts is None or not isinstance(self._output, Tensor):
            return 1.0
        try:
            with torch.no_grad():
                zeros, target = torch.zeros_like(self._output), self._parts[2]
                few = part((zeros, target), slice(count))
                extent = float(self._loss_fn(zeros, target)) / float(self._loss_fn(*few))
        except Exception:  # noqa: BLE001  # the user's loss may refuse any output but the model's
            return 1.0
        return extent if isfinite(extent) and extent > 0 else 1.0

    def once(self, watching: TorchWatching, index: int = 0) -> None:
        """One forward and backward pass on a batch."""
        self._pass(watching, self.batches[index % len(self.batches)], index)

    def _pass(self, watching: TorchWatching, batch: Any, index: int = 0) -> None:
        args, kwargs, target = parts(batch, self._loss_fn)
        if index == 0:
            require_examples((args, kwargs))
            require_same_device(self.model, (args, kwargs, target))
        output = _run(self.model, watching, args, kwargs)
        loss = loss_of(output, target, self._loss_fn)
        watching.loss(loss)
        _differentiate(loss, watching)
        if self._parts is None:
            self._parts, self._output = (args, kwargs, target), detached(output)

    def _watched(
        self, steps: int, take: Callable[[TorchWatching], None]
    ) -> tuple[tuple[Step, ...], ModelSpec]:
        seen: list[tuple[Step, ModelSpec]] = []
        examples = self.examples if self.examples >= 2 * LEAST else 0
        plan = WatchPlan(
            self._needs,
            steps,
            lambda step, spec: seen.append((step, spec)),
            on_error="raise",
            examples=examples,
        )
        watching = TorchWatching(self.model, plan, runs_eagerly=CAN_RUN_EAGERLY)
        try:
            take(watching)
        finally:
            watching.detach()
        if not seen:
            raise _nothing_trained(self.model)
        first, spec = seen[0]
        first = replace(first, observations=(*first.observations, *self._beside(spec)))
        return (first, *(step for step, _ in seen[1:])), spec

    def _beside(self, spec: ModelSpec) -> Iterable[Observation]:
        if self._parts is None or not any(n.role is Role.UNINFORMED_LOSS for n in self._needs):
            return ()
        return _beside(self.model, spec, self._output, self._parts[2], self._loss_fn)

    def _weights(self) -> dict[str, tuple[str, Tensor, Tensor]]:
        return {
            name: (name.rpartition(".")[0], p.detach().clone(), p)
            for name, p in self.model.named_parameters()
            if p.ndim >= 2 and p.requires_grad and not nn.parameter.is_lazy(p)
        }


def _beside(
    model: nn.Module, spec: ModelSpec, output: Any, target: Any, loss_fn: Any
) -> Iterable[Observation]:
    last = head(spec)
    module = module_at(model, last.path) if last else None
    tensor = next(tensors_in(output), None)
    axis = output_axis(module, tensor) if module is not None and tensor is not None else None
    return beside(output, target, loss_fn, axis)


def run_eagerly(model: nn.Module) -> AbstractContextManager[Any]:
    """What is compiled runs as it was written meanwhile: the compiler would bypass the hooks."""
    if is_compiled(model) and CAN_RUN_EAGERLY:
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def put_in_train_mode(model: nn.Module) -> None:
    """Training is what is judged. A model whose root trains keeps the modes of its parts (frozen norms)."""
    if not model.training:
        model.train()


def _run(model: nn.Module, watching: TorchWatching, args: Any, kwargs: Any) -> Any:
    try:
        return model(*args, **kwargs)
    except Exception as error:
        if watching.fault is not None:  # ours, and none of the model's
            raise
        path = watching.failed_at or ""
        layer = model.get_submodule(path)
        shapes = ", ".join(f"{list(t.shape)} {str(t.dtype)[6:]}" for t in tensors_in((args, kwargs)))
        raise BatchError(
            "the model cannot run this batch",
            where=f"{path or 'the model'} ({_brief(layer)}), forward",
            got=f"model inputs {shapes or 'without a tensor'}; {type(error).__name__}: {one_line(error)}",
            expected=_expected_input(layer),
            next_step="run model(inputs) by itself with this batch; the check needs nothing more than that",
        ) from error


def _brief(module: nn.Module) -> str:
    extra = module.extra_repr()
    return f"{type(module).__name__}({extra})" if extra and len(extra) < 60 else type(module).__name__


def _expected_input(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"input [*, {module.in_features}] {str(module.weight.dtype)[6:]}"
    if isinstance(module, nn.Conv2d):
        return f"input [batch, {module.in_channels}, height, width] {str(module.weight.dtype)[6:]}"
    if isinstance(module, nn.Embedding):
        return f"integer indices below {module.num_embeddings}"
    return ""


def _differentiate(loss: Tensor, watching: TorchWatching) -> None:
    if not loss.requires_grad:
        raise LossError(
            "the loss does not depend on any trainable parameter",
            got="a loss without grad_fn",
            expected="a loss computed from the model's output",
            next_step="look for .detach(), .item(), torch.no_grad() or frozen parameters between model and loss",
        )
    try:
        # Only into this model: what else the loss is made of (a critic, a perceptual network) gets no gradient from us.
        loss.backward(inputs=[p for p in watching.model.parameters() if p.requires_grad])
    except Exception as error:
        if watching.fault is not None:
            raise
        raise LossError(
            "the backward pass fails",
            got=f"{type(error).__name__}: {one_line(error)}",
            expected="loss.backward() to run",
            next_step="run loss.backward() by itself with this batch",
        ) from error


def _nothing_trained(model: nn.Module) -> LossError:
    return LossError(
        "no gradient reaches any of the model's parameters",
        got=f"{sum(1 for _ in model.parameters())} parameters without gradient after backward",
        expected="a loss computed from this model's output",
        next_step="check that the loss uses the output of this very model and that parameters require gradients",
    )
