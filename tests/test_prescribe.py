"""From a diagnosis to plans: the smallest change first, deliberate starts left alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from fanin import prescribe
from fanin.cause import Cause
from fanin.change import Reach, Treatment
from fanin.errors import UsageError
from fanin.finding import Diagnosis, Finding, Origin, Scope, Verdict
from fanin.summary import Interval
from fanin.synthetic import mlp
from fanin.trial import Trial

DEPTH = (64,) * 6 + (10,)


def finding(cause: Cause, *layers: str, scope: Scope = Scope.LAYER) -> Finding:
    point = Interval(1.0, 1.0)
    return Finding("FAN999", "test", layers[0], 0, point, point, "q", "m.", cause, scope, tuple(layers))


def blamed(*findings: Finding, symptoms: tuple[Finding, ...] = ()) -> Diagnosis:
    origins = tuple(Origin(f, symptoms) for f in findings)
    return Diagnosis(Verdict.POOR, origins)


def smallest(trial: Trial, *findings: Finding) -> dict[str, Treatment]:
    return prescribe.plans(trial, blamed(*findings))[0].treatments


@pytest.mark.parametrize(
    ("cause", "treatment"),
    [
        (Cause.SYMMETRIC_UNITS, Treatment.REDRAW),
        (Cause.MEAN_OFFSET, Treatment.REDRAW),
        (Cause.ZERO_PATH, Treatment.REDRAW),
        (Cause.GAIN_TOO_LARGE, Treatment.SCALE),
        (Cause.WRONG_FAN, Treatment.SCALE),
    ],
)
def test_of_one_layer_its_weight_alone_is_treated(cause: Cause, treatment: Treatment) -> None:
    assert smallest(mlp(DEPTH), finding(cause, "blocks.2.fc")) == {"blocks.2.fc.weight": treatment}


def test_biases_alone_are_reset_where_they_are_to_blame() -> None:
    asked = smallest(mlp(DEPTH), finding(Cause.BIAS_OFFSET, "blocks.2.fc"))
    assert set(asked.values()) <= {Treatment.RESET}
    assert all(name.endswith("bias") for name in asked)


def test_plans_grow_and_end_with_everything() -> None:
    trial = mlp(DEPTH)
    symptom = finding(Cause.DEAD_UNITS, "blocks.4.fc")
    found = prescribe.plans(trial, blamed(finding(Cause.MEAN_OFFSET, "blocks.2.fc"), symptoms=(symptom,)))
    assert found[0].reach is Reach.BLAMED
    assert found[-1].reach is Reach.EVERYTHING
    for small, large in pairwise(found):
        assert set(small.treatments) < set(large.treatments)
    assert "blocks.4.fc.weight" in found[1].treatments
    every = {layer.parameter_path(p) for layer in trial.spec.layers for p in layer.parameters}
    assert set(found[-1].treatments) == every


def test_in_a_network_deep_for_its_width_directions_are_drawn_too() -> None:
    narrow = mlp((8,) * 12 + (4,))
    asked = smallest(narrow, finding(Cause.GAIN_TOO_SMALL, "blocks.2.fc"))
    assert asked["blocks.2.fc.weight"] is Treatment.REDRAW


def test_a_symptom_everywhere_asks_for_everything() -> None:
    trial = mlp(DEPTH)
    found = prescribe.plans(
        trial, blamed(finding(Cause.VANISHING_GRADIENT, "blocks.0.fc", scope=Scope.EVERYWHERE))
    )
    assert len(found) == 1
    assert set(found[0].treatments) == set(prescribe.whole(trial).treatments)


def test_zeros_that_nobody_blames_are_kept() -> None:
    trial = mlp(DEPTH, overrides={"head.weight": "zeros"})
    assert "head.weight" not in prescribe.whole(trial).treatments
    assert "blocks.0.fc.weight" in prescribe.whole(trial).treatments
    stuck = blamed(finding(Cause.ZERO_PATH, "head"))
    assert "head.weight" in prescribe.plans(trial, stuck)[0].treatments


@pytest.mark.parametrize("verdict", [Verdict.HEALTHY, Verdict.UNDECIDED])
def test_without_a_cause_the_plan_is_everything_which_a_race_may_ask_for(verdict: Verdict) -> None:
    (plan,) = prescribe.plans(mlp(DEPTH), Diagnosis(verdict))
    assert plan.reach is Reach.EVERYTHING


def test_other_causes_get_advice_and_no_plan() -> None:
    diagnosis = replace(blamed(finding(Cause.UNSCALED_INPUT, "blocks.0.fc")), verdict=Verdict.UNDECIDED)
    assert prescribe.plans(mlp(DEPTH), diagnosis) == ()
    assert "standardize the inputs" in prescribe.advice(diagnosis)[0]
    assert "structure" in prescribe.advice(blamed(finding(Cause.RESIDUAL_GROWTH, "blocks.0.fc")))[0]


def test_names_stand_for_parameters_layers_and_modules() -> None:
    trial = mlp(DEPTH)
    assert set(prescribe.named(trial, ["head.weight"]).treatments) == {"head.weight"}
    assert set(prescribe.named(trial, ["blocks.1"]).treatments) == set(
        prescribe.named(trial, ["blocks.1.fc"]).treatments
    )
    assert prescribe.named(trial, ["head"]).named
    with pytest.raises(UsageError, match="no layer of this name"):
        prescribe.named(trial, ["tail"])


def test_every_cause_of_the_initialization_leads_to_a_plan() -> None:
    """A new member of the list is cured, or at least drawn anew."""
    trial = mlp(DEPTH)
    for cause in Cause:
        found = prescribe.plans(trial, blamed(finding(cause, "blocks.2.fc")))
        assert bool(found) is cause.is_initialization, cause
