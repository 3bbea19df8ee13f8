"""FAN411: weights that are too small or too large for the activation that feeds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log10, sqrt
from statistics import median
from typing import ClassVar

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import head, mixing
from fanin.propagation import CLIFF, OFF
from fanin.rule import Example, Need, Rule
from fanin.scheme import HE_NORMAL, LECUN_NORMAL, gain
from fanin.summary import Interval
from fanin.trial import Kind, LayerSpec, ParameterSpec, Role, Trial

DEFAULT_GAIN_SQUARED = 1 / 3
"""fan_in Var[w] of PyTorch's Linear and Conv: kaiming_uniform with a = sqrt(5), which is U(-1/sqrt(fan_in), ...)."""

SAME = 0.08
"""Decades within which a layer counts as drawn by the default: 20 %, thrice the sampling error of 128 values."""

LINEAR_AT_ZERO = frozenset({"tanh", "hardtanh", "softsign"})
"""Bounded activations with slope 1 at 0: there a gain of 1 keeps small signals and the activation's own gain those of
variance 1, and what lies between is sound (lecun_normal is the edge of chaos of tanh: Poole et al. 2016)."""

MOST = 0.75
"""Share of the layers that must be off for a fault everywhere."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A layer and how much its weight is off.

    Attributes:
        excess: log10(fan_in E[w^2] / gain^2), decades.
        noise: Three standard deviations of it by sampling: of n normal values E[w^2] scatters by sqrt(2 / n).
    """

    layer: LayerSpec
    weight: ParameterSpec
    excess: float
    noise: float
    rms: float
    needed: float


