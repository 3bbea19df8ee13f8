"""The report in SARIF 2.1.0 (OASIS 2020), which code scanning reads: each finding at the line that drew the weights.

Only rules that have fired are described. A finding without a source line has a logical place, its layer, alone. Files
below the working directory are named relative to it, as uploads to a repository need.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fanin.finding import Diagnosis, Finding, Missing, Standing
from fanin.judgement import rule_types
from fanin.reports import outline
from fanin.reports.json import tool_version
from fanin.reports.typeset import escape
from fanin.rule import Rule
from fanin.trial import Trial

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
"""A name, which nobody here opens."""

LEVELS = {Standing.ORIGIN: "error", Standing.SYMPTOM: "warning", Standing.NOTE: "note"}
"""The cause comes first, whatever its own severity: a symptom goes when that is mended."""


def render(trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:
    """The report as a SARIF log; width and colour have no meaning here."""
    return json.dumps(_log(trial, diagnosis), indent=2, allow_nan=False)


def _log(trial: Trial, diagnosis: Diagnosis) -> dict[str, Any]:
    fired = [rule for rule in rule_types() if rule.code in {f.code for f in diagnosis.findings}]
    places = {rule.code: place for place, rule in enumerate(fired)}
    driver = {"name": "fanin", "version": tool_version(), "rules": [_rule(rule) for rule in fired]}
    notes = [_notification(trial, missing) for missing in diagnosis.missing]
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "results": [_result(trial, finding, standing, places) for finding, standing in diagnosis.standings],
        "properties": {"verdict": diagnosis.verdict.value, "confidence": diagnosis.confidence},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: type[Rule]) -> dict[str, Any]:
    page = rule.page()
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.headline()},
        "help": {"text": page, "markdown": page},
    }


def _notification(trial: Trial, missing: Missing) -> dict[str, Any]:
    level = "warning" if missing.blocks else "note"
    text = escape(outline.lack(trial, missing))
    return {"level": level, "message": {"text": text}, "descriptor": {"id": missing.code}}


def _result(trial: Trial, finding: Finding, standing: Standing, places: dict[str, int]) -> dict[str, Any]:
    place = {"ruleIndex": places[finding.code]} if finding.code in places else {}
    return {
        "ruleId": finding.code,
        **place,
        "level": LEVELS[standing],
        "message": {"text": message(trial, finding)},
        "locations": [_location(finding)],
        "partialFingerprints": {"fanin/v1": _fingerprint(finding)},
        "properties": {
            "layers": [escape(path) for path in finding.layers],
            "cause": finding.cause.value if finding.cause else None,
        },
    }


def message(trial: Trial, finding: Finding) -> str:
    """What to say of a finding where it stands alone: place, cause, evidence and remedy."""
    cause = f"{finding.cause.title}; " if finding.cause else ""
    said = [
        f"{finding.name} {outline.place(trial, finding)}: {cause}{outline.evidence(finding)}.",
        outline.told(finding),
        outline.sentence(finding.cause.remedy) if finding.cause else "",
    ]
    return escape(" ".join(part for part in said if part))


def _location(finding: Finding) -> dict[str, Any]:
    name = finding.tensor or finding.layer or "the model"
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": escape(name), "kind": "member"}]}
    if finding.source:
        artifact = {"uri": uri(finding.source.file)}
        region = {"startLine": max(finding.source.line, 1)}
        location["physicalLocation"] = {"artifactLocation": artifact, "region": region}
    return location


def uri(file: str) -> str:
    """A file's address: relative to the working directory where it lies below, as a repository needs it."""
    path = local(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def local(file: str) -> Path:
    """A file's path, from the working directory where it lies below."""
    path = Path(file)
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _fingerprint(finding: Finding) -> str:
    """Without numbers and lines, which move: the same fault of the same layer stays the same result."""
    return sha256(
        "\n".join((finding.code, finding.layer, finding.tensor)).encode("utf-8", "replace")
    ).hexdigest()[:32]
