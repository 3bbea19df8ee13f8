"""Gains and schemes: the values of the literature, and what they promise."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from fanin.scheme import (
    ACTIVATIONS,
    GLOROT_UNIFORM,
    HE_NORMAL,
    LECUN_NORMAL,
    gain,
    scheme_for,
)
from fanin.summary import Floats

WIDTH = 512
KNOWN = {
    "tanh": 1.5925,
    "gelu": 1.534,
    "silu": 1.677,
    "elu": 1.245,
    "selu": 1.000,
    "sigmoid": 1.846,
    "mish": 1.487,
    "softplus": 1.042,
}


def normal(*shape: int, seed: int = 0) -> Floats:
    """Draws of N(0, 1), always the same."""
    return np.random.default_rng(seed).standard_normal(shape)


def gain_by_integration(activation: str) -> float:
    """1 / √E[φ(x)²] by the trapezoid rule, which a kink does not disturb."""
    x = np.linspace(-12, 12, 48_001)
    density = np.exp(-(x**2) / 2) / sqrt(2 * np.pi)
    return 1 / sqrt(np.sum(ACTIVATIONS[activation](x) ** 2 * density) * (x[1] - x[0]))


def test_the_gain_of_relu_is_exactly_the_root_of_two() -> None:
    """He et al. 2015, eq. 10."""
    assert gain("relu") == sqrt(2)


def test_the_gain_of_the_identity_is_one() -> None:
    assert gain("identity") == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("activation", "value"), KNOWN.items())
def test_gains_agree_with_known_values(activation: str, value: float) -> None:
    assert gain(activation) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_quadrature_agrees_with_integration_to_one_percent(activation: str) -> None:
    assert gain(activation) == pytest.approx(gain_by_integration(activation), rel=0.01)


@pytest.mark.parametrize("activation", ["softmax", "", None])
def test_an_unknown_activation_has_no_gain_and_no_scheme(activation: str | None) -> None:
    assert gain(activation) is None
    assert scheme_for(activation) is None


def test_schemes_go_by_their_names_in_the_literature() -> None:
    assert scheme_for("relu") is HE_NORMAL
    assert scheme_for("identity") is LECUN_NORMAL
    assert scheme_for("selu") is LECUN_NORMAL


def test_the_standard_deviation_is_the_gain_over_the_root_of_the_fan() -> None:
    assert HE_NORMAL.std(fan_in=200, fan_out=50) == pytest.approx(0.1)
    assert LECUN_NORMAL.std(fan_in=100, fan_out=50) == pytest.approx(0.1)
    assert GLOROT_UNIFORM.std(fan_in=150, fan_out=50) == pytest.approx(0.1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_drawn_by_the_scheme_keeps_the_mean_square(activation: str) -> None:
    """z = W φ(x) with x ~ N(0, 1) has E[z²] = 1.

    Given φ(x), a unit's mean square is a quadratic form in its Gaussian weights, with a relative variance of
    at most 2 (all of φ's power in its mean). Units are independent: the mean over u of them has a relative
    standard deviation of at most √(2 / u). Five of those, and twice the 1 % of the quadrature at kinks (the
    gain is squared).
    """
    scheme = scheme_for(activation)
    assert scheme is not None
    units = 16 * WIDTH
    weights = normal(units, WIDTH, seed=1) * scheme.std(WIDTH, WIDTH)
    signal = ACTIVATIONS[activation](normal(256, WIDTH)) @ weights.T
    assert np.mean(signal**2) == pytest.approx(1, abs=5 * sqrt(2 / units) + 0.02)
