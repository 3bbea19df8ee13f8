"""Who may write a trial: one run at a place, each worker once."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fanin.errors import (
    TrialExistsError,
    TrialNotFoundError,
    UsageError,
)
from fanin.stores.parquet import ParquetStore
from fanin.stores.parquet.directory import Directory, Series
from fanin.stores.parquet.part import Part, encode
from fanin.trial import identity_of

from .parquet_trial import child, require_success


def test_begin_leaves_a_trial_at_once(place: Path) -> None:
    writer = ParquetStore(place).begin(about={"command": "train.py"})
    trial = ParquetStore(place).load()
    assert trial.about == {"command": "train.py", "identity": trial.identity}
    assert not trial.complete
    writer.close()


def test_a_second_run_is_refused_with_a_way_out(written: Path) -> None:
    before = sorted(written.iterdir())
    with pytest.raises(TrialExistsError) as caught:
        ParquetStore(f"{written}/").begin()
    assert "there is a trial here already" in str(caught.value)
    assert "got       parts of worker 0" in str(caught.value)
    assert f"choose another directory, e.g. {written}-2, or remove it" in str(caught.value)
    assert sorted(written.iterdir()) == before


ELASTIC = {"TORCHELASTIC_RUN_ID": "job7", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
STATIC = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "h", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        pytest.param(ELASTIC, ELASTIC, None, id="one torchrun"),
        pytest.param(STATIC, STATIC, None, id="one torchrun without an id"),
        pytest.param(ELASTIC | {"WORLD_SIZE": "2"}, ELASTIC | {"WORLD_SIZE": "2"}, None, id="one size"),
        pytest.param({}, {}, "a run without an id", id="nobody launched"),
        pytest.param(
            {"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none"}, "without an id", id="none"
        ),
        pytest.param(ELASTIC, {}, "run job7/h:1; this is a run without an id", id="now by hand"),
        pytest.param({}, ELASTIC, "a run without an id; this is run job7/h:1", id="by hand before"),
        pytest.param(
            ELASTIC, ELASTIC | {"TORCHELASTIC_RUN_ID": "job8"}, "this is run job8/h:1", id="next job"
        ),
        pytest.param(STATIC, STATIC | {"MASTER_PORT": "2"}, "run h:1; this is run h:2", id="next port"),
        pytest.param(
            ELASTIC | {"WORLD_SIZE": "2"},
            ELASTIC | {"WORLD_SIZE": "4"},
            "of 2 workers; this is run job7/h:1 of 4 workers",
            id="another size",
        ),
    ],
)
def test_workers_join_only_their_own_run(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: Mapping[str, str],
    second: Mapping[str, str],
    said: str | None,
) -> None:
    with monkeypatch.context() as patch:
        for name, value in first.items():
            patch.setenv(name, value)
        ParquetStore(place).begin(0).close()
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    if said is None:
        ParquetStore(place).begin(1).close()
        assert len(list(place.iterdir())) == 4
        return
    with pytest.raises(TrialExistsError) as caught:
        ParquetStore(place).begin(1)
    assert said in caught.value.got
    assert "run_id" in caught.value.next_step
    assert len(list(place.iterdir())) == 2


def test_a_run_may_name_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ParquetStore(place).begin(0, {"run_id": "mine"}).close()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    ParquetStore(place).begin(1, {"run_id": "mine"}).close()
    assert ParquetStore(place).load().about["run_id"] == "mine"


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen between the look at a directory and the first part."""
    claim = Directory.claim

    def late(self: Directory, *arguments: Any) -> Series:
        monkeypatch.setattr(Directory, "claim", claim)
        act()
        return claim(self, *arguments)

    monkeypatch.setattr(Directory, "claim", late)


def test_of_two_runs_that_begin_at_once_as_one_worker_one_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: ParquetStore(place).begin(0, {"run_id": "a"}).close())
    with pytest.raises(TrialExistsError):
        ParquetStore(place).begin(0, {"run_id": "b"})
    assert ParquetStore(place).load().about["run_id"] == "a"


def test_of_two_runs_that_begin_at_once_one_withdraws(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(monkeypatch, lambda: ParquetStore(place).begin(1, {"run_id": "a"}).close())
    with pytest.raises(TrialExistsError):
        ParquetStore(place).begin(0, {"run_id": "b"})
    assert ParquetStore(place).load().about["run_id"] == "a"
    assert ParquetStore(place).load().complete


def vanishing(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], name: str) -> None:
    """Let something happen between the listing and the moment at which a part is opened."""
    read = Directory.read

    def late(self: Directory, asked: str) -> bytes:
        if asked == name:
            monkeypatch.setattr(Directory, "read", read)
            act()
        return read(self, asked)

    monkeypatch.setattr(Directory, "read", late)


