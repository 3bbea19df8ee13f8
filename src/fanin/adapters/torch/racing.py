"""Training copies of a model against copies of its sound re-draw; the model itself is only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from math import inf, isfinite, nan
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fanin import measures
from fanin.adapters.torch.batches import TARGET_NAMES, batches, detached, parts
from fanin.adapters.torch.describe import output_axis, tensors_in, uncompiled
from fanin.adapters.torch.examining import run_eagerly
from fanin.adapters.torch.redraw import redraw
from fanin.adapters.torch.restore import beside_untouched, untouched
from fanin.adapters.torch.twins import Twin, copy_of, mapped, seed_everything, several
from fanin.adapters.torch.uninformed import LARGEST, uninformed_loss_of
from fanin.errors import UsageError
from fanin.race import FACTORS, MOST, RATES, STEPS, Heat, Race
from fanin.trial import ModelSpec

CONSTANT_BATCHES = 16
"""Batches of which the uninformed loss is computed: a thousand examples, one percent of a class's entropy."""


def race(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None,
    spec: ModelSpec,
    *,
    learning_rates: Sequence[float] = RATES,
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None,
    steps: int = STEPS,
    most: int = MOST,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    seconds: float = inf,
    factors: Sequence[float] = FACTORS,
    reference: nn.Module | None = None,
) -> Race:
    """Train copies of the model as given and of its re-draw on the same batches with the same optimizer.

    All learning rates advance together, so that the race ends for all of them when it is decided. Leaves no trace on
    model, batches, optimizer and random state, also after an exception and when interrupted.

    Args:
        model: Copied, once for each twin and learning rate.
        batch: An iterable of batches as `fanin.check` takes them, of which up to `most` are used; or one of at least
            64 examples, which is split.
        loss_fn: loss_fn(output, target), a scalar; None when the model returns its own loss.
        spec: Of this model, from a pass.
        learning_rates: For Adam, where no optimizer is given.
        optimizer: An optimizer of this model: then the same class and settings, at FACTORS of its learning rate. Or a
            function of parameters that makes one.
        steps: Of each twin at each learning rate.
        most: Steps of a race in which the given one is behind at that point, or neither has moved.
        seed: Of the re-draw, and of what is random in training.
        on_progress: Called with (steps taken, steps planned) after each step.
        seconds: After which it ends with what has been seen by then.
        factors: Of the given optimizer's learning rate.
        reference: Races instead of the re-draw: the same model, repaired. Copied too.

    Raises:
        BatchError: One batch only, and too small to be split.
        LossError: The loss cannot be computed.
        UsageError: The model cannot be copied, or the optimizer is not one of this model.
    """
    plain = uncompiled(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(untouched(plain))
        stack.enter_context(run_eagerly(plain))
        stack.enter_context(beside_untouched(plain, loss_fn, batch))
        course = _Course(plain, several(batches(batch, most)), loss_fn, spec, seed, reference)
        pairs = list(course.pairs(optimizer, learning_rates, factors))
        return course.run(pairs, steps, max(steps, most), on_progress, monotonic() + seconds)


class _Course:
    """What all twins share: the batches, the loss, and the random state of each step."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        loss_fn: Any,
        spec: ModelSpec,
        seed: int,
        reference: nn.Module | None = None,
    ) -> None:
        self._batches = batches
        self._loss_fn = loss_fn
        self._spec = spec
        self._seed = seed
        self._original = model
        self._given = copy_of(model)
        self._is_drawn = reference is not None
        self._reference = copy_of(model if reference is None else uncompiled(reference))
        self.uninformed = self._first_pass()

    def _first_pass(self) -> float:
        """Scale the re-draw on the first batch, or only run what races instead; the loss of the best constant output
        for such batches."""
        args, kwargs, _ = parts(self._batches[0], self._loss_fn)
        buffers = {name: b.detach().clone() for name, b in self._reference.named_buffers()}

        def run() -> Any:
            return detached(self._reference(*args, **kwargs))

        seed_everything(self._seed)
        try:
            output = run() if self._is_drawn else redraw(self._reference, self._spec, run, self._seed)
        except Exception as error:
            raise _not_drawn(error) from error
        for name, buffer in self._reference.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])  # running statistics are for training to gather
        return self._uninformed(output)

    def _uninformed(self, output: Any) -> float:
        """For every axis that may count units, the lowest: a constant along the wrong one knows nothing of classes."""
        examples = []
        for batch in self._batches[: _how_many(output)]:
            _, kwargs, target = parts(batch, self._loss_fn)
            alike = _like(output, self._batches[0], batch)
            if self._loss_fn is None:
                target = next((kwargs[name] for name in TARGET_NAMES if name in kwargs), None)
            if alike is not None:
                examples.append((alike, target))
        axes: set[int | None] = {None}
        if isinstance(output, Tensor) and output.ndim > 1:
            axis = self._axis(output)
            axes = {1, output.ndim - 1, axis % output.ndim if axis is not None else 1}
        found = [uninformed_loss_of(examples, self._loss_fn, axis) for axis in axes]
        return min((value for value in found if isfinite(value)), default=nan)

    def _axis(self, output: Tensor) -> int | None:
        last = measures.head(self._spec)
        try:
            module = self._original.get_submodule(last.path) if last else None
        except AttributeError:
            return None
        return output_axis(module, output) if module is not None else None

    def pairs(
        self, optimizer: Any, rates: Sequence[float], factors: Sequence[float]
    ) -> Iterator[tuple[float, Twin, Twin]]:
        """Both twins at each learning rate."""
        for setting in rates if optimizer is None else factors:
            given, reference = (
                self._twin(deepcopy(source), optimizer, setting) for source in (self._given, self._reference)
            )
            yield float(given.optimizer.param_groups[0]["lr"]), given, reference

    def _twin(self, model: nn.Module, optimizer: Any, setting: float) -> Twin:
        trainable = [p for p in model.parameters() if p.requires_grad]
        if optimizer is None:
            return Twin(model, Adam(trainable, lr=setting))
        own = isinstance(optimizer, Optimizer)
        made = mapped(optimizer, self._original, model) if own else optimizer(trainable)
        for group in made.param_groups:
            group["lr"] = group["lr"] * setting
        return Twin(model, made)

    def run(
        self,
        pairs: list[tuple[float, Twin, Twin]],
        steps: int,
        most: int,
        on_progress: Callable[[int, int], None] | None,
        until: float = inf,
    ) -> Race:
        """Step by step, all twins on the same batch with the same random state."""
        optimizer = type(pairs[0][1].optimizer).__name__ if pairs else ""
        seen = self._race(pairs, optimizer)
        running = [twin for pair in pairs for twin in pair[1:]]
        for index in range(most):
            for twin in running:
                seed_everything(self._seed + 1 + index)
                twin.step(self._batches[index % len(self._batches)], self._loss_fn)
            seen = self._race(pairs, optimizer)
            if index + 1 == steps:
                best = max(pairs, key=lambda pair: seen.progress(tuple(pair[2].losses)))
                running = [*(pair[1] for pair in pairs), best[2]]
            if on_progress is not None:
                on_progress(index + 1, steps if index < steps else most)
            if seen.caught_up or (index + 1 >= steps and seen.is_clear) or monotonic() > until:
                break
        return seen

    def _race(self, pairs: list[tuple[float, Twin, Twin]], optimizer: str) -> Race:
        heats = tuple(Heat(rate, tuple(a.losses), tuple(b.losses)) for rate, a, b in pairs)
        return Race(heats, self.uninformed, optimizer, self._seed, len(self._batches))


def _how_many(output: Any) -> int:
    """Batches for the uninformed loss, as many as it computes with."""
    size = output.numel() if isinstance(output, Tensor) else 0
    return min(CONSTANT_BATCHES, max(1, LARGEST // size)) if size else CONSTANT_BATCHES


def _like(output: Any, first: Any, batch: Any) -> Any:
    """An output of the shape that this batch would have, the last batch of a loader being smaller; None where that
    cannot be told."""
    sizes = [next((len(t) for t in tensors_in(b, depth=5) if t.ndim), 0) for b in (first, batch)]
    if sizes[0] == sizes[1]:
        return output
    if not isinstance(output, Tensor) or not output.ndim or not sizes[0]:
        return None
    return output.new_zeros((len(output) * sizes[1] // sizes[0], *output.shape[1:]))


def _not_drawn(error: Exception) -> UsageError:
    return UsageError(
        "the model does not run with freshly drawn weights, and a race needs them",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        expected="a model that runs whatever its weights are",
        next_step="check it without the race",
    )
