"""The report as one HTML page, which opens from a disk, asks no network for anything, and runs no script but its own.

Layer names, messages and paths are somebody else's text: the template escapes all of them, scripts set them as text
only, and the content security policy names every script and style by its hash.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from math import isfinite, isnan
from typing import Any

from fanin.change import Repair
from fanin.errors import UsageError
from fanin.finding import Diagnosis, Finding, Severity, Verdict
from fanin.reports import charts, outline
from fanin.reports.charts import Figures
from fanin.reports.charts.data import Point
from fanin.reports.json import tool_version
from fanin.reports.typeset import escape, number
from fanin.trial import LayerSpec, Trial

SYMBOLS = {Verdict.HEALTHY: "✓", Verdict.POOR: "✕", Verdict.UNDECIDED: "?"}
"""A shape for each verdict, for those who cannot tell its colour."""

NOTHING = -99.0
"""Decades that stand for a variance of zero, which has none: less than any that a float can hold."""

FURTHEST = 3.0
"""Decades at which the marks of the table end, as the heat map's colours do."""

LONG = 60
"""Layers from which a print leaves out those that are in step: 500 rows would be ten pages that say nothing."""

KEPT_OUT = ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:")
"""What the page may do, but for its own scripts and styles: nothing."""


def render(trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:
    """The report as a page; width and colour have no meaning here.

    Raises:
        UsageError: The extra `html` is not installed.
    """
    return page(trial, diagnosis)


def page(
    trial: Trial,
    diagnosis: Diagnosis,
    repair: Repair | None = None,
    discarded: Sequence[Repair] = (),
    *,
    applied: bool = False,
    after: Trial | None = None,
    live: str = "",
) -> str:
    """The page, with a repair where there is one.

    Args:
        trial, diagnosis: What was seen, and what was made of it.
        repair: What is proposed.
        discarded: What else was tried.
        applied: Whether the model holds the repair by now.
        after: The look at the repaired network.
        live: What names this state of a page that is served and loads itself anew; empty for one that stays.

    Raises:
        UsageError: The extra `html` is not installed.
    """
    shown = charts.figures(trial, diagnosis, repair=repair, after=after)
    names = charts.available(shown)
    specs = {name: charts.compiled(name, shown) for name in names}
    scripts = [_part("vega.min.js"), _part("report.js"), *([_part("live.js")] if live else [])]
    style = _colors() + _part("style.css")
    return str(
        _template().render(
            trial=trial,
            diagnosis=diagnosis,
            repair=repair if repair is not None and repair.changes else None,
            advice=repair.advice if repair is not None else (),
            discarded=discarded,
            applied=applied,
            outline=outline,
            version=tool_version(),
            symbol=SYMBOLS[diagnosis.verdict],
            names=names,
            titles={name: charts.title(name) for name in names},
            captions=_captions(shown),
            shown=shown,
            banded=any(point.low is not None for point in shown.points),
            rows=list(_rows(trial, shown)),
            long=LONG,
            pages=[(code, name, _html(text)) for code, name, text in outline.pages(diagnosis)],
            groups=_groups(diagnosis),
            policy=_policy(scripts, style, live),
            live=live,
            style=style,
            scripts=scripts,
            data=_embedded({"rows": shown.rows(), "specs": specs}),
        )
    )


def live_page(trial: Trial, diagnosis: Diagnosis, version: str) -> str:
    """The page as `fanin follow --serve` shows it: it asks its own server, and nobody else, whether it has changed.

    Raises:
        UsageError: The extra `html` is not installed.
    """
    return page(trial, diagnosis, live=version)


def waiting_page(title: str, version: str, ended: str = "") -> str:
    """What is shown before there is anything to show, or, with the reason, when nothing will be."""
    scripts, style = [_part("live.js")], _colors() + _part("style.css")
    return str(
        _template("waiting.html").render(
            title=title,
            version=version,
            ended=ended,
            policy=_policy(scripts, style, version),
            style=style,
            scripts=scripts,
        )
    )


# ── the parts of the page ───────────────────────────────────────────────────────────────────────────────────


@cache
def _part(name: str) -> str:
    return files("fanin.reports").joinpath("page", name).read_text(encoding="utf-8")


@cache
def _template(name: str = "report.html") -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise UsageError(
            "the HTML report needs its extra",
            got=f"no module {error.name}",
            expected="the extra `html`",
            next_step="pip install 'fanin[html]'",
        ) from error
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_printable
    )
    environment.filters |= {"number": number, "lines": _lines, "raw": _raw, "slug": _slug}
    return environment.from_string(_part(name))


def _printable(value: Any) -> Any:
    """Text without characters that do not print; what is markup already, or a number, is left alone."""
    return escape(value) if type(value) is str else "" if value is None else value


