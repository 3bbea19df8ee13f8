"""FAN106: units of a bounded activation that start on its flat ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.scheme import LECUN_NORMAL
from fanin.summary import Histogram, Interval
from fanin.synthetic import mlp, scaled
from fanin.trial import ActivationSpec, LayerSpec, ModelSpec, Observation, Role, Trial

FLAT_BEYOND: Mapping[str, float] = {
    "tanh": 2.0,
    "sigmoid": 4.0,
    "hardtanh": 1.0,
    "hardsigmoid": 3.0,
    "softsign": 10.0,
}
"""Magnitude of the input beyond which the slope is at most 7 % of the largest one: tanh'(2) = 0.07 and sigmoid'(4) =
0.018 of 0.25, as in the 414 starts on which MOST was set; softsign'(10) = 0.008, later because its ends are never quite
flat (Glorot and Bengio 2010, section 3); of the other two the slope is exactly 0 there."""

SWITCHES = frozenset({"sigmoid", "hardsigmoid"})
"""Activations that are gates more often than signals. They are judged only as the signal itself: where one layer takes
this activation's output and nothing else, and not on the network's output, where a prior may want 0.01."""

MOST = 0.6
"""Share of saturated values above which a start is unusual: the threshold of the fixed rule R2 (F1 0.87 on 414 starts
labelled by training). A normal pre-activation has it only with a standard deviation of 3.8 before tanh and 7.6 before
sigmoid, where a sound one has 1."""

IN_REFERENCE = 0.45
"""A sound draw that comes this near to MOST has inputs that are too large, or an architecture that means it: a standard
deviation of 1 gives tanh 0.05, sigmoid 0.0001 and hardtanh, which ends earliest, 0.32 (normal distribution)."""


@dataclass(frozen=True, slots=True)
class Saturated:
    """A bounded activation that is saturated at every look; `layer` is the last one that feeds it."""

    layer: str
    function: str
    share: Interval


class SaturatedUnits(Rule):
    r"""Units of a bounded activation start where it is flat.

    What it detects
    ---------------
    A tanh, sigmoid, hardtanh, hardsigmoid or softsign most of whose inputs lie so far from 0 that its slope is nearly
    zero, at step 0 and still at step 5.

    Why it matters
    --------------
    The gradient is multiplied by the slope at every layer on its way back: what lies in front of a saturated layer
    learns slowly or not at all, and units are switches that the batch sets at random. It slows training down more
    than it spoils it: with saturation at five layers a sigmoid network still reached all of its best result under a
    tuned Adam, a tanh network 64 %. So this is never a fault by itself; it explains a gradient that vanishes.

    How it is measured
    ------------------
    The share of the activation's inputs z with |z| > c over batch, positions and units, from their histogram: c = 2
    for tanh, 4 for sigmoid, 1 for hardtanh, 3 for hardsigmoid, 10 for softsign. It is suspect above 0.6, unless the
    same architecture drawn anew by a sound scheme has 0.45 or more at the same place. Gates are passed: whatever
    meets other tensors in a product, and sigmoids that are not plainly the signal (output heads, anything that meets
    something else). One finding for each layer, or one for all where most bounded activations have it.

    When it is wrong
    ----------------
    Gates inside recurrent cells are not seen. Binary networks and hashing layers saturate on purpose. Inputs in raw
    units saturate a sound first layer; the reference tells, where there is one.

    Fix
    ---
    Scale the weights so that pre-activations have a standard deviation of about 1 (lecun_normal, glorot_uniform), and
    standardize the inputs.

    References
    ----------
    - Glorot and Bengio 2010, Understanding the Difficulty of Training Deep Feedforward Neural Networks, section 3.
    - LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.4.
    """

    code: ClassVar[str] = "FAN106"
    name: ClassVar[str] = "saturated-units"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.ACTIVATION_INPUT, histogram=True, recheck=True, reference=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each layer, or a single one where most have it."""
        steps = trial.looks(Role.ACTIVATION_INPUT)
        if not steps:
            return
        looks = [step.of(Role.ACTIVATION_INPUT) for step in steps]
        sound = trial.reference.of(Role.ACTIVATION_INPUT) if trial.reference else {}
        paths, readers = {layer.path for layer in trial.spec.layers}, trial.spec.readers()
        seen = [a for a in trial.spec.activations if a.tensor in looks[0] and paths.intersection(a.inputs)]
        judged = [a for a in seen if is_signal(a, readers)]
        found = [one for a in judged if (one := _saturated(trial.spec, a, looks, sound))]
        if len(found) > 1 and len(found) > len(judged) / 2:
            yield self._finding(found, Scope.EVERYWHERE, steps[0].index)
        else:
            yield from (self._finding([one], Scope.LAYER, steps[0].index) for one in found)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Networks of tanh and sigmoid with weights of several sizes."""
        large, head = scaled(LECUN_NORMAL, 12), {"head.weight": scaled(LECUN_NORMAL)}
        one = {"blocks.2.fc.weight": scaled(LECUN_NORMAL, 30)}
        yield Example("tanh, lecun_normal", lambda: mlp(init="lecun_normal", activation="tanh"))
        yield Example(
            "tanh, weights twice as large", lambda: mlp(init=scaled(LECUN_NORMAL, 2), activation="tanh")
        )
        yield Example("sigmoid, he_normal", lambda: mlp(activation="sigmoid"))
        yield Example("relu, large weights", lambda: mlp(init=large))
        yield Example(
            "tanh, twelve times too large",
            lambda: mlp(init=large, activation="tanh", overrides=head),
            ("blocks.0.fc",),
        )
        yield Example("tanh, one layer", lambda: mlp(activation="tanh", overrides=one), ("blocks.2.fc",))
        yield Example(
            "sigmoid, one layer", lambda: mlp(activation="sigmoid", overrides=one), ("blocks.2.fc",)
        )

    def _finding(self, found: list[Saturated], scope: Scope, step: int) -> Finding:
        first = found[0]
        more = f" So is that of {len(found) - 1} more layers." if len(found) > 1 else ""
        return Finding(
            self.code,
            self.name,
            first.layer,
            step,
            Interval(min(one.share.low for one in found), max(one.share.high for one in found)),
            Interval(0.0, MOST),
            "share of saturated values",
            f"The {first.function} after {first.layer} is flat for {first.share.low:.0%} of its inputs: they are "
            f"beyond ±{FLAT_BEYOND[first.function]:g}.{more}",
            Cause.SATURATED_UNITS,
            scope=scope,
            layers=tuple(dict.fromkeys(one.layer for one in found)),
            severity=Severity.SUSPECT,
        )


def share_beyond(histogram: Histogram, limit: float) -> Interval:
    """Share of values of a magnitude above a limit; an interval, since the limit may fall inside a bin.

    >>> from fanin.summary import summarize
    >>> histogram = summarize([-5.0, -1.0, 0.0, 3.0], histogram=True).histogram
    >>> share_beyond(histogram, 2.0)
    Interval(low=0.5, high=0.5)
    """
    total = int(histogram.counts.sum())
    if not total:
        return Interval(0.0, 0.0)
    low, high = histogram.edges()
    surely = (low >= limit) | (high <= -limit)
    perhaps = (high > limit) | (low < -limit)
    return Interval(*(float(histogram.counts[which].sum() / total) for which in (surely, perhaps)))


def is_signal(activation: ActivationSpec, readers_of: Mapping[str, list[LayerSpec]]) -> bool:
    """Whether a bounded activation is on the way of the signal, rather than a gate beside it."""
    if activation.function not in FLAT_BEYOND or not activation.inputs:
        return False
    readers = [reader for path in activation.inputs for reader in readers_of.get(path, ())]
    if activation.function in SWITCHES:
        return bool(readers) and all(_takes_alone(reader, activation) for reader in readers)
    return all(_takes(reader, activation) for reader in readers)


def _takes_alone(reader: LayerSpec, activation: ActivationSpec) -> bool:
    """Whether a layer is given the activation's output and nothing else."""
    alone = set(reader.inputs) == set(activation.inputs)
    return alone and reader.joins != "product" and reader.input_activation == activation.function


def _takes(reader: LayerSpec, activation: ActivationSpec) -> bool:
    """Whether a layer is given the activation's output as a summand or a part, or alone."""
    joined = len(reader.inputs) > 1 and reader.joins in ("sum", "concatenation")
    return joined or _takes_alone(reader, activation)


def _saturated(
    spec: ModelSpec,
    activation: ActivationSpec,
    looks: list[dict[str, Observation]],
    sound: dict[str, Observation],
) -> Saturated | None:
    shares = [_share(look, activation) for look in looks]
    lowest = min((share.low for share in shares if share), default=0.0)
    reference = _share(sound, activation)
    if shares[0] is None or lowest <= MOST or (reference and reference.low >= IN_REFERENCE):
        return None
    order = {layer.path: place for place, layer in enumerate(spec.layers)}
    layer = max(activation.inputs, key=lambda path: order.get(path, -1))
    return Saturated(layer, activation.function, shares[0])


def _share(look: dict[str, Observation], activation: ActivationSpec) -> Interval | None:
    seen = look.get(activation.tensor)
    histogram = seen.summary.histogram if seen else None
    return share_beyond(histogram, FLAT_BEYOND[activation.function]) if histogram else None
