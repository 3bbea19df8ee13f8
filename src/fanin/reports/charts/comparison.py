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
    at = look.log_axis("variance", f"{shown.quantity}, log scale", shown.decades)
    lines = [chart for when in STYLES for chart in _line(count, when, at)]
    changed = (
        alt.Chart(alt.NamedData("compared"))
        .mark_point(shape="diamond", size=70, filled=True, opacity=1, color=look.color("given"))
        .encode(x=look.depth(count), y=at)
        .transform_filter("datum.changed && datum.when === 'repaired'")
    )
    layers = [
        *look.ground(count),
        *look.expected(shown),
        *look.pointer(count),
        *lines,
        changed,
        look.targets(count),
    ]
    return look.finished(*layers)


def _line(count: int, when: str, at: alt.Y) -> list[alt.Chart]:
    name, dash = STYLES[when]
    data = alt.Chart(alt.NamedData("compared")).encode(x=look.depth(count), y=at)
    data = data.transform_filter(f"datum.when === '{when}'")
    last = look.last_of(data, "depth")
    style = {"align": "right", "dy": -11 if when == "repaired" else 14, "fontSize": 11, "fontWeight": 600}
    return [
        data.mark_line(color=look.color(name), strokeDash=dash, strokeWidth=2),
        *look.words(last, "when", name, **style),
    ]
