"""What the charts show, as plain rows: no drawing here, and nothing but numbers and names.

Depth is the place of a layer in the order in which they ran, from 1. Values that a log axis cannot show keep their
place at its edge and say in `odd` what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, copysign, floor, isfinite, isnan, log, log10, nan, sqrt
from typing import Any

from fanin.change import Repair
from fanin.finding import Diagnosis
from fanin.measures import decades, uninformed_loss
from fanin.moments import SIGMAS, expected
from fanin.race import Race
from fanin.reports.base import Reading, layer_readings, profile, shown_step, shown_worker, variance
from fanin.reports.chart import Mark, marks_of
from fanin.reports.charts.blocks import Label, block_of, labels
from fanin.summary import Interval, TensorSummary
from fanin.trial import Role, Step, Trial

HALF_BAND = 0.5
"""Decades that an output's variance may be off its reference: a factor of 3, between the 2 that sound schemes differ
by and the 10 that no draw does by chance (see `fanin.propagation.OFF` and `CLIFF`)."""

WIDEST = 3.0
"""Decades of a band up to which its middle stands for what is expected. Theory's grows with depth over width: of a
plain network of 500 layers it spans a dozen, and no single number is expected."""

MARKS = {Mark.FAULT: "fault", Mark.DOWNSTREAM: "downstream", Mark.FREE: "in step"}
"""How a layer stands to the faults, in the words of the charts."""


@dataclass(frozen=True, slots=True)
class Point:
    """One layer at the first watched step.

    Attributes:
        depth, layer, block, type: Its place, its name, the block that it is part of, the framework's name for it.
        mark: `fault`, `downstream` or `in step`.
        first: Whether it is the first layer of the first fault.
        variance, at, odd: Of its output as measured; where a log axis shows that; `zero`, `NaN`, `infinite` or empty.
        low, high, sound: Where the variance should lie, and its middle; None where that is not known.
        theory: The variance that mean-field theory expects of a sound draw.
        spread, spread_at, spread_odd: The same of the gradient of its weight, 95th minus 5th percentile.
        code, source: Of the first finding that concerns it.
    """

    depth: int
    layer: str
    block: str
    type: str
    mark: str
    first: bool
    variance: float | None
    at: float | None
    odd: str
    low: float | None
    high: float | None
    sound: float | None
    theory: float | None
    spread: float | None
    spread_at: float | None
    spread_odd: str
    code: str
    source: str

    @property
    def is_judged(self) -> bool:
        """Whether it is known where its variance should lie."""
        return self.low is not None and self.high is not None

    def off(self, value: float) -> float:
        """Decades that a variance is off what is expected: its middle, or the band where no single number is; nan
        where neither is known."""
        if self.sound is not None:
            return decades(value / self.sound)
        if self.low is None or self.high is None:
            return nan
        return decades(value / min(max(value, self.low), self.high)) if isfinite(value) else nan

    def tint(self, value: float) -> float:
        """Decades off for a colour. At the edge of the band it is HALF_BAND however wide the band is, so that what
        random draws do to a sound network has hardly a colour, at any depth."""
        if self.low is None or self.high is None or not isfinite(value):
            return nan
        middle, half = decades(self.low * self.high) / 2, decades(self.high / self.low) / 2
        away = decades(value) - middle
        return copysign(min(abs(away) * HALF_BAND / half, HALF_BAND) + max(abs(away) - half, 0), away)


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer at one step: decades off what is expected; -inf for nothing at all, nan for what is not finite."""

    depth: int
    step: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss at a step, of one of the curves."""

    step: int
    loss: float
    curve: str


@dataclass(frozen=True, slots=True)
class RankPoint:
    """One layer as one rank saw it at step 0."""

    depth: int
    layer: str
    rank: str
    variance: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One layer before and after a repair."""

    depth: int
    layer: str
    when: str
    variance: float
    changed: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """All that the charts show of a trial.

    Attributes:
        quantity: What the variance was taken of.
        step: The step that the layers are shown at; None when nothing was watched.
        points: Layers in forward order.
        labels: What stands below the axis of depth.
        cells: Layers by steps.
        losses, uninformed: The curves, and the loss of the best constant output; nan where that is not known.
        ranks: Only where there are several.
        compared: Only where there is a repair.
        decades, spread_decades: Powers of ten at the ends of the axes of variances and of spreads.
    """

    quantity: str
    step: int | None
    points: tuple[Point, ...] = ()
    labels: tuple[Label, ...] = ()
    cells: tuple[Cell, ...] = ()
    losses: tuple[Loss, ...] = ()
    uninformed: float = nan
    ranks: tuple[RankPoint, ...] = ()
    compared: tuple[Compared, ...] = ()
    decades: tuple[int, int] = (-1, 1)
    spread_decades: tuple[int, int] = (-1, 1)

    @property
    def loss_span(self) -> tuple[float, float]:
        """From the least to the largest loss, the uninformed one among them, and a tenth of it at least: what moves
        less looks flat, as it is. A spike is cut off at three uninformed losses."""
        known = [loss.loss for loss in self.losses]
        base = self.uninformed if isfinite(self.uninformed) else known[0]
        low, high = min(*known, base), max(*known, base)
        high = min(high, 3 * base) if base > 0 else high
        spare = max(LEAST_SPAN * abs(base) - (high - low), 0.08 * (high - low)) / 2
        return low - spare, high + spare

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.points)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """By the names that the charts know: strict JSON, what is no number is left out, and few digits are kept."""
        groups: dict[str, Sequence[Any]] = {
            "layers": self.points,
            "labels": self.labels,
            "cells": self.cells,
            "losses": self.losses,
            "ranks": self.ranks,
            "compared": self.compared,
        }
        found = {name: [_plain(asdict(one)) for one in group] for name, group in groups.items()}
        known = [{"loss": self.uninformed}] if isfinite(self.uninformed) else []
        return found | {"uninformed": known}


