"""Trials that hold reductions of tensors instead of their values."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanin import judge, load_trial
from fanin.finding import Missing, Verdict
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.stores.smdebug.summaries import of_reductions

from .smdebug_trial import pytorch
from .smdebug_writer import TrialWriter


def reduced(values: Any, *which: str, ddof: int = 1) -> dict[tuple[str, bool], float]:
    """Reductions as a hook computes them."""
    x = np.asarray(values, np.float64)
    every = {
        "min": x.min(),
        "max": x.max(),
        "mean": x.mean(),
        "std": x.std(ddof=ddof),
        "variance": x.var(ddof=ddof),
        "l2": np.linalg.norm(x.reshape(-1)),
    }
    return {(name, False): float(every[name]) for name in which}


VALUES = np.random.default_rng(1).normal(3.0, 2.0, (8, 4))


@pytest.mark.parametrize("which", [("variance",), ("std",), ("mean", "l2"), ("min", "max", "mean", "std")])
def test_the_variance_comes_from_whichever_reduction_has_it(which: tuple[str, ...]) -> None:
    found = of_reductions(reduced(VALUES, *which), VALUES.shape, unbiased=True)
    assert found is not None
    assert found.variance == pytest.approx(VALUES.var(), rel=1e-12)
    assert (found.count, found.histogram) == (32, None)


def test_where_variances_are_divided_by_n_nothing_is_put_right() -> None:
    found = of_reductions(reduced(VALUES, "variance", ddof=0), VALUES.shape, unbiased=False)
    assert found is not None
    assert found.variance == pytest.approx(VALUES.var(), rel=1e-12)


@pytest.mark.parametrize("which", [("min", "max"), ("mean",), ("l2",)])
def test_without_a_variance_there_is_no_summary(which: tuple[str, ...]) -> None:
    assert of_reductions(reduced(VALUES, *which), VALUES.shape, unbiased=True) is None


def test_a_constant_has_no_variance_whatever_rounding_says() -> None:
    found = of_reductions(reduced(np.full(7, 0.1), "min", "max", "std"), (7,), unbiased=True)
    assert found is not None
    assert (found.variance, found.is_constant) == (0.0, True)


@pytest.mark.parametrize(
    ("values", "nans", "infinite"),
    [({"mean": np.nan, "variance": np.nan}, 1, 0), ({"min": -np.inf, "max": 1.0, "variance": np.nan}, 0, 1)],
)
def test_values_that_are_not_finite_show_in_reductions(
    values: Mapping[str, float], nans: int, infinite: int
) -> None:
    found = of_reductions({(name, False): value for name, value in values.items()}, None, unbiased=True)
    assert found is not None
    assert (found.nan, found.inf) == (nans, infinite)
    assert isnan(found.variance)


def test_a_variance_that_overflows_is_no_value_that_is_not_finite() -> None:
    found = of_reductions(
        {("min", False): -1e30, ("max", False): 1e30, ("variance", False): np.inf}, (9,), unbiased=True
    )
    assert found is not None
    assert (found.non_finite, found.variance) == (0, np.inf)


def test_of_reductions_the_variances_are_judged_and_percentiles_are_missed(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    for step in range(10):
        raw = pytorch(step)
        saved = {"CrossEntropyLoss_output_0": raw["CrossEntropyLoss_output_0"]}
        for name in ("relu_input_0", "blocks.0.relu_input_0", "gradient/Net_fc1.weight"):
            for key, value in reduced(raw[name], "min", "max", "variance").items():
                saved[f"smdebug/reductions/{key[0]}/{name}"] = np.float32(value)
        writer.step(step, saved)
    trial = load_trial(writer.end().folder)
    said = PoorWeightInitialization().checks(trial)
    assert (said["variance"], said["loss"]) == (None, None)
    assert isinstance(said["gradients"], Missing)
    assert "percentiles, which no reduction of them can give" in said["gradients"].what
    assert trial.spec.notes == (
        "Of each activation input and weight gradient reductions were saved, which hold no percentiles.",
    )
    assert judge(trial, rules=[PoorWeightInitialization()]).verdict is Verdict.UNDECIDED
