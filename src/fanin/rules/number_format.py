"""FAN110: values that float16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf, log10, sqrt
from typing import ClassVar

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import mixing, network_inputs
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, TensorSummary, summarize
from fanin.synthetic import Init, clusters, mlp, normal
from fanin.trial import Observation, Role, Step, Trial

LARGEST = 65504.0
"""float16's largest number, (2 - 2^-10) 2^15 (IEEE 754-2019, binary16)."""

HEADROOM = 4.0
"""Factor that values must stay below the largest. Among 10^6 normal values the extreme is 1.4 times what it is among
10^3, and weights move: two bits are left for both."""

SMALLEST = 2.0**-24
"""float16's smallest number, 6e-8 (IEEE 754-2019, binary16)."""

FLUSHED = 2.0**-20
"""RMS of the non-zero gradients below which float16 is to blame for the zeros: 16 times its smallest number, so that
values have four bits at most. Half of a normal gradient is lost at an RMS of 4.4e-8."""

MOSTLY_ZEROS = 0.5
"""Share of a gradient that may be zero."""

SPARSE = 0.9
"""Share of zeros from which an input is sparse, and the weight's gradient with it; a ReLU leaves about half."""

HE_GAIN = 2.0
"""n E[w²] of he_normal (He et al. 2015, eq. 10), which keeps the signal through ReLU: more lets it grow."""


