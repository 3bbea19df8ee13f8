"""Trials that smdebug itself wrote: every value is the one that its own reader read.

They are not part of this project; FANIN_SMDEBUG_TRIALS says where they are, and without them these tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
from math import isnan
from typing import Any

import numpy as np
import pytest

from fanin import judge
from fanin.finding import Finding, Verdict
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.sagemaker import ModeKeys, TensorUnavailableForStep, create_trial
from fanin.sagemaker.trials import Trial

from .conftest import shared_trials

FOUND = shared_trials()
NAMES = sorted(path.stem for path in (FOUND / "expected").glob("*.json")) if FOUND else []

pytestmark = pytest.mark.skipif(FOUND is None, reason="no trials of SageMaker Debugger here")
for_every_trial = pytest.mark.parametrize("name", NAMES or ["absent"])


def opened(name: str) -> tuple[Trial, dict[str, Any]]:
    """A trial, and what smdebug's own reader says of it."""
    assert FOUND is not None
    oracle: dict[str, Any] = json.loads((FOUND / "expected" / f"{name}.json").read_text())
    return create_trial(FOUND / name, timeout=0.0), oracle


@for_every_trial
def test_steps_modes_workers_and_collections_are_the_same(name: str) -> None:
    trial, oracle = opened(name)
    assert trial.steps() == oracle["steps_global"]
    assert sorted(mode.name for mode in trial.modes()) == oracle["modes"]
    assert {mode.name: trial.steps(mode) for mode in trial.modes()} == oracle["steps_by_mode"]
    assert (trial.workers(), trial.num_workers) == (oracle["workers"], oracle["num_workers"])
    assert trial.tensor_names() == sorted(oracle["tensors"])
    assert trial.tensor_names(regex=".*relu_input") == oracle["relu_input_by_regex"]
    assert {c: trial.tensor_names(collection=c) for c in trial.collections()} == oracle[
        "collection_tensor_names"
    ]
    assert {c: sorted(found.tensor_names) for c, found in trial.collections().items()} == oracle[
        "collections"
    ]


@for_every_trial
def test_every_value_is_the_same_to_the_bit(name: str) -> None:
    trial, oracle = opened(name)
    compared = 0
    for tensor, places in oracle["tensors"].items():
        for place, expected in places.items():
            step, worker = place.split("|")
            compared += same(trial, tensor, int(step), worker, expected)
    assert compared >= sum(len(places) for places in oracle["tensors"].values())


def same(trial: Trial, name: str, step: int, worker: str, expected: dict[str, Any]) -> int:
    """Compare one tensor at one step with the oracle; how many values that were."""
    tensor, reductions = trial.tensor(name), expected.get("reductions", {})
    assert list(tensor.shape(step, worker=worker)) == expected["shape_api"]
    for reduction, value in reductions.items():
        magnitudes, word = reduction.startswith("abs_"), reduction.removeprefix("abs_")
        found = float(tensor.reduction_value(step, word, worker=worker, abs=magnitudes))
        assert found == value or (isnan(found) and isnan(value))
    assert len(tensor.reduction_values(step, worker=worker)) == len(reductions)
    if "error" in expected:
        with pytest.raises(TensorUnavailableForStep):
            tensor.value(step, worker=worker)
        return len(reductions)
    values = tensor.value(step, worker=worker)
    assert hashlib.sha256(values.tobytes()).hexdigest() == expected["sha256"]
    assert (list(values.shape), values.dtype.name) == (expected["shape"], expected["dtype"])
    with np.errstate(all="ignore"):
        variance = float(np.var(values.astype(np.float64)))
    assert variance == pytest.approx(expected["var"], rel=1e-12, nan_ok=True)
    return 1 + len(reductions)


def test_steps_in_a_mode_have_a_global_one() -> None:
    trial, _ = opened("cnn_good")
    tensor = trial.tensor("fc.relu_input_0")
    for mode in (ModeKeys.TRAIN, ModeKeys.EVAL):
        for step in trial.steps(mode):
            overall = trial.global_step(mode, step)
            assert overall is not None
            assert (trial.mode(overall), trial.mode_step(overall)) == (mode, step)
            assert np.array_equal(tensor.value(step, mode), tensor.value(overall))


@pytest.mark.parametrize(
    ("name", "verdict", "fired"),
    [
        ("mlp_good", Verdict.HEALTHY, {}),
        ("cnn_good", Verdict.HEALTHY, {}),
        ("mlp_2workers", Verdict.HEALTHY, {}),
        ("mlp_std1e-4", Verdict.POOR, {"variance": 0, "gradients": 0, "loss": 9}),
        ("mlp_std1.0", Verdict.POOR, {"variance": 0, "gradients": 2, "loss": 2}),
        ("mlp_killed", Verdict.UNDECIDED, {}),
        ("mlp_good_reductions", Verdict.UNDECIDED, {}),
        ("mlp_s500_default", Verdict.UNDECIDED, {}),
    ],
)
def test_what_the_documented_rule_says(name: str, verdict: Verdict, fired: dict[str, int]) -> None:
    assert FOUND is not None
    rule = PoorWeightInitialization()
    report = judge(FOUND / name, rules=[rule])
    said = rule.checks(report.trial.of_worker(0))
    assert report.verdict is verdict
    assert {check: found.step for check, found in said.items() if isinstance(found, Finding)} == fired


@pytest.mark.parametrize(
    ("name", "ratio", "width"),
    [
        ("mlp_std1e-4", (6.65e25, 6.75e25), (4.6e-18, 4.8e-18)),
        ("mlp_std1.0", (1.45e6, 1.55e6), None),
    ],
)
def test_the_measured_quantities_are_those_measured_elsewhere(
    name: str, ratio: tuple[float, float], width: tuple[float, float] | None
) -> None:
    assert FOUND is not None
    rule = PoorWeightInitialization()
    said = rule.checks(judge(FOUND / name, rules=[rule]).trial)
    variance, gradients = said["variance"], said["gradients"]
    assert isinstance(variance, Finding)
    assert ratio[0] < variance.measured.middle < ratio[1]
    if width:
        assert isinstance(gradients, Finding)
        assert width[0] < gradients.measured.low <= gradients.measured.high < width[1]
