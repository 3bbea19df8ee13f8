"""The report for machines: strict JSON, which every parser reads.

NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity". Characters beyond ASCII
are escaped, so that the text survives any encoding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from math import isfinite, isnan
from typing import Any

from fanin.change import Change, Effect, Repair
from fanin.finding import Diagnosis, Finding, Missing, Verdict
from fanin.race import Race
from fanin.reports.base import Reading, fired, layer_readings, shown_step
from fanin.summary import Interval
from fanin.trial import LayerSpec, ParameterSpec, SourceLine, Trial

SCHEMA_VERSION = "1"
"""Grows when a field changes its meaning or goes; a new field leaves it."""

STATUS = {
    Verdict.HEALTHY: "NoIssuesFound",
    Verdict.POOR: "IssuesFound",
    Verdict.UNDECIDED: "Undecided",
}
"""The documented rule's own words; the third is ours, for it never says that it cannot tell."""


def schema() -> dict[str, Any]:
    """The JSON Schema of this report (draft 2020-12), which is in the package as `reports/report.schema.json`."""
    text = files("fanin.reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def render(trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:
    """The report as a JSON object; width and colour have no meaning here."""
    return json.dumps(_strict(_report(trial, diagnosis)), indent=2, allow_nan=False)


def render_with(
    trial: Trial, diagnosis: Diagnosis, repair: Repair | None, discarded: Sequence[Repair], applied: bool
) -> str:
    """The same object with `repair`, null where none is proposed, `discarded` and `applied`."""
    whole = _report(trial, diagnosis) | {
        "repair": _repair(repair) if repair is not None else None,
        "discarded": [_repair(one) for one in discarded],
        "applied": applied,
    }
    return json.dumps(_strict(whole), indent=2, allow_nan=False)


def _repair(repair: Repair) -> dict[str, Any]:
    return {
        "safety": repair.safety.value,
        "reasons": list(repair.reasons),
        "advice": list(repair.advice),
        "reach": repair.reach.value,
        "changes": [_change(change) for change in repair.changes],
        "effects": [_effect(effect) for effect in repair.effects],
        "first_loss": {"before": repair.losses[0], "after": repair.losses[1]},
        "verdict": repair.verdict.value if repair.verdict is not None else None,
        "proven": repair.is_proven,
        "proofs": [_race(race) for race in repair.proofs],
        "code": repair.code,
        "diff": repair.diff,
        "elsewhere": list(repair.elsewhere),
        "seed": repair.seed,
        "passes": repair.passes,
        "seconds": repair.seconds,
        "outdone": repair.outdone,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "parameter": change.parameter,
        "treatment": change.treatment.value,
        "scheme": change.scheme,
        "distribution": change.distribution,
        "std": change.std,
        "gain": change.gain,
        "factor": change.factor,
        "before": {"rms": change.before.rms, "mean": change.before.mean},
        "after": {"rms": change.after.rms, "mean": change.after.mean},
        "tied_to": list(change.tied_to),
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "code": effect.code,
        "layer": effect.layer,
        "quantity": effect.quantity,
        "expected": _interval(effect.expected),
        "before": _interval(effect.before),
        "after": _interval(effect.after) if effect.after is not None else None,
    }


def _report(trial: Trial, diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "fanin", "version": tool_version()},
        "verdict": diagnosis.verdict.value,
        "confidence": diagnosis.confidence,
        "decided_by": diagnosis.decided_by or None,
        "not_looked_at": list(diagnosis.not_looked_at),
        "why": diagnosis.why,
        "next": diagnosis.next_step,
        "findings": list(_findings(diagnosis)),
        "missing": [_missing(missing) for missing in diagnosis.missing],
        "documented": _documented(diagnosis),
        "layers": _layers(trial),
        "coverage": _coverage(trial),
        "steps": [{"index": step.index, "mode": step.mode.value} for step in trial.steps],
        "losses": [
            {"step": step.index, "mode": step.mode.value, "worker": worker, "loss": loss}
            for step in trial.steps
            for worker, loss in sorted(step.losses.items())
        ],
        "race": _race(trial.race),
        "environment": dict(trial.about),
    }


