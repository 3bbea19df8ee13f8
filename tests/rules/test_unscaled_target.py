"""Targets in raw units, and targets that are none of numbers to match."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Severity
from fanin.rules.unscaled_target import UnscaledTarget, regression
from fanin.synthetic import constant, mlp
from fanin.trial import Trial

Y = np.random.default_rng(1).normal(size=(128, 10))
HOT = np.eye(10)[np.arange(128) % 10]


def judged(trial: Trial) -> list[Finding]:
    said = list(UnscaledTarget().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


@pytest.mark.parametrize("values", [Y, 10 * Y, 0.1 * Y, Y + 5, 0 * Y, np.exp(Y)])
def test_targets_of_a_usual_size_pass(values: np.ndarray) -> None:
    assert judged(regression(values)) == []


@pytest.mark.parametrize("values", [1e4 * Y, Y + 300, Y - 300, 1e-4 * Y, 1e-3 + 1e-4 * Y])
def test_targets_in_raw_units_are_suspects(values: np.ndarray) -> None:
    (finding,) = judged(regression(values))
    assert (finding.code, finding.cause, finding.severity) == (
        "FAN302",
        Cause.UNSCALED_TARGET,
        Severity.SUSPECT,
    )
    assert (finding.layer, finding.tensor) == ("head", "target_0")
    assert finding.measured.middle not in finding.expected
    assert finding.cause is not None
    assert not finding.cause.is_initialization


@pytest.mark.parametrize(
    "values",
    [HOT, 0.9 * HOT + 0.01, np.where(Y > 2.5, 1.0, 0.0), np.ones_like(Y) / 10],
    ids=["one-hot", "smoothed", "several labels", "uniform"],
)
def test_probabilities_are_not_judged(values: np.ndarray) -> None:
    assert judged(regression(values, trial=mlp(overrides={"head.weight": constant(1e3)}))) == []


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_classes_are_not_judged(dtype: str) -> None:
    assert judged(regression(1e4 * np.abs(Y), dtype)) == []


@pytest.mark.parametrize("head", [0.0, 1e-9, 1e5])
def test_outputs_of_an_unusual_size_do_not_blame_the_targets(head: float) -> None:
    trial = mlp(overrides={"head.weight": constant(head)})
    assert judged(regression(Y, trial=trial)) == []
    assert len(judged(regression(1e8 * Y, trial=trial))) == 1 or head == 1e5


def test_targets_are_judged_only_where_they_match_the_outputs() -> None:
    assert judged(regression(1e5 * Y[:, 0])) == []
    assert judged(regression(1e5 * Y[:, :3])) == []
    assert len(judged(regression(1e5 * Y[:64]))) == 1
    single = mlp((32, 32, 1))
    assert judged(regression(Y[:, 0], trial=single)) == []
    assert len(judged(regression(1e5 * Y[:, 0], trial=single))) == 1
    assert len(judged(regression(1e5 * Y[:, :1], trial=single))) == 1


def test_sparse_targets_are_judged_by_what_is_not_zero() -> None:
    heat = np.zeros_like(Y)
    heat[0, 0], heat[3, 5] = -0.5, 0.5
    assert judged(regression(heat)) == []
    assert len(judged(regression(1e-4 * heat))) == 1


def test_without_a_start_or_one_head_it_says_nothing() -> None:
    trial = regression(1e5 * Y)
    assert judged(replace(trial, steps=())) == []
    assert judged(replace(trial, spec=replace(trial.spec, outputs=("blocks.4.fc", "head")))) == []
