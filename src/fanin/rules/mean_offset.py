"""FAN405: weights whose mean drowns their differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import mixing
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval, TensorSummary
from fanin.synthetic import Init, mlp, normal
from fanin.trial import LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step, Trial

LARGEST_OFFSET = 5.0
"""Of 414 networks labelled by training, 95 % of the sound ones lie below 0.58; uniform [0, 1) over 64 terms has 14. At
2 the mean's one direction is as strong as the strongest of the others (see the page)."""

CERTAIN = 6.0
"""Standard errors by which the mean must differ from 0: by chance once in 5 x 10^8 weights (two-sided normal)."""

FEWEST_TERMS = 16
"""Sums of fewer terms, as depthwise kernels have, are smoothing filters as often as not; there √fan_in is below 4, and
an offset of 5 is a mean of more than a standard deviation."""

DRAWN_SPREAD = 3.0
"""Standard deviation of the units' means in standard errors, at most: a draw with an offset has 1, whatever the offset
(0.9 to 1.1 in tests/rules/test_mean_offset.py). Training moves each unit's mean by itself, so that trained weights
have means of either sign."""

NEARLY_ALL = 0.8
"""Share of the layers judged from which it is one fault of the network: an initializer applied to all of them, but for
one or two that another part of the code writes."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The weight of a hidden layer at step 0, of `terms` terms for each unit."""

    layer: LayerSpec
    spec: ParameterSpec
    seen: Observation
    terms: int

    @property
    def offset(self) -> float:
        """o = |mean| √fan_in / std."""
        summary = self.seen.summary
        return abs(summary.mean) * sqrt(self.terms) / summary.std

    @property
    def is_off(self) -> bool:
        """Whether the offset is too large, certainly so, and common to all units."""
        summary = self.seen.summary
        errors = abs(summary.mean) * sqrt(summary.count) / summary.std
        return self.offset > LARGEST_OFFSET and errors > CERTAIN and spread(summary) <= DRAWN_SPREAD


class MeanOffset(Rule):
    r"""The weights of a layer have a mean that is large beside their differences: all inputs come to look alike.

    What it detects
    ---------------
    Hidden weights drawn around a mean other than zero: uniform on [0, 1), absolute values, a constant with noise.

    Why it matters
    --------------
    Every unit then computes the same, a multiple of the sum of its inputs, plus a little of its own. After a few
    such layers only that sum is left: differences between inputs fall below it by a factor in each layer, and the
    gradient has one direction. Behind a ReLU, whose outputs are all positive, the sum grows from layer to layer as
    well; behind a negative mean all units are off.

    How it is measured
    ------------------
    A weight of n rows and fan_in columns with mean m and standard deviation s is m 1 1ᵀ plus noise. The first part
    has the singular value |m| √(n fan_in), the noise about s (√n + √fan_in); for n = fan_in their ratio is o / 2
    with

        o = |m| √fan_in / s

    which for weights of zero mean is about |N(0, 1)| / √n. The rule fires above 5, where m lies 6 standard errors
    s / √(n fan_in) off zero, and where the units' own means differ by no more than 3 times what a draw explains.
    Passed are outputs (a positive head is harmless) and networks of one layer, embeddings, normalizations, frozen
    and tied weights, sums of fewer than 16 terms, and layers of identical units (FAN403).

    When it is wrong
    ----------------
    It is a suspect, the cause of a fault only where the signal suffers. Behind a layer normalization, which gives
    inputs of zero mean, and in front of a batch normalization the offset does nothing. Networks that are monotone
    or convex by construction have positive weights on purpose. The mean of a weight with outliers says little.

    Fix
    ---
    Draw weights with zero mean: he_normal, glorot_uniform, orthogonal.

    References
    ----------
    LeCun, Bottou, Orr and Müller, "Efficient BackProp" (1998), section 4.6: weights of zero mean.
    Baik, Ben Arous and Péché, "Phase transition of the largest eigenvalue for nonnull complex sample covariance
    matrices" (2005): when a mean stands out of noise.
    """

    code: ClassVar[str] = "FAN405"
    name: ClassVar[str] = "mean-offset"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.WEIGHT, units=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding about nearly all layers, or one for each layer."""
        start = trial.start
        if start is None or not start.of(Role.WEIGHT):
            settle = "watch the model from its first training step on"
            yield Missing(self.code, "no weight was seen at training step 0", settle, blocks=False)
            return
        judged = list(_judged(trial.spec, start))
        off = [one for one in judged if one.is_off]
        if len(off) > 1 and len(off) >= NEARLY_ALL * len(judged):
            yield self._finding(off, Scope.EVERYWHERE)
        else:
            yield from (self._finding([one], Scope.LAYER) for one in off)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Weights around zero, offsets that do no harm, and offsets that do."""
        yield Example("he_normal", mlp)
        yield Example("glorot_uniform, tanh", lambda: mlp(init="glorot_uniform", activation="tanh"))
        yield Example("a constant, which is another rule's", lambda: mlp(init="ones"))
        yield Example("a positive head", lambda: mlp(overrides={"head.weight": _uniform}))
        yield Example("uniform [0, 1)", lambda: mlp(init=_uniform), layers=("blocks.0.fc",))
        yield Example(
            "absolute values in one layer",
            lambda: mlp(overrides={"blocks.2.fc.weight": _absolute(normal(0.25))}),
            layers=("blocks.2.fc",),
        )

    def _finding(self, off: list[Judged], scope: Scope) -> Finding:
        first = off[0]
        summary, o = first.seen.summary, first.offset
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(o, o),
            Interval(0.0, LARGEST_OFFSET),
            "|mean| √fan_in / std",
            f"{first.seen.tensor} has mean {summary.mean:.3g} and standard deviation {summary.std:.3g}: over "
            f"{first.terms} terms the sum counts {o:.1f} times as much as their differences.",
            Cause.MEAN_OFFSET,
            scope=scope,
            layers=tuple(dict.fromkeys(one.layer.path for one in off)),
            tensor=first.seen.tensor,
            source=first.spec.source,
            severity=Severity.SUSPECT,
        )


def spread(summary: TensorSummary) -> float:
    """Standard deviation of the units' means, in standard errors of one of them; 1 where units were not seen."""
    units = summary.units
    if units is None or len(units.mean) < 2:
        return 1.0
    errors = units.mean * np.sqrt(units.count) / summary.std
    return float(errors.std(ddof=1))


def _judged(spec: ModelSpec, start: Step) -> Iterator[Judged]:
    """Hidden weights that sum enough terms and whose units differ, in forward order."""
    weights, layers = start.of(Role.WEIGHT), mixing(spec)
    ends = spec.outputs or tuple(layer.path for layer in layers[-1:])
    for layer in layers if len(layers) > 1 else ():
        for weight in layer.weights if layer.path not in ends else ():
            seen = weights.get(layer.parameter_path(weight))
            is_own = weight.trainable and weight.tied_to is None
            if seen and is_own and (weight.fan_in or 0) >= FEWEST_TERMS and _differs(seen.summary):
                yield Judged(layer, weight, seen, weight.fan_in or 0)


def _differs(summary: TensorSummary) -> bool:
    """Whether there are values, finite and not all the same, in units that are not all the same."""
    if summary.non_finite or not summary.std > 0:
        return False
    return summary.units is None or summary.units.distinct() > 1


def _uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.uniform(0.0, 1.0, shape)


def _absolute(init: Init) -> Init:
    return lambda rng, shape: np.abs(init(rng, shape))
