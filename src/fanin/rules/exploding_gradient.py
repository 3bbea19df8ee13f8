"""FAN202: the gradient explodes on the way back, though the signal is in range."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import ClassVar

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope
from fanin.measures import backward_gain
from fanin.propagation import Stretch, stretch
from fanin.rule import Example, Need, Rule
from fanin.scheme import LECUN_NORMAL
from fanin.summary import Interval
from fanin.trial import Role, Step, Trial

TOLERATED = 6.5
"""Decades by which the gradient's power may grow from the last layer to the first. On InitBench's tune split deep tanh
networks at 7.9 and 11 decades learned nothing (0 and below), networks of ReLU up to 5.5 reached 0.64 and more."""

FORWARD = 4.0
"""Decades of growth of the signal above which the fault lies in the forward pass (FAN102 and FAN301 judge it)."""


class ExplodingGradient(Rule):
    """The gradient explodes on the way back, though the signal stays in range.

    What it detects
    ---------------
    A stretch of layers without normalization through which the gradient grows by orders of magnitude from the last
    layer to the first, while the activations between them bound the signal: tanh networks with large weights.

    Why it matters
    --------------
    Nearby inputs are torn apart until the output is a noise of the input: the network is in its chaotic phase. Any
    step that suits the last layer is far too large for the first, and what one batch teaches says nothing of the next.

    How it is measured
    ------------------
    D_b = log10 of the power of the gradient at the first layer's output, summed over units and positions, relative to
    that at the last layer's. Width, batch size, reduction and the loss's scale cancel. A fault above 6.5 decades
    where the reference re-draw, if there is one, stays below half of that.

    When it is wrong
    ----------------
    Normalizations between the layers pass gradients of any size and make them harmless; such networks are not judged
    here. Plain networks with batch normalization grow by 0.166 decades per layer by design.

    Fix
    ---
    Scale the weights to the edge of chaos: for tanh gain 1 (lecun_normal), orthogonal for great depth.

    References
    ----------
    - Poole et al. 2016, Exponential expressivity in deep neural networks through transient chaos.
    - Schoenholz et al. 2017, Deep Information Propagation, section 4.
    - Yang et al. 2019, A Mean Field Theory of Batch Normalization, on growth that no weights remove.
    """

    code: ClassVar[str] = "FAN202"
    name: ClassVar[str] = "exploding-gradient"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {
            Need(Role.OUTPUT_GRAD, units=True, recheck=True, reference=True),
            Need(Role.WEIGHT),
            Need(Role.INPUT, units=True, recheck=True, reference=True),
        }
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, at the first layer of the stretch."""
        path, looks = stretch(trial), trial.looks(Role.OUTPUT_GRAD)
        if path is None or not looks or path.decades > FORWARD:
            return
        grown = min(_growth(look, path) for look in looks)
        by_design = _growth(trial.reference, path) if trial.reference else 0.0
        if grown > TOLERATED and not by_design > TOLERATED / 2:
            yield self._finding(path, grown)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Deep tanh networks below, at and beyond the edge of chaos."""
        deep = (48,) * 21 + (10,)

        def tanh(factor: float) -> Trial:
            return synthetic.mlp(deep, synthetic.scaled(LECUN_NORMAL, factor), "tanh")

        yield Example("lecun_normal", lambda: tanh(1.0))
        yield Example("1.2 times lecun_normal", lambda: tanh(1.2))
        yield Example("he_normal, ReLU", lambda: synthetic.mlp(deep))
        yield Example("five times lecun_normal", lambda: tanh(5.0), ("blocks.0.fc",))

    def _finding(self, path: Stretch, grown: float) -> Finding:
        first = path.links[0]
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(grown, grown),
            Interval(-inf, TOLERATED),
            "decades of power that the gradient gains on the way back",
            f"The gradient at {first.layer.path} has 10^{grown:.1f} times the power that it has at "
            f"{path.head.layer.path}, over {len(path.links) + 1} layers that nothing normalizes.",
            Cause.EXPLODING_GRADIENT,
            scope=Scope.EVERYWHERE,
            layers=tuple(link.layer.path for link in path.links),
            tensor=first.layer.parameter_path(first.weight),
            source=first.weight.source,
        )


def _growth(step: Step, path: Stretch) -> float:
    """log10 of the gradient's power at the first layer over that at the last; -inf where it was not seen."""
    grown = backward_gain(step, path.links[0].layer.path, path.head.layer.path)
    return grown if grown == grown else -inf
