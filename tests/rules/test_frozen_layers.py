"""Frozen layers that were drawn and never trained, and others."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Severity
from fanin.rules.frozen_layers import FrozenLayers, frozen
from fanin.scheme import GLOROT_UNIFORM, HE_NORMAL, InitScheme
from fanin.synthetic import Init, constant, mlp, normal, scaled, tiled
from fanin.trial import Trial

WIDTHS = (64,) * 6 + (10,)
BODY = tuple(f"blocks.{i}.fc" for i in range(5))
HE = scaled(HE_NORMAL)


def judged(trial: Trial) -> list[Finding]:
    said = list(FrozenLayers().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def default(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-1 / sqrt(shape[1]), 1 / sqrt(shape[1]), shape)


def grown_apart(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    sizes = rng.lognormal(0.0, 0.4, (shape[0], 1))
    return HE(rng, shape) * sizes / sqrt(np.mean(sizes**2))


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_t(3, shape)
    return values * sqrt(2 / shape[1]) / np.sqrt(np.mean(values**2))


def low_rank(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """As trained weights are: a draw, and what training has added."""
    added = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))
    return HE(rng, shape) + 0.1 * added


SCHEMES: dict[str, Init] = {
    "PyTorch's default": default,
    "he_normal": HE,
    "he_uniform": scaled(InitScheme("he_uniform", sqrt(2))),
    "glorot_uniform": scaled(GLOROT_UNIFORM),
    "glorot_normal": scaled(InitScheme("glorot_normal", 1.0, "fan_avg")),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SCHEMES)
def test_frozen_draws_are_a_note(name: str, seed: int) -> None:
    (finding,) = judged(frozen(BODY, mlp(WIDTHS, SCHEMES[name], seed=seed)))
    assert (finding.code, finding.cause, finding.severity) == ("FAN413", Cause.FROZEN, Severity.NOTE)
    assert (finding.layer, finding.layers) == (BODY[0], BODY)
    assert f"{BODY[0]} by {name}" in finding.message
    assert finding.cause is not None
    assert not finding.cause.is_initialization


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "init",
    [grown_apart, heavy_tailed, low_rank, normal(0.02), constant(0.1), tiled(HE), scaled(HE_NORMAL, 1.2)],
)
def test_weights_that_match_no_scheme_pass(init: Init, seed: int) -> None:
    assert judged(frozen(BODY, mlp(WIDTHS, init, seed=seed))) == []


def test_one_pretrained_layer_speaks_for_all() -> None:
    trial = mlp(WIDTHS, overrides={"blocks.2.fc.weight": grown_apart})
    assert judged(frozen(BODY, trial)) == []


def test_two_frozen_layers_are_needed_and_something_that_trains() -> None:
    trial = mlp(WIDTHS)
    assert judged(trial) == []
    assert judged(frozen(BODY[:1], trial)) == []
    assert len(judged(frozen(BODY[:2], trial))) == 1
    assert judged(frozen((*BODY, "head"), trial)) == []


def test_small_layers_are_not_judged() -> None:
    assert judged(frozen(BODY, mlp((8,) * 6 + (10,)))) == []


def test_layers_that_never_ran_do_not_count() -> None:
    trial = frozen(BODY, mlp(WIDTHS))
    layers = tuple(replace(layer, calls=0) for layer in trial.spec.layers)
    assert judged(replace(trial, spec=replace(trial.spec, layers=layers))) == []


def test_without_a_start_it_says_nothing() -> None:
    assert judged(replace(frozen(BODY, mlp(WIDTHS)), steps=())) == []
