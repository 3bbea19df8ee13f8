"""FAN407: normalizations whose gain is not near 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval
from fanin.synthetic import seen
from fanin.trial import (
    NETWORK_INPUT,
    Kind,
    LayerSpec,
    ModelSpec,
    Observation,
    ParameterSpec,
    Role,
    Step,
    Trial,
)

NEAR_ONE = Interval(0.1, 10.0)
"""A decade to either side of 1, where all published starts lie but zero: DCGAN draws N(1, 0.02²), PyTorch before 1.2
drew uniform [0, 1), with an RMS of 0.58. An initializer for weights leaves 0.02."""

WIDE = 0.1
"""Standard deviation from which a gain around zero counts whatever its RMS: below, NEAR_ONE finds it."""

AROUND_ZERO = 4.0
"""Standard errors by which the mean of a draw around zero may be off: by chance once in 16,000 (two-sided normal).
Trained gains, which are positive but for a few, are off by √n standard errors and more."""

ROUNDING = 1.01
"""Allowance for bfloat16, whose values are off by up to 1 part in 256, when an output is compared with its bound."""

CARRIED = 0.5
"""Share of a large gain that must be found in the RMS of the output. Values of unit variance carry all; vectors of unit
length (ScaleNorm, whose gain is √width on purpose) carry 1 / √width."""

NEARLY_ALL = 0.8
"""Share of the gains from which it is one fault of the network: an initializer applied to every parameter, but for
one or two that another part of the code writes."""


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of a normalization at step 0.

    Attributes:
        output: What the normalization put out.
        offset: Largest magnitude of the bias that it adds.
    """

    layer: LayerSpec
    spec: ParameterSpec
    seen: Observation
    output: Observation
    offset: float

    @property
    def is_large(self) -> bool:
        """Whether it amplifies by more than a decade."""
        return self.seen.summary.rms > NEAR_ONE.high

    @property
    def is_around_zero(self) -> bool:
        """Whether it looks drawn around zero, with both signs."""
        s = self.seen.summary
        error = s.std / sqrt(s.count)
        return s.minimum < 0 < s.maximum and abs(s.mean) < min(AROUND_ZERO * error, s.std)

    @property
    def is_off(self) -> bool:
        """Whether an initializer left it far from 1, and what it multiplies is normalized."""
        s = self.seen.summary
        if not (s.is_constant or self.is_around_zero) or not self.multiplies:
            return False
        return s.rms not in NEAR_ONE or (self.is_around_zero and s.std > WIDE)

    @property
    def multiplies(self) -> bool:
        """Whether the output can be this gain times normalized values, which have a mean square of 1 at most."""
        gain, rms = self.seen.summary, self.output.summary.rms
        if rms > ROUNDING * (gain.largest + self.offset):
            return False
        return not self.is_large or rms >= CARRIED * gain.rms


