"""Inputs in raw units, and inputs that only look odd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Severity
from fanin.rules.unscaled_input import UnscaledInput
from fanin.synthetic import clusters, mlp
from fanin.trial import Kind, Trial

X, LABELS = clusters(32)
PIXELS = np.clip(0.13 + 0.3 * X, 0, 1)


def judged(trial: Trial) -> list[Finding]:
    said = list(UnscaledInput().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def given(x: np.ndarray) -> Trial:
    return mlp(batch=(np.asarray(x, np.float64), LABELS))


def entering(trial: Trial, kind: Kind) -> Trial:
    first, *rest = trial.spec.layers
    return replace(trial, spec=replace(trial.spec, layers=(replace(first, kind=kind), *rest)))


def as_type(trial: Trial, dtype: str) -> Trial:
    step = trial.steps[0]
    seen = tuple(replace(o, dtype=dtype) for o in step.observations)
    return replace(trial, steps=(replace(step, observations=seen),))


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_inputs_of_a_usual_size_pass(scale: float) -> None:
    assert judged(given(scale * X)) == []


@pytest.mark.parametrize("scale", [1e-4, 0.05, 20.0, 1e4])
def test_a_scale_outside_the_range_is_a_suspect(scale: float) -> None:
    (finding,) = judged(given(scale * X))
    assert (finding.code, finding.cause, finding.severity) == (
        "FAN111",
        Cause.UNSCALED_INPUT,
        Severity.SUSPECT,
    )
    assert finding.layer == "blocks.0.fc"
    assert finding.measured.middle == pytest.approx(scale * np.sqrt(np.mean(X**2)))
    assert finding.cause is not None
    assert not finding.cause.is_initialization


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_raw_pixels_are_found_in_every_floating_format(dtype: str) -> None:
    assert len(judged(as_type(given(255 * PIXELS), dtype))) == 1


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_integers_are_not_judged(dtype: str) -> None:
    assert judged(as_type(given(255 * PIXELS), dtype)) == []


@pytest.mark.parametrize(
    "values",
    [
        PIXELS,
        np.eye(32)[np.arange(128) % 32],
        np.eye(1000)[np.arange(128), :32],
        np.where(X > -2, 1.0, 0.0),
        np.ones((128, 32)),
        np.zeros((128, 32)),
        np.tanh(X),
        0.5 + 0.5 * np.tanh(X),
        np.where(X > 1.5, X, 0.0),
    ],
    ids=["pixels", "one-hot", "few", "mask", "ones", "zeros", "coordinates", "unit square", "sparse"],
)
def test_inputs_that_are_fine(values: np.ndarray) -> None:
    assert judged(given(values)) == []


def test_sparse_values_in_raw_units_are_found() -> None:
    """Drawings from 0 to 255 are mostly zero."""
    (finding,) = judged(given(255 * np.where(X > 1, 1.0, 0.0)))
    assert finding.severity is Severity.SUSPECT


@pytest.mark.parametrize(("offset", "severity"), [(5, Severity.NOTE), (9, Severity.NOTE)])
def test_an_offset_is_a_note(offset: float, severity: Severity) -> None:
    (finding,) = judged(given(X + offset))
    assert finding.severity is severity
    assert finding.quantity == "|mean| / std of the input"


def test_a_large_offset_of_a_usual_size_is_a_suspect() -> None:
    (finding,) = judged(given(1 + 0.02 * X))
    assert finding.severity is Severity.SUSPECT
    assert finding.measured.middle > 40


def pixels_at_the_edge() -> np.ndarray:
    """Two features in which one sample alone differs, by a little."""
    x = X.copy()
    x[:, :2] = 0
    x[0, :2] = 0.01
    return x


@pytest.mark.parametrize("build", [lambda: np.where(np.arange(32) > 8, X, 0.1), pixels_at_the_edge])
def test_features_that_hardly_vary_do_not_count(build: Callable[[], np.ndarray]) -> None:
    assert judged(given(build())) == []


def test_features_in_unequal_units_are_a_note() -> None:
    (finding,) = judged(given(X * np.repeat([5.0, 0.01], 16)))
    assert finding.severity is Severity.NOTE
    assert finding.measured.middle > 100


@pytest.mark.parametrize("kind", [Kind.NORM, Kind.EMBEDDING])
def test_what_a_normalization_is_given_is_not_judged(kind: Kind) -> None:
    assert judged(entering(given(255 * PIXELS), kind)) == []


def test_without_a_start_or_inputs_it_says_nothing() -> None:
    trial = given(255 * PIXELS)
    assert judged(replace(trial, steps=())) == []
    assert judged(replace(trial, steps=(replace(trial.steps[0], observations=()),))) == []
