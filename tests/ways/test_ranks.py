"""Two processes through torchrun and gloo: replicas, shards by fully_shard, and tensor-parallel layers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fanin
from fanin.examine import load_trial
from fanin.finding import Verdict
from fanin.summary import TensorSummary, summarize
from fanin.trial import Role, Trial

HERE = Path(__file__).parent
RANKS = 2
LIMIT_S = 110
"""All scenarios take 15 s on two idle cores; pytest's own limit is 120."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks have left what they saw: every scenario in one launch, also where pytest runs in processes."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-ranks"
    over = place / "over"
    try:
        place.mkdir()
    except FileExistsError:  # another process of pytest has launched them
        give_up = time.monotonic() + LIMIT_S
        while not over.exists() and time.monotonic() < give_up:
            time.sleep(0.1)
    else:
        try:
            launch(place)
        finally:
            over.touch()
    return place


def launch(place: Path) -> None:
    """Run them to their end; none is left behind."""
    # --standalone takes a free port by itself.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    paths = [str(HERE.parent), str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    launched = subprocess.Popen(
        [sys.executable, *launcher, str(HERE / "ranks.py"), str(place)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = launched.communicate(timeout=LIMIT_S)
    finally:
        if launched.poll() is None:
            os.killpg(
                launched.pid, signal.SIGKILL
            )  # the ranks, in sessions of their own, die with their parent
            launched.communicate()
    assert launched.returncode == 0, said


def facts(folder: Path, scenario: str) -> list[dict[str, Any]]:
    """What each rank knows."""
    found = [json.loads((folder / scenario / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    assert [one.get("raised") for one in found] == [None] * RANKS
    return found


def trial_of(folder: Path, scenario: str) -> Trial:
    trial = load_trial(folder / scenario / "trial")
    assert trial.complete
    assert trial.workers == (0, 1)
    return trial


def require_equal(found: TensorSummary, values: list[Any], unit_axis: int | None) -> None:
    """A summary is that of these values: float32 tells moments to about 1e-6 of their scale, extremes to the bit."""
    wanted = summarize(np.asarray(values, np.float32), unit_axis=unit_axis)
    assert (found.count, found.zeros) == (wanted.count, wanted.zeros)
    assert (found.minimum, found.maximum) == (wanted.minimum, wanted.maximum)
    assert found.mean == pytest.approx(wanted.mean, abs=1e-6 * wanted.rms)
    assert found.m2 == pytest.approx(wanted.m2, rel=1e-5)
    if found.units is None or wanted.units is None:
        return
    for name in ("count", "mean", "m2", "minimum", "maximum", "projection"):
        scale = np.abs(getattr(wanted.units, name)).max()
        np.testing.assert_allclose(
            getattr(found.units, name), getattr(wanted.units, name), rtol=1e-5, atol=1e-5 * scale
        )


@pytest.mark.parametrize("scenario", ["replicas", "sharded", "split"])
def test_training_on_two_ranks_is_the_same_with_and_without_a_watch(folder: Path, scenario: str) -> None:
    for rank in facts(folder, scenario):
        assert rank["fault"] == "None"
        assert rank["watched"]["losses"] == rank["plain"]["losses"]
        assert rank["watched"]["after"] == rank["plain"]["after"]


@pytest.mark.parametrize("scenario", ["replicas", "sharded", "split"])
def test_a_watch_makes_ranks_communicate_no_more_than_they_do(folder: Path, scenario: str) -> None:
    for rank in facts(folder, scenario):
        assert rank["watched"]["collectives"] == rank["plain"]["collectives"]
        assert rank["plain"]["collectives"] > 0  # the count sees them


@pytest.mark.parametrize("scenario", ["replicas", "sharded", "split"])
def test_each_rank_records_its_own_loss_at_every_step(folder: Path, scenario: str) -> None:
    trial, ranks = trial_of(folder, scenario), facts(folder, scenario)
    assert [step.index for step in trial.steps] == [0, 1, 2]
    for step, *losses in zip(trial.steps, *(rank["plain"]["losses"] for rank in ranks), strict=True):
        assert [step.losses[worker] for worker in range(RANKS)] == pytest.approx(losses)


@pytest.mark.parametrize("scenario", ["sharded", "split"])
def test_summaries_of_shards_merge_to_those_of_the_whole(folder: Path, scenario: str) -> None:
    trial, rank = trial_of(folder, scenario), facts(folder, scenario)[0]["watched"]
    assert trial.start is not None
    own = {(o.worker, o.tensor): o for o in trial.start.observations}
    joined = trial.joined().start
    assert joined is not None
    for role, kept in (
        (Role.WEIGHT, "parameters"),
        (Role.BIAS, "parameters"),
        (Role.WEIGHT_GRAD, "gradients"),
    ):
        for name, seen in joined.of(role).items():
            require_equal(seen.summary, rank[kept][name.removeprefix("gradient/")], 0)
            assert seen.shape == np.shape(rank[kept][name.removeprefix("gradient/")])
            assert own[0, name].offset is not None
    halves = [own[worker, "fc1.weight"] for worker in range(RANKS)]
    assert [half.offset for half in halves] == [(0, 0), (4, 0)]
    assert [half.summary.count for half in halves] == [24, 24]  # no rank has seen the whole


def test_a_weight_that_is_split_along_its_inputs_merges_unit_by_unit(folder: Path) -> None:
    start = trial_of(folder, "split").start
    assert start is not None
    halves = [o for o in start.observations if o.tensor == "fc2.weight"]
    assert [half.offset for half in halves] == [(0, 0), (0, 4)]
    counts = [half.summary.units.count.tolist() for half in halves if half.summary.units]
    assert counts == [[4] * 4, [4] * 4]


def test_each_rank_sees_the_features_that_it_computes(folder: Path) -> None:
    start = trial_of(folder, "split").start
    assert start is not None
    outputs = [o for o in start.observations if o.tensor == "fc1_output_0"]
    assert [o.shape for o in outputs] == [(16, 4), (16, 4)]


def test_a_gradient_is_that_of_a_rank_before_it_is_averaged(folder: Path) -> None:
    start = trial_of(folder, "replicas").start
    averaged = facts(folder, "replicas")[0]["watched"]["gradients"]["module.fc2.weight"]
    assert start is not None
    own = [o.summary for o in start.observations if o.tensor == "gradient/fc2.weight"]
    assert own[0].maximum != own[1].maximum
    sums = [(o.units.mean * o.units.count) for o in own if o.units]
    expected = np.asarray(averaged, np.float64).sum(axis=1)
    np.testing.assert_allclose((sums[0] + sums[1]) / RANKS, expected, atol=1e-6)


@pytest.mark.parametrize("scenario", ["replicas", "sharded", "split", "replicas_of_an_inner_model"])
def test_names_are_those_of_the_model_however_it_is_distributed(folder: Path, scenario: str) -> None:
    trial = trial_of(folder, scenario)
    assert {layer.path for layer in trial.spec.layers} == {"fc1", "fc2"}
    assert [layer.calls for layer in trial.spec.layers] == [1, 1]


@pytest.mark.parametrize("scenario", ["replicas", "sharded", "split", "replicas_of_an_inner_model"])
def test_ranks_that_agree_are_no_finding(folder: Path, scenario: str) -> None:
    report = fanin.judge(folder / scenario / "trial")
    assert "FAN414" not in {f.code for f in report.findings}


def test_the_watch_knows_of_the_wrapper_around_the_model_that_it_was_given(folder: Path) -> None:
    start = trial_of(folder, "replicas_of_an_inner_model").start
    assert start is not None
    assert {o.offset for o in start.observations if o.tensor == "fc1.weight"} == {(0, 0)}


def test_a_layer_that_each_rank_draws_for_itself_is_found(folder: Path) -> None:
    report = fanin.judge(folder / "drawn_anew" / "trial")
    found = next(f for f in report.findings if f.code == "FAN414")
    assert report.verdict is Verdict.POOR
    assert (found.layers, found.tensor, found.workers) == (("fc2",), "fc2.weight", (0, 1))


def test_a_model_that_is_sharded_after_the_watch_began_trains_unwatched(folder: Path) -> None:
    for rank in facts(folder, "sharded_later"):
        assert "sharded since the watch began" in rank["fault"]
        assert len(rank["losses"]) == 3
    assert load_trial(folder / "sharded_later" / "trial").steps == ()