class LayerGain(Rule):
    """Weights are too small or too large for the activation that feeds them.

    What it detects
    ---------------
    In all layers, or in single ones that stand out among their like: a gain applied twice, a fixed standard deviation,
    a layer that an initializer forgot, the framework's default.

    Why it matters
    --------------
    A layer multiplies its signal's second moment by fan_in E[w^2] / gain^2. Whether that matters depends on what is
    around it: a normalization forgives any factor, one layer among sound ones recovers, twenty in a row are fatal.
    This rule therefore accuses nobody by itself: it says which layers explain it where another rule finds that the
    signal suffers.

    How it is measured
    ------------------
    e = log10(fan_in E[w^2] / gain^2) for every layer that mixes its inputs with weights, gain that of the activation
    which feeds it (1 where unknown; for tanh and its like anything from 1 to its gain), zeros left out. A layer stands
    out when e is more than a decade from the median of the other layers, and from 0, beyond three standard deviations
    of its own sampling noise sqrt(2 / n): a 4 x 4 layer is not judged like one of 4096 x 4096. All are off when three
    quarters of them are, by a factor of two.

    When it is wrong
    ----------------
    muP, residual scaling and unit-scaled networks draw layers of different roles differently on purpose; they show as
    notes at most. Weights that are off everywhere are not mentioned unless another rule finds that the signal suffers:
    N(0, 0.02) and framework defaults are, and train. What an unknown activation needs is not known.

    Fix
    ---
    Draw the weights with the gain of the activation that feeds the layer, over fan_in.

    References
    ----------
    - He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers, eq. 9 and 10.
    - Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, eq. 16.
    """

    code: ClassVar[str] = "FAN411"
    name: ClassVar[str] = "layer-gain"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.WEIGHT)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """A finding for each layer that stands out, and one for all together."""
        drawn = list(_drawn(trial))
        if len(drawn) < 2:
            return
        last = head(trial.spec)
        hidden = [d for d in drawn if last is None or d.layer.path != last.path]
        if not hidden:
            return  # one layer with several weights, such as an attention with projections of its own
        usual = median(d.excess for d in hidden)
        single = [d for d in hidden if _stands_out(d, usual)]
        yield from (self._finding([d], Scope.LAYER) for d in single)
        rest = [d for d in hidden if d not in single]
        off = [d for d in rest if abs(d.excess) > OFF + d.noise and d.excess * usual > 0]
        if rest and len(off) >= MOST * len(rest) and len(off) > 1:
            yield self._finding(off, Scope.EVERYWHERE)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Sound schemes, and single layers and whole networks that are off."""
        deep = (64,) * 8 + (10,)
        hidden = tuple(f"blocks.{i}.fc" for i in range(7))
        default = synthetic.scaled(LECUN_NORMAL, 1 / sqrt(3))
        cliff = {"blocks.3.fc.weight": synthetic.scaled(HE_NORMAL, 100.0)}
        small = {"blocks.4.fc.weight": synthetic.scaled(HE_NORMAL, 1e-3)}
        yield Example("he_normal", lambda: synthetic.mlp(deep))
        yield Example("tanh, lecun_normal", lambda: synthetic.mlp(deep, "lecun_normal", "tanh"))
        yield Example("narrow layers", lambda: synthetic.mlp((4,) * 8 + (4,)))
        yield Example("a head of zeros", lambda: synthetic.mlp(deep, overrides={"head.weight": "zeros"}))
        yield Example("one layer 100 too large", lambda: synthetic.mlp(deep, overrides=cliff), hidden[3:4])
        yield Example("one layer 1000 too small", lambda: synthetic.mlp(deep, overrides=small), hidden[4:5])
        yield Example("PyTorch's default", lambda: synthetic.mlp(deep, default), hidden[:1])
        yield Example("std 1", lambda: synthetic.mlp(deep, synthetic.normal(1.0)), hidden[:1])

    def _finding(self, off: list[Drawn], scope: Scope) -> Finding:
        first = off[0]
        sign = 1 if first.excess > 0 else -1
        # By six digits, or the last bits of a sum would say whether 0.125 is shown as 0.12 or 0.13.
        wanted = float(f"{first.rms * 10 ** (-first.excess / 2):.6g}")
        name = first.layer.parameter_path(first.weight)
        others = f", and so are {len(off) - 1} more layers" if len(off) > 1 else ""
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(first.excess, first.excess),
            Interval(-inf, OFF) if sign > 0 else Interval(-OFF, inf),
            "log10(fan_in E[w^2] / gain^2)",
            f"{name} has rms {first.rms:.2g} where {wanted:.2g} keeps the signal's scale{others}.",
            _cause(off, sign),
            scope=scope,
            layers=tuple(dict.fromkeys(d.layer.path for d in off)),
            tensor=name,
            source=first.weight.source,
            severity=Severity.SUSPECT if scope is Scope.LAYER else Severity.CLUE,
        )


def _drawn(trial: Trial) -> Iterator[Drawn]:
    seen = trial.start.of(Role.WEIGHT) if trial.start else {}
    for layer in mixing(trial.spec):
        for weight in layer.weights:
            found = seen.get(layer.parameter_path(weight))
            usable = found and weight.fan_in and len(weight.shape) >= 2 and weight.tied_to is None
            if not usable or found is None or not weight.fan_in or layer.kind is Kind.RECURRENT:
                continue
            power = found.summary.second_moment
            if 0 < power < inf:
                needed = _needed(layer.input_activation, weight.fan_in * power)
                noise = 3 * sqrt(2 / max(1, found.summary.count)) / 2.303
                excess = log10(weight.fan_in * power / needed)
                yield Drawn(layer, weight, excess, noise, found.summary.rms, needed)


def _needed(activation: str | None, drawn: float) -> float:
    """gain² of the activation; of a range of them the one nearest to what is drawn."""
    most = (gain(activation) or 1.0) ** 2
    return min(max(drawn, 1.0), most) if activation in LINEAR_AT_ZERO else most


def _stands_out(drawn: Drawn, usual: float) -> bool:
    return abs(drawn.excess - usual) > CLIFF + drawn.noise and abs(drawn.excess) > CLIFF + drawn.noise


def _cause(off: list[Drawn], sign: int) -> Cause:
    if sign > 0:
        return Cause.GAIN_TOO_LARGE
    by_default = [abs(d.excess + log10(d.needed) - log10(DEFAULT_GAIN_SQUARED)) < SAME + d.noise for d in off]
    if len(off) > 1 and sum(by_default) >= MOST * len(off):
        return Cause.DEFAULT_UNSUITED
    return Cause.GAIN_TOO_SMALL
