"""Gains of normalizations: near 1, zero on purpose, relative, and drawn like weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rules.norm_gains import NormGains
from fanin.summary import Floats
from fanin.synthetic import mlp, seen
from fanin.trial import NETWORK_INPUT, Kind, LayerSpec, ParameterSpec, Role, Trial

WIDTH = 64
RNG = np.random.default_rng(0)
X = np.random.default_rng(1).normal(size=(128, WIDTH))


def judged(trial: Trial) -> list[Finding]:
    said = list(NormGains().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def norms(
    *gains: Floats | float,
    outputs: tuple[Floats, ...] | None = None,
    ends: tuple[int, ...] = (),
    biases: dict[int, Floats] | None = None,
    type_name: str = "LayerNorm",
    trainable: bool = True,
) -> Trial:
    """Normalizations one after the other; those in `ends` meet the network's input in a sum."""
    layers, values = [], {}
    inputs: tuple[str, ...] = (NETWORK_INPUT,)
    for i, gain in enumerate(gains):
        g, path = np.broadcast_to(gain, (WIDTH,)), f"norm{i}"
        parameters = (
            ParameterSpec("weight", Role.WEIGHT, (WIDTH,), trainable=trainable),
            ParameterSpec("bias", Role.BIAS, (WIDTH,)),
        )
        joins = "sum" if len(inputs) > 1 else ""
        layers.append(LayerSpec(path, Kind.NORM, type_name, parameters, inputs, joins, calls=1))
        inputs = (NETWORK_INPUT, path) if i in ends else (path,)
        b = (biases or {}).get(i, np.zeros(WIDTH))
        values[path, Role.WEIGHT], values[path, Role.BIAS] = g, b
        values[path, Role.OUTPUT] = outputs[i] if outputs else X * g + b
    joins = "sum" if len(inputs) > 1 else ""
    head = LayerSpec("head", Kind.LINEAR, "Linear", (), inputs, joins, calls=1)
    return seen([*layers, head], values, outputs=("head",))


@pytest.mark.parametrize(
    "gain",
    [1.0, 0.2, 5.0, RNG.normal(1, 0.02, WIDTH), RNG.uniform(0, 1, WIDTH)],
    ids=["one", "0.2", "5", "DCGAN", "uniform"],
)
def test_published_gains_are_healthy(gain: Floats | float) -> None:
    assert judged(norms(gain, gain, gain)) == []


@pytest.mark.parametrize("low", [0.003, 0.03])
def test_trained_gains_are_passed_however_small(low: float) -> None:
    assert judged(norms(*(RNG.uniform(low, 2 * low, WIDTH) for _ in range(3)))) == []
    assert judged(norms(*(RNG.uniform(15, 40, WIDTH) for _ in range(3)))) == []


@pytest.mark.parametrize(
    "gain",
    [0.01, 50.0, 0.0, -30.0, RNG.normal(0, 0.02, WIDTH), RNG.normal(0, 1, WIDTH), RNG.normal(0, 30, WIDTH)],
    ids=["0.01", "50", "0", "-30", "N(0, 0.02)", "N(0, 1)", "N(0, 30)"],
)
def test_gains_that_an_initializer_for_weights_met_are_one_suspect(gain: Floats | float) -> None:
    (finding,) = judged(norms(gain, gain, gain))
    assert (finding.code, finding.cause) == ("FAN407", Cause.NORM_GAIN)
    assert (finding.layer, finding.layers) == ("norm0", ("norm0", "norm1", "norm2"))
    assert (finding.scope, finding.severity) == (Scope.EVERYWHERE, Severity.SUSPECT)
    assert finding.measured.middle not in finding.expected


def test_a_part_of_the_norms_is_named_each() -> None:
    found = judged(norms(1.0, 0.01, 1.0, 0.01, 1.0))
    assert [(f.layer, f.layers, f.scope) for f in found] == [
        ("norm1", ("norm1",), Scope.LAYER),
        ("norm3", ("norm3",), Scope.LAYER),
    ]
    assert judged(norms(1.0, 0.0))[0].layer == "norm1"


