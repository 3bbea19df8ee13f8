"""FAN302: regression targets far from the scale of the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Severity
from fanin.measures import head, layer_output
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, TensorSummary, summarize
from fanin.synthetic import constant, mlp
from fanin.trial import NETWORK_INPUT, Observation, Role, Trial

TOO_LARGE = 20.0
"""Mean or standard deviation of the targets, relative to the outputs' RMS, or to 1 where the outputs are smaller: such
are the targets that every scheme has in mind. Five ReLU layers drawn by he_normal on scikit-learn's digits, the class
as a number, 40 steps, squared error relative to that of the best constant, mean of 3 seeds: a standard deviation of 10
and more makes SGD at 0.01 diverge; a mean of 10 leaves Adam at 1e-2 at 1.5, a mean of 20 at 4.8 and Adam at 1e-3 at
18."""

TOO_SMALL = 0.01
"""RMS of the targets, relative to the outputs' RMS, or to 1 where they are larger. In the same experiment targets of
0.1 left Adam at 1e-3 at 1.1 and targets of 0.01 at 62, for the outputs must first be unlearned."""

MOSTLY_ZEROS = 0.5
"""Share of zeros from which only the other values count for the lower bound: sparse labels, heat maps."""

ALIKE = 1e-3
"""Error of a mean of probabilities in float16, of a sum of 1."""


class UnscaledTarget(Rule):
    """The targets of a regression are far larger or smaller than what the network starts with.

    What it detects
    ---------------
    Floating-point targets, as many as the last layer has outputs, whose mean or standard deviation is 20 times what
    the outputs have, or whose root mean square is less than a hundredth of theirs. It is not the initialization.

    Why it matters
    --------------
    A network starts with outputs near zero and of order one. Targets in raw units (prices, pixels, kelvin) make the
    squared error and its gradient larger by orders of magnitude: SGD diverges, and Adam needs as many steps as the
    offset has learning rates. Tiny targets look learned, or drown in the noise that the outputs start with.

    How it is measured
    ------------------
    At step 0, with targets y and the last layer's outputs z:

        max(|mean(y)|, std(y)) <= 20 max(rms(z), 1)          rms(y) >= 0.01 min(rms(z), 1)

    The bounds at 1 keep outputs that a poor initialization made tiny or huge from putting the blame on targets of a
    usual size. Integers are classes and never judged; nor are zeros and ones, or probabilities that sum to one. Where
    most targets are zero, the others count for the lower bound.

    When it is wrong
    ----------------
    A model may scale its last layer's output itself, to raw units: then raw targets are right. Losses that look at
    ratios or ranks do not mind the scale.

    Fix
    ---
    Standardize the targets with the mean and standard deviation of the training set, and undo it when predicting; or
    set the last layer's bias to the mean. Leave the weights alone.

    References
    ----------
    - LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.5.
    - Karpathy 2019, A Recipe for Training Neural Networks, "init well".
    """

    code: ClassVar[str] = "FAN302"
    name: ClassVar[str] = "unscaled-target"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.TARGET, units=True), Need(Role.OUTPUT, units=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, about the last layer."""
        start, last = trial.start, head(trial.spec)
        target = start.first(Role.TARGET).get(NETWORK_INPUT) if start else None
        output = layer_output(start, last.path) if start and last else None
        if target is None or output is None or not _is_comparable(target, output):
            return
        given, made = target.summary, output.summary
        level = max(abs(given.mean), given.std)
        if level > TOO_LARGE * max(made.rms, 1.0):
            ratio = level / max(made.rms, 1.0)
            yield self._finding(target, output, ratio, Interval(0, TOO_LARGE), "size of the targets")
        elif 0 < _filled_rms(given) < TOO_SMALL * min(made.rms, 1.0):
            ratio = _filled_rms(given) / min(made.rms, 1.0)
            yield self._finding(target, output, ratio, Interval(TOO_SMALL, TOO_LARGE), "RMS of the targets")

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Targets of a usual size, and classes; prices, kelvin, and units that are too large."""
        y = np.random.default_rng(0).normal(size=(128, 10))
        hot = np.eye(10)[np.arange(128) % 10]
        yield Example("no targets seen", mlp)
        yield Example("standardized", lambda: regression(y))
        yield Example("ten times larger", lambda: regression(10 * y))
        yield Example("one-hot codes", lambda: regression(hot))
        yield Example("classes", lambda: regression(np.full((128, 10), 300), "int64"))
        yield Example("one target for ten outputs", lambda: regression(1e5 * y[:, 0]))
        yield Example("outputs that vanish", lambda: regression(y, trial=_shrunk(1e-6)))
        yield Example("outputs that explode", lambda: regression(y, trial=_shrunk(1e3)))
        yield Example("prices", lambda: regression(1e5 + 3e4 * y), ("head",))
        yield Example("kelvin", lambda: regression(293 + 5 * y), ("head",))
        yield Example("metres for micrometres", lambda: regression(1e-6 * y), ("head",))

    def _finding(
        self, target: Observation, output: Observation, ratio: float, expected: Interval, what: str
    ) -> Finding:
        given, made = target.summary, output.summary
        return Finding(
            self.code,
            self.name,
            layer=output.layer,
            step=0,
            measured=Interval(ratio, ratio),
            expected=expected,
            quantity=f"{what} / size of the outputs",
            message=f"The targets have mean {given.mean:.3g} and standard deviation {given.std:.3g}; "
            f"{output.layer} starts with an RMS of {made.rms:.3g}.",
            cause=Cause.UNSCALED_TARGET,
            layers=(output.layer,),
            tensor=target.tensor,
            severity=Severity.SUSPECT,
        )


def regression(values: ArrayLike, dtype: str = "float32", trial: Trial | None = None) -> Trial:
    """The network of `synthetic.mlp`, or another, with targets beside it."""
    trial, y = trial or mlp(), np.asarray(values, np.float64)
    summary = summarize(y, unit_axis=-1)
    seen = Observation(NETWORK_INPUT, Role.TARGET, "target_0", summary, y.shape, dtype)
    first = trial.steps[0]
    return replace(trial, steps=(replace(first, observations=(*first.observations, seen)), *trial.steps[1:]))


def _shrunk(size: float) -> Trial:
    return mlp(overrides={"head.weight": constant(size)})


def _is_comparable(target: Observation, output: Observation) -> bool:
    """Whether these are numbers for the outputs to match one by one, and no probabilities."""
    given, made = target.summary, output.summary
    if "float" not in target.dtype or not given.count or not made.count or given.is_zero:
        return False
    return _is_alike_in_shape(target, output) and not _is_probability(given)


def _is_alike_in_shape(target: Observation, output: Observation) -> bool:
    if prod(target.shape) == prod(output.shape):
        return True
    given, made = target.summary.units, output.summary.units
    # A last axis that is the batch's says nothing of units.
    if given is None or made is None or len(target.shape) != len(output.shape):
        return False
    return len(given.mean) == len(made.mean)


def _is_probability(s: TensorSummary) -> bool:
    """Zeros and ones (exactly then E[x²] = E[x] between them), or values in [0, 1] that sum to 1 over units."""
    if s.minimum < 0 or s.maximum > 1:
        return False
    sums_to_one = s.units is not None and abs(s.mean * len(s.units.mean) - 1) < ALIKE
    return sums_to_one or s.mean - s.second_moment < 1e-6 * s.mean


def _filled_rms(s: TensorSummary) -> float:
    filled = s.count - s.zeros
    return s.rms * sqrt(s.count / filled) if filled and s.zeros > MOSTLY_ZEROS * s.count else s.rms
