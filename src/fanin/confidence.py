"""How often a verdict like this one was right.

Counted on InitBench's tune split, 673 starts of 15 networks whose labels come from training: among the verdicts with
the same strongest evidence, (right + 1) / (all + 2), Laplace's rule of succession, so that few cases never give
certainty. Starts between poor and healthy were left out. `benchmarks/initbench` shows on the test split how reliable
these numbers are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fanin.finding import Finding, Severity, Verdict

THIN = 0.7
"""Below this a verdict of healthy is withheld: undecided, with what would settle it."""

RACED = 0.95
"""Of a verdict that a race settled; set before any race of the benchmark was scored."""

POOR: Mapping[str, tuple[int, int]] = {
    "FAN101": (22, 23),
    "FAN102": (14, 14),
    "FAN103": (14, 14),
    "FAN104": (6, 6),
    "FAN105": (6, 6),
    "FAN107": (35, 38),
    "FAN108": (6, 6),
    "FAN109": (7, 7),
    "FAN201": (41, 42),
    "FAN202": (4, 4),
    "FAN301": (40, 40),
    "FAN402": (52, 52),
    "FAN403": (36, 38),
}
"""(right, all) of the verdicts poor by the code of the fault."""

HEALTHY: Mapping[str, tuple[int, int]] = {
    "FAN104": (3, 5),
    "FAN101": (4, 6),
    "FAN405": (22, 27),
    "FAN301": (49, 52),
}
"""(right, all) of the verdicts healthy in spite of this note, the worst first."""

CLEAN = (411, 417)
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
