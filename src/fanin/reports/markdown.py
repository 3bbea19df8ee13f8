"""The report as Markdown, for the summary page of a job: short above, everything else folded.

Names and messages are somebody else's text. What means something in Markdown or HTML where it stands is written as an
entity, so that none of it can end a table, open a tag, or link anywhere; ordinary punctuation stays, so that the source
reads well too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape as markup

from fanin.change import Repair
from fanin.finding import Diagnosis, Finding, Severity
from fanin.reports import outline
from fanin.reports.base import Reading, profile, shown_worker
from fanin.reports.chart import Mark, marks_of
from fanin.reports.repair import render as render_repair
from fanin.reports.typeset import counted, escape, number
from fanin.trial import Trial

SPECIAL = re.compile(
    r"""[\\`*<&|~@$\#]         # escapes, code, emphasis, tags, entities, tables; GitHub: mentions, mathematics, issues
      | (?<![^\W_])_           # emphasis, which none within a word or at its end can open (CommonMark 6.2)
      | (?<=\])[(\[:]        # what makes a link of brackets
      | :(?=//|[\w+-]+:)     # addresses, and GitHub's emoji
      | (?<=www)\.           # an address to GitHub
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Characters that mean something to CommonMark, HTML, or GitHub's dialect within a line, where they stand."""

UNFIT = frozenset("`\\|")
"""What code between backticks cannot hold, or not within a table."""

LISTED = 30
"""Rows of the table of layers: those at fault first in line, and where there are more, the rest is only counted."""


def render(trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:
    """The report as Markdown; width and colour have no meaning here."""
    return "\n".join(_lines(trial, diagnosis))


def render_with(
    trial: Trial, diagnosis: Diagnosis, repair: Repair | None, discarded: Sequence[Repair], applied: bool
) -> str:
    """The same with the repair, as the terminal shows it, below."""
    text = render_repair(repair, discarded, applied=applied, diff=False, width=100)
    return "\n".join([*_lines(trial, diagnosis), "", *_folded("Repair", ["<pre>", _pre(text), "</pre>"])])


def plain(text: str) -> str:
    r"""Text that reads as it is, whatever it holds.

    >>> print(plain("Linear (3->4), fan_in = 3"), plain("a|b <x> *c*"))
    Linear (3->4), fan_in = 3 a&#124;b &#60;x> &#42;c&#42;
    """
    return SPECIAL.sub(lambda found: f"&#{ord(found.group())};", escape(text))


def _pre(text: str) -> str:
    """Lines within `<pre>`, which Markdown leaves alone up to its end: only HTML means something."""
    return "\n".join(markup(escape(line), quote=False) for line in text.splitlines())


def _code(text: str) -> str:
    """A name as code; in HTML where backticks cannot hold it."""
    shown = escape(text)
    if not shown.strip() or shown != shown.strip() or UNFIT & set(shown):
        return f"<code>{plain(text)}</code>"
    return f"`{shown}`"


def _lines(trial: Trial, diagnosis: Diagnosis) -> Iterator[str]:
    yield f"## {diagnosis.verdict.upper()}: {plain(outline.headline(trial, diagnosis))}"
    yield ""
    for name, text in _prose(trial, diagnosis):
        yield f"- **{name}** {text}"
    if diagnosis.findings:
        yield from ["", "| | code | where | evidence | drawn at |", "|---|---|---|---|---|"]
        yield from _findings(diagnosis, trial)
    for missing in diagnosis.missing:
        yield f"\n**{missing.code}** {plain(outline.lack(trial, missing))}"
    layers = list(_layers(trial, diagnosis))
    yield from ["", *_folded(f"{counted(len(trial.spec.layers), 'layer')}", layers)] if layers else []
    if codes := outline.said(diagnosis):
        yield f"\nWhat a code means: {', '.join(f'`fanin explain {code}`' for code in codes)}."


def _prose(trial: Trial, diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    said = {
        "Why": outline.why(trial, diagnosis),
        "Next": outline.sentence(diagnosis.next_step),
        "Sure": outline.certainty(diagnosis),
        "Not looked at": "; ".join(diagnosis.not_looked_at),
        "Cover": outline.coverage(trial),
        "Loss": outline.losses(trial),
        "SageMaker's rule": outline.documented(diagnosis),
        "Why it differs": diagnosis.disagreement,
    }
    yield from ((name, plain(text)) for name, text in said.items() if text)


def _findings(diagnosis: Diagnosis, trial: Trial) -> Iterator[str]:
    for origin in diagnosis.origins:
        yield _finding(trial, "fault", origin.finding)
        yield from (_finding(trial, "symptom", symptom) for symptom in origin.symptoms)
    yield from (_finding(trial, Severity.NOTE.value, note) for note in diagnosis.notes)


def _finding(trial: Trial, label: str, finding: Finding) -> str:
    source = _code(str(finding.source)) if finding.source else ""
    where, seen = (
        plain(outline.place(trial, finding)),
        plain(f"{outline.evidence(finding)}. {outline.told(finding)}"),
    )
    return f"| {label} | **{finding.code}** {finding.name} | {where} | {seen} | {source} |"


def _layers(trial: Trial, diagnosis: Diagnosis) -> Iterator[str]:
    """The layers at fault and downstream, then the rest, up to a screen or two."""
    blamed = frozenset(origin.finding.layer for origin in diagnosis.origins)
    shown = profile(trial.of_worker(shown_worker(trial, diagnosis)), blamed)
    marks = marks_of(shown.readings, diagnosis.origins)
    order = sorted(
        enumerate(zip(marks, shown.readings, strict=True)), key=lambda row: list(Mark).index(row[1][0])
    )
    kept = sorted(order[:LISTED])
    if kept:
        yield f"| depth | layer | state | {plain(shown.quantity)} | gradient p95 - p5 |"
        yield "|---:|---|---|---:|---:|"
        yield from (_layer(place + 1, mark, reading) for place, (mark, reading) in kept)
    if len(order) > LISTED:
        yield f"\nand {counted(len(order) - LISTED, 'further layer')}"


def _layer(depth: int, mark: Mark, reading: Reading) -> str:
    values = ("-" if value is None else number(value) for value in (reading.variance, reading.spread))
    return f"| {depth} | {_code(reading.label)} | {mark.words} | {' | '.join(values)} |"


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]
