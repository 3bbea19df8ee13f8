"""Trials of SageMaker Debugger as a store: all of what it writes is read, and nothing but that."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanin import judge, load_trial
from fanin.errors import FaninError, StoreError, TrialFormatError, TrialNotFoundError, UsageError
from fanin.finding import Missing, Verdict
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.stores import open_store
from fanin.stores.parquet import ParquetStore
from fanin.stores.smdebug import SmdebugStore
from fanin.stores.smdebug.archive import Archive
from fanin.stores.smdebug.index import LARGEST_JSON
from fanin.stores.smdebug.naming import Named, is_loss, meaning
from fanin.stores.smdebug.summaries import of_reductions, of_tensor
from fanin.summary import summarize
from fanin.trial import Mode, Role, Trial

from . import samples
from .smdebug_writer import TrialWriter

EVENTS = "events/000000000000/000000000000_worker_0.tfevents"
INDEX = "index/000000000/000000000000_worker_0.json"
COLLECTIONS = "collections/000000000/worker_0_collections.json"

Change = Callable[[Path], object]


def pytorch(step: int, scale: float = 1.0, loss: float | None = None) -> dict[str, Any]:
    """What a small PyTorch model saves at a step."""
    rng = np.random.default_rng(step)
    draw = lambda *shape: (scale * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    return {
        "Net_fc1.weight": draw(16, 8),
        "Net_fc1.bias": draw(16),
        "relu_input_0": draw(32, 16),
        "blocks.0.relu_input_0": draw(32, 16),
        "CrossEntropyLoss_output_0": np.float32(loss if loss is not None else 2.0 - 0.1 * step),
        "gradient/Net_fc1.bias": draw(16),
        "gradient/Net_fc1.weight": draw(16, 8),
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Ten steps of a PyTorch model, ended."""
    folder = tmp_path / "trial"
    writer = TrialWriter(folder).collections()
    for step in range(10):
        writer.step(step, pytorch(step))
    writer.end()
    return folder


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


# ── reductions ──────────────────────────────────────────────────────────────────────────────────────────────────


def reduced(values: Any, *which: str, ddof: int = 1) -> dict[tuple[str, bool], float]:
    """Reductions as a hook computes them."""
    x = np.asarray(values, np.float64)
    every = {
        "min": x.min(),
        "max": x.max(),
        "mean": x.mean(),
        "std": x.std(ddof=ddof),
        "variance": x.var(ddof=ddof),
        "l2": np.linalg.norm(x.reshape(-1)),
    }
    return {(name, False): float(every[name]) for name in which}


VALUES = np.random.default_rng(1).normal(3.0, 2.0, (8, 4))


@pytest.mark.parametrize("which", [("variance",), ("std",), ("mean", "l2"), ("min", "max", "mean", "std")])
def test_the_variance_comes_from_whichever_reduction_has_it(which: tuple[str, ...]) -> None:
    found = of_reductions(reduced(VALUES, *which), VALUES.shape, unbiased=True)
    assert found is not None
    assert found.variance == pytest.approx(VALUES.var(), rel=1e-12)
    assert (found.count, found.histogram) == (32, None)


def test_where_variances_are_divided_by_n_nothing_is_put_right() -> None:
    found = of_reductions(reduced(VALUES, "variance", ddof=0), VALUES.shape, unbiased=False)
    assert found is not None
    assert found.variance == pytest.approx(VALUES.var(), rel=1e-12)


@pytest.mark.parametrize("which", [("min", "max"), ("mean",), ("l2",)])
def test_without_a_variance_there_is_no_summary(which: tuple[str, ...]) -> None:
    assert of_reductions(reduced(VALUES, *which), VALUES.shape, unbiased=True) is None


def test_a_constant_has_no_variance_whatever_rounding_says() -> None:
    found = of_reductions(reduced(np.full(7, 0.1), "min", "max", "std"), (7,), unbiased=True)
    assert found is not None
    assert (found.variance, found.is_constant) == (0.0, True)


@pytest.mark.parametrize(
    ("values", "nans", "infinite"),
    [({"mean": np.nan, "variance": np.nan}, 1, 0), ({"min": -np.inf, "max": 1.0, "variance": np.nan}, 0, 1)],
)
def test_values_that_are_not_finite_show_in_reductions(
    values: Mapping[str, float], nans: int, infinite: int
) -> None:
    found = of_reductions({(name, False): value for name, value in values.items()}, None, unbiased=True)
    assert found is not None
    assert (found.nan, found.inf) == (nans, infinite)
    assert isnan(found.variance)


def test_a_variance_that_overflows_is_no_value_that_is_not_finite() -> None:
    found = of_reductions(
        {("min", False): -1e30, ("max", False): 1e30, ("variance", False): np.inf}, (9,), unbiased=True
    )
    assert found is not None
    assert (found.non_finite, found.variance) == (0, np.inf)


