"""The report for people: one screen, 80 columns, readable without colour.

Model code, layer names and messages come from elsewhere. They are escaped, and never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite, isinf, isnan

from rich.cells import cell_len
from rich.text import Text

from fanin.finding import Diagnosis, Finding, Scope, Verdict
from fanin.reports.base import dimensions, fired, profile, shown_worker
from fanin.reports.chart import draw
from fanin.reports.json import STATUS
from fanin.reports.outline import names_in, names_of
from fanin.reports.typeset import (
    LABEL,
    banner,
    capitalized,
    counted,
    elide,
    escape,
    number,
    paragraph,
    to_string,
)
from fanin.summary import Interval
from fanin.trial import Step, Trial

NARROWEST, WIDEST = 60, 120
"""Columns that the layout can do with, and can make use of."""

LISTED = 4
"""Further faults, gaps or notes listed before the rest is only counted."""

STYLES = {Verdict.HEALTHY: "bold green", Verdict.POOR: "bold red", Verdict.UNDECIDED: "bold yellow"}


def render(trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:
    """The report as text, no line longer than `width`, which is taken as 60 at least and 120 at most."""
    width = min(max(width, NARROWEST), WIDEST)
    return to_string(_lines(trial, diagnosis, width), width, color)


def _lines(trial: Trial, diagnosis: Diagnosis, width: int) -> Iterator[Text]:
    yield from _head(trial, diagnosis, width)
    yield from _prose(trial, diagnosis, width)
    yield from paragraph("Sure", _certainty(diagnosis), width)
    yield from _rows(trial, diagnosis, width)
    yield from paragraph("loss", _loss(trial), width)
    yield from _also(diagnosis, width)
    yield from _notes(diagnosis, width)
    yield from _lacks(diagnosis, width)
    yield from _cover(trial, width)
    yield from _documented(diagnosis, width)
    yield Text()
    yield from banner(Text(_counts(diagnosis)), _explain(diagnosis), width)


def _head(trial: Trial, diagnosis: Diagnosis, width: int) -> list[Text]:
    """The verdict, and where it points."""
    word = Text(diagnosis.verdict.upper(), style=STYLES[diagnosis.verdict])
    if not diagnosis.origins:
        model = elide(escape(trial.spec.name), width // 2)
        layers = counted(len(trial.spec.weight_layers), "weight layer")
        return banner(Text.assemble(word, f"  {model}, {layers}"), trial.spec.framework, width)
    finding = diagnosis.origins[0].finding
    source = escape(str(finding.source)) if finding.source else ""
    left = Text.assemble(word, (f"  {finding.code} {finding.name}", "bold"))
    beside = width - left.cell_len - (cell_len(source) + 2 if source else 0)
    place = _place(trial, finding, beside)
    if cell_len(place) <= beside:
        return banner(left + Text(place), source, width)
    below = Text(" " * (LABEL - 1) + _place(trial, finding, width - LABEL))
    return [*banner(left, source, width), below]


def _place(trial: Trial, finding: Finding, room: int) -> str:
    """Where a fault lies, in words that fit: the type is left out first, then the middle of the name."""
    alone = finding.scope is Scope.LAYER or len(finding.layers) == 1
    before, after = (" at ", "") if alone else (f" in {_reach(trial, finding)} from ", " on")
    path = escape(finding.layer) or "the model"
    kind = _kind(trial, finding.layer)
    for text in (f"{before}{path}{after}{kind}", f"{before}{path}{after}"):
        if cell_len(text) <= room:
            return text
    return before + elide(path, max(room - len(before + after), 12)) + after


def _reach(trial: Trial, finding: Finding) -> str:
    """Every layer, where that is true of all that follow; else how many."""
    paths = [layer.path for layer in trial.spec.weight_layers]
    after = paths[paths.index(finding.layer) :] if finding.layer in paths else paths
    at_fault = {*finding.layers, finding.layer}
    return "every layer" if not finding.layers or set(after) <= at_fault else counted(len(at_fault), "layer")


def _kind(trial: Trial, path: str) -> str:
    """Type and shape of a layer, in brackets."""
    layer = next((layer for layer in trial.spec.layers if layer.path == path), None)
    if layer is None:
        return ""
    shapes = [shape for weight in layer.weights if (shape := dimensions(weight))]
    return f" ({' '.join([escape(layer.type_name), *shapes[:1]])})"


def _prose(trial: Trial, diagnosis: Diagnosis, width: int) -> Iterator[Text]:
    """What was seen, what to do, and what may lie behind it."""
    finding = diagnosis.origins[0].finding if diagnosis.origins else None
    cause = finding.cause if finding else None
    names = () if finding else names_of(trial)  # what was missing may begin with a layer
    yield from paragraph("Why", capitalized(diagnosis.why, names), width)
    if finding and finding.quantity not in diagnosis.why:
        message = capitalized(finding.message, names_in(finding))
        measured = _measurement(finding) + ("" if finding.message in diagnosis.why else f". {message}")
        yield from paragraph("" if diagnosis.why else "Why", capitalized(measured), width)
    yield from paragraph("Next", capitalized(diagnosis.next_step or (cause.remedy if cause else "")), width)
    if cause:
        yield from paragraph("Maybe", capitalized(cause.hypotheses), width)


def _certainty(diagnosis: Diagnosis) -> str:
    """How sure the verdict is, what settled it, and which stages were left out."""
    said = []
    if diagnosis.confidence and diagnosis.decided_by:
        said.append(f"{diagnosis.confidence:.0%}, settled by {diagnosis.decided_by}")
    if diagnosis.not_looked_at and diagnosis.decided_by not in ("parameters", "race"):
        said.append("not looked at: " + "; ".join(diagnosis.not_looked_at))
    return ". ".join(capitalized(text) for text in said)


def _measurement(finding: Finding) -> str:
    """What was measured, and where it should lie."""
    return f"{finding.quantity} = {_value(finding.measured)} (expected {_value(finding.expected)})"


def _rows(trial: Trial, diagnosis: Diagnosis, width: int) -> list[Text]:
    """The layers around the faults, between two blank lines; as seen by the rank that saw the first fault."""
    blamed = frozenset(origin.finding.layer for origin in diagnosis.origins)
    worker = shown_worker(trial, diagnosis)
    seen = profile(trial.of_worker(worker), blamed)
    rows = draw(seen, diagnosis, width)
    if not rows:
        return [Text()]
    notes = [f"rows show rank {worker}"] if len(trial.workers) > 1 else []
    notes += [f"rows show step {seen.step}: step 0 was not watched"] if seen.step else []
    aside = [Text(f"          {note}", style="dim") for note in notes]
    return [Text(), *rows, *aside, Text()]


def _loss(trial: Trial) -> str:
    seen = [step for step in trial.train_steps if step.losses]
    if not seen:
        return "not seen"
    ends = seen[:1] if len(seen) == 1 else [seen[0], seen[-1]]
    return ", ".join(f"{_loss_of(step)} at step {step.index}" for step in ends)


def _loss_of(step: Step) -> str:
    """Four digits: where a loss stays, three would hide that it moves at all."""
    return f"{step.loss:.4g}" if isfinite(step.loss) else number(step.loss)


def _also(diagnosis: Diagnosis, width: int) -> Iterator[Text]:
    """Further faults, one line each."""
    others = diagnosis.origins[1:]
    for origin in others[:LISTED]:
        yield from _other(origin.finding, width)
    if len(others) > LISTED:
        yield from paragraph("", f"and {counted(len(others) - LISTED, 'further fault')}", width)


def _other(finding: Finding, width: int) -> list[Text]:
    """One line where it fits: the cause is left out first, then the middle of the layer's name."""
    source = escape(str(finding.source)) if finding.source else ""
    label = Text("also".ljust(LABEL), style="bold")
    # Without a cause the name says nothing of what was found: the documented rule has three checks of one name.
    what = f"{finding.code} {finding.name} at " if finding.cause else f"{finding.code} at "
    room = width - LABEL - len(what) - (cell_len(source) + 2 if source else 0)
    where = elide(escape(finding.layer) or "the model", max(room, 12))
    why = f": {finding.cause.title if finding.cause else finding.quantity}"
    why = why if cell_len(where + why) <= room else ""
    return banner(Text.assemble(label, what + where + why), source, width)


