"""Ranks at step 0, where there are several: they should agree, for they hold the same weights."""

from __future__ import annotations

import altair as alt

from fanin.reports.charts import look
from fanin.reports.charts.data import Figures

TITLE = "Variance by rank at step 0"


def draw(shown: Figures) -> alt.LayerChart:
    """One tick for each rank, and a line from the smallest to the largest."""
    count, data = shown.count, alt.Chart(alt.NamedData("ranks"))
    at = look.log_axis("variance", f"{shown.quantity} of each rank, log scale", shown.decades)
    span = data.mark_rule(color=look.color("muted"), opacity=0.6).encode(
        x=look.depth(count), y=look.log_axis("min(variance)", "", shown.decades), y2="max(variance):Q"
    )
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("rank:N"), alt.Tooltip("variance:Q", format=".2e")]
    ticks = data.mark_point(filled=True, size=26, opacity=0.75, color=look.color("given")).encode(
        x=look.depth(count), y=at, tooltip=tips
    )
    layers = [*look.ground(count, look.SMALL), *look.pointer(count), look.targets(count), span, ticks]
    return look.finished(*layers, height=look.SMALL)
