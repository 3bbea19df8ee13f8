"""Before and after a repair, on the same axes."""

from __future__ import annotations

import altair as alt

from fanin.reports.charts import look
from fanin.reports.charts.data import Figures

TITLE = "Before and after the repair"

STYLES = {"as given": ("fault", [5, 3]), "repaired": ("given", [1, 0])}
"""Look -> its colour and its dashes."""


def draw(shown: Figures) -> alt.LayerChart:
    """Variance against depth as given and repaired, with the band where it should lie."""
    count = shown.count
    at = look.log_axis("variance", f"{shown.quantity} (log)")
    band = (
        alt.Chart(alt.NamedData("layers"))
        .mark_area(color=look.color("band"), opacity=0.2, interpolate="monotone")
        .encode(x=look.depth(count), y=look.log_axis("low", ""), y2="high:Q")
        .transform_filter("isValid(datum.low)")
    )
    lines = [chart for when in STYLES for chart in _line(count, when, at)]
    changed = (
        alt.Chart(alt.NamedData("compared"))
        .mark_point(shape="diamond", size=70, filled=True, opacity=1, color=look.color("given"))
        .encode(x=look.depth(count), y=at)
        .transform_filter("datum.changed && datum.when === 'repaired'")
    )
    layers = [*look.ground(count), band, *look.pointer(count), *lines, changed, look.targets(count)]
    return look.finished(alt.layer(*layers))


def _line(count: int, when: str, at: alt.Y) -> list[alt.Chart]:
    name, dash = STYLES[when]
    data = alt.Chart(alt.NamedData("compared")).transform_filter(f"datum.when === '{when}'")
    line = data.mark_line(color=look.color(name), strokeDash=dash, strokeWidth=2)
    text = data.mark_text(
        align="right", dy=-10 if when == "repaired" else 14, fontSize=11, fontWeight=600, color=look.color(name), text=when
    )
    end = [alt.SortField("depth", order="descending")]
    return [
        line.encode(x=look.depth(count), y=at),
        text.encode(x=look.depth(count), y=at)
        .transform_window(place="row_number()", sort=end)
        .transform_filter("datum.place === 1"),
    ]
