"""Where a result goes, in which form, how wide, and whether in colour."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import click

from fanin.destination import format_of
from fanin.errors import UsageError
from fanin.finding import Diagnosis
from fanin.reports import render
from fanin.reports.outline import headline
from fanin.reports.typeset import escape
from fanin.trial import Trial

WIDTH = 80
"""Columns of what is not shown on a terminal."""

HANG = len("  expected  ")
"""Columns at which the details of an error begin (see `fanin.errors`)."""

READABLE = 100
"""Columns beyond which lines of prose are hard to follow."""


@dataclass(frozen=True, slots=True)
class Output:
    """The common options of the command line.

    Attributes:
        format: A format of `fanin.reports`; None for that which the file's name stands for.
        color: Whether to use colours; None to tell by the terminal.
        path: A file instead of the stream.
        to_stderr: Stderr instead of stdout, which belongs to somebody else.
    """

    format: str | None = None
    color: bool | None = None
    path: str | None = None
    to_stderr: bool = False

    def show(self, trial: Trial, diagnosis: Diagnosis) -> None:
        """Write a report."""
        text = render(self.form, trial, diagnosis, width=self.width, color=self.colored)
        self.write(text, verdict_line(trial, diagnosis))

    def write(self, text: str, verdict: str = "") -> None:
        """Write text and a line break; where it goes to a file, say the verdict and where it is, on stderr.

        Raises:
            UsageError: The file cannot be written.
        """
        if self.path is None:
            click.echo(encodable(text, self.stream), file=self.stream, color=True)
            return
        try:
            Path(self.path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                "cannot write the report", where=self.path, got=error.strerror or str(error)
            ) from error
        for line in filter(None, (verdict, f"report {self.path}")):
            click.echo(encodable(line, sys.stderr), err=True)

    def markdown(self, text: str) -> str:
        """A page as it looks on a terminal."""
        from rich.console import Console
        from rich.markdown import Markdown
        from rich.theme import Theme

        width = min(self.width, READABLE)
        console = Console(
            width=width,
            force_terminal=True,
            no_color=not self.colored,
            legacy_windows=False,
            theme=Theme({"markdown.h2": "bold"}),  # not magenta: a colour has a meaning here, or is not there
        )
        with console.capture() as captured:
            console.print(Markdown(text))
        return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")

    def complaint(self, text: str) -> str:
        """An error in a block of its own, its first word in red; on a terminal long lines hang below their start."""
        what, *details = text.split("\n")
        lines = [line for one in details for line in self._hung(one)]
        word = click.style("error:", fg="red", bold=True) if self.colored else "error:"
        return "\n".join([f"{word} {what}", *lines])

    def _hung(self, line: str) -> list[str]:
        if not self.on_terminal or not line.startswith("  "):
            return [line]
        return textwrap.wrap(line, self.width, subsequent_indent=" " * HANG, break_on_hyphens=False) or [line]

    def table(self, rows: Sequence[Sequence[str]]) -> str:
        """Rows in columns; the last column is wrapped on a terminal, and left whole for other programs."""
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
        hang = sum(widths) + 2 * len(widths)
        room = max(self.width - hang, 20) if self.on_terminal else sys.maxsize
        lines = []
        for *cells, last in rows:
            first, *more = textwrap.wrap(last, room) or [""]
            lines.append("  ".join([*(f"{cell:<{w}}" for cell, w in zip(cells, widths, strict=True)), first]))
            lines += [" " * hang + line for line in more]
        return "\n".join(lines)

    @property
    def form(self) -> str:
        """The format of the report."""
        return self.format or (format_of(self.path) if self.path else "terminal")

    @property
    def stream(self) -> TextIO:
        """Where text goes unless it goes to a file."""
        return sys.stderr if self.to_stderr else sys.stdout

    @property
    def on_terminal(self) -> bool:
        """Whether somebody looks at it as it comes."""
        return self.path is None and self.stream.isatty()

    @property
    def width(self) -> int:
        """Columns to fill."""
        return shutil.get_terminal_size((WIDTH, 24)).columns if self.on_terminal else WIDTH

    @property
    def colored(self) -> bool:
        """Whether to use colours."""
        return wants_color(self.color, self.on_terminal, os.environ)


def wants_color(asked: bool | None, on_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether to use colours: as asked, else as NO_COLOR (no-color.org) or FORCE_COLOR say, else on terminals.

    >>> wants_color(None, True, {"NO_COLOR": "1"}), wants_color(True, False, {"NO_COLOR": "1"})
    (False, True)
    """
    if asked is not None:
        return asked
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return on_terminal and environment.get("TERM") != "dumb"


def encodable(text: str, stream: TextIO) -> str:
    """Text with whatever the stream's encoding lacks replaced by `?`."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def verdict_line(trial: Trial, diagnosis: Diagnosis) -> str:
    """The verdict in one line, for a terminal that does not get the report."""
    return f"{diagnosis.verdict.upper()}  {escape(headline(trial, diagnosis))}"