def figures(
    trial: Trial, diagnosis: Diagnosis, *, repair: Repair | None = None, after: Trial | None = None
) -> Figures:
    """What the charts show of a trial, as the rank saw it that saw the first fault.

    Args:
        trial: What was seen.
        diagnosis: What was made of it.
        repair: What is proposed, with its proof.
        after: The same look at the repaired network.
    """
    seen = trial.of_worker(shown_worker(trial, diagnosis))
    shown = profile(seen, frozenset(origin.finding.layer for origin in diagnosis.origins))
    depths = {reading.label: depth for depth, reading in enumerate(shown.readings, 1)}
    ranks = tuple(_ranks(trial, depths))
    compared = tuple(_compared(shown.readings, repair, after))
    bands = _Bands(_bands(seen), _theory(seen))
    variances = [*(r.variance for r in shown.readings), *(c.variance for c in compared)]
    decades = _axis([*variances, *(r.variance for r in ranks), *bands.of(shown.readings)])
    spread_decades = _axis([r.spread for r in shown.readings])
    points = tuple(_points(seen, diagnosis, shown.readings, bands, decades, spread_decades))
    race = repair.proof if repair is not None and repair.proof is not None else trial.race
    return Figures(
        quantity=shown.quantity,
        step=shown.step,
        points=points,
        labels=labels([(point.layer, point.block) for point in points]),
        cells=tuple(_cells(seen, points)),
        losses=tuple(_losses(trial, race, "repaired" if repair is not None else "sound re-draw")),
        uninformed=_baseline(seen.start or shown_step(seen), race),
        ranks=ranks,
        compared=compared,
        decades=decades,
        spread_decades=spread_decades,
    )


# ── layers ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Bands:
    """Where log10 of each layer's variance should lie, and where theory alone has it."""

    sound: Mapping[str, Interval]
    theory: Mapping[str, Interval]

    def of(self, readings: Sequence[Reading]) -> Iterator[float]:
        """What an axis must hold of them."""
        for reading in readings:
            if band := self.sound.get(reading.layer):
                yield from (10**band.low, 10**band.high)
            if middle := self.theory.get(reading.layer):
                yield 10**middle.middle


