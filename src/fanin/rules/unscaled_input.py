"""FAN111: the batch is far from zero mean and unit variance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Severity
from fanin.measures import mixing, network_inputs
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, TensorSummary, UnitSummary
from fanin.synthetic import clusters, mlp
from fanin.trial import Observation, Role, Trial

USUAL_RMS = Interval(0.1, 10.0)
"""Where a sound network bears the scale of its inputs. Five ReLU layers drawn by he_normal on scikit-learn's digits,
loss after 40 steps with Adam at 1e-3, SGD at 0.05 and at 0.01, mean of 3 seeds (chance 2.30): RMS 1 gives 0.57, 0.81,
1.96 and RMS 10 gives 0.63, 0.79, 0.63; RMS 0.1 leaves SGD at 2.26 and 2.29, RMS 0.01 all of them at 2.10 to 2.30; at
RMS 30 SGD at 0.05 diverges, at 100 all three are lost."""

NOTED_OFFSET = 3.0
"""|mean| / std of the whole input from which learning is slower: in the same experiment Adam reached 1.21 at 2, 1.55 at
3 and 1.94 at 5. Images between 0 and 1 have 0.4 (MNIST) to 2 (photographs)."""

HARMFUL_OFFSET = 10.0
"""|mean| / std at which all three optimizers of the same experiment stood at chance after 40 steps (2.20 to 2.28)."""

LARGEST_SPREAD = 100.0
"""Largest standard deviation of a unit over that of the tenth percentile. Digits, whose outer pixels hardly ever
differ from zero, have 7.4; with the smallest unit in place of the percentile it would be 77."""

FEWEST_SAMPLES = 8
"""Values per unit from which its standard deviation is known to a factor of two (25 % standard error)."""

MOSTLY_ZEROS = 0.5
"""Share of zeros from which an input is sparse: one-hot codes, counts of words, drawings. Then only its non-zero
values can be too small, and offset and spread between units say little."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is unusual about an input, and whether it is enough to stop a sound network."""

    quantity: str
    measured: float
    expected: Interval
    severity: Severity