def _race(race: Race | None) -> dict[str, Any] | None:
    """How the race ended; its curves are in the trial."""
    if race is None:
        return None
    return {
        "outcome": race.outcome.value,
        "steps": race.steps,
        "optimizer": race.optimizer,
        "learning_rates": [heat.learning_rate for heat in race.heats],
        "progress": race.given,
        "reference_progress": race.reference,
        "uninformed_loss": race.uninformed,
    }


def tool_version() -> str:
    """Of this package, as it was installed."""
    try:
        return version("fanin")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def _findings(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Each origin, then its symptoms, which hold the origin's place in this list; notes come last."""
    found: list[dict[str, Any]] = []
    for origin in diagnosis.origins:
        place = len(found)
        found.append(_finding(origin.finding) | {"downstream": list(origin.downstream)})
        found.extend(_finding(symptom, place) for symptom in origin.symptoms)
    found += [_finding(note) for note in diagnosis.notes]
    for one, (_, standing) in zip(found, diagnosis.standings, strict=True):
        one["standing"] = standing.value
    return found


def _finding(finding: Finding, symptom_of: int | None = None) -> dict[str, Any]:
    cause = finding.cause
    return {
        "code": finding.code,
        "name": finding.name,
        "cause": cause.value if cause else None,
        "is_initialization": cause.is_initialization if cause else None,
        "layer": finding.layer,
        "layers": list(finding.layers),
        "severity": finding.severity.value,
        "scope": finding.scope.value,
        "step": finding.step,
        "quantity": finding.quantity,
        "measured": _interval(finding.measured),
        "expected": _interval(finding.expected),
        "message": finding.message,
        "tensor": finding.tensor or None,
        "source": _source(finding.source),
        "workers": list(finding.workers),
        "symptom_of": symptom_of,
    }


def _interval(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _source(source: SourceLine | None) -> dict[str, Any] | None:
    return {"file": source.file, "line": source.line} if source else None


def _missing(missing: Missing) -> dict[str, Any]:
    return {"code": missing.code, "what": missing.what, "settle": missing.settle, "blocks": missing.blocks}


def _documented(diagnosis: Diagnosis) -> dict[str, Any] | None:
    if diagnosis.documented is None:
        return None
    return {
        "verdict": diagnosis.documented.value,
        "status": STATUS[diagnosis.documented],
        "findings": [_finding(finding) for finding in diagnosis.documented_findings],
        "missing": [_missing(missing) for missing in diagnosis.documented_missing],
        "disagreement": diagnosis.disagreement or None,
    }


def _layers(trial: Trial) -> list[dict[str, Any]]:
    step = shown_step(trial)
    if step is None:
        return [_layer(layer, Reading(layer.path, layer.path)) for layer in trial.spec.layers]
    readings = layer_readings(trial, step)
    return [_layer(layer, seen) for layer, seen in zip(trial.spec.layers, readings, strict=True)]


def _layer(layer: LayerSpec, seen: Reading) -> dict[str, Any]:
    return {
        "path": layer.path,
        "kind": layer.kind.value,
        "type": layer.type_name,
        "activation": layer.activation,
        "input_activation": layer.input_activation,
        "inputs": list(layer.inputs),
        "calls": layer.calls,
        "parameters": [_parameter(parameter) for parameter in layer.parameters],
        "output_variance": seen.variance,
        "gradient_spread": seen.spread,
    }


def _parameter(parameter: ParameterSpec) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "role": parameter.role.value,
        "shape": list(parameter.shape),
        "dtype": parameter.dtype,
        "fan_in": parameter.fan_in,
        "fan_out": parameter.fan_out,
        "trainable": parameter.trainable,
        "tied_to": parameter.tied_to,
        "source": _source(parameter.source),
    }


def _coverage(trial: Trial) -> dict[str, Any]:
    ran = {layer.path for layer in fired(trial)}
    shown = shown_step(trial)
    return {
        "model": trial.spec.name,
        "framework": trial.spec.framework,
        "layers": len(trial.spec.layers),
        "ran": len(ran),
        "never_ran": [layer.path for layer in trial.spec.layers if layer.path not in ran],
        "shown_step": shown.index if shown else None,
        "train_steps": len(trial.train_steps),
        "workers": list(trial.workers),
        "complete": trial.complete,
        "notes": list(trial.spec.notes),
    }


def _strict(value: Any) -> Any:
    """The same with NaN and infinities as strings."""
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list) else value
