"""Rates that suit and do not suit sound weights, and weights that suit no rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Severity
from fanin.rules.learning_rate import LearningRate, trained
from fanin.summary import TensorSummary
from fanin.synthetic import Init, constant, normal
from fanin.trial import RECHECK, Observation, Role, Trial


def judged(trial: Trial) -> list[Finding]:
    said = list(LearningRate().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def scaled(s: TensorSummary, factor: float) -> TensorSummary:
    return replace(
        s,
        mean=s.mean * factor,
        m2=s.m2 * factor**2,
        minimum=s.minimum * factor,
        maximum=s.maximum * factor,
    )


def updated(trial: Trial, ratio: float, by_layer: Mapping[str, float] | None = None) -> Trial:
    """The trial, with each weight changed by this much of its size per step."""
    sizes = {o.layer: o.summary.rms for o in trial.steps[0].of(Role.WEIGHT).values()}

    def changed(o: Observation) -> Observation:
        if o.role is not Role.UPDATE or not o.summary.rms > 0:
            return o
        wanted = (by_layer or {}).get(o.layer, ratio) * sizes[o.layer] * RECHECK
        return replace(o, summary=scaled(o.summary, wanted / o.summary.rms))

    last = trial.steps[RECHECK]
    seen = tuple(changed(o) for o in last.observations)
    return replace(trial, steps=(*trial.steps[:RECHECK], replace(last, observations=seen)))


def ending_at(trial: Trial, loss: float) -> Trial:
    return replace(trial, steps=(*trial.steps[:RECHECK], replace(trial.steps[RECHECK], losses={0: loss})))


@pytest.mark.parametrize("lr", [0.001, 0.01, 0.05, 0.2])
def test_rates_that_suit_pass(lr: float) -> None:
    assert judged(trained(lr)) == []


@pytest.mark.parametrize("ratio", [0.15, 0.5, 30.0])
def test_weights_that_move_too_far_are_suspects(ratio: float) -> None:
    (finding,) = judged(updated(trained(0.05), ratio))
    assert (finding.code, finding.cause, finding.severity) == (
        "FAN303",
        Cause.LEARNING_RATE,
        Severity.SUSPECT,
    )
    assert finding.measured.middle == pytest.approx(ratio, rel=0.01)
    assert (finding.step, finding.layer, len(finding.layers)) == (RECHECK, "blocks.0.fc", 6)
    assert finding.cause is not None
    assert not finding.cause.is_initialization


@pytest.mark.parametrize("ratio", [1e-7, 1e-9])
def test_weights_that_hardly_move_are_a_note(ratio: float) -> None:
    (finding,) = judged(updated(trained(0.05), ratio))
    assert finding.severity is Severity.NOTE
    assert "warms up" in finding.message


def test_without_any_step_the_ratio_is_zero() -> None:
    (finding,) = judged(trained(0.0))
    assert finding.measured.middle == 0


@pytest.mark.parametrize("ratio", [1e-8, 1.0])
def test_layers_that_differ_are_not_the_learning_rate(ratio: float) -> None:
    by_layer = {"blocks.0.fc": ratio * 1e-4}
    assert judged(updated(trained(0.05), ratio, by_layer)) == []


def test_short_weights_do_not_make_steps_long() -> None:
    """Adam moves every weight by its rate: relative to weights of 0.01 that is ten times what it is to usual ones."""
    small: dict[str, Init] = {f"blocks.{i}.fc.weight": normal(0.01) for i in range(5)}
    assert judged(updated(trained(0.05, overrides=small), 0.15)) == []


def test_gradients_that_vanish_are_not_the_learning_rate() -> None:
    assert judged(trained(0.05, normal(1e-3))) == []
    assert judged(trained(0.05, "zeros")) == []


@pytest.mark.parametrize("lr", [5.0, 20.0, 100.0])
def test_a_rate_that_is_far_too_high_is_found(lr: float) -> None:
    (finding,) = judged(trained(lr))
    assert finding.severity is Severity.SUSPECT


@pytest.mark.parametrize("loss", [50.0, float("inf"), float("nan")])
def test_a_loss_that_blows_up_from_a_sound_start_is_a_suspect(loss: float) -> None:
    (finding,) = judged(ending_at(trained(0.05), loss))
    assert finding.quantity == "loss at step 5 / loss at step 0"
    assert finding.severity is Severity.SUSPECT
    assert finding.measured.middle > 10


def test_a_loss_that_grows_a_little_passes() -> None:
    assert judged(ending_at(trained(0.05), 10.0)) == []


@pytest.mark.parametrize("init", [normal(1.0), constant(0.5), normal(1e150)])
def test_a_loss_that_blows_up_from_an_unsound_start_is_not_the_learning_rate(init: Init) -> None:
    assert judged(ending_at(trained(0.05, init), float("nan"))) == []


def test_without_a_second_look_it_says_nothing() -> None:
    trial = trained(0.0)
    assert judged(replace(trial, steps=trial.steps[:RECHECK])) == []
    assert judged(replace(trial, steps=trial.steps[1:])) == []


def test_frozen_layers_do_not_count() -> None:
    trial = trained(0.0)
    layers = tuple(
        replace(layer, parameters=tuple(replace(p, trainable=False) for p in layer.parameters))
        for layer in trial.spec.layers
    )
    assert judged(replace(trial, spec=replace(trial.spec, layers=layers))) == []
