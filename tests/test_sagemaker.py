"""The original's interface: its methods say what its documentation says, and custom rules run unchanged."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fanin
from custom_rules import LossGapRule, VanishingGradientRule, WeightUpdateRatioRule
from fanin import sagemaker
from fanin.errors import RuleParameterError, TrialNotFoundError, UsageError
from fanin.sagemaker import (
    IndexReaderException,
    InvalidCollectionConfiguration,
    InvalidWorker,
    MissingCollectionFiles,
    NoMoreData,
    PoorWeightInitialization,
    Rule,
    RuleEvaluationConditionMet,
    ShapeUnavailableForStep,
    SMDebugError,
    StepNotYetAvailable,
    StepState,
    StepUnavailable,
    TensorUnavailable,
    TensorUnavailableForStep,
    Trial,
    create_trial,
    invoke_rule,
    modes,
    no_refresh,
)
from stores.smdebug_writer import TrialWriter, collection

WEIGHT = "Net_fc.weight"
LOSS = "CrossEntropyLoss_output_0"


def tensors(step: int, grad: float = 1.0) -> dict[str, Any]:
    """What a small network saves."""
    rng = np.random.default_rng(step)
    return {
        WEIGHT: (0.1 * rng.normal(size=(4, 3))).astype(np.float32),
        "relu_input_0": rng.normal(size=(8, 4)).astype(np.float32),
        "fc2.relu_input_0": rng.normal(size=(8, 4)).astype(np.float32),
        LOSS: np.float32(2.0 - 0.1 * step),
        f"gradient/{WEIGHT}": (grad * rng.normal(size=(4, 3))).astype(np.float32),
    }


def written(folder: Path, steps: int = 4, grad: float = 1.0) -> TrialWriter:
    """A trial that has not ended yet."""
    writer = TrialWriter(folder).collections()
    for step in range(steps):
        writer.step(step, tensors(step, grad))
    return writer


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """Four steps, ended."""
    return create_trial(written(tmp_path).end().folder)


# ── trials ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_are_found_by_step_mode_regex_and_collection(trial: Trial) -> None:
    assert trial.tensor_names() == sorted(tensors(0))
    assert trial.tensor_names(step=2) == sorted(tensors(0))
    assert trial.tensor_names(step=99) == []
    assert trial.tensor_names(mode=modes.TRAIN) == []
    assert trial.tensor_names(regex="relu") == ["fc2.relu_input_0", "relu_input_0"]
    assert trial.tensor_names(regex=["^relu", "^gradient"]) == [f"gradient/{WEIGHT}", "relu_input_0"]
    assert trial.tensor_names(collection="weights") == [WEIGHT]
    assert trial.tensor_names(collection=trial.collection("losses")) == [LOSS]
    with pytest.raises(ValueError, match="Only one of"):
        trial.tensor_names(regex="a", collection="losses")
    with pytest.raises(InvalidCollectionConfiguration):
        trial.collection("nothing")


def test_values_are_those_that_were_saved(trial: Trial) -> None:
    tensor = trial.tensor(WEIGHT)
    assert tensor.steps() == [0, 1, 2, 3]
    assert {step: value.tolist() for step, value in tensor.values().items()} == {
        step: tensors(step)[WEIGHT].tolist() for step in range(4)
    }
    assert (tensor.shape(1), tensor.workers(1)) == ((4, 3), ["worker_0"])
    assert (tensor.prev_steps(2), tensor.prev_steps(2, 2), tensor.prev_steps(9, 1)) == (
        [0, 1, 2],
        [1, 2],
        [3],
    )


@pytest.mark.parametrize("magnitudes", [False, True])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("min", np.min),
        ("max", np.max),
        ("mean", np.mean),
        ("std", np.std),
        ("variance", np.var),
        ("sum", np.sum),
        ("prod", np.prod),
        ("l1", lambda x: np.abs(x).sum()),
        ("l2", lambda x: np.sqrt(np.square(x).sum())),
    ],
)
def test_reductions_are_computed_where_they_were_not_saved(
    name: str, expected: Any, magnitudes: bool, trial: Trial
) -> None:
    values = tensors(1)[WEIGHT]
    wanted = expected(np.abs(values) if magnitudes else values)
    assert trial.tensor(WEIGHT).reduction_value(1, name, abs=magnitudes) == pytest.approx(
        float(wanted), rel=1e-5
    )
    assert trial.tensor(WEIGHT).reduction_values(1) == {}


def test_there_is_no_other_reduction(trial: Trial) -> None:
    with pytest.raises(ValueError, match="Invalid reduction type median"):
        trial.tensor(WEIGHT).reduction_value(0, "median")


def test_saved_reductions_and_shapes_stand_for_the_tensor(tmp_path: Path) -> None:
    saved = {"smdebug/reductions/abs_mean/a": np.float32(0.5), "smdebug/reductions/l2/a": np.float32(2.0)}
    TrialWriter(tmp_path).collections().step(0, saved, shapes={"a": [2, 3]}).step(1, {"b": [1.0]}).end()
    tensor = create_trial(tmp_path).tensor("a")
    assert {key: float(value) for key, value in tensor.reduction_values(0).items()} == {
        ("mean", True): 0.5,
        ("l2", False): 2.0,
    }
    assert (tensor.shape(0), tensor.original_name) == ((2, 3), "a")
    with pytest.raises(TensorUnavailableForStep, match="Reductions of it were saved") as caught:
        tensor.value(0)
    assert caught.value.has_reductions
    with pytest.raises(TensorUnavailableForStep):
        tensor.reduction_value(0, "max")


def test_a_shape_that_was_not_saved_is_unavailable(tmp_path: Path) -> None:
    TrialWriter(tmp_path).collections().step(0, {"smdebug/reductions/max/a": np.float32(1.0)}).end()
    with pytest.raises(ShapeUnavailableForStep):
        create_trial(tmp_path).tensor("a").shape(0)


def test_modes_have_steps_of_their_own(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    for step, (mode, counted) in enumerate([("TRAIN", 0), ("EVAL", 0), ("TRAIN", 1), ("EVAL", 1)]):
        writer.step(step, {"a": [float(step)]} | ({"b": [1.0]} if mode == "EVAL" else {}), mode, counted)
    trial = create_trial(writer.end().folder)
    assert trial.modes() == [modes.TRAIN, modes.EVAL]
    assert (trial.steps(), trial.steps(modes.EVAL), trial.steps(modes.PREDICT)) == ([0, 1, 2, 3], [0, 1], [])
    assert (trial.global_step(modes.EVAL, 1), trial.mode(3), trial.mode_step(3)) == (3, modes.EVAL, 1)
    assert (trial.mode(9), trial.mode_step(9)) == (None, None)
    assert trial.tensor_names(mode=modes.TRAIN) == ["a"]
    assert trial.tensor_names(step=1, mode=modes.EVAL) == ["a", "b"]
    assert trial.tensor("a").value(1, mode=modes.EVAL).tolist() == [3.0]
    assert trial.tensor("b").steps(modes.TRAIN) == []


def test_workers_have_values_of_their_own(tmp_path: Path) -> None:
    for rank in (1, 0):
        writer = TrialWriter(tmp_path, f"worker_{rank}", workers=2).collections()
        writer.step(0, {"a": [float(rank)]})
    writer.step(1, {"a": [5.0]})
    trial = create_trial(tmp_path)
    assert (trial.workers(), trial.num_workers) == (["worker_0", "worker_1"], 2)
    assert (trial.steps(), trial.steps(show_incomplete_steps=True)) == ([0], [0, 1])
    tensor = trial.tensor("a")
    assert (tensor.value(0).tolist(), tensor.value(0, worker="worker_1").tolist()) == ([0.0], [1.0])
    with pytest.raises(InvalidWorker):
        tensor.value(1, worker="worker_1")
    writer.end()
    time.sleep(0.11)
    assert trial.steps() == [0, 1]


def test_what_was_not_saved_is_told_from_what_may_still_come(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections().step(0, {"a": [1.0]}).step(4, {"b": [1.0]})
    trial = create_trial(tmp_path)
    assert [trial.has_passed_step(step) for step in (0, 2, 4, 5)] == [
        StepState.AVAILABLE,
        StepState.UNAVAILABLE,
        StepState.AVAILABLE,
        StepState.NOT_YET_AVAILABLE,
    ]
    tensor = trial.tensor("a")
    raised = {4: TensorUnavailableForStep, 2: StepUnavailable, 5: StepNotYetAvailable}
    for step, kind in raised.items():
        with pytest.raises(kind):
            tensor.value(step)
    with pytest.raises(TensorUnavailable):
        trial.tensor("c")
    writer.end()
    time.sleep(0.11)
    with pytest.raises(NoMoreData) as caught:
        tensor.value(5)
    assert (caught.value.step, caught.value.last_step) == (5, 4)


def test_a_range_of_steps_is_all_that_is_seen(tmp_path: Path) -> None:
    folder = written(tmp_path, 6).end().folder
    assert create_trial(folder, range_steps=(2, 4)).steps() == [2, 3]
    assert create_trial(folder, range_steps=(None, 2)).steps() == [0, 1]
    with pytest.raises(UsageError, match="range_steps"):
        create_trial(folder, range_steps=(4, 2))


def test_cached_values_are_read_once(tmp_path: Path) -> None:
    trial = create_trial(written(tmp_path).end().folder, cache=True)
    first = trial.tensor(WEIGHT).value(0)
    assert trial.tensor(WEIGHT).value(0) is first


def test_inputs_labels_and_predictions(tmp_path: Path) -> None:
    saved = {"model/inputs": [1.0], "labels": [2.0], "predictions": [3.0]}
    writer = TrialWriter(tmp_path).collections(collection("inputs", tensors=["model/inputs"]))
    trial = create_trial(writer.step(0, saved).end().folder)
    found = [trial.inputs(0), trial.labels(0), trial.predictions(0)]
    assert [[value.tolist() for value in values] for values in found] == [[[1.0]], [[2.0]], [[3.0]]]


def test_a_regex_of_a_trial_that_is_none_is_said(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections(collection("bad", ["(" * 10]))
    with pytest.raises(InvalidCollectionConfiguration, match="bad"):
        create_trial(writer.step(0, tensors(0)).end().folder).tensor_names(collection="bad")


def test_a_damaged_record_is_said_by_file_and_byte(tmp_path: Path) -> None:
    trial = create_trial(written(tmp_path).end().folder)
    file = tmp_path / "events/000000000001/000000000001_worker_0.tfevents"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(IndexReaderException, match=r"000000000001_worker_0.tfevents, at byte \d+"):
        trial.tensor(LOSS).value(1)
    assert trial.tensor(LOSS).value(0) == np.float32(2.0)


@pytest.mark.parametrize("argument", [{"profiler": True}, {"range": (0, 1)}])
def test_arguments_that_it_does_not_have_are_refused(argument: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((TypeError, UsageError)):
        create_trial(tmp_path, **argument)


def test_arguments_of_the_original_without_meaning_here_are_accepted(tmp_path: Path) -> None:
    folder = written(tmp_path).end().folder
    assert create_trial(str(folder), "name", parallel=False, check=True, index_mode=True).name == "name"


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────


def later(*done: Any) -> threading.Thread:
    """Do one thing after another on the side."""

    def work() -> None:
        for act in done:
            time.sleep(0.2)
            act()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_trial_is_waited_for_and_its_steps_are_seen_as_they_come(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path)
    thread = later(
        writer.collections, lambda: writer.step(0, tensors(0)), lambda: writer.step(1, tensors(1)), writer.end
    )
    trial = create_trial(tmp_path, timeout=20)
    trial.wait_for_steps([0, 1])
    assert trial.tensor(LOSS).value(1) == np.float32(1.9)
    with pytest.raises(NoMoreData):
        trial.wait_for_steps([2])
    thread.join()


def test_a_killed_job_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path).step(4, tensors(4), finished=False)
    trial = create_trial(tmp_path, timeout=0.3)
    with caplog.at_level(logging.WARNING, "fanin"), pytest.raises(NoMoreData) as caught:
        trial.wait_for_steps([3, 4])
    assert (caught.value.step, caught.value.last_step, trial.steps()) == (4, 3, [0, 1, 2, 3])
    assert "taken as broken off" in caplog.text


def test_files_from_the_future_are_not_waited_for_without_end(tmp_path: Path) -> None:
    written(tmp_path)
    ahead = time.time() + 10**6
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (ahead, ahead))
    with pytest.raises(NoMoreData):
        create_trial(tmp_path, timeout=0.3).wait_for_steps([4])


def test_nothing_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with pytest.raises(TrialNotFoundError):
        create_trial(tmp_path / "nothing", timeout=0.2)


def test_a_job_that_ended_without_saying_what_it_saved(tmp_path: Path) -> None:
    TrialWriter(tmp_path).end()
    with pytest.raises(MissingCollectionFiles):
        create_trial(tmp_path)


def test_where_nothing_is_refreshed_nothing_new_is_seen(tmp_path: Path) -> None:
    writer = written(tmp_path)
    trial = create_trial(tmp_path)
    with no_refresh([trial]):
        writer.step(4, tensors(4))
        time.sleep(0.11)
        assert trial.steps() == [0, 1, 2, 3]
    assert trial.steps() == [0, 1, 2, 3, 4]


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rule_on_a_collection_runs_unchanged(tmp_path: Path) -> None:
    good = create_trial(written(tmp_path / "good").end().folder)
    with pytest.raises(NoMoreData):
        invoke_rule(VanishingGradientRule(good, threshold="0.0000001"), raise_eval_cond=True)
    poor = create_trial(written(tmp_path / "poor", grad=1e-9).end().folder)
    with pytest.raises(RuleEvaluationConditionMet) as caught:
        invoke_rule(VanishingGradientRule(poor, threshold="0.0000001"), raise_eval_cond=True)
    assert (caught.value.rule_name, caught.value.step) == ("VanishingGradientRule", 0)
    assert str(caught.value) == (
        "Evaluation of the rule VanishingGradientRule at step 0 resulted in the condition being met"
    )


def test_a_rule_on_required_tensors_runs_unchanged(trial: Trial) -> None:
    rule = WeightUpdateRatioRule(trial, large_threshold="1.3")
    invoke_rule(rule, end_step=4)
    expected = {
        (WEIGHT, step): float(
            np.mean(np.abs(tensors(step)[WEIGHT] - tensors(step - 1)[WEIGHT]))
            / (np.mean(np.abs(tensors(step - 1)[WEIGHT])) + 1e-7)
        )
        for step in (1, 2, 3)
    }
    assert rule.ratios == pytest.approx(expected)
    assert rule.report["RuleTriggered"] == sum(ratio > 1.3 for ratio in expected.values()) > 0


def test_a_rule_on_two_trials_runs_unchanged(tmp_path: Path) -> None:
    other = create_trial(written(tmp_path / "other", steps=2).end().folder)
    mine = written(tmp_path / "mine", steps=1)
    for step in (1, 2):
        mine.step(step, tensors(step) | {LOSS: np.float32(5.0)})
    rule = LossGapRule(create_trial(mine.end().folder), [other])
    met = []
    for step in range(3):
        try:
            rule.invoke(step)
        except RuleEvaluationConditionMet as error:
            met.append(error.step)
        except NoMoreData:
            met.append(-step)
    assert met == [1, -2]


def test_steps_that_were_not_saved_are_passed_over(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections().step(0, tensors(0)).step(5, tensors(5)).end()
    looked: list[int] = []

    class Looking(Rule):
        def invoke_at_step(self, step: int) -> bool:
            looked.append(step)
            return True

    with pytest.raises(NoMoreData):
        invoke_rule(Looking(create_trial(writer.folder)))
    assert looked == [0, 5]


def test_a_rule_may_end_itself(trial: Trial) -> None:
    class Once(Rule):
        def invoke_at_step(self, step: int) -> bool:
            raise RuleEvaluationConditionMet(self.rule_name, step, end_of_rule=True)

    invoke_rule(Once(trial))


@pytest.mark.parametrize(
    "arguments", [(), ("",), (None,), ('{"name": "email", "parameters": {"endpoint": "a@b.c"}}',)]
)
def test_action_str_is_optional(arguments: tuple[Any, ...], trial: Trial) -> None:
    rule = VanishingGradientRule.__mro__[1].__init__
    made = VanishingGradientRule(trial)
    rule(made, trial, *arguments)
    assert made.other_trials is None
    assert len(made._actions) == (arguments not in ((), ("",), (None,)))


def test_an_action_that_is_none_is_refused(trial: Trial) -> None:
    with pytest.raises(RuleParameterError, match="action_json holds no action"):
        PoorWeightInitialization(trial, action_str="stop!")


def test_the_documented_rule_wants_no_trees(tmp_path: Path) -> None:
    names = ["feature_importance", "average_shap", "full_shap", "trees"]
    trial = create_trial(TrialWriter(tmp_path).collections(names=names).step(0, {"rmse": [1.0]}).end().folder)
    with pytest.raises(UsageError, match="does not apply to XGBoost"):
        PoorWeightInitialization(trial)


def test_the_documented_rule_takes_text_and_names_layer_and_value(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    writer.step(0, tensors(0)).step(1, tensors(1) | {"relu_input_0": np.linspace(-100, 100, 64)}).end()
    rule = PoorWeightInitialization(create_trial(tmp_path), threshold="10.0", patience="5", steps="10")
    with pytest.raises(RuleEvaluationConditionMet) as caught:
        invoke_rule(rule, raise_eval_cond=True)
    assert caught.value.step == 1
    (said,) = rule.report["Details"][1]
    assert "max/min variance of activation inputs" in said
    assert "relu_input_0" in said
    assert rule.report["Violations"] == 1


def test_a_loss_that_is_not_a_number_fires_from_then_on(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    for step, loss in enumerate([2.0, np.nan, 1.8]):
        writer.step(step, tensors(step) | {LOSS: np.float32(loss)})
    rule = PoorWeightInitialization(create_trial(writer.end().folder))
    invoke_rule(rule, end_step=3)
    assert list(rule.report["Details"]) == [1, 2]


# ── the surface ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_are_sorted_and_exist() -> None:
    assert sagemaker.__all__ == sorted(sagemaker.__all__)
    assert all(hasattr(sagemaker, name) for name in sagemaker.__all__)
    assert fanin.sagemaker is sagemaker


def test_every_exception_has_the_root() -> None:
    kinds = [value for name in sagemaker.__all__ if isinstance(value := getattr(sagemaker, name), type)]
    found = {kind.__name__ for kind in kinds if issubclass(kind, Exception)}
    assert len(found) == 13
    assert all(issubclass(kind, SMDebugError) for kind in kinds if issubclass(kind, Exception))


@pytest.fixture(autouse=True)
def no_timeout_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FANIN_TRIAL_TIMEOUT", raising=False)
    return


def test_the_timeout_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANIN_TRIAL_TIMEOUT", "0.1")
    written(tmp_path)
    time.sleep(0.15)
    assert create_trial(tmp_path).loaded_all_steps
