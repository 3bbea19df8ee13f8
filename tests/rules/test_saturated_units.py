"""Bounded activations that start on their flat ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Scope, Severity
from fanin.rules.saturated_units import SaturatedUnits, is_signal, share_beyond
from fanin.scheme import LECUN_NORMAL
from fanin.summary import Histogram, summarize
from fanin.synthetic import Init, constant, mlp, scaled
from fanin.trial import RECHECK, LayerSpec, Mode, Trial

LARGE = scaled(LECUN_NORMAL, 30)
ONE: dict[str, Init] = {"blocks.2.fc.weight": LARGE}


def judged(trial: Trial) -> list[Finding]:
    return [said for said in SaturatedUnits().check(trial) if isinstance(said, Finding)]


def histogram(values: object) -> Histogram:
    found = summarize(values, histogram=True).histogram  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("limit", [0.01, 1.0, 2.0, 2.01, 4.0, 1e6])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_share_is_bounded_by_the_histogram(limit: float, mean: float) -> None:
    values = np.random.default_rng(0).normal(mean, 2.0, 4000)
    share = share_beyond(histogram(values), limit)
    assert np.mean(np.abs(values) > limit) in share
    assert share.high - share.low < 0.05  # bins are 3 % wide


def test_zeros_and_nothing_are_not_beyond() -> None:
    assert share_beyond(histogram(np.zeros(5)), 1.0).high == 0
    assert share_beyond(histogram([]), 1.0).high == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("init", ["he_normal", "lecun_normal", "glorot_uniform", "zeros"])
def test_common_draws_pass(init: str, activation: str, seed: int) -> None:
    assert judged(mlp(init=init, activation=activation, seed=seed)) == []


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_one_layer_is_named(activation: str) -> None:
    (finding,) = judged(mlp(activation=activation, overrides=ONE))
    assert (finding.layer, finding.scope) == ("blocks.2.fc", Scope.LAYER)
    assert (finding.cause, finding.severity) == (Cause.SATURATED_UNITS, Severity.SUSPECT)


def test_most_layers_are_one_finding() -> None:
    (finding,) = judged(mlp(init=LARGE, activation="tanh"))
    assert (finding.layer, finding.scope) == ("blocks.0.fc", Scope.EVERYWHERE)
    assert len(finding.layers) == 5


def test_a_tanh_in_a_residual_branch_is_judged() -> None:
    overrides = {"blocks.1.fc1.weight": LARGE}
    (finding,) = judged(mlp(activation="tanh", residual=True, init="lecun_normal", overrides=overrides))
    assert finding.layer == "blocks.1.fc1"


# ── gates ───────────────────────────────────────────────────────────────────────────────────────────────────────


def altered(trial: Trial, path: str, **changes: object) -> Trial:
    layers = tuple(
        replace(layer, **changes) if layer.path == path else layer  # type: ignore[arg-type]
        for layer in trial.spec.layers
    )
    return replace(trial, spec=replace(trial.spec, layers=layers))


BOTH = ("blocks.1.fc", "blocks.2.fc")


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": BOTH, "joins": "product", "input_activation": None},
        {"inputs": BOTH, "joins": "other", "input_activation": None},
        {"input_activation": None},
    ],
    ids=["a gate", "joined somehow", "multiplied with its own input"],
)
def test_gates_pass(activation: str, changes: dict[str, object]) -> None:
    trial = altered(mlp(activation=activation, overrides=ONE), "blocks.3.fc", **changes)
    assert judged(trial) == []


@pytest.mark.parametrize(("activation", "found"), [("tanh", 1), ("sigmoid", 0)])
def test_sigmoids_that_meet_a_skip_may_be_gates(activation: str, found: int) -> None:
    """Squeeze-and-excite under a skip: the last join that is known is the sum."""
    trial = mlp(activation=activation, overrides=ONE)
    trial = altered(trial, "blocks.3.fc", inputs=BOTH, joins="sum", input_activation=None)
    assert len(judged(trial)) == found


def test_a_sigmoid_on_the_output_may_be_a_prior() -> None:
    trial = mlp(activation="sigmoid", overrides={"blocks.4.fc.bias": constant(-9.0)})
    assert len(judged(trial)) == 1
    spec = replace(trial.spec, layers=trial.spec.layers[:-1], outputs=("blocks.4.fc",))
    assert judged(replace(trial, spec=spec)) == []


def test_activations_of_unknown_origin_pass() -> None:
    spec = mlp(activation="tanh").spec
    assert all(is_signal(a, spec.readers()) for a in spec.activations)
    assert not is_signal(replace(spec.activations[0], inputs=()), spec.readers())
    assert isinstance(spec.layers[0], LayerSpec)


# ── later looks and the reference ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("changes", [{"index": RECHECK}, {"mode": Mode.REFERENCE}])
def test_later_looks_and_the_reference(changes: dict[str, object]) -> None:
    poor, sound = mlp(activation="tanh", overrides=ONE), mlp(init="lecun_normal", activation="tanh")
    other, same = (replace(t.steps[0], **changes) for t in (sound, poor))  # type: ignore[arg-type]
    cured = "index" in changes
    assert len(judged(replace(poor, steps=(*poor.steps, other)))) == (0 if cured else 1)
    assert len(judged(replace(poor, steps=(*poor.steps, same)))) == (1 if cured else 0)


def test_without_histograms_nothing_is_said() -> None:
    trial = mlp(activation="tanh", overrides=ONE)
    bare = tuple(replace(o, summary=replace(o.summary, histogram=None)) for o in trial.steps[0].observations)
    assert judged(replace(trial, steps=(replace(trial.steps[0], observations=bare),))) == []
    assert judged(replace(trial, steps=())) == []
