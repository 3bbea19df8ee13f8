"""The table of reports. Each is a pure function from a trial and its diagnosis to text."""

from __future__ import annotations

from importlib import import_module

from fanin.errors import UsageError
from fanin.finding import Diagnosis
from fanin.reports.base import Renderer
from fanin.trial import Trial

FORMATS = {"terminal": "fanin.reports.terminal", "json": "fanin.reports.json"}
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
