"""From findings to a verdict with its causes, origin before symptom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf

from fanin.cause import NON_FINITE
from fanin.confidence import THIN, confidence
from fanin.finding import Diagnosis, Finding, Missing, Origin, Scope, Severity, Verdict
from fanin.halves import confirmed
from fanin.judgement import Result
from fanin.propagation import Stretch, stretch
from fanin.race import Outcome
from fanin.rules import growing_signal, shrinking_signal
from fanin.trial import RECHECK, ModelSpec, Role, Trial
from fanin.trust import THIN_EVIDENCE, doubts

DOCUMENTED = "FAN001"
"""The documented rule. Its answer is printed beside ours and decides only when it is asked alone."""

LEAST_TOLD = 0.05
"""Decades that one digit after the point shows as none."""


def diagnose(trial: Trial, results: Sequence[Result]) -> Diagnosis:
    """The verdict that these results of rules support."""
    documented = next((r for r in results if r.rule.code == DOCUMENTED), None)
    ours = [r for r in results if r is not documented]
    if not ours and documented is not None:
        return _documented_alone(trial, documented)
    ours = [confirmed(trial, result) for result in ours]
    findings = [_settled(trial, f) for r in ours for f in r.findings]
    missing = tuple(_missing(trial, ours))
    found = _origins(trial.spec, [f for f in findings if f.severity is not Severity.NOTE])
    origins = tuple(o for o in found if _is_fault(o))
    explained = {layer for o in origins for layer in (*_reach(o.finding), *o.downstream)}
    unusual = [o.finding for o in found if o not in origins and o.finding.severity is not Severity.CLUE]
    noted = [*unusual, *(f for f in findings if f.severity is Severity.NOTE)]
    notes = [replace(f, severity=Severity.NOTE) for f in noted if f.layer not in explained]
    verdict = _verdict(origins, missing)
    raced = _race_settles(trial)
    faults = [f for o in origins for f in (o.finding, *o.symptoms)]
    sure = confidence(verdict, faults, notes, raced)
    if verdict is Verdict.HEALTHY and sure < THIN:
        verdict, missing = Verdict.UNDECIDED, (*missing, _thin(notes))
        sure = 0.0
    said = _verdict_of(documented) if documented else None
    return Diagnosis(
        verdict=verdict,
        origins=origins,
        notes=tuple(notes),
        missing=missing,
        why=_why(trial, verdict, origins, missing),
        next_step=_next_step(verdict, origins, missing),
        documented=said,
        documented_findings=documented.findings if documented else (),
        documented_missing=documented.missing if documented else (),
        disagreement=_disagreement(verdict, said, documented),
        confidence=sure,
        decided_by=_stage(trial, verdict, origins, raced),
        not_looked_at=tuple(_not_looked_at(trial)),
    )


# -- the stages


def _race_settles(trial: Trial) -> bool:
    return trial.race is not None and trial.race.outcome is not Outcome.UNDECIDED


def _settled(trial: Trial, finding: Finding) -> Finding:
    """A fault that the network trains in spite of is a note: the race has shown it. What is not finite, or is no
    question of the weights, stays what it is."""
    won = trial.race is not None and trial.race.outcome is Outcome.HEALTHY
    if won and finding.cause not in NON_FINITE and finding.severity not in (Severity.NOTE, Severity.CLUE):
        return replace(finding, severity=Severity.NOTE)
    return finding


def _thin(notes: Sequence[Finding]) -> Missing:
    codes = ", ".join(dict.fromkeys(note.code for note in notes)) or "the evidence"
    return Missing(
        THIN_EVIDENCE.code,
        f"{codes} may or may not matter to this network: about as many starts like it fail as train",
        "let it race: fanin check --race, or check(..., race=True)",
    )


def _stage(trial: Trial, verdict: Verdict, origins: Sequence[Origin], raced: bool) -> str:
    if verdict is Verdict.UNDECIDED:
        return ""
    if raced:
        return "race"
    faults = [f.code for o in origins for f in (o.finding, *o.symptoms) if f.severity is Severity.FAULT]
    if faults and all(code.startswith("FAN4") for code in faults):
        return "parameters"
    return "five steps" if any(step.index == RECHECK for step in trial.train_steps) else "one batch"


def _not_looked_at(trial: Trial) -> Iterable[str]:
    if trial.reference is None:
        yield "a sound re-draw of the network (fanin check takes one)"
    if not any(step.index == RECHECK for step in trial.train_steps):
        yield "five steps of training (give check the optimizer, or watch the run)"
    if trial.race is None:
        yield "a race against the re-draw (--race)"


def _missing(trial: Trial, results: Iterable[Result]) -> Iterable[Missing]:
    yield from doubts(trial)
    if trial.start is not None:
        for result in results:
            yield from result.missing


def _verdict(origins: Sequence[Origin], missing: Sequence[Missing]) -> Verdict:
    causes = [o.finding.cause for o in origins]
    if any(c is None or c.is_initialization for c in causes):
        return Verdict.POOR
    if causes or any(m.blocks for m in missing):
        return Verdict.UNDECIDED  # something else is wrong, or something is unseen: no clean bill
    return Verdict.HEALTHY


def _verdict_of(result: Result) -> Verdict:
    if result.findings:
        return Verdict.POOR
    return Verdict.UNDECIDED if any(m.blocks for m in result.missing) else Verdict.HEALTHY


def _documented_alone(trial: Trial, result: Result) -> Diagnosis:
    verdict, findings = _verdict_of(result), _shown_first(trial, result.findings)
    said = [f"{f.quantity} = {f.measured} (expected {f.expected}) at step {f.step}" for f in findings]
    lacks = [m.what for m in result.missing if m.blocks]
    return Diagnosis(
        verdict=verdict,
        origins=tuple(Origin(f) for f in findings),
        missing=result.missing,
        why="; ".join(said or lacks[:1] or ["none of the documented checks fires"]),
        next_step=result.missing[0].settle if verdict is Verdict.UNDECIDED else "",
        documented=verdict,
        documented_findings=result.findings,
        documented_missing=result.missing,
    )


def _shown_first(trial: Trial, findings: Sequence[Finding]) -> list[Finding]:
    """The documented checks are of equal rank; those at layers that a report shows come first. It shows the model's
    layers, or activation inputs where nothing else of them was captured."""
    known = {layer.path for layer in trial.spec.layers}
    by_layer = any(step.of(Role.OUTPUT) for step in trial.steps)
    return sorted(findings, key=lambda finding: by_layer and finding.layer not in known)


# -- origin and symptom


def _origins(spec: ModelSpec, findings: Sequence[Finding]) -> tuple[Origin, ...]:
    """Faults by precedence of their cause, then in forward order, each with the findings that follow from it."""
    place = {layer.path: i for i, layer in enumerate(spec.layers)}
    left = sorted(_gathered(spec, findings), key=lambda f: (_rank(f), place.get(f.layer, -1)))
    origins: list[Origin] = []
    while left:
        first = left.pop(0)
        symptoms = [f for f in left if _explains(first, f, place)]
        left = [f for f in left if f not in symptoms]
        origins.append(Origin(first, tuple(symptoms), _downstream(spec, first, place)))
    return tuple(origins)


def _is_fault(origin: Origin) -> bool:
    """A fault, or a suspect from which one follows: what is unusual in itself is a fault where the signal suffers."""
    return any(f.severity is Severity.FAULT for f in (origin.finding, *origin.symptoms))


def _rank(finding: Finding) -> int:
    return finding.cause.rank if finding.cause else 0


def _explains(origin: Finding, other: Finding, place: dict[str, int]) -> bool:
    """Whether another finding follows from this one: its cause comes later in the order of precedence, and it shows
    in the same layers or after them."""
    if _rank(other) <= _rank(origin):
        return False
    here, there = place.get(origin.layer, -1), max((place.get(p, -1) for p in _reach(other)), default=-1)
    return there >= here or not other.layer


def _reach(finding: Finding) -> tuple[str, ...]:
    return finding.layers or (finding.layer,)


def _downstream(spec: ModelSpec, origin: Finding, place: dict[str, int]) -> tuple[str, ...]:
    """Layers that ran after the first one at fault and are not at fault themselves."""
    if origin.layer not in place:
        return ()
    after = spec.layers[place[origin.layer] + 1 :]
    return tuple(layer.path for layer in after if layer.calls and layer.path not in _reach(origin))


def _gathered(spec: ModelSpec, findings: Sequence[Finding]) -> list[Finding]:
    """The same fault in most layers is one fault everywhere."""
    layers = max(1, sum(1 for layer in spec.weight_layers if layer.calls))
    together: dict[tuple[str, object], list[Finding]] = {}
    for finding in findings:
        together.setdefault((finding.code, finding.cause), []).append(finding)
    gathered: list[Finding] = []
    for alike in together.values():
        reach = tuple(dict.fromkeys(p for f in alike for p in _reach(f)))
        if len(alike) > 1 and len(reach) >= layers / 2:
            gathered.append(replace(alike[0], scope=Scope.EVERYWHERE, layers=reach))
        else:
            gathered.extend(alike)
    return gathered


# -- in words


def _why(trial: Trial, verdict: Verdict, origins: Sequence[Origin], missing: Sequence[Missing]) -> str:
    if origins:
        finding = origins[0].finding
        return f"{finding.cause.title}: {finding.message}" if finding.cause else finding.evidence
    if verdict is Verdict.UNDECIDED:
        return next(m.what for m in missing if m.blocks)
    if trial.race is not None and _race_settles(trial):
        return (
            f"in a race of {trial.race.steps} steps the network as given makes {trial.race.ratio:.2f} of the progress "
            "of its sound re-draw, whatever is unusual about it"
        )
    path = stretch(trial)
    if path is None:
        return (
            "parameters are sound; normalizations or other layers set the signal's scale anew up to the end"
        )
    return f"parameters are sound, and {_carried(trial, path)}"


def _carried(trial: Trial, path: Stretch) -> str:
    """What becomes of the signal on the way, and what of that the rules bear."""
    if path.decades == -inf:
        return _stopped(path)
    way = f"over the {len(path.links) + 1} layers that nothing normalizes"
    gone = abs(path.decades)
    if gone < LEAST_TOLD:
        return f"the signal keeps its variance {way}"
    shrinks = path.decades < 0
    borne = (shrinking_signal if shrinks else growing_signal).tolerated(trial, path)
    bound = f"; up to {borne:.1f} are no fault here" if gone <= borne else ""
    return f"the signal {'loses' if shrinks else 'gains'} {gone:.1f} decades of variance {way}{bound}"


def _stopped(path: Stretch) -> str:
    if any(link.excess == -inf for link in path.links):
        return "nothing of the signal reaches the last layer until training has moved the zeros before it"
    return "nothing that varies with the input reaches the last layer yet, which is no fault of the weights' scale"


def _next_step(verdict: Verdict, origins: Sequence[Origin], missing: Sequence[Missing]) -> str:
    if origins and origins[0].finding.cause:
        return origins[0].finding.cause.remedy
    if verdict is Verdict.UNDECIDED:
        return next((m.settle for m in missing if m.blocks), "")
    return ""


REASONS = {
    "variance": "the variance of activation inputs differs by design where sums, pooling and norms set the scale",
    "gradient": "the width of the gradient's distribution has units of loss per weight: it depends on batch size, "
    "width, classes and the loss's scale",
    "loss": "ten noisy steps say little about a loss",
}
"""Why each of the documented rule's checks fires on healthy networks, by a word of its quantity."""


def _disagreement(ours: Verdict, said: Verdict | None, documented: Result | None) -> str:
    if said is None or documented is None or said is ours or Verdict.UNDECIDED in (ours, said):
        return ""
    if ours is Verdict.POOR:
        return "it compares activation inputs and gradients by absolute numbers, and this fault leaves both in range"
    quantities = " ".join(f.quantity for f in documented.findings).lower()
    return "; ".join(reason for word, reason in REASONS.items() if word in quantities)
