"""The variance of what layers put out, against depth: a cliff is one bad layer, a slope a wrong gain everywhere."""

from __future__ import annotations

import altair as alt

from fanin.reports.charts import look
from fanin.reports.charts.data import Figures

TITLE = "Variance of pre-activations by depth"


def draw(shown: Figures) -> alt.LayerChart:
    """On a log axis, with the band where a sound draw of the same network lies, and the first bad layer by name."""
    count, data = shown.count, alt.NamedData("layers")
    at = look.log_axis("at", f"{shown.quantity} (log, one line per factor of 10 or more)")
    band = (
        alt.Chart(data)
        .mark_area(color=look.color("band"), opacity=0.2, interpolate="monotone")
        .encode(x=look.depth(count), y=look.log_axis("low", ""), y2="high:Q")
        .transform_filter("isValid(datum.low)")
    )
    theory = (
        alt.Chart(data)
        .mark_line(color=look.color("band"), strokeDash=[3, 3], strokeWidth=1.25, interpolate="monotone")
        .encode(x=look.depth(count), y=look.log_axis("theory", ""))
        .transform_filter("isValid(datum.theory)")
    )
    line = (
        alt.Chart(data)
        .mark_line(color=look.color("given"), strokeWidth=2)
        .encode(x=look.depth(count), y=at)
        .transform_filter("isValid(datum.at)")
    )
    marks = [look.dots(count, "at", at), look.odd_ones(count, "at", "odd", at), *_first(count, at)]
    tips = [alt.Tooltip("variance:Q", format=".2e"), alt.Tooltip("sound:Q", title="expected", format=".2e")]
    layers = [*look.ground(count), band, theory, *look.pointer(count), line, *marks, look.targets(count, *tips)]
    return look.finished(alt.layer(*layers))


def _first(count: int, at: alt.Y) -> list[alt.Chart]:
    """The first layer at fault by name, on the side where there is room."""
    texts = []
    for align, side, shift in (("left", f"<= {0.6 * count}", 9), ("right", f"> {0.6 * count}", -9)):
        text = alt.Chart(alt.NamedData("layers")).mark_text(
            align=align, dx=shift, dy=-12, fontSize=12, fontWeight=600, color=look.color("fault"), limit=320
        )
        texts.append(
            text.encode(x=look.depth(count), y=at, text="words:N")
            .transform_filter(f"datum.first && isValid(datum.at) && datum.depth {side}")
            .transform_calculate(words="datum.layer + (datum.code ? '  ' + datum.code : '')")
        )
    return texts