def _points(
    trial: Trial,
    diagnosis: Diagnosis,
    readings: Sequence[Reading],
    bands: _Bands,
    decades: tuple[int, int],
    spread_decades: tuple[int, int],
) -> Iterator[Point]:
    types = {layer.path: layer.type_name for layer in trial.spec.layers}
    concern = _concerns(diagnosis)
    first = diagnosis.origins[0].finding.layer if diagnosis.origins else None
    marks = marks_of(readings, diagnosis.origins)
    for depth, (reading, mark) in enumerate(zip(readings, marks, strict=True), 1):
        band, middle = bands.sound.get(reading.layer), bands.theory.get(reading.layer)
        at, odd = _placed(reading.variance, decades)
        spread_at, spread_odd = _placed(reading.spread, spread_decades)
        code, source = concern.get(reading.layer, ("", ""))
        yield Point(
            depth=depth,
            layer=reading.label,
            block=block_of(reading.label),
            type=types.get(reading.layer, ""),
            mark=MARKS[mark],
            first=reading.layer == first,
            variance=reading.variance,
            at=at,
            odd=odd,
            low=10**band.low if band else None,
            high=10**band.high if band else None,
            sound=10**band.middle if band and band.high - band.low <= WIDEST else None,
            theory=10**middle.middle if middle else None,
            spread=reading.spread,
            spread_at=spread_at,
            spread_odd=spread_odd,
            code=code,
            source=source,
        )


def _concerns(diagnosis: Diagnosis) -> dict[str, tuple[str, str]]:
    """The code and the line of the first finding that blames a layer."""
    found: dict[str, tuple[str, str]] = {}
    for finding in diagnosis.findings:
        source = str(finding.source) if finding.source else ""
        for path in (finding.layer, *finding.layers):
            found.setdefault(path, (finding.code, source if path == finding.layer else ""))
    return found


def _bands(trial: Trial) -> dict[str, Interval]:
    """Where log10 of an output's variance should lie: around that of the sound re-draw, or else as theory has it."""
    reference = trial.reference
    if reference is None:
        return {path: _widened(band) for path, band in _theory(trial).items()}
    seen = {r.layer: r.variance for r in layer_readings(trial, reference)}
    middles = {path: log10(v) for path, v in seen.items() if v is not None and 0 < v < float("inf")}
    return {path: Interval(m - HALF_BAND, m + HALF_BAND) for path, m in middles.items()}


def _widened(band: Interval) -> Interval:
    return Interval(min(band.low, band.middle - HALF_BAND), max(band.high, band.middle + HALF_BAND))


def _theory(trial: Trial) -> dict[str, Interval]:
    """log10 of the variance over the batch that a sound draw should have (see `fanin.moments`)."""
    if trial.start is None:
        return {}
    moments = expected(trial.spec, trial.start, sound=True)
    found = {}
    for path, z in moments.signals.items():
        noise = max(z.noise + 2 / moments.widths[path], 0.0)
        if z.varying > 0 and isfinite(z.varying + noise):
            middle, half = log10(z.varying) - noise / 2 / log(10), SIGMAS * sqrt(noise) / log(10)
            found[path] = Interval(middle - half, middle + half)
    return found


LEAST_SPAN = 0.1
"""Of the uninformed loss: the least that an axis of losses covers."""

LEAST_DECADES = 3
"""That a log axis covers, so that a factor of 2 does not look like a cliff."""

NOTHING = (-6, -2)
"""An axis that has nothing to show but zeros and what is not finite."""


def _axis(values: Sequence[float | None]) -> tuple[int, int]:
    """Whole decades that hold all values, and one more for zeros below and for what is not finite above."""
    known = [v for v in values if v is not None]
    logs = [log10(v) for v in known if v > 0 and isfinite(v)]
    if not logs:
        return NOTHING
    low = floor(min(logs)) - any(v == 0 for v in known)
    high = ceil(max(logs)) + any(not isfinite(v) for v in known)
    while high - low < LEAST_DECADES:
        low, high = (low - 1, high) if min(logs) - low <= high - max(logs) else (low, high + 1)
    return low, high


def _placed(value: float | None, decades: tuple[int, int]) -> tuple[float | None, str]:
    """Where a log axis shows a value, and what is odd about it."""
    if value is None:
        return None, ""
    if isnan(value):
        return 10.0 ** decades[1], "NaN"
    if not isfinite(value):
        return 10.0 ** decades[1], "infinite"
    return (value, "") if value > 0 else (10.0 ** decades[0], "zero")


