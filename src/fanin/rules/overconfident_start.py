"""FAN301: the first loss is far above that of an answer which ignores the input."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from statistics import median
from typing import ClassVar

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Severity
from fanin.measures import decades, has_attention, head, mixing, uninformed_loss
from fanin.propagation import drawn_excess
from fanin.rule import Example, Need, Rule
from fanin.scheme import HE_NORMAL, LECUN_NORMAL
from fanin.summary import Interval
from fanin.trial import LayerSpec, ParameterSpec, Role, Step, Trial

FATAL = 3.5
"""Decades of the first loss above the uninformed one that training does not get over. Cross entropy grows with the
logits themselves: starts of up to 3.4 decades reach 0.64 and more of the best sound start's progress, of those at 3.9
and more all but one stay below 0.5 (InitBench, tune split)."""

FATAL_FOR_TARGETS = 2.8
"""The same where the loss measures the distance to targets, and so grows with the square of the outputs: six of six
autoencoders at 3.1 and more stayed below 0, the one at 1.6 reached 0.69 (InitBench, tune split)."""

FATAL_WITH_ATTENTION = 1.7
"""The same for networks with attention, whose logits' gradient reaches queries and keys: two of two transformers at
2.0 and 2.3 decades stayed below 0, at 1.0 and 1.3 they reached 0.62 and 0.77; networks without attention shrug such a
head off (0.93 and more in eight of twelve; InitBench, tune split)."""

UNUSUAL = 0.7
"""Decades from which the start is worth a note: a factor of 5 (theory: healthy 95th percentile 8, mostly heads that an
adaptive optimizer brings down within a few steps)."""

TRIVIAL = 1e-35
"""Uninformed loss, relative to the first one, below which a constant output is perfect: an optimum found by descent,
whose true value is zero."""

OVERSIZED = 1.0
"""Decades of excess variance in the head's weight that make the head the cause, as CLIFF in `propagation`."""


class OverconfidentStart(Rule):
    """The first loss is far above that of an answer which ignores the input.

    What it detects
    ---------------
    A network whose outputs are so large before any training that it is certain, and wrong: because its head is drawn
    too large, or because the signal grew on the way there.

    Why it matters
    --------------
    Training must first unlearn: the outputs have to shrink by orders of magnitude before anything can be learned, and
    each optimizer step moves a weight by no more than about the learning rate.

    How it is measured
    ------------------
    E = log10(L / L_c) at step 0, L_c the loss of the best output that does not depend on the input: the entropy of
    the labels, or the variance of the targets. Batch size, classes, reduction and the loss's scale cancel. A fault
    from 3.5 decades on (2.8 where targets are numbers, 1.7 where attention is used), a note from 0.7. The head is
    the cause when its weight has more than ten times the variance that keeps the scale; otherwise it is the signal.

    When it is wrong
    ----------------
    Losses with several terms, a temperature, or a margin may start far above L_c by design. Easy tasks unlearn
    within the first steps whatever the head: a start just above the limit may still train.

    Fix
    ---
    Start the head at zero, or so that its outputs have a standard deviation of about 0.3; give its bias the classes'
    log frequencies or the targets' mean. Where the signal grew before the head, cure that.

    References
    ----------
    - Karpathy 2019, A Recipe for Training Neural Networks: verify loss @ init.
    - Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities, on output logits.
    """

    code: ClassVar[str] = "FAN301"
    name: ClassVar[str] = "overconfident-start"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {
            Need(Role.UNINFORMED_LOSS, reference=True),
            Need(Role.TARGET, units=True),
            Need(Role.WEIGHT),
            Need(Role.OUTPUT, units=True),
        }
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most."""
        step = trial.start
        if step is None:
            return
        excess = self._excess(step, step)
        if trial.reference is not None and step.loss > 0 and trial.reference.loss > 0:
            # What a sound draw of the same network costs too is no matter of this draw: a batch of one class, say.
            excess = min(excess, decades(step.loss / trial.reference.loss))
        if excess > UNUSUAL and all(self._excess(look, step) > UNUSUAL for look in trial.train_steps[-1:]):
            yield self._finding(trial, step, excess)

    def _excess(self, look: Step, start: Step) -> float:
        """At a step; a later one without a loss says nothing against the first. Nothing is known where a constant
        output is next to perfect: every network starts far above that."""
        constant = uninformed_loss(start)
        if not constant > TRIVIAL * abs(start.loss):
            return 0.0
        return decades(look.loss / constant) if look.loss == look.loss else inf

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Heads of several sizes, and a signal that grows."""
        huge = {"head.weight": synthetic.scaled(LECUN_NORMAL, 1e5)}
        deep = (64,) * 10 + (10,)
        yield Example("he_normal", lambda: synthetic.mlp(deep))
        yield Example("a head of zeros", lambda: synthetic.mlp(deep, overrides={"head.weight": "zeros"}))
        yield Example("a head 1e5 too large", lambda: synthetic.mlp(deep, overrides=huge), ("head",))
        yield Example(
            "five times he_normal",
            lambda: synthetic.mlp(deep, synthetic.scaled(HE_NORMAL, 5.0)),
            ("head",),
        )

    def _finding(self, trial: Trial, step: Step, excess: float) -> Finding:
        limit = _limit(step)
        last = head(trial.spec)
        weight = _oversized(last, trial, step) if last else None
        cause = Cause.HEAD_TOO_LARGE if weight else Cause.SIGNAL_EXPLODED
        said = f"{weight.name} is drawn too large" if weight else "the signal grew on the way"
        guess = f"always answering the same would cost {uninformed_loss(step):.3g}"
        return Finding(
            self.code,
            self.name,
            last.path if last else "",
            step.index,
            Interval(excess, excess),
            Interval(-inf, limit),
            "log10(first loss / uninformed loss)",
            f"The first loss is {step.loss:.3g}; {guess}: {said}.",
            cause,
            layers=(last.path,) if last else (),
            tensor=last.parameter_path(weight) if last and weight else "",
            source=weight.source if weight else None,
            severity=Severity.FAULT if excess > limit else Severity.NOTE,
        )


def _limit(step: Step) -> float:
    if has_attention(step):
        return FATAL_WITH_ATTENTION
    return FATAL_FOR_TARGETS if any(o.role is Role.TARGET for o in step.observations) else FATAL


def _oversized(last: LayerSpec, trial: Trial, step: Step) -> ParameterSpec | None:
    """The head's weight, where it stands out among the layers by ten times the variance that keeps the scale."""
    excesses = {
        layer.path: excess for layer in mixing(trial.spec) if (excess := drawn_excess(layer, step)) == excess
    }
    others = [excess for path, excess in excesses.items() if path != last.path]
    usual = max(median(others), 0.0) if others else 0.0
    if excesses.get(last.path, 0.0) - usual <= OVERSIZED:
        return None
    return next((w for w in last.weights if w.fan_in and len(w.shape) >= 2), None)
