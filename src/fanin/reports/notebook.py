"""What a notebook shows of a report, a trial and a repair: the verdict and the chart that matters, as a picture.

A picture needs no scripts: it is there in JupyterLab, in exported pages, and in notebooks that are not trusted. Without
the extra `html` it is the terminal's report.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from html import escape as markup

from fanin.change import Repair
from fanin.errors import UsageError
from fanin.finding import Diagnosis, Verdict
from fanin.reports import outline, render
from fanin.reports import render_repair as terminal_repair
from fanin.reports.repair import render as render_repair
from fanin.reports.typeset import counted, escape
from fanin.trial import Trial

COLORS = {Verdict.POOR: "#c4162a", Verdict.HEALTHY: "#2b6f5f", Verdict.UNDECIDED: "#8a5200"}

BOX = (
    "background:#fff;color:#1f2328;border:1px solid #d9dee3;border-radius:8px;padding:12px 16px;max-width:1010px;"
    "font:14px/1.5 system-ui,sans-serif"
)
"""Whatever the notebook's theme: a picture does not follow it."""

QUIET = "color:#59636e"


def of_report(trial: Trial, diagnosis: Diagnosis) -> str:
    """A report."""
    try:
        picture = _picture(trial, diagnosis)
    except UsageError:
        return _pre(render("terminal", trial, diagnosis, width=100))
    return _box([*_verdict(trial, diagnosis), picture, *_below(trial, diagnosis)])


def of_trial(trial: Trial) -> str:
    """A trial that nobody has judged."""
    name = f"Trial of {trial.spec.name or 'a model'}"
    said = f"{outline.coverage(trial)}; loss {outline.losses(trial)}; {trial.spec.framework}; {trial.uri}"
    try:
        picture = _picture(trial, Diagnosis(Verdict.UNDECIDED))
    except UsageError:
        return _pre(f"{name}\n{said}")
    return _box([f"<b>{_text(name)}</b>", f'<div style="{QUIET}">{_text(said)}</div>', picture])


def of_repair(
    trial: Trial,
    diagnosis: Diagnosis,
    repair: Repair | None,
    discarded: tuple[Repair, ...],
    applied: bool,
    after: Trial | None,
) -> str:
    """A repair: before and after, and its text with the code to paste."""
    text = render_repair(repair, discarded, applied=applied, diff=False, width=100)
    try:
        picture = _picture(trial, diagnosis, repair, after)
    except UsageError:
        return _pre(
            terminal_repair("terminal", trial, diagnosis, repair, discarded, applied=applied, width=100)
        )
    return _box([*_verdict(trial, diagnosis), picture, _pre(text)])


def _picture(
    trial: Trial, diagnosis: Diagnosis, repair: Repair | None = None, after: Trial | None = None
) -> str:
    """The chart that matters: before and after where there is a repair, else the signal; empty where nothing was seen.

    Raises:
        UsageError: The extra `html` is not installed.
    """
    from fanin.reports import charts

    shown = charts.figures(trial, diagnosis, repair=repair, after=after)
    name = next((n for n in ("comparison", "variance") if n in charts.available(shown)), None)
    if name is None:
        return ""
    data = b64encode(charts.svg(name, shown).encode()).decode()
    where = outline.headline(trial, diagnosis) if diagnosis.origins else ""
    words = f"{charts.title(name)}. {where}".strip()
    return (
        f'<div style="{QUIET};margin-top:8px">{_text(charts.title(name))}</div>'
        f'<img alt="{_text(words)}" src="data:image/svg+xml;base64,{data}" style="width:100%;max-width:992px">'
    )


def _verdict(trial: Trial, diagnosis: Diagnosis) -> Iterator[str]:
    color = COLORS[diagnosis.verdict]
    source = diagnosis.origins[0].finding.source if diagnosis.origins else None
    aside = f' <code style="{QUIET};background:none">{_text(str(source))}</code>' if source else ""
    yield (
        f'<div style="font-size:16px"><b style="color:{color}">{diagnosis.verdict.upper()}</b> '
        f"<b>{_text(outline.headline(trial, diagnosis))}</b>{aside}</div>"
    )
    next_step = outline.sentence(diagnosis.next_step)
    for label, text in (("Why", outline.why(trial, diagnosis)), ("Next", next_step)):
        if text:
            yield f'<div><span style="{QUIET}">{label}</span> {_text(text)}</div>'


def _below(trial: Trial, diagnosis: Diagnosis) -> Iterator[str]:
    parts = [outline.certainty(diagnosis), outline.coverage(trial)]
    more = len(diagnosis.findings) - 1
    parts += (
        [f"{counted(more, 'further finding')}: print(report), or report.to_html(...)"] if more > 0 else []
    )
    yield f'<div style="{QUIET};font-size:13px">{_text("; ".join(part for part in parts if part))}</div>'


def _box(parts: list[str]) -> str:
    return f'<div style="{BOX}">{"".join(parts)}</div>'


def _pre(text: str) -> str:
    style = "font-size:12.5px;line-height:1.45;overflow:auto;background:none;color:inherit;margin:8px 0 0"
    return f'<pre style="{style}">{chr(10).join(_text(line) for line in text.splitlines())}</pre>'


def _text(text: str) -> str:
    return markup(escape(text))
