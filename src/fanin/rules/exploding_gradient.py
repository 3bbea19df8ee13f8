"""FAN202: the gradient explodes on the way back, though the signal is in range."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import ClassVar

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope
from fanin.measures import backward_gain
from fanin.moments import expected_spans
from fanin.propagation import Stretch, stretch
from fanin.rule import Example, Need, Rule
from fanin.scheme import LECUN_NORMAL, InitScheme, gain
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

    Where there is none (watched trials, models too large for one), the reference is what sound weights (gain^2 /
    fan_in) should do: the gradient's second moment at one layer is fan_out E[w^2] chi times that at the next, with
    chi = E[phi'(z)^2], propagated through the graph (`fanin.moments`). It must stay below the same half, and the
    growth must exceed it by 6.5 decades, or by three standard deviations of a random draw where narrow layers make
    them more; short of that the verdict is undecided. Where the graph has parts whose effect is not known, 6.5
    decades decide alone.

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
    - He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers, eq. 13, on gradients through layers.
    - Hanin and Nica 2019, Products of Many Large Random Matrices and Gradients in Deep Neural Networks, on draws.
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
        by_design = _by_design(trial, path) if grown > TOLERATED else Interval(0.0, 0.0)
        if not grown > TOLERATED or by_design.middle > TOLERATED / 2:
            return
        if trial.reference or grown > _most(by_design):
            yield self._finding(path, grown)
        else:
            yield self._unexplained(path, grown, by_design)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Deep tanh networks below, at and beyond the edge of chaos."""
        deep = (48,) * 21 + (10,)

        def tanh(factor: float) -> Trial:
            return synthetic.mlp(deep, synthetic.scaled(LECUN_NORMAL, factor), "tanh")

        def hundred(factor: float) -> Trial:
            keeps = InitScheme("normal", gain("tanh") or 1.0)
            return synthetic.mlp((48,) * 101 + (10,), synthetic.scaled(keeps, factor), "tanh")

        yield Example("lecun_normal", lambda: tanh(1.0))
        yield Example(
            "100 tanh layers that keep their signal, no re-draw: growth by design", lambda: hundred(1.0)
        )
        yield Example("1.2 times lecun_normal", lambda: tanh(1.2))
        yield Example("he_normal, ReLU", lambda: synthetic.mlp(deep))
        yield Example("five times lecun_normal", lambda: tanh(5.0), ("blocks.0.fc",))

    def _unexplained(self, path: Stretch, grown: float, by_design: Interval) -> Missing:
        return Missing(
            self.code,
            f"the gradient at {path.links[0].layer.path} has 10^{grown:.1f} times the power that it has at "
            f"{path.head.layer.path}, and up to 10^{_most(by_design):.1f} is no fault in layers this narrow",
            "run fanin.check, which draws the weights anew and compares",
        )

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


def _by_design(trial: Trial, path: Stretch) -> Interval:
    """What sound weights do to the gradient on this stretch: as a re-draw shows, or as they are expected to; 0 where
    neither is known."""
    unknown = Interval(0.0, 0.0)
    if trial.reference:
        grown = _growth(trial.reference, path)
        return Interval(grown, grown)
    if trial.start is None:
        return unknown
    return expected_spans(trial.spec, trial.start).get(path.links[0].layer.path, unknown)


def _most(by_design: Interval) -> float:
    """The most decades that are no fault: what sound weights do, and above that what is tolerated, or the noise of a
    draw where that is more."""
    return max(by_design.middle, 0.0) + max(TOLERATED, (by_design.high - by_design.low) / 2)


def _growth(step: Step, path: Stretch) -> float:
    """log10 of the gradient's power at the first layer over that at the last; -inf where it was not seen."""
    grown = backward_gain(step, path.links[0].layer.path, path.head.layer.path)
    return grown if grown == grown else -inf
