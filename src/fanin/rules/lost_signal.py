"""FAN107: what reaches the last layer hardly depends on the input, and no gradient comes back."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, log10
from typing import ClassVar

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Severity
from fanin.measures import backward_gain, decades, depends_on_input, head, mixing, network_inputs
from fanin.rule import Example, Need, Rule
from fanin.scheme import LECUN_NORMAL
from fanin.summary import Interval
from fanin.trial import LayerSpec, Role, Step, Trial

LOST = 12.0
"""Decades that the input-dependent variance at the last layer may lie below that of the reference, or of the input.
Starts between 9 and 12 decades down reach 0.17 to 1.00 of the best sound start's progress, those at 14 and more 0.0,
but for networks of up to four layers (InitBench, tune split)."""

FEWEST = 5
"""Layers with weights from which on a loss is fatal; as in FAN101."""


class LostSignal(Rule):
    """What reaches the last layer hardly depends on the input, and no gradient comes back.

    What it detects
    ---------------
    A network whose output is the same for every input, whatever the reason: saturated units, biases that drown the
    signal, layers that lose a share each. FAN101 sees the part of it that lies in the scale of the weights.

    Why it matters
    --------------
    Where inputs cannot be told apart, the loss can teach no more than the classes' frequencies; and what does not pass
    forward does not pass back.

    How it is measured
    ------------------
    v = variance over the *batch* of what enters the last layer, for each unit and then averaged, so that a constant
    counts as nothing, relative to the same in the reference re-draw (without one, to the input's). A fault below
    -12 decades in a network of five layers or more when the gradient at the first layer has fallen by 8.

    When it is wrong
    ----------------
    One layer that is far too small recovers in a few steps: such a start is left to FAN101. Zeros are left to FAN402.
    A batch of equal examples looks lost whatever the network.

    Fix
    ---
    Look at the first layer where the signal breaks off: biases at zero, weights with zero mean, pre-activations with a
    standard deviation of about 1.

    References
    ----------
    - Schoenholz et al. 2017, Deep Information Propagation: inputs that cannot be told apart.
    - Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks.
    """

    code: ClassVar[str] = "FAN107"
    name: ClassVar[str] = "lost-signal"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {
            Need(Role.INPUT, units=True, recheck=True, reference=True),
            Need(Role.OUTPUT, units=True),
            Need(Role.OUTPUT_GRAD, units=True, recheck=True),
            Need(Role.WEIGHT),
        }
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, at the first layer where the signal is lost."""
        last, looks = head(trial.spec), trial.looks(Role.INPUT)
        layers = mixing(trial.spec)
        if last is None or not looks or len(layers) < FEWEST or _any_zeros(looks[0], layers):
            return
        lost = [_lost(look, trial, last, layers) for look in looks]
        if all(lost):
            yield self._finding(trial, looks[0], last, layers)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Networks with and without offsets that drown the signal."""
        deep = (48,) * 21 + (10,)
        hidden = tuple(f"blocks.{i}.fc" for i in range(20))
        drowned = {f"{path}.bias": synthetic.constant(-3.0) for path in hidden}
        lecun = synthetic.scaled(LECUN_NORMAL)
        yield Example("lecun_normal", lambda: synthetic.mlp(deep, lecun, "tanh", reference=True))
        yield Example("he_normal, ReLU", lambda: synthetic.mlp(deep, reference=True))
        yield Example(
            "a head of zeros", lambda: synthetic.mlp(deep, overrides={"head.weight": "zeros"}, reference=True)
        )
        yield Example(
            "biases of -3 before tanh",
            lambda: synthetic.mlp(deep, lecun, "tanh", overrides=drowned, reference=True),
            ("blocks.1.fc",),
        )

    def _finding(self, trial: Trial, step: Step, last: LayerSpec, layers: tuple[LayerSpec, ...]) -> Finding:
        fallen = _fallen(step, trial, last)
        broken = _first_broken(step, layers, last)
        return Finding(
            self.code,
            self.name,
            broken.path,
            step.index,
            Interval(fallen, fallen),
            Interval(-LOST, inf),
            "decades of input-dependent variance at the last layer, relative to a sound start",
            f"What enters {last.path} varies over the batch by 10^{fallen:.1f} of what a sound start shows; "
            f"{broken.path} is the first layer whose output is nearly the same for every input.",
            Cause.SIGNAL_LOST,
            layers=tuple(layer.path for layer in layers[layers.index(broken) :]) if broken in layers else (),
            severity=Severity.FAULT,
        )


def _lost(look: Step, trial: Trial, last: LayerSpec, layers: tuple[LayerSpec, ...]) -> bool:
    fallen, back = _fallen(look, trial, last), backward_gain(look, layers[0].path, last.path)
    return fallen < -LOST and back < -LOST * 2 / 3


def _fallen(look: Step, trial: Trial, last: LayerSpec) -> float:
    """log10 of v at the last layer, relative to the reference's, or to the input's."""
    here = look.first(Role.INPUT).get(last.path)
    beside = trial.reference.first(Role.INPUT).get(last.path) if trial.reference else None
    given = [beside] if beside else list(network_inputs(look, trial.spec).values())
    scale = max((o.summary.unit_variance for o in given if o and o.summary.units), default=1.0)
    if here is None or here.summary.units is None or not scale > 0:
        return 0.0
    return decades(here.summary.unit_variance / scale)


def _any_zeros(step: Step, layers: tuple[LayerSpec, ...]) -> bool:
    return any(seen.summary.is_zero for seen in step.of(Role.WEIGHT).values()) and bool(layers)


def _first_broken(step: Step, layers: tuple[LayerSpec, ...], last: LayerSpec) -> LayerSpec:
    """The first layer whose output depends on the input by less than a hundredth of the way to nothing."""
    outputs = step.first(Role.OUTPUT)
    for layer in layers:
        seen = outputs.get(layer.path)
        if seen and seen.summary.units and seen.summary.second_moment > 0:
            share = depends_on_input(seen.summary)
            if not share > 0 or log10(share) < -2:
                return layer
    return last