def test_zeros_that_end_branches_are_meant() -> None:
    assert judged(norms(1.0, 0.0, 1.0, 0.0, ends=(1, 3))) == []
    assert judged(norms(0.0, 0.0, ends=(0, 1))) == []


def test_zeros_everywhere_are_not() -> None:
    (finding,) = judged(norms(0.0, 0.0, 0.0, 0.0, ends=(1, 3)))
    assert finding.layers == ("norm0", "norm1", "norm2", "norm3")


def test_what_training_made_of_zeros_at_the_ends_of_branches_is_meant() -> None:
    """A ResNet with zero gains has gains of either sign after 60 steps of Adam."""
    trained = RNG.normal(0, 0.2, WIDTH)
    assert judged(norms(1.0, trained, 1.0, trained, ends=(1, 3))) == []
    assert len(judged(norms(*(RNG.normal(0, 0.2, WIDTH) for _ in range(4)), ends=(1, 3)))[0].layers) == 4


def test_large_gains_at_the_ends_of_branches_are_not() -> None:
    assert [f.layer for f in judged(norms(1.0, 50.0, 1.0, ends=(1,)))] == ["norm1"]


def test_the_ends_of_branches_do_not_hide_that_all_others_are_off() -> None:
    (finding,) = judged(norms(50.0, 0.0, 50.0, 0.0, ends=(1, 3)))
    assert (finding.layers, finding.scope) == (("norm0", "norm2"), Scope.EVERYWHERE)


@pytest.mark.parametrize("gain", [np.zeros(WIDTH), RNG.normal(0, 0.02, WIDTH)], ids=["0", "N(0, 0.02)"])
def test_gains_stored_less_one_are_known_by_their_output(gain: Floats) -> None:
    assert judged(norms(gain, gain, outputs=(X * (1 + gain),) * 2, type_name="GemmaRMSNorm")) == []


def test_a_large_gain_on_vectors_of_unit_length_is_a_scale_norm() -> None:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert judged(norms(22.6, 22.6, outputs=(22.6 * unit,) * 2, type_name="ScaleNorm")) == []


def test_an_offset_under_another_name_is_no_gain() -> None:
    """The Annotated Transformer calls them a_2 and b_2: ones and zeros, and no name tells."""
    trial = norms(1.0, 1.0)
    layers, step = trial.spec.layers, trial.steps[0]
    renamed = tuple(
        replace(o, parameters=tuple(replace(p, role=Role.WEIGHT) for p in o.parameters)) for o in layers
    )
    kept = tuple(replace(o, role=Role.WEIGHT) if o.role is Role.BIAS else o for o in step.observations)
    spec = replace(trial.spec, layers=renamed)
    assert judged(replace(trial, spec=spec, steps=(replace(step, observations=kept),))) == []


def test_a_bias_may_carry_what_the_gain_does_not() -> None:
    bias = RNG.normal(0, 1, WIDTH)
    assert judged(norms(0.01, 0.01, biases={0: bias, 1: bias}))


def test_frozen_gains_are_passed() -> None:
    assert judged(norms(0.01, 0.01, trainable=False)) == []


def test_networks_without_norms_are_healthy() -> None:
    assert judged(mlp()) == []


def test_a_norm_whose_output_was_not_seen_is_passed() -> None:
    trial = norms(0.0, 0.0)
    kept = tuple(o for o in trial.steps[0].observations if o.role is not Role.OUTPUT)
    assert judged(replace(trial, steps=(replace(trial.steps[0], observations=kept),))) == []


def test_without_step_0_it_says_so_and_blocks_nothing() -> None:
    (said,) = NormGains().check(replace(norms(1.0), steps=()))
    assert isinstance(said, Missing)
    assert not said.blocks
