"""Biases that drown the signal, and those that are meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rules.bias_offset import BiasOffset
from fanin.scheme import LECUN_NORMAL
from fanin.synthetic import Init, clusters, constant, mlp, normal, scaled
from fanin.trial import ActivationSpec, Kind, LayerSpec, Role, Trial

HIDDEN = tuple(f"blocks.{i}.fc" for i in range(5))
PRIOR = constant(-4.6)


def judged(trial: Trial) -> list[Finding]:
    said = list(BiasOffset().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def biases(*paths: str, init: Init) -> dict[str, Init | str]:
    return {f"{path}.bias": init for path in paths}


def one_prior(path: str = HIDDEN[2], **options: Any) -> Trial:
    return mlp(overrides=biases(path, init=PRIOR), **options)


def changed(trial: Trial, path: str, **changes: Any) -> Trial:
    layers = tuple(replace(o, **changes) if o.path == path else o for o in trial.spec.layers)
    return replace(trial, spec=replace(trial.spec, layers=layers))


def followed(trial: Trial, path: str, type_name: str) -> Trial:
    norm = LayerSpec("norm", Kind.NORM, type_name, inputs=(path,), calls=1)
    return replace(trial, spec=replace(trial.spec, layers=(*trial.spec.layers, norm)))


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("init", [constant(0.0), constant(1.0), constant(0.1), normal(0.3)])
def test_customary_biases_are_healthy(init: Init, activation: str) -> None:
    assert judged(mlp(activation=activation, overrides=biases(*HIDDEN, init=init))) == []


@pytest.mark.parametrize("width", [4, 32])
def test_the_default_of_pytorch_is_healthy_in_any_depth(width: int) -> None:
    """There the signal dies, and biases are all that is left; they are not what is wrong."""
    paths = [f"blocks.{i}.fc" for i in range(20)]

    def default(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.uniform(-1, 1, shape) / np.sqrt(width)

    trial = mlp(
        (width,) * 21 + (10,), init=scaled(LECUN_NORMAL, 3**-0.5), overrides=biases(*paths, init=default)
    )
    assert judged(trial) == []


def test_a_prior_bias_on_a_hidden_layer_is_a_suspect() -> None:
    (finding,) = judged(one_prior())
    assert (finding.code, finding.cause) == ("FAN406", Cause.BIAS_OFFSET)
    assert (finding.layer, finding.tensor) == (HIDDEN[2], "blocks.2.fc.bias")
    assert (finding.scope, finding.severity) == (Scope.LAYER, Severity.SUSPECT)
    assert finding.measured.low > 2
    assert "RMS of 4.6" in finding.message


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_large_biases_everywhere_are_one_finding(activation: str) -> None:
    (finding,) = judged(mlp(activation=activation, overrides=biases(*HIDDEN, init=normal(20.0))))
    assert (finding.layer, finding.scope) == (HIDDEN[0], Scope.EVERYWHERE)
    assert len(finding.layers) >= 4


def test_layers_that_put_out_nothing_but_bias_count_behind_the_first() -> None:
    (finding,) = judged(mlp(overrides=biases(*HIDDEN, init=constant(-50.0))))
    assert finding.layers == HIDDEN
    same = (np.ones((16, 32)), clusters(32, size=16)[1])
    assert judged(one_prior(batch=same)) == []


def test_a_bias_that_is_large_but_smaller_than_its_signal_is_healthy() -> None:
    assert (
        judged(mlp(overrides=biases(HIDDEN[0], init=constant(3.0)) | {"blocks.0.fc.weight": normal(1.0)}))
        == []
    )


@pytest.mark.parametrize("outputs", [("head",), ()])
def test_a_prior_bias_on_the_head_is_meant(outputs: tuple[str, ...]) -> None:
    trial = one_prior("head")
    assert judged(replace(trial, spec=replace(trial.spec, outputs=outputs))) == []


def test_a_layer_that_feeds_no_other_is_an_output() -> None:
    assert judged(changed(one_prior(), HIDDEN[3], inputs=(HIDDEN[1],))) == []


@pytest.mark.parametrize("function", ["sigmoid", "hardsigmoid", "softmax", "softplus"])
def test_biases_of_gates_are_meant(function: str) -> None:
    assert judged(changed(one_prior(), HIDDEN[2], activation=function)) == []
    trial = one_prior()
    gate = ActivationSpec("gate_input_0", function, (HIDDEN[2],))
    assert judged(replace(trial, spec=replace(trial.spec, activations=(gate,)))) == []


def test_behind_weights_of_zeros_the_bias_is_the_start() -> None:
    assert judged(mlp(overrides=biases(HIDDEN[2], init=PRIOR) | {f"{HIDDEN[2]}.weight": "zeros"})) == []


@pytest.mark.parametrize(
    ("type_name", "fires"),
    [
        ("BatchNorm2d", False),
        ("SyncBatchNorm", False),
        ("F.instance_norm", False),
        ("GroupNorm", False),
        ("RMSNorm", True),
        ("LayerNorm", False),
    ],
)
def test_norms_that_remove_the_bias(type_name: str, fires: bool) -> None:
    assert bool(judged(followed(one_prior(), HIDDEN[2], type_name))) is fires


def test_a_layer_norm_does_not_remove_a_pattern() -> None:
    trial = mlp(overrides=biases(HIDDEN[2], init=normal(10.0)))
    assert judged(followed(trial, HIDDEN[2], "LayerNorm"))
    assert judged(followed(trial, HIDDEN[2], "BatchNorm1d")) == []


@pytest.mark.parametrize("kind", [Kind.RECURRENT, Kind.NORM, Kind.EMBEDDING, Kind.ATTENTION, Kind.OTHER])
def test_other_kinds_are_passed(kind: Kind) -> None:
    assert judged(changed(one_prior(), HIDDEN[2], kind=kind)) == []


def test_frozen_biases_are_passed() -> None:
    trial = one_prior()
    weight, bias = trial.spec.layer(HIDDEN[2]).parameters
    assert judged(changed(trial, HIDDEN[2], parameters=(weight, replace(bias, trainable=False)))) == []


def test_without_outputs_it_says_so_and_blocks_nothing() -> None:
    trial = one_prior()
    kept = tuple(o for o in trial.steps[0].observations if o.role is not Role.OUTPUT)
    (said,) = BiasOffset().check(replace(trial, steps=(replace(trial.steps[0], observations=kept),)))
    assert isinstance(said, Missing)
    assert not said.blocks
