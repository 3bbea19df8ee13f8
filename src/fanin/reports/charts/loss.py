"""The loss beside that of a guess, which knows nothing of the input; supporting evidence only."""

from __future__ import annotations

import altair as alt

from fanin.reports.charts import look
from fanin.reports.charts.data import Figures

TITLE = "Loss and its uninformed value"

LOW = 130
"""Pixels: it supports the verdict, and never carries it."""

STYLES = {"as given": ("given", [1, 0]), "sound re-draw": ("band", [6, 3]), "repaired": ("band", [6, 3])}
"""Curve -> its colour and its dashes."""


def draw(shown: Figures) -> alt.LayerChart:
    """By training step, or by step of a race where there was one."""
    x = alt.X(
        "step:Q",
        axis=alt.Axis(title=None, tickMinStep=1, format="d", grid=False),
        scale=alt.Scale(nice=False),
    )
    y = alt.Y("loss:Q", scale=alt.Scale(domain=list(shown.loss_span), nice=False, clamp=True), axis=_axis())
    layers: list[alt.Chart] = list(_guess(y))
    for curve in dict.fromkeys(loss.curve for loss in shown.losses):
        layers += _curve(curve, x, y)
    return look.finished(*layers, height=LOW)


def _axis() -> alt.Axis:
    return alt.Axis(
        title="loss by training step", titleAnchor="end", titleAngle=0, titleAlign="left", titleX=0, titleY=-10,
        minExtent=look.LEFT, maxExtent=look.LEFT, tickCount=4,
    )  # fmt: skip


def _guess(y: alt.Y) -> list[alt.Chart]:
    data = alt.Chart(alt.NamedData("uninformed"))
    rule = data.mark_rule(color=look.color("muted"), strokeDash=[2, 3]).encode(y=y)
    words = "'the best constant output: ' + format(datum.loss, '.4~g')"
    style = {"align": "left", "dx": 6, "dy": -8, "x": 0, "fontSize": 10}
    return [rule, *look.words(data.encode(y=y).transform_calculate(words=words), "words", "muted", **style)]


def _curve(curve: str, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    name, dash = STYLES[curve]
    data = alt.Chart(alt.NamedData("losses")).encode(x=x, y=y).transform_filter(f"datum.curve === '{curve}'")
    dots = {"size": 16, "color": {"expr": name}, "filled": True}
    tips = [alt.Tooltip("curve:N"), alt.Tooltip("step:Q"), alt.Tooltip("loss:Q", format=".5~g")]
    line = data.mark_line(color=look.color(name), strokeDash=dash, strokeWidth=2, point=dots)
    last = look.last_of(data, "step")
    style = {"align": "right", "dy": -10, "fontSize": 11, "fontWeight": 600}
    return [line.encode(tooltip=tips), *look.words(last, "curve", name, **style)]
