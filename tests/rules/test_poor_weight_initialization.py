"""The documented rule: its parameters, its three checks, and what it cannot decide."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanin.errors import RuleParameterError
from fanin.examine import judge
from fanin.finding import Finding, Missing, Scope, Verdict
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.summary import summarize
from fanin.synthetic import constant, mlp, normal
from fanin.trial import Mode, ModelSpec, Observation, Role, Step, Trial

# ── trials by hand ──────────────────────────────────────────────────────────────────────────────────────────────

FALLING = [1.0 - 0.05 * i for i in range(10)]
WIDE = [-1.0, 1.0] * 50


def step(
    index: int = 0,
    inputs: dict[str, list[float]] | None = None,
    grads: dict[str, list[float]] | None = None,
    loss: float | None = None,
    mode: Mode = Mode.TRAIN,
) -> Step:
    """One step; a tensor's layer is the first part of its name."""
    inputs = {"a.relu_input_0": WIDE, "b.relu_input_0": WIDE} if inputs is None else inputs
    grads = {"a.weight": WIDE, "b.weight": WIDE} if grads is None else grads
    seen = [
        Observation(name.split(".")[0], Role.ACTIVATION_INPUT, name, summarize(values))
        for name, values in inputs.items()
    ] + [
        Observation(
            name.split(".")[0], Role.WEIGHT_GRAD, f"gradient/{name}", summarize(values, histogram=True)
        )
        for name, values in grads.items()
    ]
    losses = {} if loss is None else {0: loss}
    return Step(index, mode, tuple(seen), losses)


def trial(*steps: Step) -> Trial:
    return Trial(ModelSpec("hand-made", "none"), steps)


def healthy_but(**first: Any) -> Trial:
    """Ten healthy steps, of which the first is given something else."""
    steps = [step(i, loss=loss) for i, loss in enumerate(FALLING)]
    return trial(step(0, **({"loss": FALLING[0]} | first)), *steps[1:])


def with_losses(*losses: float) -> Trial:
    return trial(*(step(i, loss=loss) for i, loss in enumerate(losses)))


def said(by: Trial, **parameters: Any) -> dict[str, Finding | Missing | None]:
    return PoorWeightInitialization(**parameters).checks(by)


def only(by: Trial, **parameters: Any) -> Finding:
    """The one thing that is said, a finding."""
    (finding,) = PoorWeightInitialization(**parameters).check(by)
    assert isinstance(finding, Finding)
    return finding


def undecided(by: Trial, **parameters: Any) -> Missing:
    """The one thing that is said, that something is missing."""
    (missing,) = PoorWeightInitialization(**parameters).check(by)
    assert isinstance(missing, Missing)
    assert missing.blocks
    return missing


# ── parameters ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_defaults_are_the_documented_ones() -> None:
    rule = PoorWeightInitialization()
    assert rule.base_trial is None
    assert [pattern.pattern for pattern in rule.patterns] == [".*relu_input"]
    assert (rule.threshold, rule.distribution_range, rule.patience, rule.steps) == (10.0, 0.001, 5, 10)


@pytest.mark.parametrize("base", ["runs/exp1", Path("runs/exp1"), with_losses(1.0)])
def test_the_trial_may_come_first(base: Any) -> None:
    assert PoorWeightInitialization(base).base_trial is base


@pytest.mark.parametrize(
    ("parameter", "value", "kept"),
    [
        ("threshold", "10.0", 10.0),
        ("threshold", " 1e2 ", 100.0),
        ("threshold", 3, 3.0),
        ("threshold", np.float32(2.5), 2.5),
        ("threshold", inf, inf),
        ("distribution_range", "0.001", 0.001),
        ("distribution_range", 0, 0.0),
        ("patience", "5", 5),
        ("patience", np.int64(3), 3),
        ("patience", "5.0", 5),
        ("steps", "10", 10),
        ("steps", "10.0", 10),
        ("steps", 20.0, 20),
    ],
)
def test_numbers_may_be_numbers_or_text(parameter: str, value: Any, kept: float) -> None:
    rule = PoorWeightInitialization(**{parameter: value})
    assert getattr(rule, parameter) == kept
    assert type(getattr(rule, parameter)) is type(kept)


