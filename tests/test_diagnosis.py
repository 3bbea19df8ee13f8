"""From findings to a verdict: origin before symptom, notes, and what may not be passed over in silence."""

from __future__ import annotations

import re
from dataclasses import replace
from math import nan

import numpy as np
import pytest

from fanin import judgement
from fanin.cause import Cause
from fanin.diagnosis import _carried, diagnose
from fanin.finding import Diagnosis, Scope, Severity, Verdict
from fanin.propagation import stretch
from fanin.race import Heat, Race
from fanin.reports import render
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.scheme import HE_NORMAL
from fanin.synthetic import Init, constant, mlp, normal, scaled
from fanin.trial import Role, Trial

DEEP = (64,) * 10 + (10,)


def diagnosed(trial: Trial) -> Diagnosis:
    return diagnose(trial, judgement.run(judgement.load_rules(), trial))


def one_nan(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    weights = scaled(HE_NORMAL)(rng, shape)
    weights.flat[7] = nan
    return weights


def test_a_sound_network_is_healthy_and_says_why() -> None:
    found = diagnosed(mlp(DEEP, steps=10))
    assert (found.verdict, found.findings) == (Verdict.HEALTHY, ())
    assert "10 layers" in found.why


def test_one_nan_is_the_origin_and_everything_after_it_is_downstream() -> None:
    found = diagnosed(mlp(DEEP, overrides={"blocks.2.fc.weight": one_nan}))
    (origin,) = found.origins
    assert (origin.finding.layer, origin.finding.cause) == ("blocks.2.fc", Cause.NON_FINITE_PARAMETER)
    assert origin.downstream == (*(f"blocks.{i}.fc" for i in range(3, 9)), "head")
    assert all(symptom.cause is not Cause.NON_FINITE_PARAMETER for symptom in origin.symptoms)


def test_bad_input_is_not_blamed_on_the_weights() -> None:
    x, y = np.random.default_rng(0).normal(size=(32, 64)), np.zeros(32, np.int64)
    x[3, 5] = nan
    found = diagnosed(mlp(DEEP, batch=(x, y)))
    assert found.origins[0].finding.cause is Cause.NON_FINITE_INPUT
    assert found.verdict is Verdict.UNDECIDED


def test_a_constant_network_is_one_fault_everywhere() -> None:
    found = diagnosed(mlp(DEEP, constant(0.05)))
    assert found.verdict is Verdict.POOR
    first = found.origins[0].finding
    assert (first.cause, first.scope, first.layer) == (Cause.SYMMETRIC_UNITS, Scope.EVERYWHERE, "blocks.0.fc")


def test_two_independent_faults_are_both_found() -> None:
    found = diagnosed(mlp(DEEP, overrides={"blocks.1.fc.weight": one_nan, "blocks.5.fc.weight": one_nan}))
    assert {p for f in found.findings for p in (f.layers or (f.layer,))} >= {"blocks.1.fc", "blocks.5.fc"}


def test_a_note_does_not_spoil_a_healthy_verdict() -> None:
    found = diagnosed(mlp(DEEP, overrides={"blocks.4.fc.weight": normal(1e-4)}))
    assert found.verdict is Verdict.HEALTHY
    assert [note.layer for note in found.notes] == ["blocks.4.fc"]
    assert found.findings == found.notes


def test_an_empty_trial_is_undecided_and_says_what_would_settle_it() -> None:
    found = diagnosed(Trial(mlp(DEEP).spec))
    assert found.verdict is Verdict.UNDECIDED
    assert found.next_step
    assert "no training step" in found.why


def test_a_trial_without_layers_is_undecided() -> None:
    trial = mlp(DEEP)
    found = diagnosed(replace(trial, spec=replace(trial.spec, layers=())))
    assert found.verdict is Verdict.UNDECIDED


def test_the_documented_rule_alone_decides_when_it_alone_is_asked() -> None:
    rules = (PoorWeightInitialization(),)
    poor, sound = (mlp(DEEP, init, steps=10) for init in _both())
    assert diagnose(poor, judgement.run(rules, poor)).verdict is Verdict.POOR
    assert diagnose(sound, judgement.run(rules, sound)).verdict is Verdict.HEALTHY


def test_where_the_documented_rule_differs_the_reason_is_given() -> None:
    """A residual network grows by design: 8 blocks exceed a factor of 10."""
    found = diagnosed(mlp((64,) * 9 + (10,), residual=True, steps=10, lr=1e-3))
    assert (found.verdict, found.documented) == (Verdict.HEALTHY, Verdict.POOR)
    assert "by design" in found.disagreement


def test_what_grows_by_design_is_a_fault_where_the_loss_suffers() -> None:
    """Twenty residual blocks without normalization treble the stream each: suspect, until the first loss shows it."""
    trial = mlp((64,) * 20 + (10,), residual=True)
    (origin,) = diagnosed(trial).origins
    assert (origin.finding.cause, origin.finding.severity) == (Cause.RESIDUAL_GROWTH, Severity.SUSPECT)
    assert [(f.code, f.severity) for f in origin.symptoms] == [("FAN301", Severity.FAULT)]
    calm = replace(trial, steps=(replace(trial.steps[0], losses={0: 2.3}),))
    found = diagnosed(calm)
    assert found.origins == ()
    assert "FAN108" in {note.code for note in found.notes}


def test_a_suspect_alone_is_a_note_and_no_fault() -> None:
    found = diagnosed(mlp(DEEP, overrides={"blocks.4.fc.weight": scaled(HE_NORMAL, 30.0)}))
    assert found.verdict is Verdict.HEALTHY
    assert found.origins == ()
    assert {(note.code, note.severity) for note in found.notes} >= {("FAN411", Severity.NOTE)}
    assert {note.severity for note in found.notes} == {Severity.NOTE}


def _both() -> tuple[Init, Init]:
    return normal(1e-3), scaled(HE_NORMAL)


# ── what a healthy verdict says of the signal ───────────────────────────────────────────────────────────────


def test_a_signal_that_shrinks_within_bounds_is_said_to_lose_with_the_bound() -> None:
    found = diagnosed(mlp(DEEP, scaled(HE_NORMAL, 0.7)))
    assert found.verdict is Verdict.HEALTHY
    said = re.search(r"the signal loses (\d\.\d) decades .*; up to (\d\.\d) are no fault here", found.why)
    assert said is not None
    assert 0 < float(said[1]) < float(said[2])


def test_one_that_grows_within_bounds_is_said_to_gain() -> None:
    found = diagnosed(mlp(DEEP, scaled(HE_NORMAL, 1.3)))
    assert found.verdict is Verdict.HEALTHY
    assert re.search(r"the signal gains \d\.\d decades .*; up to \d+\.\d are no fault here", found.why)


@pytest.mark.parametrize("factor", [0.7, 0.999, 1.0, 1.3])
def test_no_sign_stands_before_the_decades(factor: float) -> None:
    assert not re.search(r"[+-]\d", diagnosed(mlp(DEEP, scaled(HE_NORMAL, factor))).why)


def test_a_signal_that_zeros_stop_is_told_in_words_and_not_as_minus_infinity() -> None:
    trial = mlp(DEEP, steps=1)
    path = stretch(trial)
    assert path is not None
    dark = replace(path, end=0.0)
    zeros = replace(dark, links=(replace(path.links[0], gain_squared=0.0), *path.links[1:]))
    for stopped, words in ((zeros, "has moved the zeros"), (dark, "nothing that varies with the input")):
        said = _carried(trial, stopped)
        assert words in said
        assert "inf" not in said


# ── the documented rule alone ───────────────────────────────────────────────────────────────────────────────


def alone(trial: Trial) -> Diagnosis:
    return diagnose(trial, judgement.run([PoorWeightInitialization()], trial))


def of_function_calls() -> Trial:
    """Activations that are functions and no modules: the model has no layer of their name."""
    trial = mlp(init=normal(1e-2), steps=10, lr=1e-3)
    moved = [
        replace(
            step,
            observations=tuple(
                replace(seen, layer="relu") if seen.role is Role.ACTIVATION_INPUT else seen
                for seen in step.observations
            ),
        )
        for step in trial.steps
    ]
    return replace(trial, steps=tuple(moved))


def test_alone_the_documented_rule_heads_its_report_with_a_layer_that_the_report_shows() -> None:
    trial = of_function_calls()
    found = alone(trial)
    assert [origin.finding.layer for origin in found.origins] == ["blocks.0.fc", "relu", ""]
    head, *lines = render("terminal", trial, found).splitlines()
    assert "at blocks.0.fc" in head
    assert [line.split()[2] for line in lines if line.startswith(">>")] == ["blocks.0.fc"]
    also = [line.partition("FAN001 ")[2] for line in lines if line.startswith("also")]
    assert also == [
        "at relu: max/min variance of activation inputs",
        "at the model: relative decrease of the loss over 5 steps",
    ]


@pytest.mark.parametrize("form", ["terminal", "markdown", "html"])
def test_alone_it_says_each_check_once_as_a_reason(form: str) -> None:
    if form == "html":
        pytest.importorskip("altair", reason="needs the extra html")
    trial = of_function_calls()
    text = " ".join(render(form, trial, alone(trial)).split())
    assert "..inf" not in text
    assert "at least 0.001" in text
    assert "IssuesFound: " not in text
    assert "IssuesFound" in text


def test_alone_and_undecided_it_says_what_is_missing_once_as_a_reason_and_once_as_a_gap() -> None:
    trial = Trial(mlp().spec)
    text = " ".join(render("terminal", trial, alone(trial)).split())
    assert text.count("o activation input was seen") == 2
    assert text.count("no weight gradient with a histogram was seen") == 1


def test_beside_our_own_rules_it_still_gives_its_reasons() -> None:
    trial = mlp(init=normal(1e-2), steps=10, lr=1e-3)
    assert "IssuesFound: max/min variance" in " ".join(render("terminal", trial, diagnosed(trial)).split())


def test_a_loss_that_becomes_nan_is_no_clean_bill() -> None:
    found = diagnosed(mlp(DEEP, steps=10, lr=20.0))
    assert (found.verdict, found.confidence) == (Verdict.UNDECIDED, 0.0)
    assert [missing.code for missing in found.missing] == ["FAN906"]
    assert "at step 0 and nan at step" in found.why
    assert "race" in found.next_step


def test_a_race_that_is_won_acquits_the_weights_of_a_loss_that_becomes_nan() -> None:
    losses = tuple(np.linspace(2.0, 0.1, 60) + np.sin(np.arange(60)) / 100)
    raced = replace(mlp(DEEP, steps=10, lr=20.0), race=Race((Heat(1e-3, losses, losses),), uninformed=2.3))
    assert diagnosed(raced).verdict is Verdict.HEALTHY


def test_a_loss_that_becomes_nan_does_not_hide_a_fault_of_the_weights() -> None:
    found = diagnosed(mlp(DEEP, normal(1.0), steps=10))
    assert [missing.code for missing in found.missing] == ["FAN906"]
    assert found.verdict is Verdict.POOR


def test_a_loss_that_was_never_seen_is_no_divergence() -> None:
    trial = mlp(DEEP, steps=10, lr=20.0)
    unseen = replace(trial, steps=tuple(replace(step, losses={}) for step in trial.steps))
    assert "FAN906" not in [missing.code for missing in diagnosed(unseen).missing]
