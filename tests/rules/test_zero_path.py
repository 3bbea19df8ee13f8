"""Zeros: those that move, those that wait for others, and those that stay for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rules.zero_path import ZeroPath
from fanin.synthetic import mlp, normal
from fanin.trial import Kind, Role, SourceLine, Trial

BLOCKS = range(4)
WIDTHS = (32,) * 5 + (10,)


def judged(trial: Trial) -> list[Finding]:
    said = list(ZeroPath().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def zeros(*names: str) -> dict[str, str]:
    """These parameters are zero; `*` stands for every block."""
    return {name.replace("*", str(i)): "zeros" for name in names for i in BLOCKS}


def residual(*names: str, activation: str = "relu", steps: int = 1) -> Trial:
    return mlp(WIDTHS, activation=activation, residual=True, overrides=zeros(*names), steps=steps)


def without(trial: Trial, role: Role, layer: str | None = None) -> Trial:
    """The trial as if tensors of this role had not been seen."""
    steps = tuple(
        replace(
            step,
            observations=tuple(
                o for o in step.observations if o.role is not role or layer not in (None, o.layer)
            ),
        )
        for step in trial.steps
    )
    return replace(trial, steps=steps)


HEALTHY = {
    "no zeros": mlp(),
    "a head of zeros (ViT)": mlp(overrides=zeros("head.weight")),
    "branches that end in zeros (Fixup)": residual("blocks.*.fc2.weight"),
    "a chain of zeros that waits for the head (DiT)": residual("blocks.*.fc2.weight", "head.weight"),
    "adapters with B = 0 (LoRA)": residual("blocks.*.fc2.weight", activation="identity"),
    "adapters with A = 0": residual("blocks.*.fc1.weight", activation="identity"),
    "a first layer of zeros before tanh": mlp(activation="tanh", overrides=zeros("blocks.0.fc.weight")),
    "a linear model of zeros": mlp((32, 10), init="zeros"),
    "all hidden weights zero behind random biases, with a head that is drawn": mlp(
        init="zeros",
        overrides={"head.weight": "he_normal"} | {f"blocks.{i}.fc.bias": normal(0.1) for i in range(5)},
    ),
}


@pytest.mark.parametrize("trial", HEALTHY.values(), ids=HEALTHY.keys())
def test_zeros_that_move_or_wait_are_healthy(trial: Trial) -> None:
    assert judged(trial) == []


@pytest.mark.parametrize("trial", HEALTHY.values(), ids=HEALTHY.keys())
def test_they_are_healthy_without_the_optional_evidence_too(trial: Trial) -> None:
    assert judged(without(without(trial, Role.OUTPUT_GRAD), Role.INPUT)) == []


def test_zeros_everywhere_never_move() -> None:
    (finding,) = judged(mlp(WIDTHS, init="zeros", steps=5))
    assert (finding.code, finding.cause) == ("FAN402", Cause.ZERO_PATH)
    assert finding.layer == "blocks.0.fc"
    assert finding.layers == ("blocks.0.fc", "blocks.1.fc", "blocks.2.fc", "blocks.3.fc", "head")
    assert finding.scope is Scope.EVERYWHERE
    assert finding.measured.low == 5
    assert "No other weight has a gradient either" in finding.message


@pytest.mark.parametrize(
    "trial",
    [
        mlp(init="zeros", activation="sigmoid"),
        mlp(init="zeros", overrides={f"blocks.{i}.fc.bias": normal(0.1) for i in range(5)}),
    ],
    ids=["a sigmoid, which is not 0 at 0", "random biases"],
)
def test_nothing_but_zeros_is_a_fault_though_some_move(trial: Trial) -> None:
    """What moves then moves as one."""
    (finding,) = judged(trial)
    assert (len(finding.layers), finding.severity) == (6, Severity.FAULT)


def test_a_dead_branch_is_suspect_and_a_dead_network_a_fault() -> None:
    branch = zeros("blocks.1.fc1.weight", "blocks.1.fc2.weight")
    (suspect,) = judged(mlp(WIDTHS, residual=True, overrides=branch))
    (fault,) = judged(mlp(overrides=zeros("blocks.2.fc.weight")))
    assert (suspect.severity, fault.severity) == (Severity.SUSPECT, Severity.FAULT)


def test_two_layers_of_zeros_in_one_branch_never_move_while_the_rest_trains() -> None:
    stuck = zeros("blocks.1.fc1.weight", "blocks.1.fc2.weight")
    (finding,) = judged(mlp(WIDTHS, residual=True, overrides=stuck, steps=5))
    assert finding.layers == ("blocks.1.fc1", "blocks.1.fc2")
    assert finding.scope is Scope.LAYER
    assert "Other weights do train" in finding.message


def test_adapters_with_both_factors_zero_never_move() -> None:
    (finding,) = judged(residual("blocks.*.fc1.weight", "blocks.*.fc2.weight", activation="identity"))
    assert len(finding.layers) == 8


def test_a_layer_of_zeros_before_relu_stays_there() -> None:
    (finding,) = judged(mlp(overrides=zeros("blocks.0.fc.weight")))
    assert finding.layer == "blocks.0.fc"


def test_a_mover_on_the_wrong_side_is_no_excuse_where_inputs_and_gradients_tell() -> None:
    """The second layer of zeros sits before ReLU: its input is fine, no gradient returns. What moves lies in front
    of it and would not help."""
    trial = mlp(activation="relu", overrides=zeros("blocks.2.fc.weight"))
    assert trial.start is not None
    moving = trial.start.of(Role.WEIGHT_GRAD)["gradient/head.weight"].summary
    assert moving.zeros == moving.count  # nothing moves here ...
    pretended = mlp().start
    assert pretended is not None
    zero = trial.start.of(Role.WEIGHT)["blocks.2.fc.weight"].summary
    observations = tuple(
        replace(o, summary=zero)
        if o.tensor == "blocks.0.fc.weight"
        else replace(o, summary=pretended.of(Role.WEIGHT_GRAD)[o.tensor].summary)
        if o.tensor == "gradient/blocks.0.fc.weight"
        else o
        for o in trial.start.observations
    )  # ... but a first layer of zeros that does
    told = replace(trial, steps=(replace(trial.start, observations=observations),))
    assert [f.layer for f in judged(told)] == ["blocks.2.fc"]
    assert judged(without(told, Role.INPUT)) == []  # in doubt, excused
    assert judged(without(told, Role.OUTPUT_GRAD)) == []


def test_a_gradient_at_a_later_step_proves_health() -> None:
    """Taken at step 0 alone, with its helper hidden, the branch looks stuck; a step later it moves."""
    waiting = ("blocks.*.fc2.weight", "head.weight")
    hidden = Role.WEIGHT_GRAD
    assert len(judged(without(residual(*waiting), hidden, "head"))) == 1
    assert judged(without(residual(*waiting, steps=3), hidden, "head")) == []


def test_a_weight_without_a_gradient_observation_is_not_judged() -> None:
    stuck = mlp(overrides=zeros("blocks.0.fc.weight"))
    assert judged(without(stuck, Role.WEIGHT_GRAD, "blocks.0.fc")) == []


def respecified(trial: Trial, *paths: str, kind: Kind | None = None, **changes: object) -> Trial:
    """The trial with another description of these layers, of the first one where none is named."""
    paths = paths or (trial.spec.layers[0].path,)
    layers = tuple(
        replace(
            layer,
            kind=kind or layer.kind,
            parameters=(replace(layer.parameters[0], **changes), *layer.parameters[1:]),  # type: ignore[arg-type]
        )
        if layer.path in paths
        else layer
        for layer in trial.spec.layers
    )
    return replace(trial, spec=replace(trial.spec, layers=layers))


def test_frozen_weights_are_not_named() -> None:
    assert judged(respecified(mlp(overrides=zeros("blocks.0.fc.weight")), trainable=False)) == []


def test_gains_are_not_named_while_the_rest_trains() -> None:
    names = ("blocks.1.fc1", "blocks.1.fc2")
    branch = mlp(WIDTHS, residual=True, overrides=zeros(*(f"{name}.weight" for name in names)))
    assert judged(branch)[0].layers == names
    assert judged(respecified(branch, *names, shape=(32,))) == []
    assert judged(respecified(branch, *names, kind=Kind.NORM)) == []


def test_gains_are_named_where_the_whole_network_waits_for_them() -> None:
    dead = mlp(overrides=zeros("blocks.0.fc.weight"))
    (finding,) = judged(respecified(dead, shape=(32,)))
    assert (finding.layer, finding.severity) == ("blocks.0.fc", Severity.FAULT)


def test_a_gain_of_zeros_that_moves_excuses_what_waits_for_it() -> None:
    waiting = residual("blocks.*.fc2.weight", "head.weight")
    head = replace(waiting.spec.layers[-1], kind=Kind.NORM)
    gained = replace(waiting, spec=replace(waiting.spec, layers=(*waiting.spec.layers[:-1], head)))
    assert judged(gained) == []


def test_the_line_that_wrote_the_zeros_is_pointed_at() -> None:
    line = SourceLine("model.py", 7)
    (finding,) = judged(respecified(mlp(overrides=zeros("blocks.0.fc.weight")), source=line))
    assert finding.source == line


def test_without_weights_it_is_undecided() -> None:
    (missing,) = ZeroPath().check(without(mlp(), Role.WEIGHT))
    assert isinstance(missing, Missing)
    assert missing.blocks


def test_zeros_without_gradients_are_undecided_and_other_weights_need_none() -> None:
    (missing,) = ZeroPath().check(without(mlp(overrides=zeros("head.weight")), Role.WEIGHT_GRAD))
    assert isinstance(missing, Missing)
    assert missing.what == "head.weight is zero; whether a gradient moves it was not seen"
    assert judged(without(mlp(), Role.WEIGHT_GRAD)) == []


def test_without_step_0_it_is_undecided() -> None:
    trial = mlp(steps=3)
    (missing,) = ZeroPath().check(replace(trial, steps=trial.steps[1:]))
    assert isinstance(missing, Missing)
