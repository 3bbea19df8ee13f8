"""The report as workflow commands, which GitHub shows beside the lines of a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from fanin.finding import Diagnosis, Finding, Standing
from fanin.reports import outline
from fanin.reports.sarif import local, message
from fanin.reports.typeset import escape
from fanin.trial import Trial

COMMANDS = {Standing.ORIGIN: "error", Standing.SYMPTOM: "warning", Standing.NOTE: "notice"}
"""The cause comes first, whatever its own severity: a symptom goes when that is mended."""


def render(trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:
    """One command for each finding and each gap in the evidence, then the verdict; width and colour mean nothing."""
    return "\n".join(_lines(trial, diagnosis))


def _lines(trial: Trial, diagnosis: Diagnosis) -> Iterator[str]:
    for finding, standing in diagnosis.standings:
        yield _command(trial, finding, standing)
    for missing in diagnosis.missing:
        command, text = "warning" if missing.blocks else "notice", _data(outline.lack(trial, missing))
        yield f"::{command} title={_property(missing.code)}::{text}"
    yield f"fanin: {diagnosis.verdict.value}, {escape(outline.headline(trial, diagnosis))}"


def _command(trial: Trial, finding: Finding, standing: Standing) -> str:
    place = ""
    if finding.source:
        place = f"file={_property(local(finding.source.file).as_posix())},line={finding.source.line},"
    title = _property(f"{finding.code} {finding.name}")
    return f"::{COMMANDS[standing]} {place}title={title}::{_data(message(trial, finding))}"


def _data(text: str) -> str:
    """What GitHub's toolkit calls escaping of data: line breaks are gone by then, `%` is not."""
    return escape(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
