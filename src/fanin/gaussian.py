"""What an activation makes of a Gaussian: the integrals from which the expected moments of a network are propagated.

In a wide layer pre-activations are z = μ + √s x with x ~ N(0, 1) and s = q - μ² (Neal 1996). Of them

    E[φ(z)],   E[φ(z)²],   χ = E[φ′(z)²]

are the mean and the length map (Poole et al. 2016, eq. 3) and what a gradient keeps on its way back (Schoenholz et al.
2017, eq. 5, without σ_w²). For two samples of the batch, whose z correlate by c = (s - v) / s, Mehler's formula gives

    E[φ(z₁) φ(z₂)] = Σ_k a_k² cᵏ,      a_k = E[φ(z) He_k(x)] / √k!

(Poole et al. 2016, eq. 5; Daniely et al. 2016, "dual activation"), so that φ(z) varies over the batch by
v′ = E[φ²] - Σ a_k² cᵏ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from math import sqrt
from typing import Any

import numpy as np

from fanin.scheme import ACTIVATIONS
from fanin.summary import Floats

REACH, NODES = 10.0, 2000
"""The trapezoid rule from -10 to 10: what lies beyond has mass 1e-23, and where φ′ jumps it errs by 1e-3 at most. An
even number of nodes leaves none at 0, where most kinks are. Gauss-Hermite, which suits smooth functions, errs by 1e-2
there."""

HOMOGENEOUS = frozenset({"identity", "relu", "leaky_relu", "prelu"})
"""Activations that are the same at every scale."""

RESOLVED = 30.0
"""Standard deviation of z above which the nodes are too far apart (0.3) for an activation that bends near 0."""

TERMS = 64
"""Of Mehler's series. What ReLU's has beyond them is 2e-4 of it, and is bounded rather than dropped."""

STEP = 1e-4
"""Of the central difference that φ′ is taken by, in standard deviations of z: a signal may be of any size."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A Gaussian behind an activation.

    Attributes:
        mean, square: E[φ], E[φ²].
        varying: v′, its variance over the batch; nan where that of z is not known.
        chi: χ = E[φ′²].
        spread: E[φ⁴] / E[φ²]² - 1: the relative variance of φ² over units; 5 for ReLU.
        slope_spread: 3 E[φ′⁴] / χ² - 1: that of (gradient · φ′)², the gradient being Gaussian; 5 for ReLU.
        response, chi_response: d ln E[φ²] / d ln s and d ln χ / d ln s; 1 and 0 for ReLU.
    """

    mean: float
    square: float
    varying: float
    chi: float
    spread: float
    slope_spread: float
    response: float
    chi_response: float


@lru_cache(maxsize=4096)
def passed(activation: str, mean: float, square: float, varying: float) -> Passed | None:
    """What the activation makes of z with mean μ, second moment q and variance v over the batch; None where the
    activation is not known, or z is spread too widely for the nodes.

    >>> relu = passed("relu", 0.0, 1.0, 1.0)
    >>> round(relu.square, 3), round(relu.chi, 3), round(relu.spread, 2), round(relu.slope_spread, 2)
    (0.5, 0.5, 5.0, 5.0)
    """
    if activation not in ACTIVATIONS:
        return None
    x, density, _ = _grid()
    s = max(square - mean**2, 0.0)
    if sqrt(s) > RESOLVED and activation not in HOMOGENEOUS:
        return None
    z, φ = mean + sqrt(s) * x, ACTIVATIONS[activation]
    with np.errstate(all="ignore"):
        value, slope = φ(z), _slope(activation, z)
        p, chi = float(density @ value**2), float(density @ slope**2)
        return Passed(
            mean=float(density @ value),
            square=p,
            varying=_varying(value, p, (s - varying) / s if s > 0 else 1.0),
            chi=chi,
            spread=_ratio(density @ value**4, p * p) - 1,
            slope_spread=_ratio(3 * density @ slope**4, chi * chi) - 1,
            response=_ratio(density @ (value**2 * (x**2 - 1)), 2 * p),  # Stein: dE[f]/ds = E[f (x² - 1)] / 2s
            chi_response=_ratio(density @ (slope**2 * (x**2 - 1)), 2 * chi),
        )


def _slope(activation: str, z: Floats) -> Floats:
    φ, deviation = ACTIVATIONS[activation], float(z[-1] - z[0]) / (2 * REACH)
    step = max(STEP * deviation, 1e-8 * float(np.abs(z).max()), 1e-300)  # wide enough for float64
    return np.asarray((φ(z + step) - φ(z - step)) / (2 * step))


def _ratio(a: Any, b: float) -> float:
    return float(a) / b if b > 0 else 1.0


def _varying(value: Floats, square: float, c: float) -> float:
    """E[φ²] - Σ a_k² cᵏ; of what lies beyond the series the least that it can be."""
    _, density, hermite = _grid()
    c = min(max(c, 0.0), 1.0) if c == c else c
    a2 = (hermite @ (density * value)) ** 2
    kept = float(a2 @ (1 - c ** np.arange(TERMS + 1)))
    return kept + max(square - float(a2.sum()), 0.0) * (1 - c ** (TERMS + 1))


@cache
def _grid() -> tuple[Floats, Floats, Floats]:
    """Nodes x [NODES], their weights, and He_k(x) / √k! [TERMS + 1, NODES]."""
    x = np.linspace(-REACH, REACH, NODES)
    density = np.exp(-(x**2) / 2)
    hermite = [np.ones_like(x), x]
    for k in range(2, TERMS + 1):
        hermite.append((x * hermite[-1] - sqrt(k - 1) * hermite[-2]) / sqrt(k))
    return x, density / density.sum(), np.stack(hermite)