def _notes(diagnosis: Diagnosis, width: int) -> Iterator[Text]:
    """What is unusual and no fault."""
    for note in diagnosis.notes[:LISTED]:
        source = f" ({note.source})" if note.source else ""
        yield from paragraph("note", f"{note.code} at {note.layer}{source}: {note.message}", width)
    if len(diagnosis.notes) > LISTED:
        yield from paragraph("", f"and {counted(len(diagnosis.notes) - LISTED, 'further note')}", width)


def _lacks(diagnosis: Diagnosis, width: int) -> Iterator[Text]:
    """Evidence that was missing and what would supply it, that which blocks a verdict first."""
    wanted = sorted(diagnosis.missing, key=lambda missing: not missing.blocks)
    for missing in wanted[:LISTED]:
        yield from paragraph("lacks", f"{missing.code} {missing.what}; {missing.settle}", width)
    if len(wanted) > LISTED:
        yield from paragraph("", f"and {counted(len(wanted) - LISTED, 'further piece')} of evidence", width)


def _cover(trial: Trial, width: int) -> Iterator[Text]:
    """How much of the model the verdict rests on."""
    layers, ran = trial.spec.layers, {layer.path for layer in fired(trial)}
    parts = [f"{len(ran)}/{len(layers)} layers ran", counted(len(trial.train_steps), "step")]
    parts.append(counted(len(trial.workers) or 1, "rank"))
    if not trial.complete:
        parts.append("not closed: still running, or broken off")
    yield from paragraph("cover", ", ".join(parts), width)
    idle = [elide(escape(layer.path), width // 3) for layer in layers if layer.path not in ran]
    if idle:
        more = f" and {len(idle) - LISTED} more" if len(idle) > LISTED else ""
        yield from paragraph("", f"never ran: {', '.join(idle[:LISTED])}{more}", width)
    for note in trial.spec.notes[:LISTED]:
        yield from paragraph("", note, width)


def _documented(diagnosis: Diagnosis, width: int) -> Iterator[Text]:
    """What the rule that SageMaker Debugger documents says of the same trial."""
    if diagnosis.documented is None:
        return
    reasons = [_comparison(finding) for finding in diagnosis.documented_findings]
    if diagnosis.documented is Verdict.UNDECIDED:
        reasons = [missing.what for missing in diagnosis.documented_missing]
    reasons = [] if diagnosis.is_documented_rule else reasons
    text = STATUS[diagnosis.documented] + (": " + "; ".join(reasons) if reasons else "")
    yield from paragraph("SageMaker's rule  ", text, width)
    yield from paragraph("why it differs    ", diagnosis.disagreement, width)


def _comparison(finding: Finding) -> str:
    """A measurement and the threshold that it crosses."""
    measured, expected = finding.measured, finding.expected
    if isnan(measured.low) or isnan(measured.high):
        crossed = f" ({finding.message.rstrip('.')})"
    elif measured.low > expected.high:
        crossed = f" > {number(expected.high)}"
    elif measured.high < expected.low:
        crossed = f" < {number(expected.low)}"
    else:
        crossed = ""
    return f"{finding.quantity} {_value(measured)}{crossed} at step {finding.step}"


def _value(interval: Interval) -> str:
    """An interval in words where it has one end only, as one number where its ends look alike."""
    low, high = number(interval.low), number(interval.high)
    if isinf(interval.low) != isinf(interval.high):
        return f"at least {low}" if isinf(interval.high) else f"at most {high}"
    return low if low == high else f"{low}..{high}"


def _counts(diagnosis: Diagnosis) -> str:
    origins = diagnosis.origins
    other = sum(1 for o in origins if o.finding.cause and not o.finding.cause.is_initialization)
    faults = len(origins) - other
    parts = [
        counted(faults, "fault") if faults else "no fault of the initialization" if other else "no fault"
    ]
    if faults and other:
        parts.append(f"{other} of something else")
    if symptoms := sum(len(origin.symptoms) for origin in origins):
        parts.append(counted(symptoms, "symptom"))
    if diagnosis.notes:
        parts.append(counted(len(diagnosis.notes), "note"))
    if diagnosis.missing and diagnosis.verdict is Verdict.UNDECIDED:
        parts.append(f"{len(diagnosis.missing)} missing")
    return ", ".join(parts)


def _explain(diagnosis: Diagnosis) -> str:
    codes = [finding.code for finding in diagnosis.findings]
    codes += [missing.code for missing in diagnosis.missing if missing.blocks]
    return f"fanin explain {codes[0]}" if codes else "fanin rules"