def test_of_reductions_the_variances_are_judged_and_percentiles_are_missed(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    for step in range(10):
        raw = pytorch(step)
        saved = {"CrossEntropyLoss_output_0": raw["CrossEntropyLoss_output_0"]}
        for name in ("relu_input_0", "blocks.0.relu_input_0", "gradient/Net_fc1.weight"):
            for key, value in reduced(raw[name], "min", "max", "variance").items():
                saved[f"smdebug/reductions/{key[0]}/{name}"] = np.float32(value)
        writer.step(step, saved)
    trial = load_trial(writer.end().folder)
    said = PoorWeightInitialization().checks(trial)
    assert (said["variance"], said["loss"]) == (None, None)
    assert isinstance(said["gradients"], Missing)
    assert "percentiles, which no reduction of them can give" in said["gradients"].what
    assert trial.spec.notes == (
        "Of each activation input and weight gradient reductions were saved, which hold no percentiles.",
    )
    assert judge(trial, rules=[PoorWeightInitialization()]).verdict is Verdict.UNDECIDED


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


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────


def test_these_trials_are_never_written(place: Path) -> None:
    with pytest.raises(UsageError, match="are read and not written"):
        open_store(place).begin()


@pytest.mark.parametrize(
    "folders", [("collections",), ("index", "events"), ("collections", "events", "index")]
)
def test_a_trial_without_a_step_is_said_to_have_none(folders: tuple[str, ...], tmp_path: Path) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(TrialNotFoundError, match="holds no step"):
        load_trial(tmp_path)


def test_where_there_is_nothing_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrialNotFoundError, match="there is no SageMaker Debugger trial"):
        SmdebugStore(str(tmp_path / "nothing")).load()


def written(name: str, data: bytes) -> Change:
    """A file with other content."""
    return lambda place: (place / name).write_bytes(data)


def index_with(**meta: object) -> Change:
    """An index file whose first tensor or meta differ in these entries."""

    def change(place: Path) -> None:
        content = json.loads((place / INDEX).read_text())
        for key, value in meta.items():
            part = content["meta"] if key in content["meta"] else content["tensor_payload"][0]
            part[key] = value
        (place / INDEX).write_text(json.dumps(content))

    return change


def cut(name: str, size: int) -> Change:
    """A file that ends early."""
    return lambda place: os.truncate(place / name, size)


def flipped(name: str, at: int) -> Change:
    """A file with one byte altered."""

    def change(place: Path) -> None:
        data = bytearray((place / name).read_bytes())
        data[at] ^= 1
        (place / name).write_bytes(bytes(data))

    return change


@pytest.mark.parametrize(
    ("change", "file", "said"),
    [
        (cut(EVENTS, 700), f"{EVENTS}, at byte ", "the file ends after 700 bytes"),
        (cut(EVENTS, 0), f"{EVENTS}, at byte 0", "the file ends after 0 bytes"),
        (flipped(EVENTS, 3), f"{EVENTS}, at byte 0", "the checksum of its length is wrong"),
        (flipped(EVENTS, -2), f"{EVENTS}, at byte ", "its footer is neither"),
        (lambda place: (place / EVENTS).unlink(), EVENTS, "no such file"),
        (index_with(start_idx=1), f"{EVENTS}, at byte 1", "checksum of its length"),
        (index_with(length=99), f"{EVENTS}, at byte 0", "it claims"),
        (index_with(length=2**40), INDEX, "has 1099511627776 bytes"),
        (index_with(length=-1), INDEX, "length is -1"),
        (index_with(length=3.5), INDEX, "length is 3.5"),
        (index_with(start_idx=2**70), INDEX, "start_idx is"),
        (index_with(start_idx=2**60), f"at byte {2**60}", "the file ends after"),
        (index_with(start_idx=True), INDEX, "start_idx is True"),
        (index_with(tensorname="x_input_0"), f"{EVENTS}, at byte 0", "it holds 'Net_fc1.weight'"),
        (
            index_with(mode_step=3),
            f"{EVENTS}, at byte ",
            "it is of step '0' in mode GLOBAL where the index has 3",
        ),
        (
            index_with(mode="EVAL"),
            f"{EVENTS}, at byte ",
            "it is of step '0' in mode GLOBAL where the index has 0 in EVAL",
        ),
        (index_with(mode="NONE"), INDEX, "mode is 'NONE'"),
        (index_with(mode_step=-1), INDEX, "mode_step is -1"),
        (index_with(event_file_name=7), INDEX, "event_file_name is 7"),
        (written(INDEX, b""), INDEX, "Expecting value"),
        (written(INDEX, b"[]"), INDEX, "where dict belongs"),
        (written(INDEX, b"{}"), INDEX, "meta is None"),
        (written(INDEX, b"[" * 10**6), INDEX, "nested too deeply"),
        (written(INDEX, b"\xff\xfe"), INDEX, ""),
        (written(INDEX, b" " * (LARGEST_JSON + 1)), INDEX, f"{LARGEST_JSON + 1} bytes"),
        (written(COLLECTIONS, b"{}"), COLLECTIONS, "collections is None"),
        (written(COLLECTIONS, b'{"collections": {"a": 1}}'), COLLECTIONS, "collection 'a' is 1"),
        (
            written(COLLECTIONS, b'{"collections": {}, "_meta": {"num_workers": 1e9}}'),
            COLLECTIONS,
            "num_workers",
        ),
        (written(COLLECTIONS, b"9" * 10**5), COLLECTIONS, ""),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_byte(
    change: Change, file: str, said: str, place: Path
) -> None:
    change(place)
    with pytest.raises(TrialFormatError) as caught:
        load_trial(place)
    assert caught.value.what == "a file of this SageMaker Debugger trial is damaged"
    assert file in caught.value.where
    assert said in caught.value.got
    assert "copy it again" in caught.value.next_step


def test_without_the_damaged_step_the_rest_is_read(place: Path) -> None:
    cut(EVENTS.replace("0_w", "1_w").replace("0/", "1/"), 700)(place)
    for step in range(1, 10):
        (place / INDEX.replace("0_worker", f"{step}_worker")).unlink()
    assert [step.index for step in load_trial(place).steps] == [0]


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "events/../../secret",
        "/etc/passwd",
        "a/../../../etc/passwd",
        "c:/x",
        "..\\secret",
        "a\0b",
        "",
    ],
)
def test_a_path_out_of_the_trial_is_never_opened(name: str, place: Path) -> None:
    (place.parent / "secret").write_bytes((place / EVENTS).read_bytes())
    index_with(event_file_name=name)(place)
    with pytest.raises(TrialFormatError, match="lies outside it"):
        load_trial(place)


