"""A step in the making: what has been summarized of it so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fanin.adapters.torch.statistics import Measurement, measure, read, summarize
from fanin.adapters.torch.updates import Snapshot
from fanin.rule import Need
from fanin.summary import TensorSummary
from fanin.trial import RECHECK, Mode, ModelSpec, Observation, Role, Step


@dataclass(frozen=True, slots=True)
class Detail:
    """How much of a tensor is to be kept."""

    histogram: bool = False
    units: bool = False


class Needed:
    """What all the rules together want of each role: at step 0, at the second look, and at all others."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self._first: dict[Role, Detail] = {}
        self._again: dict[Role, Detail] = {}
        self._later: dict[Role, Detail] = {}
        for need in needs:
            for when in self._times(need):
                known = when.get(need.role, Detail())
                when[need.role] = Detail(known.histogram or need.histogram, known.units or need.units)

    def _times(self, need: Need) -> list[dict[Role, Detail]]:
        again = [self._again] if need.recheck or need.every_step else []
        return [self._first, *again, *([self._later] if need.every_step else [])]

    def detail(self, role: Role, step: int) -> Detail | None:
        """What to keep of a role at a step; None when nobody wants it."""
        return (self._first if step == 0 else self._again if step == RECHECK else self._later).get(role)


@dataclass(slots=True)
class Seen:
    """A tensor, summarized or about to be."""

    layer: str
    shape: tuple[int, ...]
    dtype: str
    result: Measurement | TensorSummary


def _has_no_values(tensor: Tensor) -> bool:
    """Whether there is nothing to read: on the meta device, or under a transform such as vmap."""
    return tensor.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


@dataclass(slots=True)
class Draft:
    """A step in the making.

    Attributes:
        index: Its number.
        worker: The rank that sees it.
        needed: What to keep.
        before: The trainable parameters when it began.
        loss: Of its first backward pass.
        differentiated: Whether a gradient has arrived.
        stepped: Whether an optimizer has used the gradients.
        spec: The model as the first pass showed it.
    """

    index: int
    worker: int
    needed: Needed
    before: Snapshot
    loss: Tensor | float | None = None
    differentiated: bool = False
    stepped: bool = False
    spec: ModelSpec | None = None
    _seen: dict[tuple[Role, str], Seen] = field(default_factory=dict)

    def observe(
        self,
        layer: str,
        role: Role,
        tensor: str,
        value: Tensor,
        unit_axis: int | None,
        again: bool = False,
    ) -> None:
        """Summarize a tensor, if a rule needs it and the step has not seen it yet; `again` replaces what it saw
        (a gradient that has grown since)."""
        detail = self.needed.detail(role, self.index)
        if detail is None or ((role, tensor) in self._seen and not again) or _has_no_values(value):
            return
        axis = unit_axis if detail.units and value.ndim > 0 else None
        # On a CPU there is nothing to wait for, and a dense histogram is 400 times its sparse form.
        look = summarize if value.device.type == "cpu" else measure
        result = look(value, histogram=detail.histogram, unit_axis=axis)
        dtype = str(value.dtype).removeprefix("torch.")
        self._seen[role, tensor] = Seen(layer, tuple(value.shape), dtype, result)

    def finished(self) -> Step:
        """The step, after one transfer of whatever is still on a device."""
        waiting = [(s, s.result) for s in self._seen.values() if isinstance(s.result, Measurement)]
        for (seen, _), summary in zip(waiting, read([measured for _, measured in waiting]), strict=True):
            seen.result = summary
        return Step(self.index, Mode.TRAIN, tuple(self._observations()), self._losses())

    def _observations(self) -> Iterable[Observation]:
        for (role, tensor), seen in self._seen.items():
            if isinstance(seen.result, TensorSummary):
                yield Observation(seen.layer, role, tensor, seen.result, seen.shape, seen.dtype, self.worker)

    def _losses(self) -> dict[int, float]:
        if self.loss is None:
            return {}
        return {self.worker: float(self.loss)}
