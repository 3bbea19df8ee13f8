"""Layers by blocks, and which of their names fit below an axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from fanin.reports.typeset import elide, escape

WIDTH = 900.0
"""Pixels of the axis of depth."""

LETTER = 6.4
"""Pixels of a letter at the size of axis labels, 11: what Vega measures of digits and small letters is 5.5 to 6.4."""

LONGEST = 22
"""Letters of a label."""


ASIDE = 40.0
"""Pixels that a label may reach beyond the left end of the axis, and half of that beyond the right."""

STRIPED = 60
"""Blocks beyond which stripes would flicker."""


@dataclass(frozen=True, slots=True)
class Label:
    """A block below the axis of depth.

    Attributes:
        start, end: Edges, half a layer outside its first and last one.
        middle: Where its name stands.
        text: Its name; empty where there is no room.
        shaded: Every second one, so that neighbours differ.
    """

    start: float
    end: float
    middle: float
    text: str
    shaded: bool


def block_of(path: str) -> str:
    """The block that a layer is part of: its path up to the first number, or else its parent, or else itself.

    >>> block_of("encoder.layers.3.mlp.fc1"), block_of("layer1.0.conv1"), block_of("stem.conv"), block_of("head")
    ('encoder.layers.3', 'layer1.0', 'stem', 'head')
    """
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1]) or path


def labels(layers: Sequence[tuple[str, str]]) -> tuple[Label, ...]:
    """What stands below the axis for these layers, pairs of a name and its block, in order: the blocks, or the layers
    themselves where no block holds two."""
    runs = [[name for name, _ in members] for _, members in groupby(layers, key=lambda pair: pair[1])]
    blocks = dict(layers)
    groups = [(blocks[run[0]] if len(run) > 1 else run[0], len(run)) for run in runs]
    return tuple(_placed(groups if len(groups) > 1 else [(name, 1) for name, _ in layers], len(layers)))


def _placed(groups: Sequence[tuple[str, int]], count: int) -> Iterator[Label]:
    """Names from left to right, each where the one before has ended."""
    start, free = 0.5, -ASIDE
    for place, (name, size) in enumerate(groups):
        middle = start + size / 2
        text = elide(escape(name), LONGEST)
        half, centre = len(text) * LETTER / 2, (middle - 0.5) / count * WIDTH
        fits = centre - half >= free and centre + half <= WIDTH + ASIDE / 2
        free = centre + half + 2 * LETTER if fits else free
        yield Label(
            start, start + size, middle, text if fits else "", place % 2 == 1 and len(groups) <= STRIPED
        )
        start += size
