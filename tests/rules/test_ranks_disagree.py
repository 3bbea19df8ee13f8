"""Ranks that must hold the same parameters: what counts as the same, and who is compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Scope
from fanin.rules.ranks_disagree import RanksDisagree, _ranks
from fanin.summary import summarize
from fanin.synthetic import mlp
from fanin.trial import Kind, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step, Trial

DRAWN = np.random.default_rng(0).normal(size=(8, 6))


def trial(
    *blocks: tuple[int, tuple[int, ...] | None, np.ndarray], role: Role = Role.WEIGHT, step: int = 0
) -> Trial:
    """One layer; a block for each (rank, offset, values)."""
    weight = ParameterSpec("weight", Role.WEIGHT, (8, 6), unit_axis=0)
    spec = ModelSpec("Net", "torch", (LayerSpec("fc", Kind.LINEAR, "Linear", (weight,), calls=1),))
    seen = tuple(
        Observation(
            "fc", role, "fc.weight", summarize(values, unit_axis=0), (8, 6), worker=rank, offset=offset
        )
        for rank, offset, values in blocks
    )
    return Trial(spec, (Step(step, observations=seen),))


def judged(seen: Trial) -> list[Finding]:
    return [said for said in RanksDisagree().check(seen) if isinstance(said, Finding)]


def test_a_finding_names_ranks_layer_and_cause() -> None:
    (found,) = judged(trial((0, (0, 0), DRAWN), (3, (0, 0), DRAWN + 1)))
    assert (found.code, found.cause, found.workers) == ("FAN414", Cause.RANKS_DISAGREE, (0, 3))
    assert (found.layer, found.tensor, found.measured.low) == ("fc", "fc.weight", 1)
    assert "rank 3" in found.message


def test_one_value_of_one_unit_is_enough() -> None:
    other = DRAWN.copy()
    unit = other[5]
    unit[unit.argmax()] += 1e-12
    assert len(judged(trial((0, (0, 0), DRAWN), (1, (0, 0), other)))) == 1


def test_sums_that_were_rounded_otherwise_are_no_difference() -> None:
    first, second = trial((0, (0, 0), DRAWN)), trial((1, (0, 0), DRAWN))
    (one,) = second.steps[0].observations
    rounded = replace(one, summary=replace(one.summary, mean=one.summary.mean * (1 + 1e-12)))
    both = replace(first.steps[0], observations=(*first.steps[0].observations, rounded))
    assert judged(replace(first, steps=(both,))) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_equal_values_that_are_not_finite_are_equal(value: float) -> None:
    spoilt = DRAWN.copy()
    spoilt[2] = value
    assert judged(trial((0, (0, 0), spoilt), (1, (0, 0), spoilt))) == []
    assert len(judged(trial((0, (0, 0), spoilt), (1, (0, 0), DRAWN)))) == 1


def test_shards_are_compared_with_their_replicas_and_with_nothing_else() -> None:
    """Four ranks in a mesh of two by two: each half is held twice."""
    low, high = DRAWN[:4], DRAWN[4:]
    agreeing = [(0, (0, 0), low), (1, (4, 0), high), (2, (0, 0), low), (3, (4, 0), high)]
    assert judged(trial(*agreeing)) == []
    assert len(judged(trial(*agreeing[:3], (3, (4, 0), high * 2)))) == 1


def test_tensors_of_a_ranks_own_are_not_compared() -> None:
    assert judged(trial((0, None, DRAWN), (1, None, DRAWN + 1))) == []


def test_gradients_may_differ() -> None:
    assert judged(trial((0, (0, 0), DRAWN), (1, (0, 0), DRAWN + 1), role=Role.WEIGHT_GRAD)) == []


def test_only_the_start_counts() -> None:
    assert judged(trial((0, (0, 0), DRAWN), (1, (0, 0), DRAWN + 1), step=1)) == []


def test_other_seeds_everywhere_are_one_fault_everywhere() -> None:
    (found,) = judged(_ranks(mlp(), mlp(seed=1)))
    assert found.scope is Scope.EVERYWHERE
    assert len(found.layers) == 6