@pytest.mark.parametrize("name", [EVENTS, INDEX, COLLECTIONS])
def test_a_link_out_of_the_trial_is_never_followed(name: str, place: Path) -> None:
    outside = place.parent / "outside"
    shutil.move(place / name, outside)
    (place / name).symlink_to(outside)
    with pytest.raises(TrialFormatError, match="lies outside it"):
        load_trial(place)


def test_a_pipe_is_not_read_from(place: Path) -> None:
    (place / EVENTS).unlink()
    os.mkfifo(place / EVENTS)
    with pytest.raises(TrialFormatError) as caught:
        load_trial(place)
    assert caught.value.got == "something that is no file"


def test_a_name_that_would_drive_the_terminal_is_shown_as_text(place: Path) -> None:
    index_with(event_file_name="events/\x1b[31m")(place)
    with pytest.raises(TrialFormatError) as caught:
        load_trial(place)
    assert str(caught.value).replace("\n", "").isprintable()


def test_files_of_other_names_are_passed_over(place: Path) -> None:
    for name in (
        "index/000000000/notes.txt",
        "index/000000000/x_worker_0.json",
        "collections/000000000/readme",
    ):
        (place / name).write_text("not ours")
    (place / "index/stray").write_text("not ours")
    assert len(load_trial(place).steps) == 10


def test_an_event_file_that_may_not_be_read_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("fanin.stores.smdebug.folder.OpenFile.__init__", refuse)
    with pytest.raises(StoreError, match="the trial cannot be read") as caught:
        load_trial(place)
    assert "permissions" in caught.value.next_step


def everything(trial: Trial) -> Any:
    """A trial in terms that compare to the last bit."""
    return samples.plain(replace(trial, uri="", about={}))


def damages(seed: int) -> Iterator[tuple[str, Change]]:
    """A random damage to a random file, and which kind it is."""
    rng = random.Random(seed)

    def change(place: Path) -> None:
        path = rng.choice(sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size))
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data))
        if kind == "cut":
            del data[at:]
        elif kind == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "insert":
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            data[at : at + 8] = rng.randbytes(8)
        path.write_bytes(bytes(data))

    for kind in ("cut", "flip", "insert", "overwrite"):
        yield kind, change


@pytest.fixture
def two_steps(tmp_path: Path) -> Path:
    """A trial that is quickly copied."""
    return TrialWriter(tmp_path / "two").collections().step(0, pytorch(0)).step(1, pytorch(1)).end().folder


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_trial_is_refused_or_read_and_never_breaks(
    seed: int, two_steps: Path, tmp_path: Path
) -> None:
    """A byte within a value can change unseen, since smdebug writes no checksum of it; a file that is shorter or longer
    can not. Whatever happens, it is an error that says so, or a trial."""
    sound = everything(load_trial(two_steps))
    for number, (kind, change) in enumerate(damages(seed)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(two_steps, copy)
        change(copy)
        try:
            found = load_trial(copy)
        except FaninError as error:
            assert str(copy) in str(error)  # noqa: PT017
            continue
        judge(found)
        if kind == "cut":
            assert everything(found) == sound
