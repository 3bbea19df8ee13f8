"""How the charts look: sizes, colours, and the parts that several of them share.

Colours are parameters, so that a page can change them (dark, light, print) without another chart. Blue and red are told
apart by everybody who sees one of them (ColorBrewer's RdBu), and every mark differs in shape too.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from fanin.reports.charts.blocks import WIDTH
from fanin.reports.charts.data import Figures

HEIGHT, SMALL = 230, 180
"""Pixels of a chart that carries the verdict, and of one that supports it."""

LIGHT = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "grid": "#e4e8ec",
    "paper": "#ffffff",
    "given": "#1f5fbf",
    "fault": "#c4162a",
    "downstream": "#b26a00",
    "band": "#3f8f7b",
    "low": "#2166ac",
    "high": "#b2182b",
}
"""Name of a colour -> its value on white. Text in them has a contrast of 4.5 at least (WCAG 2.2, 1.4.3)."""

DARK = {
    "ink": "#e6edf3",
    "muted": "#9aa4af",
    "grid": "#2c333b",
    "paper": "#14181d",
    "given": "#6ea8fe",
    "fault": "#ff6b74",
    "downstream": "#e3a341",
    "band": "#4fb39a",
    "low": "#4d9ce6",
    "high": "#f0626e",
}
"""The same on black."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

LEFT = 62
"""Pixels of labels left of the axis: the same in all charts of depth, so that layers stand below one another."""

SHAPES = {"in step": "circle", "downstream": "circle", "fault": "diamond"}

CROWDED = 60
"""Layers from which single dots hide the line that they stand on."""


def color(name: str) -> alt.ExprRef:
    """A colour by its name."""
    return alt.ExprRef(name)


def params() -> list[alt.Parameter]:
    """The colours, the layer that is chosen and the one that is pointed at; 0 is none."""
    choices = [alt.param(name=name, value=0) for name in ("chosen", "hovered")]
    return [*(alt.param(name=name, value=value) for name, value in LIGHT.items()), *choices]


def finished(
    *layers: alt.Chart, width: float = WIDTH, height: float = HEIGHT, top: float = 26
) -> alt.LayerChart:
    """Layers as a chart with its colours, its type, and its size: edges are fixed, so that a network's layers stand
    below one another in all charts."""
    edges = {"left": LEFT + 8, "right": 22, "top": top, "bottom": 24}
    sized = alt.LayerChart(layer=layers, width=width, height=height, padding=edges, autosize="none")
    return sized.add_params(*params()).configure(**CONFIG)


AXIS = {
    "labelColor": {"expr": "muted"},
    "titleColor": {"expr": "muted"},
    "gridColor": {"expr": "grid"},
    "tickColor": {"expr": "grid"},
    "domain": False,
    "ticks": False,
    "labelPadding": 6,
    "labelFontSize": 11,
    "titleFontSize": 11,
    "titleFontWeight": "normal",
}

CONFIG: dict[str, Any] = {
    "background": {"expr": "paper"},
    "font": FONT,
    "view": {"stroke": None},
    "axis": AXIS,
    "legend": {"labelColor": {"expr": "muted"}, "titleColor": {"expr": "muted"}, "labelFontSize": 11},
    "aria": False,
}
"""Marks are not read out one by one: the page names the chart, and its table holds the numbers."""


def depth_scale(count: int) -> alt.Scale:
    """From half a layer before the first to half a layer after the last."""
    return alt.Scale(domain=[0.5, count + 0.5], nice=False, zero=False)


def depth(count: int, field: str = "depth") -> alt.X:
    """The axis of depth; its labels are those of `ground`."""
    return alt.X(f"{field}:Q", scale=depth_scale(count), axis=None)


TICKS = 6
"""Most labels of a log axis."""


