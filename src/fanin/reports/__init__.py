"""The table of reports. Each is a pure function from a trial and its diagnosis to text."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from fanin.change import Repair
from fanin.errors import UsageError
from fanin.finding import Diagnosis
from fanin.reports.base import Renderer
from fanin.trial import Trial

FORMATS = {
    "terminal": "fanin.reports.terminal",
    "json": "fanin.reports.json",
    "html": "fanin.reports.html",
    "markdown": "fanin.reports.markdown",
    "sarif": "fanin.reports.sarif",
    "junit": "fanin.reports.junit",
    "github": "fanin.reports.github",
}
"""Format -> module, which holds a function called `render`."""


def render(format: str, trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:  # noqa: A002
    """A report as text, without a line break at its end.

    Args:
        format: One of FORMATS.
        trial: What was seen.
        diagnosis: What was made of it.
        width: Columns to fill, where the format has columns.
        color: Whether to add the terminal's colours, where the format has them.

    Raises:
        UsageError: There is no such format.
    """
    if format not in FORMATS:
        raise UsageError(
            "there is no such report", where="format", got=format, expected=f"one of {', '.join(FORMATS)}"
        )
    renderer: Renderer = import_module(FORMATS[format]).render
    return renderer(trial, diagnosis, width=width, color=color)


def render_repair(
    format: str,  # noqa: A002
    trial: Trial,
    diagnosis: Diagnosis,
    repair: Repair | None,
    discarded: Sequence[Repair] = (),
    *,
    applied: bool = False,
    after: Trial | None = None,
    diff: bool = False,
    width: int = 80,
    color: bool = False,
) -> str:
    """A report with a repair, as text; formats that know of findings only leave it out.

    Args:
        format, trial, diagnosis, width, color: As for `render`.
        repair: What is proposed; None where nothing is.
        discarded: What was tried and did not win, or not by as much.
        applied: Whether the model holds the repair by now.
        after: The look at the repaired network, for formats that draw it.
        diff: Whether to show it as a change of files too, where that is a choice.

    Raises:
        UsageError: There is no such format.
    """
    if format == "html":
        from fanin.reports.html import page

        return page(trial, diagnosis, repair, discarded, applied=applied, after=after)
    if format in ("json", "markdown"):
        render_with = import_module(FORMATS[format]).render_with
        return str(render_with(trial, diagnosis, repair, discarded, applied))
    above = render(format, trial, diagnosis, width=width, color=color)
    if format != "terminal":
        return above
    from fanin.reports.repair import render as render_below

    below = render_below(repair, discarded, applied=applied, diff=diff, width=width, color=color)
    return f"{above}\n\n{below}"