class UnscaledInput(Rule):
    """The network is given numbers far from zero mean and unit variance.

    What it detects
    ---------------
    Floating-point inputs whose root mean square lies outside 0.1 to 10, whose mean exceeds three standard deviations,
    or whose features differ by more than a factor of 100 in their standard deviations. It is not the initialization.

    Why it matters
    --------------
    Every initialization scheme assumes inputs of unit variance. Raw pixels (0 to 255) make the first steps of SGD
    diverge, inputs of 0.001 leave nothing to learn from, and a large mean makes all samples alike: each of the three
    kept a sound network of five layers at chance, which learned at once when its inputs were standardized.

    How it is measured
    ------------------
    At step 0, of what the layers read that are given the batch and nothing else, x:

        0.1 <= rms(x) <= 10,     |mean(x)| / std(x) <= 3,     max_i std(x_i) / P10_i std(x_i) <= 100

    over the features i that vary at all, P10 being the tenth percentile. Where more than half of the values are zero,
    only the others count for the lower bound, and offset and features are not judged. Tokens and other integers,
    masks of zeros and ones, and what enters a normalization first are never judged. A scale outside the range, or an
    offset above 10, is a suspect: it is the fault if something is seen to go wrong. All else is a note.

    When it is wrong
    ----------------
    Raw audio is often as small as 0.03 and networks for it are built accordingly. A layer whose output is normalized
    does not mind the scale of its input. A normalization made of plain arithmetic, in front of the first layer,
    is seen; one that is behind it is not.

    Fix
    ---
    Standardize the inputs: subtract the mean and divide by the standard deviation of each feature over the training
    set. Leave the weights alone: a scheme fitted to these inputs would only hide the fault.

    References
    ----------
    - LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.3.
    - Mishkin and Matas 2016, All You Need Is a Good Init (a data-dependent scheme, which hides it).
    """

    code: ClassVar[str] = "FAN111"
    name: ClassVar[str] = "unscaled-input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.INPUT, units=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each way in which inputs are unusual."""
        start = trial.start
        if start is None:
            return
        mixes = {layer.path for layer in mixing(trial.spec)}
        found: dict[str, list[tuple[Observation, Fault]]] = {}
        for path, seen in network_inputs(start, trial.spec).items():
            fault = _fault(seen) if path in mixes and "float" in seen.dtype else None
            if fault:
                found.setdefault(fault.quantity, []).append((seen, fault))
        for alike in found.values():
            yield self._finding(alike)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Standardized, plain images, sparse; then raw pixels, lost scales, offsets and unequal features."""
        entrance = ("blocks.0.fc",)
        x, labels = clusters(32)
        pixels = np.clip(0.13 + 0.3 * x, 0, 1)
        hot = np.eye(32)[np.arange(128) % 32]
        unequal = x * np.repeat([5.0, 0.01], 16)
        yield Example("standardized", mlp)
        yield Example("images between 0 and 1", lambda: mlp(batch=(pixels, labels)))
        yield Example("coordinates between -1 and 1", lambda: mlp(batch=(np.tanh(x), labels)))
        yield Example("one-hot codes", lambda: mlp(batch=(hot, labels)))
        yield Example("a mask of zeros and ones", lambda: mlp(batch=(np.where(x > -2, 1.0, 0.0), labels)))
        yield Example("features that never vary", lambda: mlp(batch=(x * (np.arange(32) > 8), labels)))
        yield Example("tokens", lambda: _of_type("int64", mlp(batch=(np.round(1000 * x), labels))))
        yield Example("pixels from 0 to 255", lambda: mlp(batch=(255 * pixels, labels)), entrance)
        yield Example("a thousandth", lambda: mlp(batch=(x / 1000, labels)), entrance)
        yield Example("an offset of 5", lambda: mlp(batch=(x + 5, labels)), entrance)
        yield Example("features in unequal units", lambda: mlp(batch=(unequal, labels)), entrance)

    def _finding(self, alike: list[tuple[Observation, Fault]]) -> Finding:
        seen, fault = alike[0]
        s = seen.summary
        return Finding(
            self.code,
            self.name,
            layer=seen.layer,
            step=0,
            measured=Interval(fault.measured, fault.measured),
            expected=fault.expected,
            quantity=fault.quantity,
            message=f"What {seen.layer} is given has mean {s.mean:.3g} and standard deviation {s.std:.3g}, "
            f"between {s.minimum:.3g} and {s.maximum:.3g}.",
            cause=Cause.UNSCALED_INPUT,
            layers=tuple(dict.fromkeys(o.layer for o, _ in alike)),
            tensor=seen.tensor,
            severity=max((f.severity for _, f in alike), key=lambda s: s is Severity.SUSPECT),
        )


def _fault(seen: Observation) -> Fault | None:
    """The worst that can be said of an input."""
    s = seen.summary
    if not s.count or s.is_zero or _is_binary(s):
        return None
    if s.rms > USUAL_RMS.high:
        return Fault("RMS of the input", s.rms, USUAL_RMS, Severity.SUSPECT)
    if _filled_rms(s) < USUAL_RMS.low:
        return Fault("RMS of the input", _filled_rms(s), USUAL_RMS, Severity.SUSPECT)
    if s.zeros > MOSTLY_ZEROS * s.count or s.is_constant:
        return None
    offset = abs(s.mean) / s.std if s.std > 0 else inf
    if offset > NOTED_OFFSET:
        severity = Severity.SUSPECT if offset > HARMFUL_OFFSET else Severity.NOTE
        return Fault("|mean| / std of the input", offset, Interval(0, NOTED_OFFSET), severity)
    spread = _spread(s.units) if s.units else 1.0
    if spread > LARGEST_SPREAD:
        return Fault("spread of the features' std", spread, Interval(1, LARGEST_SPREAD), Severity.NOTE)
    return None


def _is_binary(s: TensorSummary) -> bool:
    """Whether all values are 0 or 1: exactly then E[x²] = E[x] within these bounds."""
    return s.minimum >= 0 and s.maximum <= 1 and s.mean - s.second_moment < 1e-6 * s.mean


def _filled_rms(s: TensorSummary) -> float:
    """RMS of the values that count: of those that are not zero, where most are."""
    filled = s.count - s.zeros
    return s.rms * sqrt(s.count / filled) if filled and s.zeros > MOSTLY_ZEROS * s.count else s.rms


def _spread(units: UnitSummary) -> float:
    """Largest standard deviation over the tenth percentile, among units that vary; 1 where that is unknown."""
    known = (units.count >= FEWEST_SAMPLES) & (units.minimum < units.maximum)  # m2 may be rounding
    if known.sum() < 2:
        return 1.0
    stds = np.sort(np.sqrt(units.variance[known]))
    low = stds[len(stds) // 10]
    return float(stds[-1] / low) if low > 0 else 1.0


def _of_type(dtype: str, trial: Trial) -> Trial:
    """A trial whose inputs are of another type."""
    steps = (
        replace(step, observations=tuple(replace(o, dtype=dtype) for o in step.observations))
        for step in trial.steps
    )
    return replace(trial, steps=tuple(steps))
