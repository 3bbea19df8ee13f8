"""Looks beyond the first: after a few of the user's own steps, at a sound re-draw, at what the loss is compared with.

All of them change parameters; they run where `restore.untouched` holds copies and puts everything back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.redraw import redraw
from fanin.adapters.torch.statistics import summarize
from fanin.adapters.torch.uninformed import uninformed_loss
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import UsageError
from fanin.rule import Need
from fanin.trial import NETWORK_INPUT, Mode, ModelSpec, Observation, Role, Step

Pass = Callable[[TorchWatching], None]
"""One forward and backward pass under a watch."""

REFERENCE_SEED = 20260101
"""Of the re-draw; any number will do."""


def reference_step(model: nn.Module, spec: ModelSpec, needs: frozenset[Need], once: Pass) -> Step | None:
    """What the same batch shows when the weights are drawn anew by a sound scheme; None where that fails: an exotic
    model is judged without a yardstick rather than not at all."""
    wanted = frozenset(replace(n, every_step=False, recheck=False) for n in needs if n.reference)
    steps: list[Step] = []
    plan = WatchPlan(wanted, 1, lambda step, _: steps.append(step), on_error="raise")

    def run() -> None:
        watching = TorchWatching(model, plan, runs_eagerly=True)
        try:
            once(watching)
        finally:
            watching.detach()

    try:
        redraw(model, spec, run, REFERENCE_SEED)
    except Exception:  # noqa: BLE001  # whatever a model does with other weights than its own, the check goes on
        return None
    return replace(steps[0], mode=Mode.REFERENCE) if steps else None


def optimizer_for(model: nn.Module, given: Any) -> Optimizer:
    """An optimizer like the given one, without its state: the same class and settings on this model's parameters.

    Args:
        model: Whose parameters it moves.
        given: An optimizer of this model, or a function of parameters that makes one (a class will do).

    Raises:
        UsageError: It is neither, or it holds other parameters than this model's.
    """
    if isinstance(given, Optimizer):
        return _copied(model, given)
    if not callable(given):
        raise UsageError(
            "this is no optimizer",
            got=type(given).__name__,
            expected="a torch.optim.Optimizer, or a function of parameters that makes one",
            next_step="pass optimizer=torch.optim.Adam(model.parameters(), lr=1e-3)",
        )
    made = given([p for p in model.parameters() if p.requires_grad])
    if not isinstance(made, Optimizer):
        raise UsageError(
            "the function given as optimizer does not make one",
            got=type(made).__name__,
            expected="a torch.optim.Optimizer",
            next_step="pass optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)",
        )
    return made


def _copied(model: nn.Module, given: Optimizer) -> Optimizer:
    """By its settings, as not every class takes its own defaults; without state, on the same parameters."""
    held = {id(p): p for group in given.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()}
    if not own & held.keys():
        raise UsageError(
            "the optimizer holds none of this model's parameters",
            got=f"{len(held)} parameters of something else",
            expected="an optimizer made from model.parameters()",
            next_step="make the optimizer after the model, or pass a function of parameters",
        )
    memo: dict[int, Any] = {**held, id(given.state): defaultdict(dict)}
    made: Optimizer = deepcopy(given, memo)
    for group in made.param_groups:
        group["params"] = [p for p in group["params"] if id(p) in own]
    return made


def updates(weights: dict[str, tuple[str, Tensor, Tensor]]) -> Iterator[Observation]:
    """What steps have changed of weights, given by full name as (layer, before, after)."""
    for name, (layer, before, after) in weights.items():
        change = after.detach() - before
        seen = summarize(change)
        yield Observation(layer, Role.UPDATE, name, seen, tuple(change.shape), str(change.dtype)[6:])


def beside(output: Any, target: Any, loss_fn: Any, unit_axis: int | None) -> Iterator[Observation]:
    """The target, and the loss that needs no input."""
    if isinstance(target, Tensor) and target.numel() and target.is_floating_point():
        axis = unit_axis if unit_axis is not None and target.ndim > 1 else None
        seen = summarize(target, unit_axis=axis)
        yield Observation(
            NETWORK_INPUT, Role.TARGET, "target", seen, tuple(target.shape), str(target.dtype)[6:]
        )
    value = uninformed_loss(output, target, loss_fn, unit_axis)
    if value == value:
        seen = summarize(torch.tensor([value], dtype=torch.float64))
        yield Observation(NETWORK_INPUT, Role.UNINFORMED_LOSS, "uninformed_loss", seen, (1,), "float64")
