"""Trials of SageMaker Debugger as a store: all of what it writes is read, and nothing but that."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanin import judge, load_trial
from fanin.errors import TrialFormatError, UsageError
from fanin.finding import Verdict
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.stores import open_store
from fanin.stores.parquet import ParquetStore
from fanin.stores.smdebug import SmdebugStore
from fanin.stores.smdebug.archive import Archive
from fanin.stores.smdebug.naming import Named, is_loss, meaning
from fanin.stores.smdebug.summaries import of_tensor
from fanin.summary import summarize
from fanin.trial import Mode, Role, Trial

from . import samples
from .smdebug_trial import EVENTS, INDEX, pytorch, ten_steps
from .smdebug_writer import TrialWriter


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return ten_steps(tmp_path / "trial")


def names(trial: Trial, role: Role, step: int = 0) -> list[str]:
    """Tensors of one role at a training step."""
    return list(next(s for s in trial.train_steps if s.index == step).of(role))


# ── what is read ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trial_is_known_by_its_files(place: Path) -> None:
    assert isinstance(open_store(place), SmdebugStore)
    assert isinstance(open_store(place.as_uri()), SmdebugStore)
    assert isinstance(open_store(place.parent), ParquetStore)
    assert isinstance(open_store(place.parent / "new"), ParquetStore)


def test_tensors_have_roles_by_their_names(place: Path) -> None:
    trial = load_trial(place)
    assert names(trial, Role.WEIGHT) == ["Net_fc1.weight"]
    assert names(trial, Role.BIAS) == ["Net_fc1.bias"]
    assert names(trial, Role.WEIGHT_GRAD) == ["gradient/Net_fc1.weight"]
    assert names(trial, Role.ACTIVATION_INPUT) == ["relu_input_0", "blocks.0.relu_input_0"]
    assert (trial.spec.name, trial.spec.framework) == ("Net", "PyTorch, by SageMaker Debugger")
    assert [(layer.path, len(layer.parameters), layer.calls) for layer in trial.spec.layers] == [
        ("Net_fc1", 2, 1)
    ]
    assert trial.spec.layers[0].parameter_path(trial.spec.layers[0].parameters[0]) == "Net_fc1.weight"


def test_summaries_are_those_of_the_values(place: Path) -> None:
    for step in load_trial(place).steps:
        written = pytorch(step.index)
        assert step.loss == pytest.approx(float(written["CrossEntropyLoss_output_0"]), abs=0)
        for seen in step.observations:
            values = written[seen.tensor]
            wanted = summarize(values, histogram=seen.role is Role.WEIGHT_GRAD)
            assert samples.plain(seen.summary) == samples.plain(wanted)
            assert (seen.shape, seen.dtype) == (values.shape, "float32")


def test_weights_are_summarized_where_rules_look_at_them(place: Path) -> None:
    steps = load_trial(place).steps
    assert [step.index for step in steps if step.of(Role.WEIGHT)] == [0, 5]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MLP_blocks.0.layer.weight", Named(Role.WEIGHT, "MLP_blocks.0.layer", "MLP_blocks.0.layer.weight")),
        ("Net_rnn.weight_hh_l0", Named(Role.WEIGHT, "Net_rnn", "Net_rnn.weight_hh_l0")),
        ("Net_rnn.bias_ih_l1_reverse", Named(Role.BIAS, "Net_rnn", "Net_rnn.bias_ih_l1_reverse")),
        ("Net_attn.in_proj_bias", Named(Role.BIAS, "Net_attn", "Net_attn.in_proj_bias")),
        ("Net_attn.in_proj_weight", Named(Role.WEIGHT, "Net_attn", "Net_attn.in_proj_weight")),
        ("gradient/MLP_head.weight", Named(Role.WEIGHT_GRAD, "MLP_head", "MLP_head.weight")),
        ("gradient/MLP_head.bias", None),
        ("gradient/conv0_weight", Named(Role.WEIGHT_GRAD, "conv0_weight", "conv0_weight")),
        ("gradient/conv0_bias", None),
        ("gradient/batchnorm0_beta", None),
        ("gradients/dense/kernel:0Grad", Named(Role.WEIGHT_GRAD, "dense/kernel:0", "dense/kernel:0")),
        ("gradients/dense/bias:0Grad", None),
        ("gradients/dense/BiasAdd_grad/tuple/control_dependency_1:0", None),
        ("weights/dense/kernel:0", Named(Role.WEIGHT, "dense/kernel:0", "dense/kernel:0")),
        ("conv2d/kernel:0", Named(Role.WEIGHT, "conv2d/kernel:0", "conv2d/kernel:0")),
        ("conv2d/bias:0", Named(Role.BIAS, "conv2d/bias:0", "conv2d/bias:0")),
        ("conv0_relu_input_0", Named(Role.ACTIVATION_INPUT, "conv0_relu")),
        ("blocks.0.relu_input_1", Named(Role.ACTIVATION_INPUT, "blocks.0.relu")),
        ("re_lu/inputs", Named(Role.ACTIVATION_INPUT, "re_lu")),
        ("conv2d/inputs/Relu:0", Named(Role.ACTIVATION_INPUT, "conv2d")),
        ("fc_output_0", Named(Role.OUTPUT, "fc")),
        ("re_lu/outputs_1", Named(Role.OUTPUT, "re_lu")),
        ("CrossEntropyLoss_input_0", None),
        ("scalar/loss", None),
        ("accuracy", None),
    ],
)
def test_the_names_of_every_framework(name: str, expected: Named | None) -> None:
    assert meaning(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CrossEntropyLoss_output_0", True),
        ("loss_output_0", True),
        ("softmaxcrossentropyloss0_output_0", True),
        ("loss", True),
        ("loss:0", True),
        ("CrossEntropyLoss_input_0", False),
        ("scalar/loss", False),
        ("glossary_output_0", False),
    ],
)
def test_losses_by_name(name: str, expected: bool) -> None:
    assert is_loss(name) is expected
    assert is_loss("mine", {"mine"})


@pytest.mark.parametrize(
    ("framework", "tensors"),
    [
        (
            "MXNet",
            {
                "conv0_weight": np.ones((4, 3)),
                "conv0_relu_input_0": np.arange(8.0),
                "conv1_relu_input_0": np.arange(8.0) * 2,
                "softmaxcrossentropyloss0_output_0": np.array([1.0, 3.0]),
                "gradient/conv0_weight": np.linspace(-1, 1, 12),
                "gradient/conv0_bias": np.zeros(4),
            },
        ),
        (
            "TensorFlow",
            {
                "weights/conv/kernel:0": np.ones((4, 3)),
                "re_lu/inputs": np.arange(8.0),
                "re_lu_1/inputs": np.arange(8.0) * 2,
                "loss": np.float64(2.0),
                "dense_loss": np.float64(7.0),
                "gradients/conv/kernel:0Grad": np.linspace(-1, 1, 12),
                "gradients/conv/bias:0Grad": np.zeros(4),
            },
        ),
    ],
)
def test_other_frameworks(framework: str, tensors: Mapping[str, Any], tmp_path: Path) -> None:
    TrialWriter(tmp_path).collections().step(0, tensors).step(1, tensors).end()
    trial = load_trial(tmp_path)
    said = PoorWeightInitialization(activation_inputs_regex="relu_input|re_lu").checks(trial)
    assert trial.spec.framework.startswith(framework)
    assert len(names(trial, Role.WEIGHT)) == len(names(trial, Role.WEIGHT_GRAD)) == 1
    assert trial.steps[0].loss == 2.0
    assert (said["variance"], said["gradients"]) == (None, None)


def test_modes_are_counted_by_themselves(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    for step, (mode, counted) in enumerate(
        [("TRAIN", 0), ("TRAIN", 1), ("EVAL", 0), ("PREDICT", 0), ("TRAIN", 2)]
    ):
        writer.step(step, pytorch(step), mode, counted)
    trial = load_trial(writer.end().folder)
    assert [(step.mode, step.index) for step in trial.steps] == [
        (Mode.TRAIN, 0),
        (Mode.TRAIN, 1),
        (Mode.EVAL, 0),
        (Mode.TRAIN, 2),
    ]
    assert trial.steps[2].observations == ()
    assert trial.spec.notes == ("Steps in mode PREDICT were passed over.",)


def test_steps_before_the_script_named_a_mode_are_no_training(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    writer.step(0, pytorch(0)).step(1, pytorch(1), "TRAIN", 0).end()
    trial = load_trial(tmp_path)
    assert [(step.mode, step.index) for step in trial.steps] == [(Mode.TRAIN, 0)]
    assert trial.start is not None
    assert trial.start.loss == pytest.approx(1.9)


def test_several_workers_are_ranks(tmp_path: Path) -> None:
    for rank in (0, 1):
        writer = TrialWriter(tmp_path, f"worker_{rank}", workers=2).collections()
        writer.step(0, pytorch(rank)).step(1, pytorch(rank)).end()
    trial = load_trial(tmp_path)
    assert trial.workers == (0, 1)
    assert len(trial.steps) == 2
    assert trial.steps[0].losses == {0: 2.0, 1: pytest.approx(1.9)}
    assert trial.of_worker(1).steps[0].of(Role.WEIGHT)["Net_fc1.weight"].summary.mean == pytest.approx(
        float(pytorch(1)["Net_fc1.weight"].mean(dtype=np.float64))
    )
    assert trial.about["world_size"] == "2"


def test_devices_of_tensorflow_are_workers(tmp_path: Path) -> None:
    for gpu in (0, 1):
        device = f"_job-worker_replica-0_task-0_device-GPU-{gpu}"
        TrialWriter(tmp_path, device, workers=2).collections().step(0, pytorch(gpu)).end()
    archive = Archive(str(tmp_path))
    archive.refresh()
    assert archive.workers == [f"/job:worker/replica:0/task:0/device:GPU:{gpu}" for gpu in (0, 1)]
    assert load_trial(tmp_path).workers == (0, 1)


def test_a_worker_that_saved_nothing_is_missed(tmp_path: Path) -> None:
    TrialWriter(tmp_path, workers=2).collections().step(0, pytorch(0))
    assert load_trial(tmp_path).spec.notes == ("Of 2 workers 1 saved nothing.",)


def test_a_sparse_interval_is_said(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    for step in (0, 500, 1000, 1500):
        writer.step(step, pytorch(step, loss=1.0))
    trial = load_trial(writer.end().folder)
    assert [step.index for step in trial.steps] == [0, 500, 1000, 1500]
    assert trial.spec.notes == ("Only training steps 0, 500, 1000, ... were saved.",)
    (loss,) = (m for m in judge(trial, rules=[PoorWeightInitialization()]).diagnosis.missing)
    assert loss.what == "10 losses are needed to tell whether they decrease, there are 1"


def test_a_running_trial_is_read_so_far_and_again_later(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections().step(0, pytorch(0))
    archive = Archive(str(tmp_path))
    archive.refresh()
    assert (archive.steps, archive.ended, load_trial(tmp_path).complete) == ([0], False, False)
    writer.step(1, pytorch(1)).end()
    archive.refresh()
    assert (archive.steps, archive.ended, load_trial(tmp_path).complete) == ([0, 1], True, True)


def test_of_a_killed_job_what_is_complete_is_read(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections().put("claim.smd", b"")
    writer.step(0, pytorch(0)).step(1, pytorch(1)).step(2, pytorch(2), finished=False)
    trial = load_trial(tmp_path)
    assert [step.index for step in trial.steps] == [0, 1]
    assert not trial.complete


def test_an_empty_file_of_a_running_job_is_one_whose_copy_is_still_under_way(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections().step(0, pytorch(0)).step(1, pytorch(1))
    index = tmp_path / "index" / "000000000" / f"{1:012d}_worker_0.json"
    whole = index.read_bytes()
    index.write_bytes(b"")
    archive = Archive(str(tmp_path))
    archive.refresh()
    assert archive.steps == [0]
    index.write_bytes(whole)
    archive.refresh()
    assert archive.steps == [0, 1]
    index.write_bytes(b"")
    writer.end()
    with pytest.raises(TrialFormatError, match="000000000001_worker_0"):
        Archive(str(tmp_path)).refresh()


def test_inputs_that_were_overwritten_in_place_are_said_to_be(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=1000)
    tensors = {
        "a.relu_input_0": np.maximum(values, 0),
        "b.relu_input_0": values,
        "c.relu_input_0": np.abs(values),
    }
    TrialWriter(tmp_path).collections().step(0, tensors)
    assert load_trial(tmp_path).spec.notes == (
        "Activations that work in place had overwritten a.relu_input_0 before they were saved.",
    )


def test_of_two_backward_passes_in_a_step_the_last_counts(tmp_path: Path) -> None:
    TrialWriter(tmp_path).collections().step(0, {"gradient/a.weight": [1.0, 2.0], "b_input_0": [1.0]})
    content = json.loads((tmp_path / INDEX).read_text())
    other = content["tensor_payload"][0]
    content["tensor_payload"].append(other | {"start_idx": 0})
    content["tensor_payload"][0] = other | {"start_idx": 5}
    (tmp_path / INDEX).write_text(json.dumps(content))
    seen = load_trial(tmp_path).steps[0].of(Role.WEIGHT_GRAD)["gradient/a.weight"]
    assert seen.summary.mean == 1.5


def test_complex_numbers_and_text_are_passed_over(tmp_path: Path) -> None:
    tensors = {"a.weight": np.ones(3, np.complex64), "b_input_0": ["text"], "c_input_0": [1.0]}
    TrialWriter(tmp_path).collections().step(0, tensors)
    assert [seen.tensor for seen in load_trial(tmp_path).steps[0].observations] == ["c_input_0"]


def test_large_tensors_are_summarized_piece_by_piece() -> None:
    values = np.random.default_rng(0).normal(size=2**20 + 7).astype(np.float32)
    whole, pieces = summarize(values, histogram=True), of_tensor(values, histogram=True)
    assert pieces is not None
    assert pieces.histogram is not None
    assert whole.histogram is not None
    assert pieces.variance == pytest.approx(whole.variance, rel=1e-12)
    assert pieces.histogram.counts.tolist() == whole.histogram.counts.tolist()


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_our_rules_cannot_clear_a_trial_without_a_graph(place: Path) -> None:
    diagnosis = judge(place).diagnosis
    assert diagnosis.verdict is Verdict.UNDECIDED
    assert diagnosis.missing[0].code == "FAN905"
    assert diagnosis.documented is Verdict.HEALTHY
    assert judge(place, rules=[PoorWeightInitialization()]).verdict is Verdict.HEALTHY


def test_our_rules_find_faults_in_what_was_saved(tmp_path: Path) -> None:
    broken = pytorch(0) | {"Net_fc1.weight": np.full((16, 8), np.nan, np.float32)}
    TrialWriter(tmp_path).collections().step(0, broken).step(1, pytorch(1))
    report = judge(tmp_path)
    assert (report.verdict, report.findings[0].code, report.findings[0].layer) == (
        Verdict.POOR,
        "FAN401",
        "Net_fc1",
    )


def test_trees_are_refused_with_the_reason(tmp_path: Path) -> None:
    names = ["hyperparameters", "metrics", "feature_importance", "average_shap", "full_shap", "trees"]
    TrialWriter(tmp_path).collections(names=names).step(0, {"validation-rmse": [1.0]}).end()
    with pytest.raises(UsageError, match="does not apply to XGBoost") as caught:
        judge(tmp_path, rules=[PoorWeightInitialization()])
    assert "no weights, activations or gradients" in caught.value.got


# ── identity ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_known_by_its_first_events_also_as_a_copy_and_while_it_grows(tmp_path: Path) -> None:
    """In which smdebug notes the time: two runs of the same script and seed differ in nothing else."""
    writer, seen = TrialWriter(tmp_path / "a").collections(), set()
    for index in range(3):
        writer.step(index, pytorch(index))
        seen.add(load_trial(str(tmp_path / "a")).identity)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    seen.add(load_trial(str(tmp_path / "copy")).identity)
    assert len(seen) == 1
    later = tmp_path / "b"
    shutil.copytree(tmp_path / "a", later)
    events = later / EVENTS
    data = events.read_bytes()
    then, now = struct.pack("<d", 1.7e9), struct.pack("<d", 1.7e9 + 1e-6)
    assert data.count(then) > 0
    events.write_bytes(data.replace(then, now))
    assert load_trial(str(later)).identity not in seen


def test_a_worker_that_comes_later_to_a_step_does_not_rename_a_run_that_has_a_whole_one(
    tmp_path: Path,
) -> None:
    workers = [TrialWriter(tmp_path, f"worker_{rank}", workers=2).collections() for rank in (1, 0)]
    for worker in workers:
        worker.step(0, pytorch(0))
    whole = load_trial(str(tmp_path)).identity
    workers[0].step(1, pytorch(1))
    assert load_trial(str(tmp_path)).identity == whole
    workers[1].step(1, pytorch(1))
    assert load_trial(str(tmp_path)).identity == whole
