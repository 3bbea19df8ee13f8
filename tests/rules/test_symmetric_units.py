"""Units with twins: those that part, and those that stay alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rules.symmetric_units import SymmetricUnits, directions, share_of_twins
from fanin.scheme import HE_NORMAL
from fanin.summary import Interval, UnitSummary, summarize
from fanin.synthetic import Init, constant, mlp, normal, scaled, tiled
from fanin.trial import Kind, Role, SourceLine, Trial

HE = scaled(HE_NORMAL)
HIDDEN = tuple(f"blocks.{i}.fc" for i in range(5))
SEEDS = range(3)


def judged(trial: Trial) -> list[Finding]:
    said = list(SymmetricUnits().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def units(rows: object) -> UnitSummary:
    found = summarize(np.asarray(rows, np.float64), unit_axis=0).units
    assert found is not None
    return found


def weights(*paths: str, init: Init) -> dict[str, Init | str]:
    return {f"{path}.weight": init for path in paths}


def halved(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rows in pairs, and columns in pairs: a network of half the width, widened by copying (Net2Net)."""
    return np.tile(HE(rng, (shape[0] // 2, shape[1] // 2)), (2, 2))


def half_columns(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.tile(HE(rng, (shape[0], shape[1] // 2)), (1, 2))


def half_rows(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.tile(HE(rng, (shape[0] // 2, shape[1])), (2, 1))


# ── the two measures ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("copies", "low", "high"),
    [
        ([1] * 8, 0.0, 0.0),
        ([2] + [1] * 6, 2 / 8, 2 / 8),
        ([2, 2, 2, 2], 5 / 8, 1.0),
        ([5, 1, 1, 1], 5 / 8, 1.0),
        ([8], 1.0, 1.0),
    ],
)
def test_the_share_of_twins_is_bounded_by_the_number_of_distinct_rows(
    copies: list[int], low: float, high: float
) -> None:
    rows = np.repeat(np.random.default_rng(0).normal(size=(len(copies), 6)), copies, axis=0)
    share = share_of_twins(units(rows))
    assert (share.low, share.high) == pytest.approx((low, high))
    assert sum(n for n in copies if n > 1) / 8 in share


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1.0, 1e9])
def test_directions_ignore_size_and_sign(scale: float) -> None:
    rng = np.random.default_rng(1)
    row, factors = rng.normal(size=7), scale * rng.normal(size=20)
    assert units(np.outer(factors, row)).distinct() > 15
    assert directions(units(np.outer(factors, row))).distinct() == 1
    assert directions(units(scale * rng.normal(size=(20, 7)))).distinct() == 20


def test_directions_are_the_summary_of_the_normalized_rows() -> None:
    rows = np.random.default_rng(2).normal(size=(5, 9))
    found = directions(units(rows))
    signs = np.where(units(rows).projection < 0, -1, 1)
    expected = units(rows * (signs / np.abs(rows).max(axis=1))[:, None])
    for name in ("mean", "m2", "minimum", "maximum", "projection"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-15)


def test_directions_of_nothing_are_nothing() -> None:
    assert directions(units(np.zeros((4, 3)))).distinct() == 1
    assert directions(units(np.full((4, 3), np.nan))).distinct() == 1


# ── twins that stay ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("head", [constant(0.05), HE], ids=["constant head", "random head"])
def test_constant_weights_keep_every_hidden_layer_alike(activation: str, seed: int, head: Init) -> None:
    """Behind them a random head changes nothing: all units of a layer are one number to it."""
    overrides = weights("head", init=head)
    (finding,) = judged(mlp(init=constant(0.05), activation=activation, seed=seed, overrides=overrides))
    assert (finding.code, finding.cause) == ("FAN403", Cause.SYMMETRIC_UNITS)
    assert (finding.layer, finding.layers) == (HIDDEN[0], HIDDEN)
    assert finding.scope is Scope.EVERYWHERE
    assert finding.measured == Interval(1.0, 1.0)
    assert finding.message.startswith("Every value of blocks.0.fc.weight is 0.05, in all 32 units")


@pytest.mark.parametrize("seed", SEEDS)
def test_random_biases_do_not_excuse_constant_weights(seed: int) -> None:
    """PyTorch's default biases stay where only weights are filled, and hardly part the units: most of them are open
    for the same samples, and then have the same gradient."""
    biases: dict[str, Init | str] = {f"{path}.bias": normal(0.1) for path in HIDDEN}
    (finding,) = judged(
        mlp(init=constant(0.05), seed=seed, overrides=biases | weights("head", init=HE)),
    )
    assert {"blocks.1.fc", "blocks.2.fc", "blocks.3.fc"} >= set(finding.layers) >= {"blocks.2.fc"}


@pytest.mark.parametrize("seed", SEEDS)
def test_one_row_copied_to_all_units_of_all_layers_stays(seed: int) -> None:
    """With ReLU such layers close at random, and gradients vanish exactly: nothing parts the twins then either."""
    for activation in ("relu", "tanh"):
        overrides = weights("head", init=HE)
        (finding,) = judged(mlp(init=tiled(HE), activation=activation, seed=seed, overrides=overrides))
        assert finding.layers == HIDDEN
        assert finding.message.startswith("Distinct rows in blocks.0.fc.weight: 1 of 32")


def test_a_network_widened_by_copying_stays_the_narrow_one() -> None:
    overrides: Mapping[str, Init | str] = {
        "blocks.0.fc.weight": half_rows,
        "head.weight": half_columns,
    }
    (finding,) = judged(mlp(init=halved, overrides=overrides))
    assert finding.layers == HIDDEN
    assert finding.measured.low == pytest.approx(17 / 32)
    assert finding.measured.high == 1.0


# ── twins that part ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("init", ["he_normal", "glorot_uniform", "lecun_normal"])
def test_random_weights_have_no_twins(init: str, seed: int) -> None:
    assert judged(mlp(init=init, seed=seed)) == []


@pytest.mark.parametrize("path", ["blocks.0.fc", "blocks.2.fc"])
def test_a_single_layer_of_twins_in_a_random_network_parts(path: str) -> None:
    assert judged(mlp(overrides=weights(path, init=tiled(HE)), seed=1)) == []
    assert judged(mlp(overrides=weights(path, init=constant(0.1)), seed=1)) == []


def test_pairs_with_random_weights_behind_them_part() -> None:
    assert judged(mlp(init=half_rows)) == []


def test_a_single_hidden_layer_of_constants_with_a_random_head_parts() -> None:
    """Rumelhart's symmetry needs equal outgoing weights as well."""
    assert judged(mlp((32, 64, 10), overrides=weights("blocks.0.fc", init=constant(0.1)))) == []
    (finding,) = judged(mlp((32, 64, 10), init=constant(0.1)))
    assert finding.layers == ("blocks.0.fc",)


# ── what is not judged ──────────────────────────────────────────────────────────────────────────────────────────


def respecified(trial: Trial, *paths: str, kind: Kind | None = None, **changes: object) -> Trial:
    layers = tuple(
        replace(
            layer,
            kind=kind or layer.kind,
            parameters=(replace(layer.parameters[0], **changes), *layer.parameters[1:]),  # type: ignore[arg-type]
        )
        if layer.path in paths
        else layer
        for layer in trial.spec.layers
    )
    return replace(trial, spec=replace(trial.spec, layers=layers))


def test_outputs_are_not_judged() -> None:
    assert judged(mlp(overrides={"head.weight": "ones"})) == []
    unknown = mlp(overrides={"head.weight": "ones"})
    assert judged(replace(unknown, spec=replace(unknown.spec, outputs=()))) == []


def test_zeros_are_left_to_the_rule_about_them() -> None:
    assert judged(mlp(init="zeros")) == []


@pytest.mark.parametrize("kind", [Kind.EMBEDDING, Kind.NORM, Kind.OTHER])
def test_other_kinds_may_have_twins(kind: Kind) -> None:
    assert judged(respecified(mlp(init=constant(0.05)), *HIDDEN, kind=kind)) == []


def test_a_recurrent_cell_is_judged_by_its_gradients() -> None:
    """The rows of its gates may be alike; gradients that are the same for all units keep them so."""
    (finding,) = judged(respecified(mlp(init=constant(0.05)), *HIDDEN, kind=Kind.RECURRENT))
    assert (finding.layers, finding.severity) == (HIDDEN, Severity.FAULT)


def test_twins_up_to_a_factor_are_a_fault_in_a_plain_stack_of_five_and_a_suspect_beside_sums() -> None:
    """Twins whose gradients are equal are a fault wherever they are."""
    stack, residual = mlp(init=tiled(HE)), mlp(init=tiled(HE), residual=True)
    assert [f.severity for f in judged(stack)] == [Severity.FAULT]
    assert [f.severity for f in judged(residual)] == [Severity.SUSPECT]
    assert [f.severity for f in judged(mlp((32,) * 4 + (10,), constant(0.05)))] == [Severity.FAULT]


@pytest.mark.parametrize("changes", [{"trainable": False}, {"tied_to": "embedding.weight"}])
def test_frozen_and_tied_weights_may_have_twins(changes: dict[str, Any]) -> None:
    assert judged(respecified(mlp(init=constant(0.05)), *HIDDEN, **changes)) == []


@pytest.mark.parametrize("widths", [(32, 3, 10), (3, 32, 10)])
def test_few_units_and_short_rows_may_be_alike(widths: tuple[int, ...]) -> None:
    assert judged(mlp(widths, init=constant(0.05))) == []


# ── what cannot be decided ──────────────────────────────────────────────────────────────────────────────────────


def without(trial: Trial, role: Role, layer: str | None = None) -> Trial:
    steps = tuple(
        replace(
            step,
            observations=tuple(
                o for o in step.observations if o.role is not role or layer not in (None, o.layer)
            ),
        )
        for step in trial.steps
    )
    return replace(trial, steps=steps)


def missing(trial: Trial) -> Missing:
    (said,) = SymmetricUnits().check(trial)
    assert isinstance(said, Missing)
    assert said.blocks
    return said


def test_twins_without_gradients_are_undecided_and_others_healthy() -> None:
    said = missing(without(mlp(init=constant(0.05)), Role.WEIGHT_GRAD))
    assert said.what.endswith("in all 32 units; whether gradients will part them was not seen")
    assert judged(without(mlp(), Role.WEIGHT_GRAD)) == []


def test_twins_behind_a_head_of_zeros_are_undecided() -> None:
    missing(mlp(init=constant(0.05), overrides={"head.weight": "zeros"}))
    assert judged(mlp(overrides={"head.weight": "zeros"})) == []


def test_a_layer_that_no_gradient_reaches_is_not_judged() -> None:
    overrides = weights(*HIDDEN[2:4], init=tiled(HE))
    trial = mlp(overrides=overrides, seed=1)
    assert judged(trial)[0].layers == HIDDEN[2:4]
    assert judged(without(trial, Role.WEIGHT_GRAD, HIDDEN[2]))[0].layers == HIDDEN[3:4]


def test_without_weights_or_step_0_it_is_undecided() -> None:
    missing(without(mlp(), Role.WEIGHT))
    trial = mlp(steps=2)
    missing(replace(trial, steps=trial.steps[1:]))


def test_weights_that_were_not_seen_by_units_are_undecided() -> None:
    trial = mlp()
    bare = tuple(replace(o, summary=replace(o.summary, units=None)) for o in trial.steps[0].observations)
    missing(replace(trial, steps=(replace(trial.steps[0], observations=bare),)))


def test_the_line_that_wrote_the_weight_is_pointed_at() -> None:
    line = SourceLine("model.py", 12)
    (finding,) = judged(respecified(mlp(init=constant(0.05)), HIDDEN[0], source=line))
    assert finding.source == line
