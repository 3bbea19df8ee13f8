"""What float16 can hold, and what it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan

import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Severity
from fanin.rules.number_format import NumberFormat, stored
from fanin.synthetic import normal
from fanin.trial import RECHECK, Observation, Role, Trial


def judged(trial: Trial) -> list[Finding]:
    said = list(NumberFormat().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def altered(trial: Trial, change: Callable[[Observation], Observation]) -> Trial:
    step = trial.steps[0]
    return replace(trial, steps=(replace(step, observations=tuple(change(o) for o in step.observations)),))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("gradient", [0.01, 1.0, 1e4])
def test_what_float16_holds_passes(scale: float, gradient: float) -> None:
    assert judged(stored("float16", scale=scale, gradient=gradient)) == []


@pytest.mark.parametrize("scale", [5e3, 1.5e4])
def test_values_at_its_end_are_suspects(scale: float) -> None:
    (finding,) = judged(stored("float16", scale=scale))
    assert (finding.code, finding.cause, finding.severity) == (
        "FAN110",
        Cause.NUMBER_FORMAT,
        Severity.SUSPECT,
    )
    assert finding.layer == "blocks.0.fc"
    assert finding.measured.middle not in finding.expected
    assert finding.cause is not None
    assert not finding.cause.is_initialization


@pytest.mark.parametrize("gradient", [1e-5, 1e-6])
def test_gradients_at_its_beginning_need_loss_scaling(gradient: float) -> None:
    (finding,) = judged(stored("float16", gradient=gradient))
    assert finding.severity is Severity.SUSPECT
    assert "loss scaling" in finding.message
    assert finding.measured.middle > 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_other_formats_are_never_judged(dtype: str) -> None:
    assert judged(stored(dtype, scale=1e6, gradient=1e-9)) == []


@pytest.mark.parametrize("std", [2.0, 5.0])
def test_weights_that_explain_it_are_not_the_format(std: float) -> None:
    assert judged(stored("float16", normal(std), scale=10.0)) == []


def test_a_head_of_zeros_loses_no_gradient_to_the_format() -> None:
    assert judged(stored("float16", head="zeros")) == []


def test_sparse_inputs_leave_sparse_gradients() -> None:
    def sparse(o: Observation) -> Observation:
        s = o.summary
        return replace(o, summary=replace(s, zeros=s.count - 1)) if o.role is Role.INPUT else o

    def only_weights(o: Observation) -> Observation:
        return replace(o, dtype="float32") if o.role is Role.OUTPUT_GRAD else o

    trial = altered(stored("float16", gradient=1e-7), only_weights)
    assert len(judged(trial)) == 1
    assert judged(altered(trial, sparse)) == []


def test_parameters_and_batches_that_are_not_finite_are_not_the_format() -> None:
    assert judged(stored("float16", lambda rng, shape: rng.normal(size=shape) * nan)) == []
    assert judged(stored("float16", scale=nan)) == []


def test_the_second_look_decides_about_gradients() -> None:
    """A loss scale that has settled by then is what counts."""
    bad, good = stored("float16", gradient=1e-6).steps[0], stored("float16").steps[0]
    trial = stored("float16")
    assert judged(replace(trial, steps=(bad, replace(good, index=RECHECK)))) == []
    (finding,) = judged(replace(trial, steps=(good, replace(bad, index=RECHECK))))
    assert finding.step == RECHECK


def test_without_a_start_it_says_nothing() -> None:
    assert judged(replace(stored("float16", scale=1e6), steps=())) == []