class NormGains(Rule):
    r"""The gains of normalizations start far from 1, or around zero like weights.

    What it detects
    ---------------
    Gains (`weight`, `gamma`) of batch, layer, group or RMS normalizations that are constant or drawn around zero,
    with an RMS below 0.1 or above 10, or with both signs and a standard deviation above 0.1.

    Why it matters
    --------------
    A normalization is there to set the signal's scale, and the gain is that scale. With 0.02, the customary
    standard deviation of weights, it undoes what it is for: the signal behind it is 50 times too small, its signs
    are scrambled, and the gradient in front of it shrinks alike. With zero nothing passes at all.

    How it is measured
    ------------------
    By mean, spread and extremes of the gain g at step 0, and by the output y. Since normalized values have a mean
    square of 1 at most,

        RMS(y) <= max|g| + max|b|

    where g multiplies them. Where y is larger, the layer does something else with its parameter, and it is passed:
    it stores the gain less 1 (Gemma, whose zeros mean 1), or adds to its input (global response normalization). A
    large gain of which less than half is found in y multiplies a vector of unit length (ScaleNorm). Gains of zero,
    and of either sign as training makes them of zeros, are passed where the normalization ends a branch: where its
    output meets others in a sum or at the network's output. So are frozen and tied gains, and different values of
    one sign: training makes these, an initializer does not.

    When it is wrong
    ----------------
    It is a suspect, the cause of a fault only where the signal suffers: Adam moves a gain of 0.02 to 1 in a thousand
    steps of 0.001, and a second normalization hides it meanwhile. A gain drawn from [0, 0.01) is missed, and a zero at
    the end of a branch that cannot be traced is reported.

    Fix
    ---
    Start gains at 1 and offsets at 0; zero only where the normalization ends a residual branch. Apply initializers
    for weights to weights: skip parameters of one dimension.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", ICML (2015), section 3: gain and offset.
    Goyal et al., "Accurate, Large Minibatch SGD" (2017), section 5.1: zero gains at the end of residual branches.
    Nguyen and Salazar, "Transformers without Tears", IWSLT (2019): ScaleNorm.
    """

    code: ClassVar[str] = "FAN407"
    name: ClassVar[str] = "norm-gain"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.WEIGHT), Need(Role.BIAS), Need(Role.OUTPUT, units=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding about nearly all gains, or one for each normalization."""
        start = trial.start
        if start is None or not start.of(Role.WEIGHT):
            settle = "watch the model from its first training step on"
            yield Missing(self.code, "no gain was seen at training step 0", settle, blocks=False)
            return
        gains = list(_gains(trial.spec, start))
        off = [one for one in gains if one.is_off]
        found = _unexcused(off, trial.spec)
        if found and not found[0].is_large and len(off) >= NEARLY_ALL * len(gains):
            found = off  # small everywhere: then at the ends of branches it is not on purpose either
        excused = [one for one in off if one not in found]
        if len(found) > 1 and len(found) >= NEARLY_ALL * (len(gains) - len(excused)):
            yield self._finding(found, Scope.EVERYWHERE)
        else:
            by_layer = {one.layer.path: one for one in reversed(found)}
            yield from (self._finding([one], Scope.LAYER) for one in reversed(by_layer.values()))

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Gains near 1, zeros that mean well, and gains that an initializer for weights has met."""
        rng = np.random.default_rng(0)
        yield Example("ones", lambda: _blocks(np.ones(64)))
        yield Example("zeros that end branches", lambda: _blocks(np.ones(64), np.zeros(64)))
        yield Example("gains stored less 1", lambda: _blocks(np.zeros(64), relative=True))
        yield Example("N(0, 0.02²)", lambda: _blocks(rng.normal(0, 0.02, 64)), layers=("0.norm1",))
        yield Example("N(0, 1)", lambda: _blocks(rng.normal(0, 1, 64)), layers=("0.norm1",))
        yield Example("zeros everywhere", lambda: _blocks(np.zeros(64)), layers=("0.norm1",))

    def _finding(self, off: list[Gain], scope: Scope) -> Finding:
        first = off[0]
        s = first.seen.summary
        like = f"the constant {s.mean:.3g}" if s.is_constant else f"noise of {s.std:.3g} around zero"
        beside = abs(s.mean) / s.std if s.rms in NEAR_ONE else s.rms
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(beside, beside),
            Interval(1.0, inf) if s.rms in NEAR_ONE else NEAR_ONE,
            "|mean| / std of the gain" if s.rms in NEAR_ONE else "RMS of the gain",
            f"{first.seen.tensor} starts as {like}, where 1 keeps what the normalization makes.",
            Cause.NORM_GAIN,
            scope=scope,
            layers=tuple(dict.fromkeys(one.layer.path for one in off)),
            tensor=first.seen.tensor,
            source=first.spec.source,
            severity=Severity.SUSPECT,
        )


def _gains(spec: ModelSpec, start: Step) -> Iterator[Gain]:
    """Trainable gains of normalizations that ran, in forward order."""
    weights, biases, outputs = start.of(Role.WEIGHT), start.first(Role.BIAS), start.first(Role.OUTPUT)
    for layer in spec.layers:
        output, bias = outputs.get(layer.path), biases.get(layer.path)
        if layer.kind is not Kind.NORM or output is None or not _is_finite(output):
            continue
        for weight in layer.weights:
            gain = weights.get(layer.parameter_path(weight))
            if gain and weight.trainable and weight.tied_to is None and _is_finite(gain):
                yield Gain(layer, weight, gain, output, bias.summary.largest if bias else 0.0)


def _unexcused(off: list[Gain], spec: ModelSpec) -> list[Gain]:
    """Without those, unless large, that end branches: whose output meets others' in a sum or at the network's end."""
    sums = (layer.inputs for layer in spec.layers if layer.joins == "sum")
    ends = {path for inputs in sums for path in inputs} | (
        set(spec.outputs) if len(spec.outputs) > 1 else set()
    )
    return [one for one in off if one.is_large or one.layer.path not in ends]


def _is_finite(one: Observation) -> bool:
    return one.summary.count > 0 and not one.summary.non_finite


def _blocks(gain: Floats, last: Floats | None = None, *, relative: bool = False) -> Trial:
    """Two residual blocks that start and end with a normalization of these gains, and a head."""
    values: dict[tuple[str, Role], ArrayLike] = {}
    layers: list[LayerSpec] = []
    stream: tuple[str, ...] = (NETWORK_INPUT,)
    normalized = np.random.default_rng(1).normal(size=(32, len(gain)))
    for i in range(2):
        first, fc, second = f"{i}.norm1", f"{i}.fc", f"{i}.norm2"
        for path, inputs in ((first, stream), (fc, (first,)), (second, (fc,))):
            layers.append(_layer(path, inputs, len(gain)))
        for path, g in ((first, gain), (second, gain if last is None else last)):
            values[path, Role.WEIGHT] = g
            values[path, Role.OUTPUT] = normalized * (g + 1 if relative else g)
        stream = (*stream, second)
    return seen([*layers, _layer("head", stream, len(gain))], values, outputs=("head",))


def _layer(path: str, inputs: tuple[str, ...], width: int) -> LayerSpec:
    is_norm = "norm" in path
    weight = ParameterSpec("weight", Role.WEIGHT, (width,) if is_norm else (width, width))
    kind, name = (Kind.NORM, "BatchNorm1d") if is_norm else (Kind.LINEAR, "Linear")
    return LayerSpec(path, kind, name, (weight,), inputs, "sum" if len(inputs) > 1 else "", calls=1)