def log_axis(field: str, title: str, decades: tuple[int, int]) -> alt.Y:
    """A log axis over these decades, some of which are labelled."""
    low, high = decades
    stride = -(-(high - low) // TICKS)
    return alt.Y(
        f"{field}:Q",
        scale=alt.Scale(type="log", domain=[10.0**low, 10.0**high], nice=False, clamp=True),
        axis=alt.Axis(
            title=title,
            titleAnchor="end",
            titleAngle=0,
            titleAlign="left",
            titleX=0,
            titleY=-10,
            minExtent=LEFT,
            maxExtent=LEFT,
            values=[10.0**decade for decade in range(low, high + 1, stride)],
            labelExpr=POWERS,
        ),
    )


POWERS = (
    "datum.value >= 0.009 && datum.value <= 101 ? format(datum.value, '~r') :"
    " '1e' + round(log(datum.value) / log(10))"
)


def words(chart: alt.Chart, text: str, name: str, **style: Any) -> list[alt.Chart]:
    """A text on a ground of its own, so that it can be read on lines; `text` is a field."""
    halo = chart.mark_text(stroke=color("paper"), strokeWidth=4, strokeJoin="round", **style)
    return [one.encode(text=f"{text}:N") for one in (halo, chart.mark_text(color=color(name), **style))]


def ground(count: int, height: float = HEIGHT) -> list[alt.Chart]:
    """Blocks, every second one shaded, and their names below."""
    data = alt.NamedData("labels")
    shade = (
        alt.Chart(data)
        .mark_rect(fill=color("ink"), fillOpacity=0.035)
        .encode(x=depth(count, "start"), x2="end:Q")
        .transform_filter("datum.shaded")
    )
    names = (
        alt.Chart(data)
        .mark_text(baseline="top", fontSize=11, color=color("muted"), y=height + 7)
        .encode(x=depth(count, "middle"), text="text:N")
        .transform_filter("isValid(datum.text)")
    )
    return [shade, names]


def last_of(chart: alt.Chart, field: str) -> alt.Chart:
    """Only the row with the largest value of a field."""
    ends = chart.transform_window(place="row_number()", sort=[{"field": field, "order": "descending"}])
    return ends.transform_filter("datum.place === 1")


def expected(shown: Figures) -> list[alt.Chart]:
    """The band where a sound draw of the same network lies, and, dashed, what theory expects."""
    count, data = shown.count, alt.Chart(alt.NamedData("layers"))
    low, theory = (log_axis(field, "", shown.decades) for field in ("low", "theory"))
    smooth: dict[str, Any] = {"color": color("band"), "interpolate": "monotone"}
    band = data.mark_area(opacity=0.2, **smooth).encode(x=depth(count), y=low, y2="high:Q")
    line = data.mark_line(strokeDash=[3, 3], strokeWidth=1.25, **smooth).encode(x=depth(count), y=theory)
    name = (
        data.encode(x=depth(count), y=log_axis("high", "", shown.decades))
        .transform_filter("isValid(datum.high)")
        .transform_calculate(words="'expected'")
    )
    style = {"align": "right", "dy": -8, "fontSize": 11, "fontWeight": 600}
    return [
        band.transform_filter("isValid(datum.low)"),
        line.transform_filter("isValid(datum.theory)"),
        *words(last_of(name, "depth"), "words", "band", **style),
    ]


def pointer(count: int) -> list[alt.Chart]:
    """A line through the layer that is chosen, and a paler one through that which is pointed at."""
    rules = []
    for name, opacity in (("hovered", 0.35), ("chosen", 0.9)):
        rule = alt.Chart(alt.NamedData("layers")).mark_rule(
            color=color("ink"), opacity=opacity, strokeWidth=1.25
        )
        rules.append(rule.encode(x=depth(count)).transform_filter(f"datum.depth === {name}"))
    return rules


def targets(count: int, *tooltip: alt.Tooltip) -> alt.Chart:
    """What a pointer meets: one invisible column for each layer, so that the nearest one is found."""
    return (
        alt.Chart(alt.NamedData("layers"))
        .mark_rect(opacity=0, cursor="pointer")
        .encode(x=depth(count, "from"), x2="to:Q", tooltip=[alt.Tooltip("layer:N", title="layer"), *tooltip])
        .transform_calculate(**{"from": "datum.depth - 0.5", "to": "datum.depth + 0.5"})
    )


def dots(count: int, place: str, log_y: alt.Y) -> alt.Chart:
    """A layer each: diamonds at fault, hollow circles downstream. In crowds only faults have one."""
    chart = alt.Chart(alt.NamedData("layers"))
    shown = "datum.mark === 'fault'" if count > CROWDED else "true"
    return (
        chart.mark_point(opacity=1, strokeWidth=1.5)
        .encode(
            x=depth(count),
            y=log_y,
            shape=alt.Shape(
                "mark:N", scale=alt.Scale(domain=list(SHAPES), range=list(SHAPES.values())), legend=None
            ),
            size=alt.condition("datum.mark === 'fault'", alt.value(90), alt.value(36)),
            fill=_by_mark(hollow=True),
            stroke=_by_mark(hollow=False),
        )
        .transform_filter(f"isValid(datum.{place}) && ({shown})")
    )


def _by_mark(*, hollow: bool) -> dict[str, Any]:
    """Fill or stroke by how a layer stands to the faults."""
    downstream = "paper" if hollow else "downstream"
    return {
        "condition": [
            {"test": "datum.mark === 'fault'", "value": {"expr": "fault"}},
            {"test": "datum.mark === 'downstream'", "value": {"expr": downstream}},
        ],
        "value": {"expr": "given"},
    }


def rug(count: int, height: float = HEIGHT) -> alt.Chart:
    """Along the axis, how layers stand to the faults: also where there is no room for a dot each."""
    return (
        alt.Chart(alt.NamedData("layers"))
        .mark_rect(y=height - 4, y2=height)
        .encode(x=depth(count, "from"), x2="to:Q", fill=_by_mark(hollow=False))
        .transform_calculate(**{"from": "datum.depth - 0.5", "to": "datum.depth + 0.5"})
        .transform_filter("datum.mark !== 'in step'")
    )


def odd_ones(count: int, place: str, odd: str, log_y: alt.Y) -> alt.Chart:
    """What a log axis cannot show (zero, NaN, infinite), in words at its edge."""
    return (
        alt.Chart(alt.NamedData("layers"))
        .mark_text(fontSize=10, fontWeight="bold", color=color("fault"), dy=-11)
        .encode(x=depth(count), y=log_y, text=f"{odd}:N")
        .transform_window(before=f"lag({odd})", sort=[{"field": "depth"}])
        .transform_filter(
            f"isValid(datum.{odd}) && datum.{odd} !== datum.before && isValid(datum.{place}) && !datum.first"
        )
    )