@pytest.mark.parametrize(
    ("given", "patterns"),
    [
        (".*gelu_input", [".*gelu_input"]),
        ([".*relu_input", ".*ReLU_input"], [".*relu_input", ".*ReLU_input"]),
        ((p for p in (".*a", ".*b")), [".*a", ".*b"]),
        (".*relu_input, .*ReLU_input,", [".*relu_input", ".*ReLU_input"]),
        (".*relu_input|.*ReLU_input", [".*relu_input|.*ReLU_input"]),
        ("layer_\\d{1,2}_input,b", ["layer_\\d{1,2}_input", "b"]),
        ("x{,3},y{2,},z", ["x{,3}", "y{2,}", "z"]),
        ("(a,b|c),[,;]d,e\\,f", ["(a,b|c)", "[,;]d", "e\\,f"]),
        ("[(],b", ["[(]", "b"]),
        (None, [""]),
        ("", [""]),
        ([], [""]),
    ],
)
def test_a_regex_may_be_one_or_several_or_text_with_commas(given: Any, patterns: list[str]) -> None:
    rule = PoorWeightInitialization(activation_inputs_regex=given)
    assert [pattern.pattern for pattern in rule.patterns] == patterns


@pytest.mark.parametrize("parameter", ["threshold", "distribution_range", "patience", "steps"])
@pytest.mark.parametrize("value", ["ten", "", "nan", nan, -1, "-1", None, True, [10], 1 + 0j])
def test_what_is_no_number_is_refused(parameter: str, value: Any) -> None:
    with pytest.raises(RuleParameterError) as caught:
        PoorWeightInitialization(**{parameter: value})
    assert caught.value.where == f"parameter {parameter}"
    assert caught.value.got == repr(value)


@pytest.mark.parametrize("parameter", ["patience", "steps"])
@pytest.mark.parametrize("value", [0, 2.5, "2.5", inf, "inf"])
def test_a_number_of_steps_is_whole(parameter: str, value: Any) -> None:
    with pytest.raises(RuleParameterError, match="a whole number of at least 1"):
        PoorWeightInitialization(**{parameter: value})


def test_an_error_about_a_number_leads_on() -> None:
    with pytest.raises(RuleParameterError) as caught:
        PoorWeightInitialization(threshold="ten")
    assert str(caught.value) == (
        "PoorWeightInitialization cannot use this threshold\n"
        "  where     parameter threshold\n"
        "  got       'ten'\n"
        "  expected  a number of at least 0, or its text, e.g. 10.0 or '10.0'\n"
        "  next      pass threshold=10.0, the documented default"
    )


def test_an_error_about_a_regex_leads_on() -> None:
    with pytest.raises(RuleParameterError) as caught:
        PoorWeightInitialization(activation_inputs_regex="a,*relu_input")
    assert str(caught.value) == (
        "PoorWeightInitialization cannot use this activation_inputs_regex\n"
        "  where     parameter activation_inputs_regex\n"
        "  got       '*relu_input'\n"
        "  expected  a regex; this one has nothing to repeat at position 0\n"
        "  next      write '.*relu_input' rather than '*relu_input'"
    )


@pytest.mark.parametrize("value", [5, [5], b".*", "(", ["ok", "["]])
def test_what_is_no_regex_is_refused(value: Any) -> None:
    with pytest.raises(RuleParameterError, match="activation_inputs_regex"):
        PoorWeightInitialization(activation_inputs_regex=value)


def test_what_is_no_trial_is_refused() -> None:
    with pytest.raises(RuleParameterError, match="base_trial"):
        PoorWeightInitialization(7)  # type: ignore[arg-type]


# ── variance ────────────────────────────────────────────────────────────────────────────────────────────────────


def inputs(a: list[float], b: list[float]) -> dict[str, list[float]]:
    return {"a.relu_input_0": a, "b.relu_input_0": b}


