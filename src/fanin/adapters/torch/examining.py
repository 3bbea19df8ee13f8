"""A model looked at before it trains: as it is, after a few steps of its optimizer, and soundly drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.describe import is_compiled, module_at, output_axis, tensors_in, uncompiled
from fanin.adapters.torch.looks import beside, optimizer_for, reference_step, updates
from fanin.adapters.torch.restore import COPY_LIMIT, beside_untouched, can_be_changed, untouched
from fanin.adapters.torch.statistics import summarize
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import BatchError, LossError
from fanin.measures import head
from fanin.rule import Need
from fanin.trial import RECHECK, ModelSpec, Observation, Role, Step, Trial

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Keys under which a batch that is a mapping may hold its target."""

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

BATCH_FORMS = "(inputs, targets), a mapping, a tensor, or an iterable of these such as a DataLoader"


def examine(
    model: nn.Module, batch: Any, loss_fn: Any, needs: frozenset[Need], optimizer: Any = None
) -> Trial:
    """See `fanin.adapters.base.Adapter.examine`."""
    plain = uncompiled(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        untouched(plain),
        beside_untouched(plain, loss_fn, batch),
        _uncompiled(plain),
    ):
        _put_in_train_mode(plain)
        looking = Looking(plain, loss_fn, needs, batches(batch, 1 if optimizer is None else RECHECK + 1))
        steps, spec = looking.train(optimizer) if optimizer is not None else looking.start()
        if can_be_changed(plain) and any(need.reference for need in needs):
            found = looking.reference(spec)
            steps = (*steps, found) if found is not None else steps
    return Trial(spec, steps, about={"optimizer": looking.stepping} if looking.stepping else {})


