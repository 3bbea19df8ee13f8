"""Signals that end before the loss, though nothing they are made of is at fault."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope
from fanin.rules.non_finite_signal import NonFiniteSignal
from fanin.summary import summarize
from fanin.synthetic import clusters, constant, mlp, normal
from fanin.trial import Role, Trial


def judged(trial: Trial) -> list[Finding]:
    said = list(NonFiniteSignal().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def with_loss(value: float) -> Trial:
    trial = mlp()
    return replace(trial, steps=(replace(trial.steps[0], losses={0: value}),))


def spoiled(layer: str, *roles: Role) -> Trial:
    """A healthy trial in which these tensors of a layer hold a NaN."""
    trial = mlp()
    broken = summarize([1.0, nan])
    seen = tuple(
        replace(o, summary=broken) if o.layer == layer and o.role in roles else o
        for o in trial.steps[0].observations
    )
    return replace(trial, steps=(replace(trial.steps[0], observations=seen),))


def test_the_first_layer_whose_output_overflows_is_named() -> None:
    (finding,) = judged(mlp(init=normal(1e80)))
    assert (finding.code, finding.layer, finding.step) == ("FAN103", "blocks.3.fc", 0)
    assert finding.layers == ("blocks.3.fc", "blocks.4.fc", "head")
    assert finding.cause is Cause.NON_FINITE_SIGNAL
    assert finding.scope is Scope.EVERYWHERE
    assert finding.measured.low == 128 * 32
    assert "Its input is finite and reaches" in finding.message


def test_forward_order_counts_and_not_the_order_of_observation() -> None:
    trial = mlp(init=normal(1e80))
    backwards = replace(trial.steps[0], observations=trial.steps[0].observations[::-1])
    assert judged(replace(trial, steps=(backwards,)))[0].layer == "blocks.3.fc"


def test_an_operation_between_layers_is_blamed_where_the_input_is_spoiled_already() -> None:
    (finding,) = judged(spoiled("blocks.2.fc", Role.INPUT, Role.OUTPUT))
    assert finding.layer == "blocks.2.fc"
    assert "an operation without parameters in front of it is to blame" in finding.message


@pytest.mark.parametrize("value", [nan, inf])
def test_a_loss_that_is_not_finite_is_the_finding_when_all_outputs_are(value: float) -> None:
    (finding,) = judged(with_loss(value))
    assert (finding.layer, finding.layers) == ("", ())
    assert finding.message == f"The loss is {value}, though every output that was seen is finite."


def test_growth_that_stays_finite_is_left_to_the_other_rules() -> None:
    assert judged(mlp(init=normal(100.0))) == []


def test_a_signal_that_ends_after_the_first_update_is_not_the_initialization() -> None:
    assert judged(mlp(init=normal(1.0), steps=10)) == []


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_that_are_not_finite_are_left_to_the_rule_about_them(name: str) -> None:
    assert judged(mlp(overrides={f"blocks.1.fc.{name}": constant(nan)})) == []


def test_a_batch_that_is_not_finite_is_left_to_the_rule_about_it() -> None:
    x, labels = clusters(32)
    x[0, 0] = inf
    trial = mlp(batch=(x, labels))
    assert judged(trial) == []
    unknown = tuple(replace(layer, inputs=()) for layer in trial.spec.layers)
    assert judged(replace(trial, spec=replace(trial.spec, layers=unknown))) == []


def test_a_residual_network_that_overflows_is_not_taken_for_a_broken_batch() -> None:
    (finding,) = judged(mlp(init=normal(1e80), residual=True))
    assert finding.layer == "blocks.1.fc2"


def test_without_outputs_and_losses_it_is_undecided() -> None:
    trial = mlp(steps=2)
    bare = replace(trial.steps[0], observations=(), losses={})
    for lacking in (replace(trial, steps=trial.steps[1:]), replace(trial, steps=(bare,))):
        (missing,) = NonFiniteSignal().check(lacking)
        assert isinstance(missing, Missing)
        assert missing.blocks
