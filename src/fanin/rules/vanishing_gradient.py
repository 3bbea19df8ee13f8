"""FAN201: the gradient vanishes on the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf
from statistics import median
from typing import ClassVar

import numpy as np

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope
from fanin.measures import backward_gain, head, mixing, network_inputs
from fanin.moments import expected_spans
from fanin.rule import Example, Need, Rule
from fanin.scheme import InitScheme, gain
from fanin.summary import Floats, Interval
from fanin.trial import LayerSpec, ModelSpec, Role, Step, Trial

LOST = 13.0
"""Decades of power that the gradient may lose from the last layer to the first. Starts of five layers and more that
lose 13.7 and more stay at 0.0 with one exception (0.81), those that lose 9 to 12 reach 0.17 to 1.00, up to 7 all learn
(InitBench, tune split)."""

THROUGHOUT = 6.0
"""Decades that the median layer must lose too: behind a single layer that passes nothing, the rest of the network
learns, and it soon passes something (0.94 with one saturated layer of 20; InitBench, tune split)."""

FEWEST = 5
"""Layers with weights from which on the loss is fatal; as in FAN101."""


class VanishingGradient(Rule):
    """The gradient vanishes on the way back from the last layer to the first.

    What it detects
    ---------------
    A network whose first layers receive practically no gradient although its signal passes forward: activations on
    their flat parts throughout, or many layers that each pass on a fraction.

    Why it matters
    --------------
    Layers without a gradient do not learn. Adam divides by the gradient's size, but adds 1e-8 to it first: what is
    smaller does not move, and what is a little larger follows the noise of single batches.

    How it is measured
    ------------------
    D_b = log10 of the power of the gradient at the first layer's output, summed over units and positions, relative to
    that at the last layer's; -inf when nothing at all arrives. Width, batch size, reduction and the loss's scale
    cancel. A fault below -13 decades in a network of five layers or more without sums, when the median layer loses 6
    too, at every look.

    Where there is no sound re-draw to compare with (watched trials, models too large for one), what the architecture
    explains comes off both: sound weights (gain^2 / fan_in) make the gradient's second moment at one layer
    fan_out E[w^2] chi times that at the next, with chi = E[phi'(z)^2], which is propagated through the graph
    (`fanin.moments`). Where three standard deviations of a random draw exceed the 13 or the 6 decades, they take
    their place: narrow layers are not judged like wide ones. A loss that is fatal but no more than that leaves the
    verdict undecided. Where the graph has parts whose effect is not known, nothing comes off.

    When it is wrong
    ----------------
    A zero head or a zero branch lets no gradient through at step 0 and cures itself with the first update: networks
    with weights of zeros are left to FAN402.

    Fix
    ---
    Scale the weights so that pre-activations have a standard deviation of about 1; centre biases before sigmoid and
    softplus; use an activation that is steeper, or skips.

    References
    ----------
    - Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks.
    - Bengio, Simard and Frasconi 1994, Learning long-term dependencies with gradient descent is difficult.
    - He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers, eq. 13, on gradients through layers.
    - Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, Deep Information Propagation, on chi.
    - Hanin and Nica 2019, Products of Many Large Random Matrices and Gradients in Deep Neural Networks, on draws.
    """

    code: ClassVar[str] = "FAN201"
    name: ClassVar[str] = "vanishing-gradient"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.OUTPUT_GRAD, units=True, recheck=True), Need(Role.WEIGHT), Need(Role.INPUT, units=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, at the first layer."""
        last, layers, looks = head(trial.spec), mixing(trial.spec), trial.looks(Role.OUTPUT_GRAD)
        if last is None or not looks or len(layers) < FEWEST or _has_zeros(looks[0]):
            return
        if any(layer.joins == "sum" for layer in trial.spec.layers if layer.calls):
            return  # past each branch the stream brings the gradient back
        if _is_given_nothing(looks[0], trial.spec):
            return  # FAN101 asks for another batch
        first = [backward_gain(look, layers[0].path, last.path) for look in looks]
        if not all(gain < -LOST for gain in first) or not _throughout(looks, layers, last, {}):
            return
        spans = _by_design(trial)
        least = _least(spans.get(layers[0].path), LOST)
        if all(gain < least for gain in first) and _throughout(looks, layers, last, spans):
            yield self._finding(
                layers[0], last, first[0], len(layers), _explained(trial, layers[0], first[0])
            )
        else:
            yield self._unexplained(layers[0], last, first[0], least)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Sound networks, zeros that heal, and tanh that is saturated throughout."""
        deep = (48,) * 13 + (10,)
        positive = synthetic.constant(0.0)

        def uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
            return rng.uniform(0.0, 1.0, shape)

        very_deep = (48,) * 21 + (10,)
        sound = InitScheme("normal", gain("sigmoid") or 1.0)

        yield Example("he_normal", lambda: synthetic.mlp(deep))
        yield Example(
            "20 sigmoid layers, sound for them, no re-draw",
            lambda: synthetic.mlp(very_deep, synthetic.scaled(sound), "sigmoid"),
        )
        yield Example(
            "20 sigmoid layers, a tenth of that, no re-draw",
            lambda: synthetic.mlp(very_deep, synthetic.scaled(sound, 0.1), "sigmoid"),
            ("blocks.0.fc",),
        )
        yield Example("a head of zeros", lambda: synthetic.mlp(deep, overrides={"head.weight": positive}))
        yield Example("tanh, lecun_normal", lambda: synthetic.mlp(deep, "lecun_normal", "tanh"))
        yield Example(
            "std 1e-4 throughout", lambda: synthetic.mlp(deep, synthetic.normal(1e-4)), ("blocks.0.fc",)
        )
        yield Example(
            "uniform on [0, 1), tanh", lambda: synthetic.mlp(deep, uniform, "tanh"), ("blocks.0.fc",)
        )

    def _unexplained(self, first: LayerSpec, last: LayerSpec, gain: float, least: float) -> Missing:
        return Missing(
            self.code,
            f"the gradient at {first.path} has 10^{gain:.1f} of the power that it has at {last.path}, which the "
            f"scale of the weights does not explain: with sound ones 10^{least:.1f} would be no fault of theirs",
            "run fanin.check with race=True: it trains the model against a sound re-draw of it",
        )

    def _finding(
        self, first: LayerSpec, last: LayerSpec, gain: float, layers: int, explained: str
    ) -> Finding:
        return Finding(
            self.code,
            self.name,
            first.path,
            0,
            Interval(gain, gain),
            Interval(-LOST, inf),
            "decades of power that the gradient gains on the way back",
            f"The gradient at {first.path} has 10^{gain:.1f} of the power that it has at {last.path}, "
            f"{layers} layers on.{explained}",
            Cause.VANISHING_GRADIENT,
            scope=Scope.EVERYWHERE,
            layers=(first.path,),
        )


def _by_design(trial: Trial) -> dict[str, Interval]:
    """What sound weights do to the gradient, by layer; nothing where a re-draw shows it, and no layer for which that
    is not known."""
    return {} if trial.reference or trial.start is None else expected_spans(trial.spec, trial.start)


def _least(span: Interval | None, tolerated: float) -> float:
    """The fewest decades that are no fault: what sound weights cost, and below that what is tolerated, or the noise
    of a draw where that is more."""
    if span is None:
        return -tolerated
    return min(span.middle, 0.0) - max(tolerated, (span.high - span.low) / 2)


def _explained(trial: Trial, first: LayerSpec, gain: float) -> str:
    """What the weights as drawn account for, and what sound ones would leave; empty with a re-draw beside it."""
    if trial.reference or trial.start is None:
        return ""
    sound = expected_spans(trial.spec, trial.start).get(first.path)
    drawn = expected_spans(trial.spec, trial.start, sound=False).get(first.path)
    if sound is None or drawn is None or gain == -inf:
        return ""
    return (
        f" The scale of the weights as drawn accounts for {drawn.middle:.1f} of the {gain:.1f} decades; "
        f"sound ones would cost {sound.middle:.1f}."
    )


def _throughout(
    looks: Iterable[Step], layers: tuple[LayerSpec, ...], last: LayerSpec, spans: Mapping[str, Interval]
) -> bool:
    """Whether at every look the median layer loses too, beyond what is no fault."""
    return all(_median(look, layers, last, spans) < 0 for look in looks)


def _median(
    look: Step, layers: tuple[LayerSpec, ...], last: LayerSpec, spans: Mapping[str, Interval]
) -> float:
    """Decades by which the median layer lies above what is tolerated throughout."""
    gains = [
        backward_gain(look, layer.path, last.path) - _least(spans.get(layer.path), THROUGHOUT)
        for layer in layers
        if layer.path != last.path
    ]
    return median(gain for gain in gains if gain == gain) if gains else 0.0


def _is_given_nothing(step: Step, spec: ModelSpec) -> bool:
    """Whether the batch is zero throughout: units without biases are then flat whatever their weights."""
    given = network_inputs(step, spec).values()
    return bool(given) and all(seen.summary.is_zero for seen in given)


def _has_zeros(step: Step) -> bool:
    return any(seen.summary.is_zero for seen in step.of(Role.WEIGHT).values())
