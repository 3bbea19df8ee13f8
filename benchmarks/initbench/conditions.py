"""Conditions in which training fails, or goes badly, for reasons that are not the initialization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from benchmarks.initbench.tasks import Task
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Condition:
    """A change to the task or to the learning rate."""

    name: str
    cause: str
    applies: Callable[[Task], bool]
    change: Callable[[Task], Task]
    learning_rate_factor: float = 1.0


def _always(_task: Task) -> bool:
    return True


def _same(task: Task) -> Task:
    return task


def _has_float_inputs(task: Task) -> bool:
    return any(tensor.is_floating_point() for tensor in task.inputs)


def _is_regression(task: Task) -> bool:
    """Float targets that a squared loss is taken of, not probabilities of classes."""
    if not task.targets.is_floating_point():
        return False
    zeros = torch.zeros_like(task.targets)
    return float(task.loss_fn(zeros, zeros)) == 0.0


def _map_inputs(change: Callable[[Tensor], Tensor]) -> Callable[[Task], Task]:
    """Changes the features; of a graph, not its adjacency."""

    def changed(task: Task) -> Task:
        first, *rest = (change(each) if each.is_floating_point() else each for each in task.inputs)
        return replace(task, inputs=(first, *(task.inputs[1:] if task.whole else rest)))

    return changed


def _scale_targets(task: Task) -> Task:
    return replace(task, targets=task.targets * 1000)


def _shuffle_labels(task: Task) -> Task:
    order = torch.randperm(len(task.targets), generator=torch.Generator().manual_seed(12345))
    return replace(task, targets=task.targets[order])


CONDITIONS: tuple[Condition, ...] = (
    Condition("none", "", _always, _same),
    Condition("input_x100_offset", "input_scale", _has_float_inputs, _map_inputs(lambda x: x * 100 + 50)),
    Condition("input_div1000", "input_scale", _has_float_inputs, _map_inputs(lambda x: x / 1000)),
    Condition("lr_x100", "learning_rate_too_high", _always, _same, 100.0),
    Condition("lr_div1000", "learning_rate_too_low", _always, _same, 0.001),
    Condition("targets_x1000", "target_scale", _is_regression, _scale_targets),
    Condition("labels_shuffled", "labels_shuffled", _always, _shuffle_labels),
)


def condition(name: str) -> Condition:
    """The condition of that name."""
    return next(each for each in CONDITIONS if each.name == name)
