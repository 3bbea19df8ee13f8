"""A step in the making: what has been summarized of it so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from fanin.adapters.torch import statistics
from fanin.adapters.torch.memory import FreedError, has_memory
from fanin.adapters.torch.sharding import Place, local, place_of
from fanin.adapters.torch.statistics import Measurement, measure, measure_all, needed_of, read, summarize
from fanin.adapters.torch.transfers import Transfer
from fanin.adapters.torch.updates import Snapshot
from fanin.rule import Need
from fanin.summary import TensorSummary
from fanin.trial import RECHECK, Mode, ModelSpec, Observation, Role, Step


@dataclass(frozen=True, slots=True)
class Detail:
    """How much of a tensor is to be kept."""

    histogram: bool = False
    units: bool = False

    def __or__(self, other: Detail) -> Detail:
        return Detail(self.histogram or other.histogram, self.units or other.units)


class Needed:
    """What all the rules together want of each role: at step 0, at the second look, and at all others."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self._first: dict[Role, Detail] = {}
        self._again: dict[Role, Detail] = {}
        self._later: dict[Role, Detail] = {}
        for need in needs:
            for when in self._times(need):
                when[need.role] = when.get(need.role, Detail()) | Detail(need.histogram, need.units)
        for when in (self._first, self._again, self._later):
            self._unite(when)

    def _unite(self, when: dict[Role, Detail]) -> None:
        """What a layer puts out is often what an activation takes: with the same details one look serves both."""
        both = [when[role] for role in (Role.OUTPUT, Role.ACTIVATION_INPUT) if role in when]
        if len(both) > 1:
            when[Role.OUTPUT] = when[Role.ACTIVATION_INPUT] = both[0] | both[1]

    def _times(self, need: Need) -> list[dict[Role, Detail]]:
        again = [self._again] if need.recheck or need.every_step else []
        return [self._first, *again, *([self._later] if need.every_step else [])]

    def detail(self, role: Role, step: int) -> Detail | None:
        """What to keep of a role at a step; None when nobody wants it."""
        return self._times_of(step).get(role)

    def _times_of(self, step: int) -> dict[Role, Detail]:
        return self._first if step == 0 else self._again if step == RECHECK else self._later

    def only_activations(self, step: int) -> bool:
        """Whether of what a forward pass makes nothing is wanted at a step but what activations take, as wholes."""
        when = self._times_of(step)
        alone = when.keys() & OF_EXAMPLES <= {Role.ACTIVATION_INPUT}
        return alone and not when.get(Role.ACTIVATION_INPUT, Detail()).units


OF_EXAMPLES = frozenset(
    {Role.INPUT, Role.OUTPUT, Role.ACTIVATION_INPUT, Role.OUTPUT_GRAD, Role.ATTENTION_ENTROPY}
)
"""Tensors whose first axis counts examples, or positions of one example after the other. The gradient of a weight is
one sum over them. Identical units are told by weights and their gradients, never by these."""


OF_PARAMETERS = frozenset({Role.WEIGHT, Role.BIAS, Role.WEIGHT_GRAD})
"""Tensors that exist once for all ranks, or are meant to be the same on each."""

SCALED = frozenset({Role.OUTPUT_GRAD, Role.WEIGHT_GRAD})
"""Tensors that a loss scale multiplies."""

LOOKED_AT_TWICE = frozenset({Role.INPUT, Role.OUTPUT, Role.ACTIVATION_INPUT})
"""One tensor may have several of these roles."""

RECENT = 3
"""Tensors that are remembered: what one layer puts out is what the next takes and what an activation between them
takes, one right after the other."""


def _number(scalar: Tensor | float, arrived: Transfer) -> float:
    """Of a tensor on a device, what has arrived from there."""
    if isinstance(scalar, Tensor) and not statistics.on_cpu(scalar):
        return float(arrived.of(scalar)[0])
    return float(scalar)


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor that has been looked at, as it was then."""

    tensor: Tensor
    version: int
    histogram: bool
    axis: int | None
    results: list[Measurement | TensorSummary]

    def serves(self, value: Tensor, detail: Detail, axis: int | None) -> bool:
        """Whether it is the same tensor, with the same values, looked at as closely."""
        same = self.tensor is value and self.version == value._version
        return same and self.histogram >= detail.histogram and axis in (None, self.axis)


@dataclass(slots=True)
class Seen:
    """A tensor, summarized or about to be; in two halves or as a whole."""

    layer: str
    place: Place
    dtype: str
    axis: int | None
    scale: Tensor | None
    results: list[Measurement | TensorSummary]

    def settled(self, found: TensorSummary, arrived: Transfer) -> TensorSummary:
        """A summary as it would be without a loss scale, with a place for units on other ranks."""
        plain = found if self.scale is None else found.scaled(1 / _number(self.scale, arrived))
        return self.place.widened(plain, self.axis)


def _has_no_values(tensor: Tensor) -> bool:
    """Whether there is nothing to read: on the meta device, under a transform such as vmap, or without
    memory; on a CPU who looks asks for that."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.is_meta or wrapped or not (statistics.on_cpu(tensor) or has_memory(tensor))