def _raw(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # our own files and JSON, whose `<` is escaped


def _lines(text: str) -> Any:
    """Text that keeps its line breaks."""
    from markupsafe import Markup
    from markupsafe import escape as markup

    return Markup("\n").join(markup(escape(line)) for line in text.splitlines())


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def _html(markdown: str) -> str:
    """A rule's page; it is ours, and may hold no HTML of its own."""
    from markdown_it import MarkdownIt

    found = str(MarkdownIt("commonmark", {"html": False}).render(markdown))
    return found.replace("<h2>", "<h3>").replace("</h2>", "</h3>")


def _colors() -> str:
    """The colours of the charts as variables, light and dark."""
    from fanin.reports.charts.look import DARK, LIGHT

    light, dark = (
        "".join(f"--{name}:{value};" for name, value in colors.items()) for colors in (LIGHT, DARK)
    )
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
    )


def _policy(scripts: Sequence[str], style: str, live: str = "") -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    asks = ["connect-src 'self'"] if live else []
    return "; ".join([*KEPT_OUT, f"script-src {allowed}", f"style-src {_hash(style)}", *asks])


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _embedded(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


# ── what it says ────────────────────────────────────────────────────────────────────────────────────────────


def _captions(shown: Figures) -> dict[str, str]:
    """What each chart shows, for those who cannot see it."""
    faults = [point.layer for point in shown.points if point.mark == "fault"]
    named = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
    off = sum(1 for point in shown.points if _is_off(point))
    known = sum(1 for point in shown.points if point.low is not None and point.variance is not None)
    where = f"At fault: {named}. " if faults else ""
    band = f"{off} of {known} layers lie outside of what is expected." if known else ""
    return {
        "variance": f"{where}{band}",
        "comparison": "The same layers as given and repaired, on the same axes; diamonds are what the repair changes.",
        "gradient": "A layer that stands out from its neighbours is the one whose own scale is off.",
        "heat": "Blue is too small, red too large, what is as expected has no colour; grey was not watched.",
        "ranks": "One dot for each rank; lines span the smallest to the largest.",
        "loss": "A small change says little; no change at all says much.",
    }


def _is_off(point: Point) -> bool:
    """Whether its variance is known to lie outside the band."""
    if point.low is None or point.high is None or point.variance is None:
        return False
    return not point.low <= point.variance <= point.high


def _groups(diagnosis: Diagnosis) -> list[tuple[str, Finding, tuple[Finding, ...], int]]:
    """What to head a finding with, the finding, its symptoms, and how many layers suffer from it."""
    faults = [
        (
            "fault" if _is_ours(o.finding) else "not the initialization",
            o.finding,
            o.symptoms,
            len(o.downstream),
        )
        for o in diagnosis.origins
    ]
    return [*faults, *((Severity.NOTE.value, note, (), 0) for note in diagnosis.notes)]


def _is_ours(finding: Finding) -> bool:
    return finding.cause is None or finding.cause.is_initialization


def _rows(trial: Trial, shown: Figures) -> Iterator[dict[str, Any]]:
    """All layers of the model, those that were seen with what they showed."""
    seen = {point.layer: point for point in shown.points}
    idle = set(outline.never_ran(trial))
    for place, layer in enumerate(trial.spec.layers, 1):
        yield _row(place, layer, seen.pop(layer.path, None), layer.path in idle)
    for point in seen.values():  # tensors of other tools, whose layers are not known
        yield _row(point.depth, None, point, False)


def _row(place: int, layer: LayerSpec | None, point: Point | None, idle: bool) -> dict[str, Any]:
    off = _decades_off(point)
    banded = point if point and point.is_judged and point.sound is None else None
    source = next((str(p.source) for p in layer.parameters if p.source), "") if layer else ""
    return {
        "place": place,
        "depth": point.depth if point else 0,
        "name": layer.path if layer else point.layer if point else "",
        "type": outline.described(layer) if layer else "",
        "activation": (layer.activation or "") if layer else "",
        "mark": "never ran" if idle else point.mark if point else "not judged",
        "code": point.code if point else "",
        "variance": point.variance if point else None,
        "sound": point.sound if point else None,
        "band": (banded.low, banded.high) if banded else None,
        "off": off,
        "bar": _bar(off),
        "times": _times(off),
        "spread": point.spread if point else None,
        "source": source,
    }


def _decades_off(point: Point | None) -> float | None:
    if point is None or point.variance is None or not point.is_judged or not isfinite(point.variance):
        return None
    return max(point.off(point.variance), NOTHING)


def _bar(off: float | None) -> tuple[float, float] | None:
    """Left edge and width, from 0 to 60, of a bar that starts in the middle."""
    if off is None:
        return None
    end = 30 + 30 * min(max(off, -FURTHEST), FURTHEST) / FURTHEST
    return round(min(end, 30), 1), round(max(abs(end - 30), 1), 1)


def _times(off: float | None) -> str:
    """How many times too small or too large."""
    if off is None or isnan(off):
        return ""
    if off <= -50:
        return "zero"
    if abs(off) < 0.1:
        return "as expected"
    return ("÷ " if off < 0 else "× ") + number(10 ** abs(off))
