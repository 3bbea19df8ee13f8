"""Units that are off for every input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Scope, Severity
from fanin.rules.dead_units import DeadUnits, dead_units, is_unavoidable, tolerated
from fanin.summary import UnitSummary, summarize
from fanin.synthetic import Floats, Init, clusters, constant, mlp, normal
from fanin.trial import RECHECK, Mode, Step, Trial


def judged(trial: Trial) -> list[Finding]:
    return [said for said in DeadUnits().check(trial) if isinstance(said, Finding)]


def shut(share: float) -> Init:
    """A bias that closes this share of the units."""
    return lambda rng, shape: np.where(np.arange(shape[0]) < share * shape[0], -50.0, 0.0)


def units(values: Floats) -> UnitSummary:
    found = summarize(values, unit_axis=1).units
    assert found is not None
    return found


# ── what counts as dead ─────────────────────────────────────────────────────────────────────────────────────────


def test_units_that_fire_rarely_are_not_dead_in_a_small_batch() -> None:
    rare = np.random.default_rng(0).normal(-2.2, 1.0, (32, 200))
    assert dead_units(units(rare), 0.0) < 0.75 * np.sum(rare.max(axis=0) <= 0)
    never = np.random.default_rng(0).normal(-9.0, 1.0, (32, 200))
    assert dead_units(units(never), 0.0) == 200


def test_few_values_and_zeros_do_not_count() -> None:
    assert dead_units(units(-np.ones((15, 4))), 0.0) == 0
    assert dead_units(units(-np.ones((16, 4))), 0.0) == 4
    assert dead_units(units(np.zeros((64, 4))), 0.0) == 0
    assert dead_units(units(np.full((64, 4), np.nan)), 0.0) == 0


def test_many_values_need_no_distribution() -> None:
    skewed = -np.random.default_rng(0).exponential(1.0, (400, 4))
    assert dead_units(units(skewed), 0.0) == 4
    assert dead_units(units(skewed[:100]), 0.0) == 0


def test_few_units_may_all_be_dead_by_chance() -> None:
    assert tolerated(16) == 1.0
    assert tolerated(64) == 0.75


# ── healthy networks ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("depth", "width"), [(5, 32), (50, 64), (50, 32)])
@pytest.mark.parametrize("size", [16, 128])
def test_deep_relu_networks_pass(depth: int, width: int, size: int, seed: int) -> None:
    batch = clusters(width, size=size, seed=seed)
    assert judged(mlp((width,) * (depth + 1) + (10,), batch=batch, seed=seed)) == []


@pytest.mark.parametrize("init", ["he_normal", "lecun_normal", "glorot_uniform", "zeros", "ones"])
def test_common_draws_pass(init: str) -> None:
    assert judged(mlp(init=init)) == []


@pytest.mark.parametrize("path", ["blocks.1.fc", "head"])
def test_zeros_are_left_to_the_rule_about_them(path: str) -> None:
    assert judged(mlp(overrides={f"{path}.weight": "zeros"})) == []


def test_a_few_dead_units_pass() -> None:
    assert judged(mlp(overrides={"blocks.1.fc.bias": shut(0.3)})) == []


def test_other_activations_pass() -> None:
    assert judged(mlp(activation="tanh", overrides={"blocks.1.fc.bias": constant(-50.0)})) == []


def test_gates_pass() -> None:
    trial = mlp(overrides={"blocks.1.fc.bias": constant(-50.0)})
    layers = tuple(
        replace(x, inputs=(*x.inputs, "blocks.0.fc"), joins="product") if x.path == "blocks.2.fc" else x
        for x in trial.spec.layers
    )
    assert judged(replace(trial, spec=replace(trial.spec, layers=layers))) == []


# ── dead layers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("share", "severity"), [(0.88, Severity.NOTE), (0.94, Severity.FAULT), (1.0, Severity.FAULT)]
)
def test_severity_grows_with_the_share(share: float, severity: Severity) -> None:
    (finding,) = judged(mlp((64,) * 4 + (10,), overrides={"blocks.1.fc.bias": shut(share)}))
    assert (finding.layer, finding.severity) == ("blocks.1.fc", severity)
    assert (finding.cause, finding.scope) == (Cause.DEAD_UNITS, Scope.LAYER)
    assert finding.measured.low == pytest.approx(share, abs=0.06)


def test_narrow_layers_are_judged_where_nothing_passes() -> None:
    (finding,) = judged(mlp((8,) * 4 + (2,), overrides={"blocks.1.fc.bias": constant(-50.0)}))
    assert finding.severity is Severity.FAULT
    overrides = {"blocks.1.fc1.bias": constant(-50.0)}
    assert judged(mlp((8,) * 4 + (2,), residual=True, overrides=overrides)) == []


def test_beside_a_skip_it_is_suspect() -> None:
    trial = mlp(residual=True, overrides={"blocks.1.fc1.bias": constant(-50.0)})
    (finding,) = judged(trial)
    assert finding.severity is Severity.SUSPECT
    assert not any(is_unavoidable(trial.spec, a) for a in trial.spec.activations)
    assert all(is_unavoidable(mlp().spec, a) for a in mlp().spec.activations)


def test_where_the_graph_is_not_known_it_is_suspect() -> None:
    trial = mlp(overrides={"blocks.1.fc.bias": constant(-50.0)})
    (finding,) = judged(replace(trial, spec=replace(trial.spec, outputs=())))
    assert finding.severity is Severity.SUSPECT


@pytest.mark.parametrize("width", [1, 8])
def test_a_relu_on_the_output_has_words_of_its_own(width: int) -> None:
    trial = mlp((32, 32, width, 10), overrides={"blocks.1.fc.bias": constant(-50.0)})
    spec = replace(trial.spec, layers=trial.spec.layers[:-1], outputs=("blocks.1.fc",))
    (finding,) = judged(replace(trial, spec=spec))
    assert finding.severity is Severity.FAULT
    assert finding.message.startswith("A relu on the output after blocks.1.fc is closed")


def test_all_layers_are_one_finding() -> None:
    biases = {f"blocks.{i}.fc.bias": constant(-50.0) for i in range(5)}
    (finding,) = judged(mlp(overrides=biases))
    assert (finding.scope, len(finding.layers)) == (Scope.EVERYWHERE, 5)


# ── later looks and the reference ───────────────────────────────────────────────────────────────────────────────


def later(trial: Trial, step: Step, **changes: object) -> Trial:
    return replace(trial, steps=(*trial.steps, replace(step, **changes)))  # type: ignore[arg-type]


def test_what_training_cures_is_no_symptom() -> None:
    trial = mlp(overrides={"blocks.1.fc.bias": constant(-50.0)})
    assert judged(later(trial, mlp().steps[0], index=RECHECK)) == []
    assert len(judged(later(trial, trial.steps[0], index=RECHECK))) == 1


def test_what_the_reference_shows_too_is_the_architecture_unless_nothing_passes() -> None:
    most, every = (mlp(overrides={"blocks.1.fc.bias": bias}) for bias in (shut(0.95), constant(-50.0)))
    assert len(judged(later(most, mlp().steps[0], mode=Mode.REFERENCE))) == 1
    assert judged(later(most, most.steps[0], mode=Mode.REFERENCE)) == []
    assert len(judged(later(every, every.steps[0], mode=Mode.REFERENCE))) == 1


def test_without_units_nothing_is_said() -> None:
    trial = mlp(overrides={"blocks.1.fc.bias": normal(50.0)})
    bare = tuple(replace(o, summary=replace(o.summary, units=None)) for o in trial.steps[0].observations)
    assert judged(replace(trial, steps=(replace(trial.steps[0], observations=bare),))) == []
    assert judged(replace(trial, steps=())) == []
