"""How wide the gradients of the weights are spread, against depth: a layer that sticks out is the one drawn wrong."""

from __future__ import annotations

import altair as alt

from fanin.reports.charts import look
from fanin.reports.charts.data import Figures

TITLE = "Spread of weight gradients by depth"

DOCUMENTED = 0.001
"""`distribution_range` of the documented rule."""


def draw(shown: Figures) -> alt.LayerChart:
    """On a log axis, with the documented rule's threshold where it is in sight."""
    count, data = shown.count, alt.NamedData("layers")
    at = look.log_axis("spread_at", "95th minus 5th percentile, log scale", shown.spread_decades)
    line = (
        alt.Chart(data)
        .mark_line(color=look.color("given"), strokeWidth=2)
        .encode(x=look.depth(count), y=at)
        .transform_filter("isValid(datum.spread_at)")
    )
    marks = [look.dots(count, "spread_at", at), look.odd_ones(count, "spread_at", "spread_odd", at)]
    tips = [alt.Tooltip("spread:Q", title="p95 - p5", format=".2e")]
    low, high = shown.spread_decades
    threshold = _threshold(at) if 10.0**low < DOCUMENTED <= 10.0**high else []
    layers = [*look.ground(count, look.SMALL), *threshold, *look.pointer(count), line, *marks]
    return look.finished(*layers, look.targets(count, *tips), height=look.SMALL)


def _threshold(at: alt.Y) -> list[alt.Chart]:
    words = f"SageMaker's rule fires below {DOCUMENTED}"
    data = alt.InlineData(values=[{"spread_at": DOCUMENTED, "words": words}])
    rule = alt.Chart(data).mark_rule(color=look.color("muted"), strokeDash=[2, 3]).encode(y=at)
    style = {"align": "left", "dx": 6, "dy": 9, "fontSize": 10, "x": 0}
    return [rule, *look.words(alt.Chart(data).encode(y=at), "words", "muted", **style)]
