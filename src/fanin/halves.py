"""Two half batches as noise bars: a fault that only one half of the batch shows is within the noise of the batch.

A batch is a sample of what the network will see, and its halves are two disjoint samples: what both of them show does
not hang on the examples that happened to be in it, and how far they differ is the error of what they say, without any
assumption about the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fanin.cause import COUNTED
from fanin.finding import Finding, Missing, Severity
from fanin.judgement import Result, run
from fanin.summary import Interval
from fanin.trial import Trial
from fanin.trust import WITHIN_NOISE


def confirmed(trial: Trial, result: Result) -> Result:
    """What a rule says of a trial, with the error that the halves of its batch show.

    A fault that the rule does not find in both halves becomes a note, and is missing evidence. The interval measured
    of the others covers what it is in either half.
    """
    if not trial.is_halved or not any(f.severity is Severity.FAULT for f in result.findings):
        return result
    halves = [run((result.rule,), trial.half(which))[0].findings for which in (0, 1)]
    findings, missing = [], list(result.missing)
    for finding in result.findings:
        if _may_be_noise(finding) and not all(_is_in(finding, half) for half in halves):
            findings.append(replace(finding, severity=Severity.NOTE))
            missing.append(_noisy(finding))
        else:
            findings.append(replace(finding, measured=_with_error(finding, [f for h in halves for f in h])))
    return replace(result, findings=tuple(findings), missing=tuple(missing))


def _may_be_noise(finding: Finding) -> bool:
    return finding.severity is Severity.FAULT and finding.cause not in COUNTED


def _is_in(finding: Finding, half: Sequence[Finding]) -> bool:
    """Whether half a batch shows the same fault: with the same cause, at whatever layer it starts there."""
    return any(f.cause is finding.cause and f.severity is Severity.FAULT for f in half)


def _with_error(finding: Finding, others: Sequence[Finding]) -> Interval:
    key = (finding.layer, finding.tensor, finding.quantity, finding.step)
    alike = [f.measured for f in others if (f.layer, f.tensor, f.quantity, f.step) == key]
    seen = [finding.measured, *alike]
    return Interval(min(one.low for one in seen), max(one.high for one in seen))


def _noisy(finding: Finding) -> Missing:
    what = finding.cause.title if finding.cause else finding.quantity
    return Missing(
        WITHIN_NOISE.code,
        f"one half of the batch shows {what} ({finding.code} at {finding.layer or 'the input'}), the other does not",
        "give a larger batch, or let it race: fanin check --race",
    )
