"""What a report says, in words, for the formats that have headings and links: pages, summaries and annotations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite, isinf

from fanin.finding import Diagnosis, Finding, Missing, Scope, Verdict
from fanin.judgement import rule_types
from fanin.reports.base import dimensions, fired
from fanin.reports.json import STATUS
from fanin.reports.typeset import capitalized, counted, number
from fanin.summary import Interval
from fanin.trial import LayerSpec, Trial
from fanin.trust import DOUBTS


def headline(trial: Trial, diagnosis: Diagnosis) -> str:
    """The verdict's reason in a line: code, name and place of the first fault, or the model that has none."""
    if not diagnosis.origins:
        return f"{trial.spec.name or 'the model'}, {counted(len(trial.spec.weight_layers), 'weight layer')}"
    finding = diagnosis.origins[0].finding
    return f"{finding.code} {finding.name} {place(trial, finding)}"


def place(trial: Trial, finding: Finding) -> str:
    """Where a fault lies: at one layer, or in how many from which on."""
    path = finding.layer or "the model"
    at_fault = {*finding.layers, finding.layer}
    if finding.scope is Scope.LAYER or len(at_fault) == 1:
        return f"at {path}{_kind(trial, finding.layer)}"
    paths = [layer.path for layer in trial.spec.weight_layers]
    after = set(paths[paths.index(finding.layer) :]) if finding.layer in paths else set(paths)
    reach = "every layer" if after <= at_fault else counted(len(at_fault), "layer")
    return f"in {reach} from {path} on"


def _kind(trial: Trial, path: str) -> str:
    layer = next((layer for layer in trial.spec.layers if layer.path == path), None)
    return f" ({described(layer)})" if layer else ""


def described(layer: LayerSpec) -> str:
    """Type and shape of a layer, e.g. `Linear 256->128`."""
    shapes = [shape for weight in layer.weights if (shape := dimensions(weight))]
    return " ".join([layer.type_name, *shapes[:1]])


def evidence(finding: Finding) -> str:
    """What was measured, and where it should lie."""
    return f"{finding.quantity} = {span(finding.measured)}, expected {span(finding.expected)}"


def span(interval: Interval) -> str:
    """An interval in words where it has one end only, as one number where its ends look alike."""
    low, high = number(interval.low), number(interval.high)
    if isinf(interval.low) != isinf(interval.high):
        return f"at least {low}" if isinf(interval.high) else f"at most {high}"
    return low if low == high else f"{low} to {high}"


def sentence(text: str, names: Iterable[str] = ()) -> str:
    """With a capital letter in front, unless it begins with a name, and a full stop at its end."""
    return f"{capitalized(text, names).rstrip('.')}." if text else ""


def names_in(finding: Finding) -> tuple[str, ...]:
    """What a finding's message may begin with, and is no word: its layers and its tensor."""
    return (finding.tensor, finding.layer, *finding.layers)


def told(finding: Finding) -> str:
    """A finding's message as a sentence."""
    return sentence(finding.message, names_in(finding))


def lack(trial: Trial, missing: Missing) -> str:
    """What was missing, and what would supply it."""
    return f"{sentence(missing.what, names_of(trial))} To settle it: {missing.settle}."


def why(trial: Trial, diagnosis: Diagnosis) -> str:
    """The verdict's reason; without a fault it may be what was missing, which may begin with a layer."""
    return sentence(diagnosis.why, () if diagnosis.origins else names_of(trial))


def names_of(trial: Trial) -> tuple[str, ...]:
    """All layers and parameters."""
    layers = trial.spec.layers
    parameters = (layer.parameter_path(p) for layer in layers for p in layer.parameters)
    return (*(layer.path for layer in layers), *parameters)


def source(finding: Finding) -> str:
    """The line that drew what is at fault, with the file's whole name; empty where that is not known."""
    return f"{finding.source.file}:{finding.source.line}" if finding.source else ""


def certainty(diagnosis: Diagnosis) -> str:
    """How sure the verdict is, and what settled it; empty for one that is none."""
    if not diagnosis.confidence or not diagnosis.decided_by:
        return ""
    return f"{diagnosis.confidence:.0%}, settled by {diagnosis.decided_by}"


def losses(trial: Trial) -> str:
    """The first and the last loss that was seen."""
    seen = [step for step in trial.train_steps if step.losses]
    ends = seen[:1] if len(seen) < 2 else [seen[0], seen[-1]]
    return ", ".join(f"{_loss(step.loss)} at step {step.index}" for step in ends) or "not seen"


def _loss(value: float) -> str:
    return f"{value:.4g}" if isfinite(value) else number(value)


def coverage(trial: Trial) -> str:
    """How much of the model the verdict rests on."""
    ran = len(fired(trial))
    parts = [f"{ran} of {counted(len(trial.spec.layers), 'layer')} ran"]
    parts += [counted(len(trial.train_steps), "step"), counted(len(trial.workers) or 1, "rank")]
    return ", ".join(parts if trial.complete else [*parts, "not closed: still running, or broken off"])


def never_ran(trial: Trial) -> tuple[str, ...]:
    """Paths of the layers that did not run."""
    ran = {layer.path for layer in fired(trial)}
    return tuple(layer.path for layer in trial.spec.layers if layer.path not in ran)


def documented(diagnosis: Diagnosis) -> str:
    """The documented rule's answer, in its own words; empty where it was not asked."""
    if diagnosis.documented is None:
        return ""
    reasons = [f"{evidence(finding)} at step {finding.step}" for finding in diagnosis.documented_findings]
    if diagnosis.documented is Verdict.UNDECIDED:
        reasons = [missing.what for missing in diagnosis.documented_missing]
    reasons = [] if diagnosis.is_documented_rule else reasons
    return STATUS[diagnosis.documented] + (": " + "; ".join(reasons) if reasons else "")


def said(diagnosis: Diagnosis) -> tuple[str, ...]:
    """The codes of all that the report names, each once."""
    codes = [f.code for f in (*diagnosis.findings, *diagnosis.documented_findings)]
    return tuple(dict.fromkeys([*codes, *(missing.code for missing in diagnosis.missing)]))


def pages(diagnosis: Diagnosis) -> Iterator[tuple[str, str, str]]:
    """Code, name and page, as Markdown, of each code that the report names."""
    known: dict[str, tuple[str, str]] = {rule.code: (rule.name, rule.page()) for rule in rule_types()}
    known |= {doubt.code: (doubt.name, doubt.page) for doubt in DOUBTS}
    for code in said(diagnosis):
        if code in known:
            yield code, *known[code]