def test_nothing_is_said_of_a_healthy_trial() -> None:
    assert list(PoorWeightInitialization().check(healthy_but())) == []
    assert said(healthy_but()) == {"variance": None, "gradients": None, "loss": None}


def test_variances_too_far_apart_fire_alone_and_name_both_ends() -> None:
    finding = only(healthy_but(inputs=inputs([-4.0, 4.0], [-1.0, 1.0])))
    assert (finding.code, finding.name) == ("FAN001", "poor-weight-initialization")
    assert (finding.layer, finding.layers, finding.step) == ("b", ("b",), 0)
    assert finding.tensor == "b.relu_input_0"
    assert finding.measured.low == finding.measured.high == 16
    assert (finding.expected.low, finding.expected.high) == (1, 10)
    assert finding.message == "The variance is 1 at b.relu_input_0 and 16 at a.relu_input_0."
    assert finding.cause is None
    assert finding.scope is Scope.LAYER


def test_the_threshold_itself_is_not_exceeded() -> None:
    four = healthy_but(inputs=inputs([-2.0, 2.0], [-1.0, 1.0]))
    assert said(four, threshold=4)["variance"] is None
    assert only(four, threshold="3.99").measured.low == 4


def test_a_variance_of_zero_beside_another_is_an_infinite_ratio() -> None:
    finding = only(healthy_but(inputs=inputs([3.0, 3.0], WIDE)))
    assert finding.layer == "a"
    assert finding.measured.low == inf


@pytest.mark.parametrize("tensors", [inputs([0.0, 0.0], [2.0, 2.0]), {"a.relu_input_0": [0.1] * 7}])
def test_no_variance_at_all_is_no_signal(tensors: dict[str, list[float]]) -> None:
    finding = only(healthy_but(inputs=tensors))
    assert isnan(finding.measured.low)
    assert "there is no signal" in finding.message


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_an_activation_input_that_is_not_finite_fires(value: float) -> None:
    finding = only(healthy_but(inputs=inputs(WIDE, [1.0, 2.0, value])))
    assert finding.layer == "b"
    assert isnan(finding.measured.low)
    assert f"holds {int(isnan(value))} NaN and {int(not isnan(value))} infinite values" in finding.message


def test_a_variance_that_cannot_be_represented_fires() -> None:
    seen = summarize([-1.0, 1.0])
    huge = replace(seen, m2=inf, maximum=1e200)
    first = step(0, loss=1.0)
    observations = (replace(first.observations[0], summary=huge), *first.observations[1:])
    later = [step(i, loss=loss) for i, loss in enumerate(FALLING)][1:]
    finding = only(trial(replace(first, observations=observations), *later))
    assert finding.message == "The variance of a.relu_input_0 overflows: it reaches 1e+200."


def test_a_check_reports_the_first_step_at_which_it_fires() -> None:
    uneven = inputs([-4.0, 4.0], [-1.0, 1.0])
    steps = [step(i, uneven if i in (3, 5) else None, loss=loss) for i, loss in enumerate(FALLING)]
    assert only(trial(*steps)).step == 3


def test_steps_beyond_the_limit_and_evaluation_steps_are_not_judged() -> None:
    uneven = inputs([-4.0, 4.0], [-1.0, 1.0])
    steps = [step(i, uneven if i >= 6 else None, loss=loss) for i, loss in enumerate(FALLING)]
    evaluated = step(0, uneven, mode=Mode.EVAL)
    assert said(trial(evaluated, *steps), steps=6)["variance"] is None
    assert isinstance(said(trial(evaluated, *steps))["variance"], Finding)


def test_each_call_of_an_activation_counts() -> None:
    twice = {"a.relu_input_0": [-1.0, 1.0], "a.relu_input_1": [-4.0, 4.0]}
    assert only(healthy_but(inputs=twice)).measured.low == 16


def test_only_matching_names_are_compared() -> None:
    mixed = inputs(WIDE, WIDE) | {"c.gelu_input_0": [-9.0, 9.0]}
    assert said(healthy_but(inputs=mixed))["variance"] is None
    assert only(healthy_but(inputs=mixed), activation_inputs_regex=None).measured.low == 81
    several = "(relu|gelu)_input,nothing"
    assert only(healthy_but(inputs=mixed), activation_inputs_regex=several).measured.low == 81


