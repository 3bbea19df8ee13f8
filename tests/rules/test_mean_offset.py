"""Weights with a mean, where it drowns their differences and where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rules.mean_offset import MeanOffset, spread
from fanin.summary import Floats, summarize
from fanin.synthetic import Init, constant, mlp
from fanin.trial import Kind, Role, Trial

HIDDEN = tuple(f"blocks.{i}.fc" for i in range(5))


def judged(trial: Trial) -> list[Finding]:
    said = list(MeanOffset().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def shifted(o: float, std: float = 0.2) -> Init:
    """Weights with |mean| √fan_in / std of about o."""
    return lambda rng, shape: rng.normal(o * std / np.sqrt(shape[1]), std, shape)


def uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.uniform(0, 1, shape)


def absolute(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return np.abs(rng.normal(0, 0.2, shape))


def respecified(trial: Trial, kind: Kind | None = None, **changes: Any) -> Trial:
    layers = tuple(
        replace(
            layer,
            kind=kind or layer.kind,
            parameters=(replace(layer.parameters[0], **changes), *layer.parameters[1:]),
        )
        for layer in trial.spec.layers
    )
    return replace(trial, spec=replace(trial.spec, layers=layers))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("init", ["he_normal", "glorot_uniform", "zeros"])
def test_draws_around_zero_are_healthy(init: str, width: int, seed: int) -> None:
    assert judged(mlp((width,) * 6 + (10,), init=init, seed=seed)) == []


@pytest.mark.parametrize("init", [uniform, absolute, shifted(8), shifted(-8)])
def test_an_offset_in_all_layers_is_one_suspect(init: Init) -> None:
    (finding,) = judged(mlp(init=init))
    assert (finding.code, finding.cause) == ("FAN405", Cause.MEAN_OFFSET)
    assert (finding.layer, finding.layers) == (HIDDEN[0], HIDDEN)
    assert (finding.scope, finding.severity) == (Scope.EVERYWHERE, Severity.SUSPECT)
    assert finding.measured.middle > 5


def test_uniform_over_64_terms_has_the_offset_of_theory() -> None:
    """mean 1/2, std 1/√12: √12/2 √64 = 13.9."""
    (finding,) = judged(mlp((64,) * 6 + (10,), init=uniform))
    assert finding.measured.middle == pytest.approx(13.9, abs=0.3)


def test_a_few_layers_are_named_each() -> None:
    overrides: dict[str, Init | str] = {f"{path}.weight": uniform for path in (HIDDEN[1], HIDDEN[3])}
    found = judged(mlp(overrides=overrides))
    assert [(f.layer, f.scope) for f in found] == [(HIDDEN[1], Scope.LAYER), (HIDDEN[3], Scope.LAYER)]


@pytest.mark.parametrize(("o", "fires"), [(2.0, False), (4.5, False), (5.5, True)])
def test_the_threshold(o: float, fires: bool) -> None:
    trial = mlp((256, 256, 256, 10), overrides={"blocks.0.fc.weight": shifted(o)})
    assert bool(judged(trial)) is fires


def test_a_constant_with_a_little_noise_is_an_offset_and_a_constant_is_not() -> None:
    noisy: Init = lambda rng, shape: 0.1 + rng.normal(0, 1e-3, shape)  # noqa: E731
    assert judged(mlp(init=noisy))[0].scope is Scope.EVERYWHERE
    assert judged(mlp(init=constant(0.1))) == []
    assert judged(mlp(init=lambda rng, shape: np.tile(uniform(rng, (1, shape[1])), (shape[0], 1)))) == []


def test_trained_weights_whose_units_have_means_of_their_own_are_passed() -> None:
    def drifted(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return rng.normal(rng.normal(0.05, 0.1, (shape[0], 1)), 0.1, shape)

    trial = mlp((256,) * 4 + (10,), init=drifted)
    weight = trial.steps[0].of(Role.WEIGHT)["blocks.0.fc.weight"].summary
    assert abs(weight.mean) * 16 / weight.std > 5
    assert judged(trial) == []


@pytest.mark.parametrize("offset", [0.0, 0.5, 50.0])
@pytest.mark.parametrize("shape", [(64, 16), (64, 512), (1024, 64)])
def test_the_units_means_of_a_draw_spread_by_one_standard_error(
    offset: float, shape: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).normal(offset, 1, shape)
    assert spread(summarize(values, unit_axis=0)) == pytest.approx(1, abs=0.25)
    assert spread(summarize(values)) == 1


@pytest.mark.parametrize("outputs", [("head",), ()])
def test_a_positive_head_is_harmless(outputs: tuple[str, ...]) -> None:
    trial = mlp(overrides={"head.weight": uniform})
    assert judged(replace(trial, spec=replace(trial.spec, outputs=outputs))) == []


def test_a_network_of_one_layer_is_passed() -> None:
    trial = mlp((64, 32), init=uniform)
    assert judged(replace(trial, spec=replace(trial.spec, outputs=()))) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": False},
        {"tied_to": "elsewhere.weight"},
        {"fan_in": 9},
        {"fan_in": None},
        {"kind": Kind.NORM},
        {"kind": Kind.EMBEDDING},
    ],
)
def test_frozen_tied_and_short_weights_are_passed(changes: dict[str, Any]) -> None:
    assert judged(respecified(mlp(init=uniform), **changes)) == []


def test_recurrent_weights_are_judged() -> None:
    assert judged(respecified(mlp(init=uniform), kind=Kind.RECURRENT))


def test_without_weights_it_says_so_and_blocks_nothing() -> None:
    trial = mlp()
    (said,) = MeanOffset().check(replace(trial, steps=()))
    assert isinstance(said, Missing)
    assert not said.blocks