def trace(model: nn.Module, batch: Any, loss_fn: Any) -> Trial:
    """See `fanin.adapters.base.Adapter.trace`."""
    plain = uncompiled(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        untouched(plain),
        beside_untouched(plain, loss_fn, batch),
        _uncompiled(plain),
    ):
        _put_in_train_mode(plain)
        args, kwargs, _ = _parts(batches(batch, 1)[0], loss_fn)
        _require_examples((args, kwargs))
        _require_same_device(plain, (args, kwargs))
        plan = WatchPlan(frozenset(), 1, lambda *_: None, on_error="raise")
        watching = TorchWatching(plain, plan, runs_eagerly=CAN_RUN_EAGERLY)
        try:
            _run(plain, watching, args, kwargs)
            spec = watching.spec
        finally:
            watching.detach()
        return Trial(spec, (Step(0, observations=tuple(_parameters_seen(plain, spec))),))


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
        count = max(self.examples // 4, ENOUGH if _has_positions(self.batches[0]) else 2 * ENOUGH)
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
        args, kwargs, target = _parts(batch, self._loss_fn)
        if index == 0:
            _require_examples((args, kwargs))
            _require_same_device(self.model, (args, kwargs, target))
        output = _run(self.model, watching, args, kwargs)
        loss = _loss(output, target, self._loss_fn)
        watching.loss(loss)
        _differentiate(loss, watching)
        if self._parts is None:
            self._parts, self._output = (args, kwargs, target), _detached(output)

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
        last = head(spec)
        module = module_at(self.model, last.path) if last else None
        tensor = next(tensors_in(self._output), None)
        axis = output_axis(module, tensor) if module is not None and tensor is not None else None
        return beside(self._output, self._parts[2], self._loss_fn, axis)

    def _weights(self) -> dict[str, tuple[str, Tensor, Tensor]]:
        return {
            name: (name.rpartition(".")[0], p.detach().clone(), p)
            for name, p in self.model.named_parameters()
            if p.ndim >= 2 and p.requires_grad and not nn.parameter.is_lazy(p)
        }


def _detached(output: Any) -> Any:
    """The output without what it was computed from, where that is plain to do."""
    return output.detach() if isinstance(output, Tensor) else output


def _uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """What is compiled runs as it was written meanwhile: the compiler would bypass the hooks."""
    if is_compiled(model) and CAN_RUN_EAGERLY:
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def _put_in_train_mode(model: nn.Module) -> None:
    """Training is what is judged. A model whose root trains keeps the modes of its parts (frozen norms)."""
    if not model.training:
        model.train()


def batches(given: Any, most: int) -> list[Any]:
    """Up to this many batches of an iterable of them, or of a list of pairs or mappings; a batch by itself otherwise.

    Raises:
        BatchError: There is none.
    """
    if isinstance(given, list) and given and all(isinstance(one, tuple | list | Mapping) for one in given):
        return given[:most]
    if isinstance(given, Tensor | tuple | list | Mapping) or not isinstance(given, Iterable):
        return [given]
    found = list(islice(given, most))
    if not found:
        raise BatchError("the iterable of batches is empty", expected=BATCH_FORMS, next_step="pass one batch")
    return found


def examples_in(batch: Any) -> int:
    """How many examples a batch holds; 0 where its tensors do not agree along their first axis."""
    sizes = {len(t) if t.ndim else 0 for t in tensors_in(batch, depth=5)}
    return sizes.pop() if len(sizes) == 1 else 0


def _has_positions(batch: Any) -> bool:
    """Whether examples are sequences or images: tokens [batch, positions], or values [batch, ..., ...]."""
    inputs = next(tensors_in(batch, depth=5), None)
    return inputs is not None and inputs.ndim > (2 if inputs.is_floating_point() else 1)


def part(batch: Any, examples: slice) -> Any:
    """Some examples of a batch whose tensors all count examples along their first axis."""
    if isinstance(batch, Tensor):
        return batch[examples]
    if isinstance(batch, Mapping):
        return {key: part(one, examples) for key, one in batch.items()}
    return type(batch)(part(one, examples) for one in batch) if type(batch) in (tuple, list) else batch


def _parts(batch: Any, loss_fn: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional and named arguments of the model, and the target; copies, so that the batch stays as it is."""
    batch = _copied(batch)
    if isinstance(batch, Mapping):
        named = dict(batch)
        key = next((k for k in TARGET_NAMES if k in named), None) if loss_fn is not None else None
        return (), named, named.pop(key) if key is not None else None
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs, target = batch[0], batch[1] if len(batch) == 2 else None
        if isinstance(inputs, Mapping):
            return (), dict(inputs), target
        return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}, target
    size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise BatchError(
        "this is not a batch",
        got=f"{type(batch).__name__}{size}",
        expected=BATCH_FORMS,
        next_step="for several inputs pass ((first, second), targets)",
    )


def _copied(value: Any) -> Any:
    """Tensors cloned, the containers around them rebuilt where that is plain."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_copied(v) for v in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(v) for v in value))
    return value


def _require_examples(values: Any) -> None:
    sizes = [list(tensor.shape) for tensor in tensors_in(values, depth=5)]
    if sizes and all(0 in shape for shape in sizes):
        raise BatchError(
            "the batch holds no example",
            got=f"a tensor of shape {sizes[0]}",
            expected="at least one example, better 32 or more",
            next_step="pass a batch as training would see it",
        )


def _require_same_device(model: nn.Module, values: Any) -> None:
    own = {t.device for t in (*model.parameters(), *model.buffers())}
    if torch.device("meta") in own:
        raise BatchError(
            "the model has no values yet",
            got="parameters on the meta device",
            expected="parameters with memory",
            next_step="materialize it first: model.to_empty(device=...), then initialize it",
        )
    for tensor in tensors_in(values, depth=5):
        if own and tensor.device not in own:
            raise BatchError(
                "the batch is on another device than the model",
                got=f"a tensor of shape {list(tensor.shape)} on {tensor.device}",
                expected=" or ".join(sorted(str(d) for d in own)),
                next_step=f"move it: batch.to({str(min(own, key=str))!r})",
            )


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
            got=f"model inputs {shapes or 'without a tensor'}; {type(error).__name__}: {_one_line(error)}",
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _loss(output: Any, target: Any, loss_fn: Callable[[Any, Any], Any] | None) -> Tensor:
    loss = _own_loss(output) if loss_fn is None else _computed_loss(output, target, loss_fn)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LossError(
            "the loss is not a scalar",
            got=got,
            expected="a tensor with one element",
            next_step="reduce it, for example with reduction='mean' or .mean()",
        )
    return loss


def _own_loss(output: Any) -> Any:
    """The loss of a model that returns its own: `.loss`, `["loss"]`, the first scalar of a tuple, or the output."""
    if isinstance(output, Mapping) and output.get("loss") is not None:
        return output["loss"]
    if getattr(output, "loss", None) is not None:
        return output.loss
    first = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(first, Tensor) and first.numel() == 1:
        return first
    shapes = ", ".join(str(list(t.shape)) for t in tensors_in(output))
    raise LossError(
        "no loss function was given and the model does not return a loss",
        got=f"{type(output).__name__} with tensors of shape {shapes or 'none'}",
        expected="an output with .loss, a scalar, or a loss function",
        next_step="pass loss_fn(output, target); for a transformers model put labels into the batch",
    )


def _computed_loss(output: Any, target: Any, loss_fn: Callable[[Any, Any], Any]) -> Any:
    try:
        return loss_fn(output, target)
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in tensors_in(output))
        shape = ", ".join(f"{list(t.shape)} {str(t.dtype)[6:]}" for t in tensors_in(target))
        given = f"output {shapes}, target {shape or repr(target)[:40]}"
        raise LossError(
            "the loss function cannot be computed",
            where="loss_fn(output, target)",
            got=f"{given}; {type(error).__name__}: {_one_line(error)}",
            expected="a loss function of the model's output and the batch's target",
            next_step="wrap it when the output is a record: lambda output, target: loss(output.logits, target)",
        ) from error


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
            got=f"{type(error).__name__}: {_one_line(error)}",
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
