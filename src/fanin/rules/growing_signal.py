"""FAN102: the signal grows with depth until outputs and gradients are enormous."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import ClassVar

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing
from fanin.propagation import CLIFF, Stretch, gain_findings, stretch
from fanin.rule import Example, Need, Rule
from fanin.scheme import HE_NORMAL
from fanin.trial import Role, Trial

TOLERATED = 6.5
"""Decades of variance that a signal may gain and be trained all the same, besides the noise of the draw, where the
optimizer adapts or is not known. On InitBench's tune split growth of up to 6 decades reaches 0.64 and more of the best
sound start's progress, growth of 7 and more stays below 0.5 in most networks; single layers 100 times too large, at 4
decades, reach 0.88 and more (benchmarks/initbench)."""

TOLERATED_BY_SGD = 5.5
"""Decades under plain gradient descent (benchmarks/cliffs.py: up to 5.9 decades reach 0.61 to 0.98 of the sound
network's progress, 7.5 to 8 reach 0.38 to 0.72, 10 and more diverge)."""


class GrowingSignal(Rule):
    """The signal grows from layer to layer until the outputs and gradients are enormous.

    What it detects
    ---------------
    A stretch of layers without normalization over which the variance of the signal grows by orders of magnitude,
    because the weights are larger than the activations need. It tells a slope from a cliff and names the first layer
    at fault.

    Why it matters
    --------------
    The first loss is thousands of times that of a guess, the first gradients are larger still, and any learning rate
    that suits the end of training throws the weights away in the first step.

    How it is measured
    ------------------
    As FAN101, with the sign turned round: D above 6.5 + 3 sigma decades (under plain gradient descent 5.5 + 3 sigma),
    and excesses of the weights that add up to at least half of that.

    When it is wrong
    ----------------
    Residual sums without normalization grow by design: there only a layer that is off by a decade is blamed, and
    growth without one leaves the verdict undecided. Saturating activations (tanh, sigmoid) hide the growth, and this
    rule does not see it.

    Fix
    ---
    Draw the weights with the gain of the activation that feeds the layer: he_normal for ReLU. In PyTorch:
    `nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")`. Or put normalizations between the layers.

    References
    ----------
    - He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers, eq. 9 and 10.
    - Hanin and Rolnick 2018, How to Start Training: The Effect of Initialization and Architecture.
    - Zhang, Dauphin and Ma 2019, Fixup Initialization, section 2, on residual growth.
    """

    code: ClassVar[str] = "FAN102"
    name: ClassVar[str] = "growing-signal"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.WEIGHT), Need(Role.INPUT, units=True), Need(Role.OUTPUT, units=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for a slope, or one for each cliff."""
        path = stretch(trial)
        if path is None:
            return
        borne = tolerated(trial, path)
        if path.decades <= borne:
            return
        if path.excess >= borne / 2 and (not path.has_sums or _a_layer_stands_out(path)):
            yield from gain_findings(self.code, self.name, path, +1, borne, Cause.GAIN_TOO_LARGE)
        else:
            yield Missing(
                self.code,
                f"the signal grows by {path.decades:.1f} decades before {path.head.layer.path}, and the scale of the "
                "weights does not explain it",
                "scale the end of each residual branch by 1/sqrt(branches), or normalize; train with fanin.watch to "
                "see whether it matters",
            )

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Plain and residual ReLU networks."""
        fourfold = synthetic.scaled(HE_NORMAL, factor=4.0)
        cliff = {"blocks.3.fc.weight": synthetic.scaled(HE_NORMAL, factor=1e4)}
        deep = (64,) * 8 + (10,)
        yield Example("he_normal", lambda: synthetic.mlp(deep))
        yield Example("twice he_normal, 3 layers", lambda: synthetic.mlp((64,) * 4 + (10,), _doubled()))
        yield Example(
            "residual, he_normal", lambda: synthetic.mlp((32,) * 8 + (10,), "he_normal", residual=True)
        )
        yield Example("std 1", lambda: synthetic.mlp(deep, synthetic.normal(1.0)), ("blocks.0.fc",))
        yield Example("four times he_normal", lambda: synthetic.mlp(deep, fourfold), ("blocks.0.fc",))
        yield Example(
            "one layer 10^4 too large", lambda: synthetic.mlp(deep, overrides=cliff), ("blocks.3.fc",)
        )


def tolerated(trial: Trial, path: Stretch) -> float:
    """Decades of growth that are no fault."""
    return (TOLERATED if trial.adapts else TOLERATED_BY_SGD) + path.noise


def _a_layer_stands_out(path: Stretch) -> bool:
    """Where branches are summed, a factor of two per layer is design; a factor of ten is not."""
    return any(link.excess > CLIFF for link in path.links)


def _doubled() -> synthetic.Init:
    return synthetic.scaled(HE_NORMAL, factor=sqrt(2.0))
