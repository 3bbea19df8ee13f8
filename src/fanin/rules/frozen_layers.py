"""FAN413: frozen layers that look freshly drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Severity
from fanin.measures import mixing
from fanin.rule import Example, Need, Rule
from fanin.scheme import GLOROT_UNIFORM, HE_NORMAL, LECUN_NORMAL
from fanin.summary import Interval, TensorSummary, UnitSummary
from fanin.synthetic import Init, mlp, normal, scaled
from fanin.trial import LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Trial

FEWEST_LAYERS = 2
"""One frozen layer may be a fixed random projection; of several, one by chance resembles a scheme."""

FEWEST_VALUES = 256
"""Of fewer the variance is not known to 6 % (uniform) or 9 % (normal), one standard error; they are not judged."""

FEWEST_ROWS = 32
"""Of fewer rows the spread of their variances is not known to 12 %, a quarter of what ROWS_ALIKE leaves."""

SHORTEST_ROW = 8
"""Shorter rows have no variance to speak of (25 % standard error); they are not compared."""

STANDARD_ERRORS = 4.0
"""A random draw is farther off once in 16,000: rarely enough that all of a hundred frozen layers are within."""

LIKENESS = {"uniform": 0.05, "normal": 0.03}
"""How closely n E[w²] must match a scheme, where the sample is large. Weights that were trained differ by far more:
schemes lie a factor of 1.5 apart at the least."""

EDGE = 0.02
"""How close to its bound the largest value of a uniform draw must be: of 256 values it is within 2 % in 99 of 100."""

ROWS_ALIKE = 1.5
"""Largest ratio between the spread of the rows' variances and that of independent draws, √((κ - 1) / length) with
kurtosis κ. Training lets units grow apart: far above 2 in trained networks."""

KURTOSIS = {"uniform": 1.8, "normal": 3.0}
"""E[x⁴] / E[x²]² of each distribution."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Weights drawn independently with E[w²] = gain² / fan.

    Attributes:
        name: In reports.
        shape: `uniform` or `normal`.
        squared_gain: n E[w²].
        average: Whether n is the mean of both fans rather than fan_in.
    """

    name: str
    shape: str
    squared_gain: float
    average: bool = False


SCHEMES = (
    Scheme("PyTorch's default", "uniform", 1 / 3),
    Scheme("he_uniform", "uniform", 2.0),
    Scheme("he_normal", "normal", 2.0),
    Scheme("glorot_uniform", "uniform", 1.0, average=True),
    Scheme("glorot_normal", "normal", 1.0, average=True),
)
"""What layers are left with that nobody has loaded or trained: He et al. 2015, Glorot and Bengio 2010, and U(±1/√n) of
torch.nn.Linear and Conv (kaiming_uniform with a = √5)."""


class FrozenLayers(Rule):
    """All frozen layers hold weights that look freshly drawn, while others train.

    What it detects
    ---------------
    Two or more layers without a trainable weight, all of which match a common scheme of drawing at random, in a model
    of which something else does train. It is a note: a random layer may be frozen on purpose.

    Why it matters
    --------------
    Layers are frozen because they are pretrained. Where the checkpoint was not read, or gradients were switched off
    for too much, a random projection takes the place of what was learned, and nothing says so.

    How it is measured
    ------------------
    At step 0, for each frozen weight with fans n, rows w_i and at least 256 values. It looks freshly drawn when its
    mean is zero within four standard errors, when n E[w^2] matches a scheme (uniform: 5 %, normal: 3 %, or four
    standard errors where that is more), when its largest value does too (uniform: within 2 % of sqrt(3) rms; normal:
    between 2.5 rms and sqrt(2 ln(10^5 count)) rms), and when the variances of its rows differ no more than 1.5 times
    as much as those of independent draws. Schemes are PyTorch's default, he and glorot, uniform or normal. Every
    frozen layer that can be judged must match, and there must be two.

    When it is wrong
    ----------------
    Random features, reservoirs and target networks that are distilled into are frozen and random on purpose, and so
    is the base of a LoRA in a test. Weights that were pretrained for a few steps only look random still.

    Fix
    ---
    Load the pretrained weights before freezing, with strict=True, so that missing keys are an error; or let the layers
    train: `parameter.requires_grad_(True)`.

    References
    ----------
    - He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers.
    - Glorot and Bengio 2010, Understanding the Difficulty of Training Deep Feedforward Neural Networks.
    """

    code: ClassVar[str] = "FAN413"
    name: ClassVar[str] = "frozen-layers"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.WEIGHT, units=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One note at most, about all frozen layers."""
        start = trial.start
        if start is None or not _trains(trial.spec):
            return
        weights = start.of(Role.WEIGHT)
        matches = {layer.path: _matches(layer, weights) for layer in _frozen(trial.spec)}
        judged = {path: names for path, names in matches.items() if names}
        if len(judged) >= FEWEST_LAYERS and all(all(names) for names in judged.values()):
            yield self._finding({path: names[0] for path, names in judged.items()})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Nothing frozen, pretrained layers frozen, everything frozen; then random layers frozen among others."""
        widths, third = (64,) * 5 + (10,), scaled(LECUN_NORMAL, 1 / sqrt(3))
        body = tuple(f"blocks.{i}.fc" for i in range(4))
        yield Example("nothing is frozen", lambda: mlp(widths))
        yield Example("pretrained layers", lambda: frozen(body, mlp(widths, _trained)))
        yield Example("one random layer", lambda: frozen(body[:1], mlp(widths)))
        yield Example("a scale of its own", lambda: frozen(body, mlp(widths, normal(0.02))))
        yield Example("N(0, 1/3n)", lambda: frozen(body, mlp(widths, third)))
        yield Example("everything, for a look", lambda: frozen((*body, "head"), mlp(widths)))
        yield Example("he_normal", lambda: frozen(body, mlp(widths)), body[:1])
        yield Example("PyTorch's default", lambda: frozen(body[1:3], mlp(widths, _default)), body[1:2])
        yield Example("glorot_uniform", lambda: frozen(body, mlp(widths, scaled(GLOROT_UNIFORM))), body[:1])

    def _finding(self, judged: Mapping[str, str | None]) -> Finding:
        first, number = next(iter(judged)), len(judged)
        return Finding(
            self.code,
            self.name,
            layer=first,
            step=0,
            measured=Interval(number, number),
            expected=Interval(0, FEWEST_LAYERS - 1),
            quantity="frozen layers that look freshly drawn",
            message=f"All {number} frozen layers that can be judged look drawn at random and never trained, "
            f"{first} by {judged[first]}, while other parameters train. Frozen by mistake, or not loaded?",
            cause=Cause.FROZEN,
            layers=tuple(judged),
            severity=Severity.NOTE,
        )


def frozen(paths: tuple[str, ...], trial: Trial) -> Trial:
    """The trial, with the parameters of these layers frozen."""
    layers = tuple(
        replace(layer, parameters=tuple(replace(p, trainable=False) for p in layer.parameters))
        if layer.path in paths
        else layer
        for layer in trial.spec.layers
    )
    return replace(trial, spec=replace(trial.spec, layers=layers))


def _default(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """torch.nn.Linear's own draw."""
    return rng.uniform(-1 / sqrt(shape[1]), 1 / sqrt(shape[1]), shape)


