"""The table of charts. Each is one drawing (a Vega-Lite spec, made with Altair) of what `data.figures` has gathered.

Altair and the compiler of Vega-Lite are in the extra `html`, and loaded when something is drawn.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fanin.errors import UsageError
from fanin.reports.charts.data import Figures, figures

if TYPE_CHECKING:
    import altair as alt

__all__ = ["CHARTS", "Figures", "available", "chart", "compiled", "figures", "svg", "title"]

CHARTS = {
    "variance": "fanin.reports.charts.variance",
    "comparison": "fanin.reports.charts.comparison",
    "gradient": "fanin.reports.charts.gradient",
    "heat": "fanin.reports.charts.heat",
    "ranks": "fanin.reports.charts.ranks",
    "loss": "fanin.reports.charts.loss",
}
"""Chart -> module, which holds a function called `draw` and a TITLE."""


def available(shown: Figures) -> tuple[str, ...]:
    """The charts for which there is something to show."""
    there = {
        "variance": any(point.at is not None for point in shown.points),
        "gradient": any(point.spread_at is not None for point in shown.points),
        "heat": bool(shown.cells),
        "loss": len(shown.losses) > 1,
        "comparison": bool(shown.compared),
        "ranks": bool(shown.ranks),
    }
    return tuple(name for name in CHARTS if there[name])


def title(name: str) -> str:
    """What a chart is called."""
    return str(_module(name).TITLE)


def chart(name: str, shown: Figures) -> alt.LayerChart:
    """A chart that holds its data: it shows in a notebook, and saves itself as PNG, SVG or HTML.

    Args:
        name: One of CHARTS.
        shown: What to show.

    Raises:
        UsageError: There is no such chart, or the extra `html` is not installed.
    """
    drawn = _module(name).draw(shown)
    drawn.datasets = shown.rows()
    return drawn


def compiled(name: str, shown: Figures) -> dict[str, Any]:
    """A chart's Vega spec without its data, for which it has places by name."""
    import vl_convert

    spec: dict[str, Any] = vl_convert.vegalite_to_vega(json.dumps(_spec(name, shown)))
    _let_through(spec["marks"])
    return spec


def _let_through(marks: list[dict[str, Any]]) -> None:
    """A pointer meets only what has something to say, and not the line that it has just moved below itself."""
    for mark in marks:
        says = "tooltip" in mark.get("encode", {}).get("update", {})
        mark["interactive"] = says or mark["type"] == "group"
        _let_through(mark.get("marks", []))


def svg(name: str, shown: Figures) -> str:
    """A chart as an SVG document."""
    import vl_convert

    spec = _spec(name, shown) | {"datasets": shown.rows()}
    spec["layer"] = [
        layer for layer in spec["layer"] if layer["mark"].get("opacity") != 0
    ]  # nothing points at it
    return str(vl_convert.vegalite_to_svg(json.dumps(spec)))


def _spec(name: str, shown: Figures) -> dict[str, Any]:
    spec: dict[str, Any] = _module(name).draw(shown).to_dict(validate=False)
    return spec


def _module(name: str) -> Any:
    if name not in CHARTS:
        raise UsageError(
            "there is no such chart", where="chart", got=name, expected=f"one of {', '.join(CHARTS)}"
        )
    try:
        return import_module(CHARTS[name])
    except ModuleNotFoundError as error:
        if error.name not in ("altair", "vl_convert"):
            raise
        raise UsageError(
            "charts need Altair and the compiler of its specs",
            got=f"no module {error.name}",
            expected="the extra `html`",
            next_step="pip install 'fanin[html]'",
        ) from error
