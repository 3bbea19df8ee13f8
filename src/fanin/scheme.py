"""Initialization schemes: Var[w] = gain² / fan, with the gain that each activation needs.

A layer z = W h with h = φ(z') keeps the mean square of its signal when Var[w] = gain² / fan_in with

    gain² = 1 / E[φ(x)²],  x ~ N(0, 1)

(He et al. 2015, eq. 10, for ReLU; the same argument for any φ, as in Klambauer et al. 2017). The expectation is
taken by Gauss-Hermite quadrature, so a new activation needs its function and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import erf, sqrt
from typing import Literal

import numpy as np

from fanin.summary import Floats

_erf = np.vectorize(erf, otypes=[np.float64])

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
"""Klambauer et al. 2017, "Self-Normalizing Neural Networks", eq. 14."""


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: Floats) -> Floats:
    return np.asarray(np.logaddexp(0.0, x))


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: np.where(x > 0, x, 0.25 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: np.asarray(x * 0.5 * (1 + _erf(x / sqrt(2)))),
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "logsigmoid": lambda x: -_softplus(-x),
    "tanhshrink": lambda x: x - np.tanh(x),
}
"""φ by name, with the default slope where the framework lets it vary."""

QUADRATURE_POINTS = 201
"""Gauss-Hermite nodes: gives √2 for ReLU, whose kink converges slowest, to 1 %; used only for the others."""


@lru_cache
def gain(activation: str | None) -> float | None:
    """The gain that keeps the mean square of a signal through this activation; None when it is not known.

    >>> round(gain("relu"), 4), round(gain("gelu"), 2), gain("softmax")
    (1.4142, 1.53, None)
    """
    if activation == "relu":
        return sqrt(2.0)  # exact: half of a symmetric distribution
    if activation not in ACTIVATIONS:
        return None
    nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_POINTS)
    mean_square = float(weights @ ACTIVATIONS[activation](nodes) ** 2 / weights.sum())
    return 1 / sqrt(mean_square)


@dataclass(frozen=True, slots=True)
class InitScheme:
    """Weights with zero mean and Var[w] = gain² / fan.

    Attributes:
        name: As in the literature, e.g. `he_normal`.
        gain: Dimensionless.
        fan: Which fan the variance is divided by.
    """

    name: str
    gain: float
    fan: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in"

    def std(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation of one weight."""
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.fan]
        return self.gain / sqrt(fan)


HE_NORMAL = InitScheme("he_normal", sqrt(2.0))
"""He et al. 2015, "Delving Deep into Rectifiers", eq. 10."""

LECUN_NORMAL = InitScheme("lecun_normal", 1.0)
"""LeCun et al. 1998, "Efficient BackProp", section 4.6."""

GLOROT_UNIFORM = InitScheme("glorot_uniform", 1.0, "fan_avg")
"""Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 16."""


def scheme_for(activation: str | None) -> InitScheme | None:
    """The scheme that keeps the signal through a layer fed by this activation; None when it is not known."""
    if activation == "relu":
        return HE_NORMAL
    needed = gain(activation)
    if needed is None:
        return None
    return InitScheme(f"lecun_normal x {needed:.2f}", needed) if abs(needed - 1) > 0.01 else LECUN_NORMAL