def test_a_worker_that_withdraws_while_it_is_read_was_never_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ParquetStore(place).begin(0, {"run_id": "a"}).close()
    ParquetStore(place).begin(1, {"run_id": "a"})
    other = place / "part-w00001-000000.parquet"
    vanishing(monkeypatch, other.unlink, other.name)
    assert ParquetStore(place).load().complete


def test_a_worker_that_withdraws_while_another_begins_is_not_in_its_way(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ParquetStore(place).begin(1, {"run_id": "another"})
    other = place / "part-w00001-000000.parquet"
    vanishing(monkeypatch, other.unlink, other.name)
    ParquetStore(place).begin(0, {"run_id": "a"}).close()
    assert ParquetStore(place).load().about["run_id"] == "a"


def test_a_trial_that_is_removed_while_it_is_read_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ParquetStore(place).begin(0).close()
    vanishing(monkeypatch, lambda: shutil.rmtree(place), "part-w00000-000001.parquet")
    with pytest.raises(TrialNotFoundError, match="there is no trial at this address"):
        ParquetStore(place).load()


def test_beginning_is_exclusive_without_hard_links(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*arguments: object) -> None:
        raise PermissionError("no hard links on this file system")

    monkeypatch.setattr(os, "link", link)
    meanwhile(monkeypatch, lambda: ParquetStore(place).begin().close())
    with pytest.raises(TrialExistsError):
        ParquetStore(place).begin()
    assert ParquetStore(place).load().complete
    assert not list(place.glob(".*"))


@pytest.mark.parametrize("worker", [-1, "0", "../../etc", True, 1.0])
def test_a_worker_is_a_rank(place: Path, worker: Any) -> None:
    with pytest.raises(UsageError, match="a worker is a rank"):
        ParquetStore(place).begin(worker)
    assert not place.exists()


def test_processes_write_as_workers_of_one_trial(place: Path) -> None:
    children = [
        child("write", str(place), str(worker), "6", **ELASTIC, WORLD_SIZE="2") for worker in range(2)
    ]
    for process in children:
        require_success(process)
    trial = ParquetStore(place).load()
    assert trial.complete
    assert trial.workers == (0, 1)
    assert [each.index for each in trial.steps] == list(range(6))
    assert all(each.losses == {0: each.index, 1: each.index} for each in trial.steps)
    assert trial.about == {"run_id": "job7/h:1", "world_size": "2", "identity": trial.identity}


# ── identity ────────────────────────────────────────────────────────────────────────────────────────────────


def identities(place: Path) -> list[str]:
    """What each worker says, by rank."""
    store = ParquetStore(place)
    return [identity_of(store._read(one, 0).about) for one in store._directory.series()]


def test_no_two_runs_have_one_identity_whatever_a_launcher_calls_them(tmp_path: Path) -> None:
    found = set()
    for number in range(5):
        ParquetStore(tmp_path / str(number)).begin(0, {"run_id": "job7"}).close()
        found.add(ParquetStore(tmp_path / str(number)).load().identity)
    assert len(found) == 5
    assert all(len(each) == 16 for each in found)


def test_it_is_not_drawn_from_the_randomness_of_the_training(tmp_path: Path) -> None:
    before = random.getstate()
    try:
        for name in "ab":
            random.seed(0)
            seeded = random.getstate()
            ParquetStore(tmp_path / name).begin().close()
            assert random.getstate() == seeded
    finally:
        random.setstate(before)
    assert identities(tmp_path / "a") != identities(tmp_path / "b")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_workers_that_come_later_take_over_the_identity_that_is_there(
    place: Path, order: tuple[int, ...]
) -> None:
    seen = set()
    for rank in order:
        ParquetStore(place).begin(rank, {"run_id": "a"}).close()
        seen.add(ParquetStore(place).load().identity)
    assert len(seen) == 1
    assert set(identities(place)) == seen


def test_of_workers_that_begin_at_once_the_lowest_gives_the_run_its_identity(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: ParquetStore(place).begin(1, {"run_id": "a"}).close())
    ParquetStore(place).begin(0, {"run_id": "a"}).close()
    zero, one = identities(place)
    assert zero != one
    assert ParquetStore(place).load().identity == zero


def test_a_trial_of_an_older_fanin_is_known_by_when_and_how_it_was_started(tmp_path: Path) -> None:
    started = {"started": "2026-03-01T09:30:00+00:00", "command": "train.py"}
    for name, about in (
        ("a", started),
        ("b", started),
        ("c", started | {"started": "2026-03-01T09:30:01+00:00"}),
    ):
        directory = Directory.at(str(tmp_path / name))
        directory.create()
        directory.claim(0, encode(Part(about=about)))
    a, b, c = (ParquetStore(tmp_path / name).load().identity for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("said", ["", "x" * 65, "\x1b[2J", "a b", "é"])
def test_an_identity_that_nobody_drew_is_none(said: str) -> None:
    assert len(identity_of({"identity": said})) == 16
