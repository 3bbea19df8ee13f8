"""Parameters that cannot be meant, and batches that are not finite."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rules.unsound_values import UnsoundValues
from fanin.synthetic import clusters, constant, mlp, normal
from fanin.trial import Role, SourceLine, Trial


def judged(trial: Trial) -> list[Finding]:
    said = list(UnsoundValues().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def respecified(trial: Trial, path: str, **changes: Any) -> Trial:
    """The trial with another description of one layer's weight."""
    layers = tuple(
        replace(layer, parameters=(replace(layer.parameters[0], **changes), *layer.parameters[1:]))
        if layer.path == path
        else layer
        for layer in trial.spec.layers
    )
    return replace(trial, spec=replace(trial.spec, layers=layers))


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_that_is_not_finite_is_named(value: float, name: str) -> None:
    (finding,) = judged(mlp(overrides={f"blocks.1.fc.{name}": constant(value)}))
    assert (finding.code, finding.layer, finding.step) == ("FAN401", "blocks.1.fc", 0)
    assert finding.cause is Cause.NON_FINITE_PARAMETER
    assert finding.tensor == f"blocks.1.fc.{name}"
    assert finding.measured.low == (1024 if name == "weight" else 32)


def test_several_are_one_finding_that_lists_them() -> None:
    (finding,) = judged(mlp(init=constant(nan)))
    assert finding.layer == "blocks.0.fc"
    assert finding.layers == (*(f"blocks.{i}.fc" for i in range(5)), "head")
    assert finding.scope is Scope.EVERYWHERE
    assert finding.message.endswith("among 1024, as do 5 more.")


@pytest.mark.parametrize(
    ("std", "quantity"), [(1e30, "largest |weight|"), (1e5, "largest |weight|"), (1e-13, "rms of weights")]
)
def test_a_weight_of_impossible_size_is_named(std: float, quantity: str) -> None:
    (finding,) = judged(mlp(overrides={"blocks.3.fc.weight": normal(std)}))
    assert (finding.layer, finding.cause, finding.quantity) == (
        "blocks.3.fc",
        Cause.ABSURD_SCALE,
        quantity,
    )
    assert finding.measured.low not in finding.expected
    assert finding.severity is Severity.SUSPECT  # a fault where the signal suffers from it


@pytest.mark.parametrize("std", [1e3, 1e-9])
def test_an_unusual_size_is_left_to_the_other_rules(std: float) -> None:
    assert judged(mlp(init=normal(std))) == []


@pytest.mark.parametrize("init", ["zeros", "ones"])
def test_constants_are_left_to_the_other_rules(init: str) -> None:
    assert judged(mlp(init=init)) == []


def test_biases_and_frozen_weights_may_be_of_any_size() -> None:
    assert judged(mlp(overrides={"blocks.1.fc.bias": constant(1e6)})) == []
    large = mlp(overrides={"blocks.1.fc.weight": normal(1e6)})
    assert judged(respecified(large, "blocks.1.fc", trainable=False)) == []
    assert judged(respecified(large, "blocks.1.fc", shape=(1024,))) == []


def test_frozen_weights_must_be_finite() -> None:
    broken = mlp(overrides={"blocks.1.fc.weight": constant(nan)})
    assert len(judged(respecified(broken, "blocks.1.fc", trainable=False))) == 1


def test_non_finite_and_absurd_are_two_findings() -> None:
    both = mlp(overrides={"blocks.1.fc.weight": constant(nan), "blocks.0.fc.weight": normal(1e20)})
    assert [f.cause for f in judged(both)] == [Cause.NON_FINITE_PARAMETER, Cause.ABSURD_SCALE]


@pytest.mark.parametrize("residual", [False, True])
def test_the_batch_is_blamed_before_anything_else(residual: bool) -> None:
    x, labels = clusters(32)
    x[0, 0], x[1, 1], x[2, 2] = nan, inf, -inf
    (finding,) = judged(mlp(residual=residual, batch=(x, labels), init=constant(nan)))
    assert finding.cause is Cause.NON_FINITE_INPUT
    assert not finding.cause.is_initialization
    assert finding.message == "The batch holds 1 NaN and 2 infinite values."


def test_a_signal_that_overflows_later_is_not_taken_for_the_batch() -> None:
    """A residual head is given the batch too, in a sum with branches that may have overflowed."""
    overflowing = mlp(residual=True, init=normal(2e3), widths=(32,) * 60 + (10,))
    assert overflowing.steps[0].of(Role.INPUT)["head_input_0"].summary.non_finite
    assert judged(overflowing) == []


def test_the_line_that_wrote_the_parameter_is_pointed_at() -> None:
    line = SourceLine("model.py", 41)
    broken = mlp(overrides={"blocks.1.fc.weight": constant(nan)})
    (finding,) = judged(respecified(broken, "blocks.1.fc", source=line))
    assert finding.source == line


def test_without_step_0_or_parameters_it_is_undecided() -> None:
    healthy = mlp(steps=2)
    assert healthy.start is not None
    bare = replace(
        healthy.start, observations=tuple(o for o in healthy.start.observations if o.role is Role.INPUT)
    )
    for lacking in (replace(healthy, steps=healthy.steps[1:]), replace(healthy, steps=(bare,))):
        (missing,) = UnsoundValues().check(lacking)
        assert isinstance(missing, Missing)
        assert missing.blocks
