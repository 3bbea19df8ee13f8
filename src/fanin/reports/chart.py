"""The rows around a fault: each layer's variance on a log axis, as far as a terminal can draw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil, floor, isfinite, isnan, log10

from rich.cells import cell_len
from rich.text import Text

from fanin.finding import Diagnosis, Origin, Scope, Verdict
from fanin.reports.base import Profile, Reading
from fanin.reports.typeset import counted, escape, pad, short

AROUND = 5
"""Rows shown around a layer at fault: it, and two on either side."""

SAMPLES = 5
"""Rows shown of a fault that is everywhere: enough to see a slope."""

FAULTS_DRAWN = 3
"""Faults with rows of their own; 3 x 5 rows leave room for the rest of the report on a screen."""

LABEL_MOST, STRIP_MOST = 40, 48
"""Columns beyond which neither a longer name nor a finer axis helps."""


class Mark(Enum):
    """How a layer stands to the faults: the words for it, its sign, its marker on the axis, its style."""

    FAULT = ("at fault", ">>", "X", "bold red")
    DOWNSTREAM = ("downstream", ":", "o", "yellow")
    FREE = ("in step", "", "o", "green")

    def __init__(self, words: str, sign: str, marker: str, style: str) -> None:
        self.words = words
        self.sign = sign
        self.marker = marker
        self.style = style


@dataclass(frozen=True, slots=True)
class Axis:
    """Decades `low` to `high` over `width` columns; one column at either end is for values beyond."""

    low: int
    high: int
    width: int

    @classmethod
    def over(cls, values: Sequence[float], width: int) -> Axis:
        """The whole decades that hold all positive finite values, three at least."""
        exponents = [log10(value) for value in values if value > 0 and isfinite(value)]
        low, high = (floor(min(exponents)), ceil(max(exponents))) if exponents else (-1, 1)
        while high - low < 3:
            low, high = (low - 1, high) if high > -low else (low, high + 1)
        return cls(low, high, width)

    def column(self, exponent: float) -> int:
        """Where a power of ten lies."""
        share = (exponent - self.low) / (self.high - self.low)
        return 1 + round(share * (self.width - 3))

    def ticks(self) -> list[int]:
        """Decades with a label: multiples of a step that leaves a blank between labels."""
        longest = max(len(_power(self.low)), len(_power(self.high))) + 1
        for step in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500):
            if self.column(self.low + step) - 1 > longest:
                ticks = [e for e in range(self.low, self.high + 1) if e % step == 0]
                return ticks if len(ticks) > 1 else [self.low, self.high]
        return [self.low]

    def header(self) -> str:
        """The labels of the axis, each centred on its decade."""
        line = [" "] * self.width
        for exponent in self.ticks():
            label = _power(exponent)
            start = self.column(exponent) - len(label) // 2
            start = min(max(start, 0), self.width - len(label))
            line[start : start + len(label)] = label
        return "".join(line)

    def strip(self, value: float | None, marker: str, style: str) -> Text:
        """One value on the axis; zero lies beyond the left end, NaN and infinity beyond the right."""
        line = [" "] * self.width
        for exponent in self.ticks():
            line[self.column(exponent)] = "."
        text = Text("".join(line), style="dim")
        if value is None:
            return text
        place, sign = self._place(value, marker)
        return Text.assemble(text[:place], (sign, style), text[place + 1 :])

    def _place(self, value: float, marker: str) -> tuple[int, str]:
        if isnan(value):
            return self.width - 1, "?"
        if not isfinite(value):
            return self.width - 1, ">"
        return (self.column(log10(value)), marker) if value > 0 else (0, "<")


def _power(exponent: int) -> str:
    return {0: "1", 1: "10", 2: "100"}.get(exponent, f"1e{exponent}")


def draw(profile: Profile, diagnosis: Diagnosis, width: int) -> list[Text]:
    """A header and the rows that matter; nothing where no layer was seen."""
    readings = profile.readings
    if not readings:
        return []
    marks = marks_of(readings, diagnosis.origins)
    places = sorted(chosen(readings, diagnosis.origins))
    label, strip = _columns([readings[place].label for place in places], width)
    axis = Axis.over([r.variance for r in readings if r.variance is not None], strip)
    head = f"   depth  {'layer':<{label}}  {profile.quantity:>10}  {axis.header()}  grad p95-p5"
    lines, last = [Text(head, style="dim")], -1
    for place in [*places, len(readings)]:
        if place > last + 1:
            lines.append(_folded(marks[last + 1 : place], diagnosis.verdict))
        if place < len(readings):
            lines.append(_row(place + 1, readings[place], marks[place], label, axis))
        last = place
    return lines


def _columns(labels: Sequence[str], width: int) -> tuple[int, int]:
    """Columns for names and for the axis: names get what they need, up to three fifths."""
    room = width - len("   depth  ") - len("  Var[outp]  ") - len("  grad p95-p5") - 1
    longest = max(cell_len(escape(label)) for label in labels)
    label = min(max(longest, len("layer")), room * 3 // 5, LABEL_MOST)
    return label, min(room - label, STRIP_MOST)


def _row(depth: int, reading: Reading, mark: Mark, label: int, axis: Axis) -> Text:
    style = mark.style if mark is not Mark.FREE else ""
    value = "-" if reading.variance is None else short(reading.variance)
    spread = "-" if reading.spread is None else short(reading.spread)
    return Text.assemble(
        (f"{mark.sign:>2} ", mark.style),
        (f"{depth:>5}  {pad(escape(reading.label), label)}  {value:>10}  ", style),
        axis.strip(reading.variance, mark.marker, mark.style),
        (f"  {spread:>11}", style),
    )


def _folded(marks: Sequence[Mark], verdict: Verdict) -> Text:
    """What stands for rows left out. An undecided verdict claims nothing of them."""
    count = Counter(marks)
    parts = [(mark.words, count[mark]) for mark in Mark if count[mark]]
    text = f"     ...  {counted(len(marks), 'layer')}"
    if len(parts) > 1:
        text += ": " + ", ".join(f"{number} {words}" for words, number in parts)
    elif verdict is not Verdict.UNDECIDED:
        text += f", {parts[0][0]}"
    return Text(text, style="dim")


def marks_of(readings: Sequence[Reading], origins: Sequence[Origin]) -> list[Mark]:
    """How each layer stands to the faults."""
    faults = {path for origin in origins for path in _blamed(origin)}
    below = {path for origin in origins for path in origin.downstream}
    below |= {symptom.layer for origin in origins for symptom in origin.symptoms}
    return [
        Mark.FAULT if r.layer in faults else Mark.DOWNSTREAM if r.layer in below else Mark.FREE
        for r in readings
    ]


def _blamed(origin: Origin) -> tuple[str, ...]:
    return (origin.finding.layer, *origin.finding.layers)


def chosen(readings: Sequence[Reading], origins: Sequence[Origin]) -> set[int]:
    """Places of the rows to show: around the faults, or else the landmarks. A gap of one row is filled."""
    places = {reading.layer: place for place, reading in reversed(list(enumerate(readings)))}
    drawn = [origin for origin in origins if origin.finding.layer in places][:FAULTS_DRAWN]
    keep = {place for origin in drawn for place in _around(origin, places, len(readings))}
    keep = keep or set(_landmarks(readings))
    return keep | {
        place for place in range(len(readings)) if {place - 1, place + 1} <= keep | {-1, len(readings)}
    }


def _around(origin: Origin, places: dict[str, int], count: int) -> Iterator[int]:
    """Five rows around a layer at fault; evenly spaced ones, and the rows beside them, where it is everywhere."""
    place = places[origin.finding.layer]
    if origin.finding.scope is Scope.EVERYWHERE:
        if place:
            yield place - 1
        last = max((places[path] for path in _blamed(origin) if path in places), default=place)
        last = last if last > place else count - 1
        if last + 1 < count:
            yield last + 1
        steps = min(SAMPLES, last - place + 1) - 1
        yield from (place + round(k * (last - place) / steps) for k in range(steps + 1)) if steps else [place]
        return
    first = max(0, min(place - AROUND // 2, count - AROUND))
    yield from range(first, min(first + AROUND, count))


def _landmarks(readings: Sequence[Reading]) -> Iterator[int]:
    """First, last, smallest and largest; all rows of a small model."""
    count = len(readings)
    if count <= AROUND:
        yield from range(count)
        return
    yield from (0, count - 1)
    known = [(r.variance, place) for place, r in enumerate(readings) if r.variance is not None]
    finite = [pair for pair in known if not isnan(pair[0])]
    if finite:
        yield from (min(finite)[1], max(finite)[1])
