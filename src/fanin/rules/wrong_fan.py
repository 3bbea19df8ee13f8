"""FAN410: weights scaled by a fan other than fan_in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod, sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.scheme import gain
from fanin.summary import Floats, Interval
from fanin.synthetic import mlp, seen
from fanin.trial import Kind, LayerSpec, ParameterSpec, Role, Step, Trial

TOLD_APART = 4.0
"""Factor by which another fan must differ from fan_in. The ratio of a transformer's widths is 4, where a fixed standard
deviation can look like either; and a wrong gain alone explains a factor of 2 to 3."""

ONE_IS_ENOUGH = 8.0
"""Factor from which layers of a single shape are evidence: with one shape, any fixed standard deviation is that of some
fan, but the match must then be of a few percent in a number that is off by eight or more."""

MATCH = 0.05
"""How far E[w²] · fan may be from gain², relatively, besides the noise of the draw: what truncation at two standard
deviations without correction would change is 23 %, and is another scheme; 5 % covers rounding of gains."""

NOISE = 4.0
"""Standard deviations, sqrt(2 / n) of E[w²] for n normal values, that a draw may be off: exceeded once in 16,000."""

SCHEMES = (1 / 3, 1.0, 2.0, 25 / 9)
"""gain² with the right fan that are in use whatever the activation: PyTorch's default (Kaiming uniform with a = √5),
LeCun et al. 1998, He et al. 2015, and PyTorch's gain of 5/3 for tanh."""


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of a layer as drawn.

    Attributes:
        mean_square: E[w²].
        needed: gain² that the activations around the layer call for.
        fans: Other fans that it may have been scaled by, by name.
        tolerance: Relative noise of E[w²] and of gains.
    """

    layer: LayerSpec
    spec: ParameterSpec
    fan_in: int
    mean_square: float
    needed: tuple[float, ...]
    fans: dict[str, int]
    tolerance: float

    @property
    def is_sound(self) -> bool:
        """Whether it follows a known scheme with the right fans: by fan_in, or by the mean of both (Glorot)."""
        mean = (self.fan_in + self.fans["fan_out"]) / 2
        return self.matches(mean, 1.0) or any(self.matches(self.fan_in, g) for g in (*SCHEMES, *self.needed))

    def matches(self, fan: float, squared_gain: float) -> bool:
        """Whether E[w²] = gain² / fan within the tolerance."""
        return abs(self.mean_square * fan / squared_gain - 1) <= self.tolerance

    def was_scaled_by(self, fan: str) -> bool:
        """Whether another fan explains its scale, and fan_in does not."""
        by_it = fan in self.fans and any(self.matches(self.fans[fan], g) for g in self.needed)
        return by_it and not self.is_sound

    def factor(self, fan: str) -> float:
        """How far another fan is from fan_in, either way."""
        ratio = self.fans.get(fan, self.fan_in) / self.fan_in
        return max(ratio, 1 / ratio)


class WrongFan(Rule):
    r"""Weights have the variance that their activation needs, divided by the wrong fan.

    What it detects
    ---------------
    Linear layers or convolutions whose E[w^2] is gain^2 divided by fan_out, by the kernel's area alone, by the
    channels without the kernel's area, or by the input channels of all groups together, where that differs from
    gain^2 / fan_in by more than a factor of 4.

    Why it matters
    --------------
    A sum of n terms has n times the variance of one. Divided by anything else than n the signal grows or shrinks by
    the ratio of the fans in each layer: by 9 per 3 x 3 convolution when the kernel's area is forgotten. In square
    layers the mistake does not show, so that it surfaces in the few that are not.

    How it is measured
    ------------------
    With γ^2 = fan_in E[w^2] as drawn and gain^2 = 1 / E[φ(x)^2] of the activation φ in front of the layer or behind it,
    the scale of a layer is explained by another fan f if

        |f E[w^2] / gain^2 - 1| <= max(5 %, 4 sqrt(2 / n))        (n values; sqrt(2 / n) is the noise of the draw)

    while fan_in or the mean of both fans (Glorot) explain it with no gain in use: 1/3 (PyTorch), 1, 2, 25/9, or that of
    the activation. All trainable layers of the kind in which f is more than a factor of 4 from fan_in must agree, and
    they must have two shapes at least, or a factor above 8: any fixed standard deviation is right for some fan. For
    fan_out some layer must narrow, since orthogonal weights of a widening layer have 1 / fan_out too. fan_in, groups
    and strides are counted by what the layer computes; fan_out as frameworks do (output channels times kernel).

    Layers that a normalization follows are left alone, for it undoes any scale: ResNets draw by fan_out on purpose.
    So are zeros, embeddings, transposed convolutions, and square layers.

    When it is wrong
    ----------------
    A standard deviation fixed by hand may be that of another fan by chance. fan_out keeps the scale of the gradient
    instead of that of the signal (He et al., eq. 14): a deliberate choice in networks whose widths return to where they
    began. A finding is therefore a suspect, which counts only where the signal shows a fault.

    Fix
    ---
    Scale by fan_in: `nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")`. By hand, fan_in is the
    number of terms summed into one output: input channels per group times the kernel's area.

    References
    ----------
    - He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers, eq. 10 and 14.
    - Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, eq. 16.
    """

    code: ClassVar[str] = "FAN410"
    name: ClassVar[str] = "wrong-fan"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.WEIGHT), Need(Role.INPUT, units=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each kind of layers: they agree, or there is none."""
        start = trial.start
        weights = _weights(trial, start) if start else []
        for kind in (Kind.LINEAR, Kind.CONV):
            alike = [w for w in weights if w.layer.kind is kind]
            fan = next((f for f in _NAMES if _explains(alike, f)), None)
            if fan:
                told = [w for w in alike if w.factor(fan) > TOLD_APART]
                yield self._finding(fan, told)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Multilayer perceptrons whose width varies, and single convolutions."""
        widths = (32, 256, 32, 256, 32, 10)
        yield Example("he_normal", lambda: mlp(widths))
        yield Example("glorot_uniform", lambda: mlp(widths, "glorot_uniform"))
        yield Example("orthogonal, always wider", lambda: mlp((8, 64, 512, 512, 10), _orthogonal))
        yield Example("groups divided out", lambda: _convolution(2 / 144, groups=16))
        yield Example("fan_out for fan_in", lambda: mlp(widths, _by_fan_out), ("blocks.0.fc",))
        yield Example("a convolution without its kernel", lambda: _convolution(2 / 16), ("conv",))
        yield Example("groups not divided out", lambda: _convolution(2 / 2304, groups=16), ("conv",))

    def _finding(self, fan: str, told: list[Weight]) -> Finding:
        first, layers = told[0], tuple(w.layer.path for w in told)
        squared, tensor = first.fan_in * first.mean_square, first.layer.parameter_path(first.spec)
        others = f", as in {len(told) - 1} more" if len(told) > 1 else ""
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(squared, squared),
            Interval(min(first.needed), max(first.needed)),
            "fan_in E[w²]",
            f"{tensor} is scaled by {_NAMES[fan]}, {first.fans[fan]}, instead of fan_in, {first.fan_in}{others}.",
            Cause.WRONG_FAN,
            scope=Scope.EVERYWHERE if len(told) > 1 else Scope.LAYER,
            layers=layers,
            tensor=tensor,
            source=first.spec.source,
            severity=Severity.SUSPECT,
        )


_NAMES = {
    "fan_out": "fan_out",
    "ungrouped": "the input channels of all groups",
    "channels": "its channels without the kernel's area",
    "area": "its kernel's area alone",
}
"""Other fans, in words; of several that explain a weight the first."""


def _explains(weights: list[Weight], fan: str) -> bool:
    """Whether this fan explains all the weights in which it can be told from fan_in, and they are enough."""
    told = [w for w in weights if w.factor(fan) > TOLD_APART]
    if not told or not all(w.was_scaled_by(fan) for w in told):
        return False
    if fan == "fan_out" and not any(w.fans[fan] < w.fan_in for w in told):
        return False
    shapes = {(w.fan_in, w.fans[fan]) for w in told}
    return len(shapes) > 1 or told[0].factor(fan) > ONE_IS_ENOUGH


def _weights(trial: Trial, start: Step) -> list[Weight]:
    """Weights that nothing normalizes, in forward order; zeros say nothing of a fan."""
    normalized = {p for layer in trial.spec.layers if layer.kind is Kind.NORM for p in layer.inputs}
    return [
        weight
        for layer in trial.spec.layers
        if layer.kind in (Kind.LINEAR, Kind.CONV) and layer.calls and layer.path not in normalized
        for spec in layer.weights
        if (weight := _weight(layer, spec, start))
    ]


def _weight(layer: LayerSpec, spec: ParameterSpec, start: Step) -> Weight | None:
    drawn = start.of(Role.WEIGHT).get(layer.parameter_path(spec))
    needed = {g**2 for g in map(gain, (layer.input_activation, layer.activation)) if g}
    known = spec.fan_in and spec.fan_out and len(spec.shape) >= 2 and spec.trainable and not spec.tied_to
    if not (known and drawn and needed and drawn.summary.count and drawn.summary.second_moment > 0):
        return None
    mean_square, tolerance = drawn.summary.second_moment, max(MATCH, NOISE * sqrt(2 / drawn.summary.count))
    fans = _other_fans(layer, spec, start)
    return Weight(layer, spec, spec.fan_in or 1, mean_square, tuple(sorted(needed)), fans, tolerance)


def _other_fans(layer: LayerSpec, spec: ParameterSpec, start: Step) -> dict[str, int]:
    """What a weight may have been scaled by instead; a convolution's is [out, in / groups, *kernel]."""
    if layer.kind is Kind.LINEAR:
        return {"fan_out": spec.fan_out or 1}
    out, channels, area = spec.shape[0], spec.shape[1], prod(spec.shape[2:])
    fans = {"fan_out": out * area, "channels": channels, "area": area}
    taken = start.first(Role.INPUT).get(layer.path)
    if taken and taken.summary.units:
        fans["ungrouped"] = len(taken.summary.units.mean) * area
    return fans


# -- examples


def _by_fan_out(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.normal(0.0, sqrt(2 / shape[0]), shape)


def _orthogonal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Orthonormal columns, or rows where they are fewer."""
    tall = np.linalg.qr(rng.normal(size=(max(shape), min(shape))))[0]
    return np.asarray(tall if shape[0] > shape[1] else tall.T)


def _convolution(mean_square: float, groups: int = 1) -> Trial:
    """A convolution after ReLU with 16 channels in each group, 64 output channels and a kernel of 3 x 3."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(0.0, sqrt(mean_square), (64, 16, 3, 3))
    spec = ParameterSpec("weight", Role.WEIGHT, kernel.shape, fan_in=144, fan_out=576 // groups, unit_axis=0)
    layer = LayerSpec("conv", Kind.CONV, "Conv2d", (spec,), input_activation="relu", calls=1)
    inputs = rng.normal(size=(8, 16 * groups))
    return seen([layer], {("conv", Role.WEIGHT): kernel, ("conv", Role.INPUT): inputs}, outputs=("conv",))