def _are_alike(one: Measurement | TensorSummary, other: Measurement | TensorSummary) -> bool:
    if isinstance(one, Measurement) or isinstance(other, Measurement):
        return True
    fields = ("count", "nan", "inf", "zeros", "mean", "m2", "minimum", "maximum")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A tensor to be looked at together with others, as it was when that was asked, and where its measurement goes."""

    tensor: Tensor
    version: int
    histogram: bool
    results: list[Measurement | TensorSummary]

    @property
    def is_as_it_was(self) -> bool:
        """Whether nobody has written to it since, or freed it."""
        return self.tensor._version == self.version and has_memory(self.tensor)


@dataclass(slots=True)
class Draft:
    """A step in the making.

    Attributes:
        index: Its number.
        worker: The rank that sees it.
        needed: What to keep.
        before: The trainable parameters when it began.
        examples: Of the batch, where halves are wanted; otherwise 0.
        loss: Of its first backward pass.
        differentiated: Whether a gradient has arrived.
        stepped: Whether an optimizer has used the gradients.
        closed: Whether what follows is no part of it: an optimizer evaluates the loss again, elsewhere.
        scale: By how much the loss of the backward pass is multiplied, where a gradient scaler does.
        replicated: Whether all ranks must hold the same parameters.
        spec: The model as the first pass showed it.
    """

    index: int
    worker: int
    needed: Needed
    before: Snapshot
    examples: int = 0
    loss: Tensor | float | None = None
    differentiated: bool = False
    stepped: bool = False
    closed: bool = False
    scale: Tensor | None = None
    replicated: bool = False
    spec: ModelSpec | None = None
    _seen: dict[tuple[Role, str], Seen] = field(default_factory=dict)
    _waiting: list[Waiting] = field(default_factory=list)
    _transfer: Transfer | None = None
    _recent: deque[Known] = field(default_factory=lambda: deque(maxlen=RECENT))

    def observe(
        self,
        layer: str,
        role: Role,
        tensor: str,
        value: Tensor,
        unit_axis: int | None,
        again: bool = False,
        stays: bool = False,
    ) -> None:
        """Summarize a tensor, if a rule needs it and the step has not seen it yet; `again` replaces what it saw
        (a gradient that has grown since). One that `stays` as it is until `gather` may wait for others."""
        detail = self.needed.detail(role, self.index)
        if detail is None or ((role, tensor) in self._seen and not again):
            return
        here, place = local(value), self._place(role, value)
        if _has_no_values(here):
            return
        axis = unit_axis if detail.units and value.ndim > 0 else None
        try:
            results = self._known(role, here, detail, axis) or self._look(
                role, here, place, detail, axis, stays
            )
        except FreedError:
            return
        dtype = str(value.dtype).removeprefix("torch.")
        scale = self.scale if role in SCALED else None
        self._seen[role, tensor] = Seen(layer, place, dtype, axis, scale, results)

    def forget(self, role: Role, tensor: str) -> None:
        """What was seen of it is no longer so."""
        self._seen.pop((role, tensor), None)

    def is_as_seen(self, layer: str, role: Role, tensor: str, value: Tensor, unit_axis: int | None) -> bool:
        """Whether another look shows what the step has seen already; on a device, where that would be waited for, it is
        taken to."""
        before = self._seen.get((role, tensor))
        if before is None:
            return True
        self.observe(layer, role, tensor, value, unit_axis, again=True)
        now, self._seen[role, tensor] = self._seen[role, tensor], before
        pairs = zip(before.results, now.results, strict=True)
        return now is not before and all(_are_alike(one, other) for one, other in pairs)

    def _place(self, role: Role, value: Tensor) -> Place:
        """Of activations each rank has its own; so it has of gradients that are yet to be averaged."""
        if role not in OF_PARAMETERS:
            return Place(tuple(local(value).shape))
        place = place_of(value)
        if self.replicated and role is not Role.WEIGHT_GRAD and place.offset is None:
            return Place(place.shape, (0,) * value.ndim)
        return place

    def _known(
        self, role: Role, value: Tensor, detail: Detail, axis: int | None
    ) -> list[Measurement | TensorSummary] | None:
        if role not in LOOKED_AT_TWICE or value.is_inference():
            return None
        return next((known.results for known in self._recent if known.serves(value, detail, axis)), None)

    def _look(
        self, role: Role, value: Tensor, place: Place, detail: Detail, axis: int | None, stays: bool
    ) -> list[Measurement | TensorSummary]:
        if stays and axis is None and statistics.is_fused(value):
            one = Waiting(value, value._version, detail.histogram, [])
            self._waiting.append(one)
            return one.results
        start = place.position(tuple(value.shape), axis) if axis is not None else 0
        # On a CPU there is nothing to wait for, and a dense histogram is 400 times its sparse form.
        look = summarize if statistics.on_cpu(value) else measure
        results: list[Measurement | TensorSummary] = [
            look(
                part,
                histogram=detail.histogram,
                unit_axis=axis,
                offset=offset + (start or 0),
                fingerprint=role not in OF_EXAMPLES and start is not None,
            )
            for part, offset in self._parts(role, value, axis)
        ]
        if role in LOOKED_AT_TWICE and not value.is_inference():
            self._recent.append(Known(value, value._version, detail.histogram, axis, results))
        return results

    def _parts(self, role: Role, value: Tensor, axis: int | None) -> list[tuple[Tensor, int]]:
        """The tensor, or its halves by examples, each with the position of its units' first value in the whole."""
        units_first = axis is not None and axis % value.ndim == 0
        if self.index or role not in OF_EXAMPLES or units_first or not self._counts_examples(value):
            return [(value, 0)]
        middle = self.examples // 2 * (len(value) // self.examples)
        units = value.shape[axis] if axis is not None else 1
        return [(value[:middle], 0), (value[middle:], value[:middle].numel() // max(1, units))]

    def _counts_examples(self, value: Tensor) -> bool:
        return self.examples > 1 and value.ndim > 0 and len(value) > 0 and len(value) % self.examples == 0

    def forward_ended(self) -> None:
        """Let go of activations, which are the network's to keep or to free."""
        self._recent.clear()

    def was_skipped(self) -> bool:
        """Whether a gradient scaler has thrown the gradients of this step away, because they overflow on account of
        its scale: nothing has been trained, and the next pass is this step once more."""
        if self.scale is None or self.stepped or self.before.is_outdated() or float(self.scale) <= 1:
            return False
        self.gather()
        gradients = [
            r for (role, _), seen in self._seen.items() if role is Role.WEIGHT_GRAD for r in seen.results
        ]
        arrived = Transfer(needed_of(r for r in gradients if isinstance(r, Measurement)))
        lost = any(summary.non_finite for summary in self._read(gradients, arrived))
        return lost and self.loss is not None and isfinite(float(self.loss))

    @staticmethod
    def _read(results: Iterable[Measurement | TensorSummary], arrived: Transfer) -> Iterator[TensorSummary]:
        """In order."""
        known = list(results)
        read_now = iter(read([r for r in known if isinstance(r, Measurement)], arrived))
        return (next(read_now) if isinstance(r, Measurement) else r for r in known)

    def gather(self) -> bool:
        """Look at what waits, in one launch for each kind of it.

        Returns:
            Whether all of it was as it had been. What somebody has written to since is not recorded, rather than wrong.
        """
        waiting = [one for one in self._waiting if one.is_as_it_was]
        written = [one.results for one in self._waiting if not one.is_as_it_was]
        if written:
            lost = [key for key, seen in self._seen.items() if any(seen.results is one for one in written)]
            for key in lost:
                del self._seen[key]
        for histogram in (False, True):
            these = [one for one in waiting if one.histogram is histogram]
            found = measure_all([one.tensor for one in these], histogram) if these else []
            for one, measurement in zip(these, found, strict=True):
                one.results.append(measurement)
        self._waiting.clear()
        return not written

    def leave(self) -> Transfer:
        """Send what was measured on devices on its way; nothing is added from now on, and nothing waits."""
        if self._transfer is None:
            self.gather()
            results = [r for seen in self._seen.values() for r in seen.results]
            if isinstance(self.loss, Tensor) and self.loss.dtype in (torch.bfloat16, torch.float16):
                self.loss = self.loss.float()  # NumPy has no bfloat16
            scalars = [self.loss, *(seen.scale for seen in self._seen.values())]
            self._transfer = Transfer(
                [
                    *needed_of(r for r in results if isinstance(r, Measurement)),
                    *(
                        scalar
                        for scalar in scalars
                        if isinstance(scalar, Tensor) and not statistics.on_cpu(scalar)
                    ),
                ]
            )
        return self._transfer

    def finished(self) -> Step:
        """The step, once all that was measured is here; waits for that."""
        arrived = self.leave()
        observations = tuple(self._observations(arrived))
        losses = {} if self.loss is None else {self.worker: _number(self.loss, arrived)}
        return Step(self.index, Mode.TRAIN, observations, losses)

    def _observations(self, arrived: Transfer) -> Iterable[Observation]:
        """In the order in which they were made, which is that of what was read."""
        found = self._read((r for seen in self._seen.values() for r in seen.results), arrived)
        for (role, tensor), seen in self._seen.items():
            parts = tuple(seen.settled(next(found), arrived) for _ in seen.results)
            whole, halves = (parts[0].merge(parts[1]), parts) if len(parts) > 1 else (parts[0], ())
            known = seen.layer, role, tensor, whole, seen.place.shape, seen.dtype
            yield Observation(*known, self.worker, halves, seen.place.offset)