def _trained(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """As large as he_normal has it, but with units that have grown apart."""
    init: Init = scaled(HE_NORMAL)
    sizes = rng.lognormal(0.0, 0.5, (shape[0], 1))
    return init(rng, shape) * sizes / sqrt(np.mean(sizes**2))


def _trains(spec: ModelSpec) -> bool:
    return any(p.trainable for layer in spec.layers for p in layer.parameters)


def _frozen(spec: ModelSpec) -> Iterator[LayerSpec]:
    for layer in mixing(spec):
        if not any(w.trainable for w in layer.weights):
            yield layer


def _matches(layer: LayerSpec, weights: Mapping[str, Observation]) -> list[str | None]:
    """The scheme of each weight that can be judged; None for a weight that looks like none."""
    seen = [(w, weights.get(layer.parameter_path(w))) for w in layer.weights if len(w.shape) >= 2]
    return [_scheme(w, o.summary) for w, o in seen if o and o.summary.count >= FEWEST_VALUES and w.fan_in]


def _scheme(spec: ParameterSpec, s: TensorSummary) -> str | None:
    if s.non_finite or s.is_constant or abs(s.mean) > STANDARD_ERRORS * s.std / sqrt(s.count):
        return None
    return next((scheme.name for scheme in SCHEMES if _looks_like(scheme, spec, s)), None)


def _looks_like(scheme: Scheme, spec: ParameterSpec, s: TensorSummary) -> bool:
    if spec.fan_in is None or (scheme.average and spec.fan_out is None):
        return False
    fan = (spec.fan_in + (spec.fan_out or 0)) / 2 if scheme.average else spec.fan_in
    kurtosis, extreme = KURTOSIS[scheme.shape], s.largest / s.rms
    error = STANDARD_ERRORS * sqrt((kurtosis - 1) / s.count)
    if abs(fan * s.second_moment / scheme.squared_gain - 1) > max(LIKENESS[scheme.shape], error):
        return False
    if scheme.shape == "uniform":
        bound = sqrt(3 * scheme.squared_gain / fan)
        fits = abs(s.largest / bound - 1) <= EDGE
    else:
        fits = 2.5 < extreme < sqrt(2 * log(1e5 * s.count))
    return fits and (s.units is None or _rows_are_alike(s.units, kurtosis))


def _rows_are_alike(units: UnitSummary, kurtosis: float) -> bool:
    length = int(units.count.min())
    if len(units.count) < FEWEST_ROWS or length < SHORTEST_ROW:
        return True
    variances = units.variance
    spread = float(np.std(variances) / np.mean(variances))
    return spread <= ROWS_ALIKE * sqrt((kurtosis - 1) / length)
