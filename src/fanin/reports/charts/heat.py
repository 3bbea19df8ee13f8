"""Layers by steps: how far the variance is off what is expected, and whether training heals it."""

from __future__ import annotations

import altair as alt

from fanin.reports.charts import look
from fanin.reports.charts.blocks import WIDTH
from fanin.reports.charts.data import Figures

TITLE = "Measured / expected variance, layers by steps"

FURTHEST = 3
"""Decades at which colours end: a factor of 1000 is as bad as a million."""

KEY = 390
"""Pixels of the key: seven labels, the longest of 62."""

ROW = 20
"""Pixels of a step."""

GAPPED = 200
"""Layers from which gaps between cells would hide them."""


def draw(shown: Figures) -> alt.LayerChart:
    """White (on a dark page the page itself) is as expected, blue too small, red too large; crossed out what is not
    finite."""
    count = shown.count
    steps = sorted({cell.step for cell in shown.cells})
    height = max(ROW * len(steps), ROW)
    names = alt.LookupData(data=alt.NamedData("layers"), key="depth", fields=["layer"])
    data = (
        alt.Chart(alt.NamedData("cells"))
        .transform_lookup(lookup="depth", from_=names)
        .transform_calculate(**{"from": "datum.depth - 0.5", "to": "datum.depth + 0.5"})
    )
    row = alt.Y("step:O", scale=alt.Scale(domain=steps, padding=0), axis=_steps())
    cells = data.mark_rect(
        stroke=look.color("paper"), strokeWidth=1 if count < GAPPED else 0, cursor="pointer"
    ).encode(x=look.depth(count, "from"), x2="to:Q", y=row, color=_ratio(), tooltip=_tooltip())
    crossed = (
        alt.Chart(alt.NamedData("cells"))
        .mark_text(text="×", fontSize=13, fontWeight="bold", color=look.color("fault"))
        .encode(x=look.depth(count), y=row)
        .transform_filter("!isValid(datum.ratio)")
    )
    unseen = alt.Chart(alt.InlineData(values=[{"from": 0.5, "to": count + 0.5}])).mark_rect(
        fill=look.color("grid"), y=0, y2=height
    )
    below = unseen.encode(x=look.depth(count, "from"), x2="to:Q")
    layers = [*look.ground(count, height), below, cells, crossed, *look.pointer(count)]
    return look.finished(*layers, height=height, top=44)


def _steps() -> alt.Axis:
    return alt.Axis(
        title="step", titleAnchor="end", titleAngle=0, titleAlign="left", titleX=0, titleY=-8,
        minExtent=look.LEFT, maxExtent=look.LEFT, labelOverlap=True, grid=False,
    )  # fmt: skip


def _ratio() -> alt.Color:
    ends = [{"expr": "low"}, {"expr": "paper"}, {"expr": "high"}]
    words = "datum.value == 0 ? 'as expected' : (datum.value < 0 ? '÷' : '×') + format(pow(10, abs(datum.value)), 'd')"
    return alt.Color(
        "ratio:Q",
        scale=alt.Scale(domain=[-FURTHEST, 0, FURTHEST], range=ends, clamp=True, interpolate="lab"),
        legend=alt.Legend(
            title=None, orient="none", legendX=WIDTH - KEY - 8, legendY=-36, direction="horizontal",
            gradientLength=KEY, gradientThickness=8, values=list(range(-FURTHEST, FURTHEST + 1)), labelExpr=words,
        ),
    )  # fmt: skip


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("layer:N"),
        alt.Tooltip("step:O"),
        alt.Tooltip("ratio:Q", title="decades off", format="+.2f"),
    ]
