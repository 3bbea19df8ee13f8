"""The variance of what layers put out, against depth: a cliff is one bad layer, a slope a wrong gain everywhere."""

from __future__ import annotations

import altair as alt

from fanin.reports.charts import look
from fanin.reports.charts.data import Figures

TITLE = "Variance of pre-activations by depth"


ROOM = 0.3
"""Share of the width that a name needs."""

WORDS = "datum.layer + (datum.code ? '  ' + datum.code : '') + (datum.odd ? ', ' + datum.odd : '')"


def draw(shown: Figures) -> alt.LayerChart:
    """On a log axis, with the band where a sound draw of the same network lies, and the first bad layer by name."""
    count, data = shown.count, alt.NamedData("layers")
    at = look.log_axis("at", f"{shown.quantity}, log scale", shown.decades)
    line = (
        alt.Chart(data)
        .mark_line(color=look.color("given"), strokeWidth=2)
        .encode(x=look.depth(count), y=at)
        .transform_filter("isValid(datum.at)")
    )
    marks = [look.dots(count, "at", at), look.odd_ones(count, "at", "odd", at), *_first(count, at)]
    tips = [alt.Tooltip("variance:Q", format=".2e"), alt.Tooltip("sound:Q", title="expected", format=".2e")]
    below = [*look.ground(count), *look.expected(shown), look.rug(count), *look.pointer(count)]
    return look.finished(*below, line, *marks, look.targets(count, *tips))


def _first(count: int, at: alt.Y) -> list[alt.Chart]:
    """The first layer at fault by name: to its left, where layers are in step and so elsewhere, if there is room."""
    texts = []
    for align, side, shift in (("left", f"<= {ROOM * count}", 9), ("right", f"> {ROOM * count}", -9)):
        text = (
            alt.Chart(alt.NamedData("layers"))
            .encode(x=look.depth(count), y=at)
            .transform_filter(f"datum.first && isValid(datum.at) && datum.depth {side}")
            .transform_calculate(words=WORDS)
        )
        style = {"align": align, "dx": shift, "dy": -14, "fontSize": 12, "fontWeight": 600, "limit": 320}
        texts += look.words(text, "words", "fault", **style)
    return texts
