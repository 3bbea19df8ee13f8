"""How often a verdict like this one was right.

Counted on InitBench's tune split, starts of 16 networks whose labels come from training, before any step: among the
verdicts with the same evidence, (right + 1) / (all + 2), Laplace's rule of succession, so that few cases never give
certainty. Grey starts were left out. `benchmarks/initbench/confidences.py` prints these counts; `score.py` shows on the
test split how reliable they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fanin.finding import Finding, Severity, Verdict

THIN = 0.7
"""Below this a verdict of healthy is withheld: undecided, with what would settle it."""

RACED = 0.95
"""Of a verdict that a race settled; set before any race of the benchmark was scored."""

POOR: Mapping[str, tuple[int, int]] = {
    "FAN101": (18, 18),
    "FAN102": (26, 26),
    "FAN103": (6, 6),
    "FAN104": (7, 7),
    "FAN105": (10, 10),
    "FAN107": (37, 41),
    "FAN108": (8, 8),
    "FAN109": (8, 9),
    "FAN201": (44, 46),
    "FAN202": (4, 4),
    "FAN301": (43, 43),
    "FAN402": (70, 70),
    "FAN403": (40, 42),
}
"""(right, all) of the verdicts poor by the code of the fault."""

HEALTHY: Mapping[str, tuple[int, int]] = {
    "FAN104": (4, 7),
    "FAN101": (4, 6),
    "FAN405": (36, 40),
    "FAN301": (76, 79),
}
"""(right, all) of the verdicts healthy in spite of this note, the worst first."""

CLEAN = (517, 519)
"""Of the verdicts healthy without any of these notes."""

UNKNOWN = (1, 1)
"""Of a fault that the benchmark has no case of."""


def confidence(verdict: Verdict, findings: Iterable[Finding], notes: Iterable[Finding], raced: bool) -> float:
    """The share of right verdicts among those with the same evidence, from 0 to 1; 0 for undecided.

    Args:
        verdict: Poor or healthy.
        findings: What made it poor; of several faults the one that is right most often counts.
        notes: What speaks against healthy; the worst counts.
        raced: Whether a race has settled it.
    """
    if verdict is Verdict.UNDECIDED:
        return 0.0
    if raced:
        return RACED
    if verdict is Verdict.POOR:
        faults = [f.code for f in findings if f.severity is Severity.FAULT]
        return max((_share(*POOR.get(code, UNKNOWN)) for code in faults), default=_share(*UNKNOWN))
    noted = {note.code for note in notes}
    return _share(*next((counts for code, counts in HEALTHY.items() if code in noted), CLEAN))


def _share(right: int, counted: int) -> float:
    return (right + 1) / (counted + 2)