class NumberFormat(Rule):
    """Signals or gradients in float16 that the format cannot hold.

    What it detects
    ---------------
    Outputs and activation inputs in float16 that are infinite or within a factor of four of its largest number, though
    the parameters are finite and not so large that they explain it; and gradients in float16 most of which are
    exactly zero because the others are hardly above its smallest number. It is not the initialization.

    Why it matters
    --------------
    float16 ends at 65504 and begins at 6e-8. What is larger becomes infinite, and NaN a layer later; gradients that
    are smaller become zero, and those weights never learn. The same network trains in bfloat16 or float32, which
    reach from 1e-38 to 3e38.

    How it is measured
    ------------------
    At step 0, of tensors stored as float16 and no others. Forward, for the first layer where

        max |z| > 65504 / 4    or    count(z infinite) > 0

    unless the weights explain it: unless log10(n E[w^2] / 2), summed over the layers up to there as far as positive,
    is at least half of the decades of power between the input and 65504. Backward, at step 5 where it was seen and
    at step 0 otherwise, for gradients g of outputs and weights with

        share of zeros > 0.5    and    rms(g where not zero) < 2^-20

    A gradient that is zero altogether counts only beside such a one: alone it may be a head of zeros. The weight's
    gradient is not judged where 90 % of the layer's input is zero.

    When it is wrong
    ----------------
    Gradients are judged as they are stored. Where a loss scale is at work it is in them: a zero is a zero all the same.
    Under dynamic loss scaling infinite gradients in the first steps are part of the plan, and are not judged.

    Fix
    ---
    Use bfloat16. Or scale the loss where only gradients are too small (`torch.amp.GradScaler`), and compute in float32
    the operation whose output is too large.

    References
    ----------
    - Micikevicius et al. 2018, Mixed Precision Training.
    - IEEE 754-2019, table 3.5.
    """

    code: ClassVar[str] = "FAN110"
    name: ClassVar[str] = "number-format"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {
            Need(Role.WEIGHT),
            Need(Role.BIAS),
            Need(Role.INPUT),
            Need(Role.OUTPUT),
            Need(Role.ACTIVATION_INPUT),
            Need(Role.OUTPUT_GRAD, recheck=True),
            Need(Role.WEIGHT_GRAD, recheck=True),
        }
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """A finding for the signal, and one for the gradients."""
        start = trial.start
        if start is None or _has_unsound_source(trial, start):
            return
        large = [o for o in _half(trial, start, Role.OUTPUT, Role.ACTIVATION_INPUT) if _is_too_large(o)]
        if large and not _weights_explain(trial, start, large[0].layer):
            yield self._overflow(large)
        looks = trial.looks(Role.WEIGHT_GRAD) or trial.looks(Role.OUTPUT_GRAD)
        if looks:
            yield from self._underflow(trial, looks[-1])

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """What float16 holds and does not hold; the same in other formats."""
        x, labels = clusters(32)
        large = (x * 4e4, labels)
        yield Example("float16 that suffices", lambda: stored("float16", mlp()))
        yield Example("float32 beyond it", lambda: stored("float32", mlp(batch=large)))
        yield Example("bfloat16 beyond it", lambda: stored("bfloat16", mlp(batch=large)))
        yield Example("weights that explain it", lambda: stored("float16", mlp(init=normal(3.0))))
        yield Example("a head of zeros", lambda: stored("float16", mlp(overrides={"head.weight": "zeros"})))
        yield Example("a tiny gradient, in bfloat16", lambda: stored("bfloat16", mlp(), 1e-6))
        yield Example("an input that overflows", lambda: stored("float16", mlp(batch=large)), ("blocks.0.fc",))
        yield Example("a gradient below 6e-8", lambda: stored("float16", mlp(), 1e-6), ("blocks.0.fc",))

    def _overflow(self, large: list[Observation]) -> Finding:
        s = large[0].summary
        reach = inf if s.inf else s.largest
        text = f"{large[0].tensor} is stored in float16, whose largest number is 65504, and "
        text += f"holds {s.inf} infinite values" if s.inf else f"reaches {reach:.3g}"
        found = self._finding(large, f"{text}; parameters are finite and of a usual size.")
        limit = Interval(0, LARGEST / HEADROOM)
        return replace(
            found, measured=Interval(reach, reach), expected=limit, quantity="largest float16 value"
        )

    def _underflow(self, trial: Trial, look: Step) -> Iterator[Finding]:
        given = look.first(Role.INPUT) or (trial.start.first(Role.INPUT) if trial.start else {})
        sparse = {path for path, o in given.items() if _zeros(o.summary) > SPARSE}
        gradients = [
            o
            for o in _half(trial, look, Role.OUTPUT_GRAD, Role.WEIGHT_GRAD)
            if o.role is Role.OUTPUT_GRAD or o.layer not in sparse
        ]
        if not any(_is_flushed(o.summary) for o in gradients):
            return
        lost = [o for o in gradients if _is_flushed(o.summary) or o.summary.is_zero]
        share = _zeros(lost[0].summary)
        text = f"{share:.0%} of {lost[0].tensor} is zero in float16, whose smallest number is {SMALLEST:.1g}"
        found = self._finding(lost, f"{text}: it needs loss scaling.")
        limit, quantity = Interval(0, MOSTLY_ZEROS), "share of zeros in a float16 gradient"
        yield replace(
            found, step=look.index, measured=Interval(share, share), expected=limit, quantity=quantity
        )

    def _finding(self, seen: list[Observation], text: str) -> Finding:
        layers = tuple(dict.fromkeys(o.layer for o in seen))
        return Finding(
            self.code,
            self.name,
            layer=seen[0].layer,
            step=0,
            measured=Interval(0, 0),
            expected=Interval(0, 0),
            quantity="",
            message=text,
            cause=Cause.NUMBER_FORMAT,
            scope=Scope.LAYER if len(layers) == 1 else Scope.EVERYWHERE,
            layers=layers,
            tensor=seen[0].tensor,
            severity=Severity.SUSPECT,
        )


def stored(dtype: str, trial: Trial, gradient: float = 1.0) -> Trial:
    """A trial as if its signal and gradients were stored in another format, the gradients times a factor.

    Values become what that format can hold: each summary is replaced by one of draws with the same RMS.
    """
    return replace(
        trial,
        steps=tuple(
            replace(step, observations=tuple(_stored(o, dtype, gradient) for o in step.observations))
            for step in trial.steps
        ),
    )