# ── layers by steps ─────────────────────────────────────────────────────────────────────────────────────────


def _cells(trial: Trial, points: Sequence[Point]) -> Iterator[Cell]:
    """At the steps where a layer's output, or the activation input that it is, was seen."""
    judged = {point.layer: point for point in points if point.is_judged}
    behind = _activation_inputs(trial)
    for path, point in judged.items():
        per_unit = whole = nan
        for step in trial.train_steps:
            seen = _pre_activation(step, path, behind)
            if seen is None:
                continue
            value = variance(seen)
            if seen.units is not None:
                per_unit, whole = value, seen.variance
            elif whole > 0 and isfinite(value):
                value *= (
                    per_unit / whole
                )  # as large a share of it varies with the input as when that was last seen
            yield Cell(point.depth, step.index, point.tint(value))


def _activation_inputs(trial: Trial) -> Mapping[str, str]:
    """The name of the activation input that is a layer's output, by the layer's path."""
    return {
        activation.inputs[0]: activation.tensor
        for activation in reversed(trial.spec.activations)
        if len(activation.inputs) == 1
    }


def _pre_activation(step: Step, path: str, behind: Mapping[str, str]) -> TensorSummary | None:
    output = step.first(Role.OUTPUT).get(path)
    seen = output or step.of(Role.ACTIVATION_INPUT).get(behind.get(path, ""))
    return seen.summary if seen else None


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────


def _losses(trial: Trial, race: Race | None, other: str) -> Iterator[Loss]:
    """The steps that were watched; of a race, which is longer, the curves of either twin's best learning rate."""
    if race is not None and race.heats:
        given, reference = race.curves
        yield from (Loss(i, loss, "as given") for i, loss in enumerate(given) if isfinite(loss))
        yield from (Loss(i, loss, other) for i, loss in enumerate(reference) if isfinite(loss))
        return
    for step in trial.train_steps:
        if isfinite(step.loss):
            yield Loss(step.index, step.loss, "as given")


def _baseline(start: Step | None, race: Race | None) -> float:
    if race is not None and isfinite(race.uninformed):
        return race.uninformed
    return uninformed_loss(start) if start is not None else nan


def _ranks(trial: Trial, depths: Mapping[str, int]) -> Iterator[RankPoint]:
    if len(trial.workers) < 2:
        return
    for worker in trial.workers:
        for reading in profile(trial.of_worker(worker)).readings:
            if reading.label in depths and _can_be_drawn(reading.variance):
                yield RankPoint(depths[reading.label], reading.label, str(worker), reading.variance or nan)


def _compared(readings: Sequence[Reading], repair: Repair | None, after: Trial | None) -> Iterator[Compared]:
    """Both looks at each layer that both have seen."""
    step = shown_step(after) if after is not None else None
    if after is None or step is None or repair is None or not repair.changes:
        return
    changed = {name.rpartition(".")[0] for name in repair.parameters}
    now = {r.layer: r.variance for r in layer_readings(after, step)}
    for depth, reading in enumerate(readings, 1):
        for when, value in (("as given", reading.variance), ("repaired", now.get(reading.layer))):
            if _can_be_drawn(value):
                yield Compared(depth, reading.label, when, value or nan, reading.layer in changed)


def _can_be_drawn(value: float | None) -> bool:
    """Whether a log axis has a place for it."""
    return value is not None and value > 0 and isfinite(value)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty or no number; -inf, which is no output at all, stays as the lowest of decades."""
    return {key: _short(value, DIGITS.get(key, 4)) for key, value in row.items() if not _is_empty(value)}


def _is_empty(value: Any) -> bool:
    return (
        value is None or value == "" or (isinstance(value, float) and (isnan(value) or value == float("inf")))
    )


LOWEST = -99.0
"""What stands for -inf in a row of decades: further than any float32 is."""


DIGITS = {"loss": 7}
"""Digits kept of a column, where 4 would hide that it moves."""


def _short(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return LOWEST if value == -float("inf") else float(f"{value:.{digits}g}")
    return value