def test_names_that_do_not_match_leave_it_undecided_and_suggest_a_regex() -> None:
    missing = undecided(mlp(activation="tanh", init="glorot_uniform", steps=10))
    assert missing.what == (
        "none of the 5 activation inputs matches '.*relu_input' (there are blocks.0.tanh_input_0, "
        "blocks.1.tanh_input_0, blocks.2.tanh_input_0, ...)"
    )
    assert missing.settle == "pass activation_inputs_regex='.*tanh_input'"


def test_the_suggested_regex_matches() -> None:
    odd = {"1_input_0": WIDE, "conv0_act_input_0": WIDE, "re_lu/inputs": WIDE}
    healthy = trial(*(step(i, odd, loss=loss) for i, loss in enumerate(FALLING)))
    assert undecided(healthy).settle == "pass activation_inputs_regex='.*input'"
    assert said(healthy, activation_inputs_regex=".*input")["variance"] is None


def test_one_tensor_alone_has_no_ratio() -> None:
    alone = trial(*(step(i, {"a.relu_input_0": WIDE}, loss=loss) for i, loss in enumerate(FALLING)))
    assert undecided(alone).what.startswith("only one of the 1 activation inputs matches")


def test_a_trial_without_activation_inputs_is_undecided() -> None:
    without = trial(*(step(i, {}, loss=loss) for i, loss in enumerate(FALLING)))
    assert undecided(without).what == "no activation input was seen in training steps 0 to 9"


def test_a_trial_without_steps_is_undecided_in_every_check() -> None:
    assert all(isinstance(outcome, Missing) for outcome in said(trial()).values())


# ── gradients ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_narrow_gradient_fires_alone_and_names_the_narrowest() -> None:
    grads = {"a.weight": WIDE, "b.weight": [1e-5, -1e-5] * 50, "c.weight": [1e-4, -1e-4] * 50}
    finding = only(healthy_but(grads=grads))
    assert (finding.layer, finding.tensor, finding.step) == ("b", "gradient/b.weight", 0)
    assert 2e-5 in finding.measured
    assert finding.measured.high < 0.001
    assert finding.expected.low == 0.001


def test_an_interval_that_holds_the_range_is_undecided() -> None:
    """p95 - p5 of evenly spread values is known to one bin, 3 %: 0.9 is within it, 0.8 and 1 are not."""
    even = {"a.weight": list(np.linspace(0.0, 1.0, 2001))}
    spread = trial(*(step(i, grads=even, loss=loss) for i, loss in enumerate(FALLING)))
    assert said(spread, distribution_range=0.8)["gradients"] is None
    assert isinstance(said(spread, distribution_range=1.0)["gradients"], Finding)
    missing = undecided(spread, distribution_range=0.9)
    assert "of gradient/a.weight at step 0 is less than 0.9" in missing.what
    assert "quantiles" in missing.settle


def test_a_later_step_may_decide_what_an_earlier_one_could_not() -> None:
    even, narrow = {"a.weight": list(np.linspace(0.0, 1.0, 2001))}, {"a.weight": [0.0, 0.1] * 50}
    steps = [step(i, grads=narrow if i == 4 else even, loss=loss) for i, loss in enumerate(FALLING)]
    assert only(trial(*steps), distribution_range=0.9).step == 4


def test_gradients_that_are_not_finite_are_left_out() -> None:
    grads = {"a.weight": [nan, *WIDE, inf], "b.weight": [nan, nan]}
    assert said(healthy_but(grads=grads))["gradients"] is None


@pytest.mark.parametrize("grads", [{}, {"a.weight": [nan, inf]}, {"a.scale": [0.5]}])
def test_without_a_distribution_it_is_undecided(grads: dict[str, list[float]]) -> None:
    steps = [step(i, grads=grads, loss=loss) for i, loss in enumerate(FALLING)]
    assert undecided(trial(*steps)).what.startswith("no weight gradient with a histogram")


def test_a_gradient_without_a_histogram_is_no_evidence() -> None:
    bare = Observation("a", Role.WEIGHT_GRAD, "gradient/a.weight", summarize(WIDE))
    steps = [step(i, grads={}, loss=loss) for i, loss in enumerate(FALLING)]
    steps = [replace(s, observations=(*s.observations, bare)) for s in steps]
    assert undecided(trial(*steps)).what.startswith("the weight gradients come without percentiles")


# ── loss ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_loss_that_stays_fires_alone_at_the_first_step_that_tells() -> None:
    finding = only(with_losses(*[2.3] * 10))
    assert (finding.layer, finding.step, finding.scope) == ("", 9, Scope.EVERYWHERE)
    assert finding.measured.low == 0
    assert finding.message == "Its mean over 5 steps went from 2.3 to 2.3."


def test_a_loss_that_falls_first_fires_when_it_stops() -> None:
    losses = [5.0, 4.0, 3.0, 2.0, *[1.0] * 20]
    assert only(with_losses(*losses), patience=2, steps=30).step == 7


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_loss_that_is_not_finite_fires_at_its_step(value: float) -> None:
    assert only(with_losses(1.0, 0.9, value, 0.8)).step == 2


@pytest.mark.parametrize(
    ("before", "last", "fires"),
    [
        (1.0, 0.98, False),
        (1.0, 0.995, True),
        (1.0, 1.5, True),
        (-1.0, -1.02, False),
        (-1.0, -1.005, True),
        (-1.0, -0.5, True),
        (0.0, 0.0, True),
        (0.0, 1.0, True),
        (0.0, -1.0, False),
        (1e308, 9e307, False),
    ],
)
def test_the_decrease_is_relative_to_the_magnitude(before: float, last: float, fires: bool) -> None:
    outcome = said(with_losses(*[before] * 5, *[last] * 5))["loss"]
    assert isinstance(outcome, Finding) is fires
    assert outcome is None or fires


def test_too_few_losses_are_undecided() -> None:
    missing = undecided(with_losses(*FALLING[:9]))
    assert missing.what == "10 losses are needed to tell whether they decrease, there are 9"
    assert missing.settle == "watch more steps"


def test_patience_beyond_the_steps_is_said_to_be_the_reason() -> None:
    assert undecided(with_losses(*FALLING), patience=6).settle == "pass steps=12, or less patience"


# ── all together ────────────────────────────────────────────────────────────────────────────────────────────────


def test_any_check_suffices_and_each_speaks_for_itself() -> None:
    found = [f.layer for f in PoorWeightInitialization().check(mlp(init=constant(0.0), steps=10))]  # type: ignore[union-attr]
    assert found == ["blocks.0.fc", "blocks.0.fc", ""]


def test_a_finding_does_not_hide_what_was_missing() -> None:
    first, second = PoorWeightInitialization().check(mlp(init=normal(1.0)))
    assert isinstance(first, Finding)
    assert isinstance(second, Missing)
    assert "losses are needed" in second.what


def test_parameters_given_as_text_judge_as_numbers_do() -> None:
    text = PoorWeightInitialization(
        activation_inputs_regex=".*relu_input|.*ReLU_input",
        threshold="10.0",
        distribution_range="0.001",
        patience="5",
        steps="10",
    )
    poor = mlp(init=normal(1e-2), steps=10)
    assert [str(f) for f in text.check(poor)] == [str(f) for f in PoorWeightInitialization().check(poor)]


def test_a_regex_of_ones_own_that_matches_nothing_is_refused_with_names_to_choose_from() -> None:
    trial = mlp(steps=10)
    with pytest.raises(RuleParameterError) as raised:
        judge(trial, rules=[PoorWeightInitialization(activation_inputs_regex="conv.*")])
    assert "blocks.0.relu_input_0" in raised.value.expected
    assert ".*relu_input" in raised.value.next_step


def test_the_default_regex_that_matches_nothing_is_undecided() -> None:
    report = judge(mlp(activation="tanh", steps=10), rules=[PoorWeightInitialization()])
    assert report.verdict is Verdict.UNDECIDED
