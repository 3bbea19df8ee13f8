"""A trial as a directory of Parquet files: what is in it, who may write it, and what is said when it is broken."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyarrow.fs import FileInfo, LocalFileSystem, SubTreeFileSystem

import fanin
from fanin.errors import (
    FaninError,
    StoreError,
    TrialExistsError,
    TrialFormatError,
    TrialNotFoundError,
    UsageError,
)
from fanin.stores import open_store
from fanin.stores.parquet import ParquetStore, writing
from fanin.stores.parquet.directory import Directory
from fanin.stores.parquet.part import Part, decode, encode
from fanin.summary import Histogram, TensorSummary, UnitSummary
from fanin.trial import Mode, Observation, Role, Step

from .samples import EMPTY, SPEC, observation, plain, step

CHILDREN = Path(__file__).with_name("children.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(fanin.__file__).parents[1])}
PARTS = ["part-w00000-000000.parquet", "part-w00000-000001.parquet", "part-w00000-000002.parquet"]

Damage = Callable[[Path], object]


def child(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process that writes (see children.py)."""
    command = [sys.executable, str(CHILDREN), *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT | environment, stderr=subprocess.PIPE, text=True)


def require_success(process: subprocess.Popen[str]) -> None:
    """Wait for it, and show what it said if it failed."""
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where there is no trial yet."""
    return tmp_path / "exp1"


@pytest.fixture
def written(place: Path) -> Path:
    """A closed trial of two steps, and so of the parts 0, 1, 2 and the end."""
    writer = ParquetStore(place).begin()
    writer.describe(SPEC)
    for index in range(2):
        writer.append(step(index))
        writer.flush()
    writer.close()
    return place


def load_error(place: Path, kind: type[FaninError] = TrialFormatError) -> FaninError:
    """What loading says; exactly this kind, not one below it."""
    with pytest.raises(kind) as caught:
        ParquetStore(place).load()
    assert type(caught.value) is kind
    assert caught.value.next_step
    assert str(place) in caught.value.where
    return caught.value


# ── addresses ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spell", [str, Path, lambda place: f"{place}/", lambda place: place.as_uri()])
def test_a_trial_is_opened_by_path_or_file_address(tmp_path: Path, spell: Callable[[Path], Any]) -> None:
    place = tmp_path / "with spaces" / "späť"
    open_store(spell(place)).begin().close()
    assert ParquetStore(place).load().complete


@pytest.mark.parametrize(
    "address", ["", "memory", None, 3, b"runs", "gs://bucket/run", "file://host/x", "file:// "]
)
def test_other_addresses_are_refused(address: Any) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(address)
    assert "directory" in caught.value.next_step + caught.value.expected
    assert caught.value.got


def test_the_table_of_stores_loads_no_pyarrow() -> None:
    code = "import sys, fanin.stores, fanin.stores.memory; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0


def test_a_trial_stays_where_it_began_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writer = open_store("runs/exp1").begin()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    writer.append(step(0))
    writer.close()
    assert len(ParquetStore(tmp_path / "runs" / "exp1").load().steps) == 1


# ── what a part holds ───────────────────────────────────────────────────────────────────────────────────────

whole_numbers = st.integers(0, 2**62)
names = st.text(max_size=12)
moments = st.floats()


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    size = draw(st.integers(0, 5))
    return Histogram(*(draw(arrays(np.int64, size)) for _ in range(2)), draw(st.sampled_from([0.0, 1e9])))


@st.composite
def unit_summaries(draw: st.DrawFn) -> UnitSummary:
    size = draw(st.integers(0, 5))
    return UnitSummary(draw(arrays(np.int64, size)), *(draw(arrays(np.float64, size)) for _ in range(5)))


summaries = st.builds(
    TensorSummary,
    *[whole_numbers] * 4,
    *[moments] * 4,
    histogram=st.none() | histograms(),
    units=st.none() | unit_summaries(),
)
observations = st.builds(
    Observation,
    layer=names,
    role=st.sampled_from(Role),
    tensor=names,
    summary=summaries,
    shape=st.lists(whole_numbers, max_size=4).map(tuple),
    dtype=names,
    worker=st.integers(0, 2**31),
)
steps = st.lists(
    st.builds(
        Step,
        index=whole_numbers,
        mode=st.sampled_from(Mode),
        observations=st.lists(observations, max_size=3).map(tuple),
        losses=st.dictionaries(st.integers(0, 100), st.floats(), max_size=3),
    ),
    max_size=4,
    unique_by=lambda each: (each.index, each.mode),
)


@settings(deadline=None, max_examples=60)
@given(written=steps, about=st.dictionaries(names, names, max_size=3), end=st.booleans())
def test_a_part_comes_back_to_the_last_bit(written: list[Step], about: dict[str, str], end: bool) -> None:
    part = Part(tuple(written), SPEC, about, end)
    assert plain(decode(encode(part), "here")) == plain(part)


@settings(deadline=None, max_examples=10)
@given(written=steps)
def test_a_trial_comes_back_to_the_last_bit(written: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = ParquetStore(directory)
        writer = store.begin()
        for each in written:
            writer.append(each)
        writer.close()
        assert plain(store.load().steps) == plain(tuple(written))


def test_other_readers_find_plain_columns(written: Path) -> None:
    table = pq.read_table(written)
    assert table.schema.names[:6] == ["step", "mode", "worker", "layer", "role", "tensor"]
    types = {str(column.type) for column in table.schema}
    assert types == {"int64", "double", "string", "list<element: int64>", "list<element: double>"}
    rows = table.sort_by("step").to_pylist()
    seen = observation(0)
    output = next(row for row in rows if row["role"] == "output")
    assert output["layer"] == "fc1"
    assert output["shape"] == [16, 8]
    assert output["variance"] == pytest.approx(seen.summary.variance)
    assert output["rms"] == pytest.approx(seen.summary.rms)
    assert seen.summary.histogram is not None
    assert sum(output["histogram_counts"]) == seen.summary.count
    assert len(output["unit_mean"]) == 8
    assert [row["value"] for row in rows if row["role"] == "loss"] == [0.0, 1.0]
    assert {row["value"] for row in rows if row["role"] != "loss"} == {None}


def test_derived_columns_survive_what_python_cannot_square() -> None:
    huge = replace(EMPTY, count=1, mean=1e200, m2=-1e-30)
    part = Part((Step(0, observations=(replace(observation(0), summary=huge),)),))
    row = pq.read_table(pa.BufferReader(encode(part))).to_pylist()[0]
    assert row["rms"] == pytest.approx(1e200)
    assert decode(encode(part), "here").steps[0].observations[0].summary.m2 == -1e-30


def test_an_empty_tensor_has_no_variance() -> None:
    part = Part((Step(0, observations=(replace(observation(0), summary=EMPTY),)),))
    assert math.isnan(pq.read_table(pa.BufferReader(encode(part)))["variance"][0].as_py())


def test_what_a_later_version_adds_is_passed_over(written: Path) -> None:
    rewrite(written / PARTS[1], more_columns={"novel": 1}, spec=lambda spec: spec | {"novel": [1, None]})
    trial = ParquetStore(written).load()
    assert plain(trial.steps) == plain((step(0), step(1)))


def test_a_part_starts_with_the_version_and_ends_with_the_end(written: Path) -> None:
    parts = [pq.read_metadata(path).metadata for path in sorted(written.iterdir())]
    assert {part[b"fanin.format"] for part in parts} == {b"1"}
    assert pq.read_metadata(written / PARTS[0]).num_rows == 0
    assert [b"fanin.spec" in part for part in parts] == [False, True, False, False]
    assert [b"fanin.end" in part for part in parts] == [False, False, False, True]


# ── who may write ───────────────────────────────────────────────────────────────────────────────────────────


def test_begin_leaves_a_trial_at_once(place: Path) -> None:
    writer = ParquetStore(place).begin(about={"command": "train.py"})
    trial = ParquetStore(place).load()
    assert trial.about == {"command": "train.py"}
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
    assert ParquetStore(place).load().about == {"run_id": "mine"}


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen between the look at a directory and the first part."""
    publish = Directory.publish

    def late(self: Directory, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(Directory, "publish", publish)
        act()
        publish(self, *arguments, **options)

    monkeypatch.setattr(Directory, "publish", late)


def test_of_two_runs_that_begin_at_once_as_one_worker_one_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: ParquetStore(place).begin(0, {"run_id": "a"}).close())
    with pytest.raises(TrialExistsError):
        ParquetStore(place).begin(0, {"run_id": "b"})
    assert ParquetStore(place).load().about == {"run_id": "a"}


def test_of_two_runs_that_begin_at_once_one_withdraws(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(monkeypatch, lambda: ParquetStore(place).begin(1, {"run_id": "a"}).close())
    with pytest.raises(TrialExistsError):
        ParquetStore(place).begin(0, {"run_id": "b"})
    assert ParquetStore(place).load().about == {"run_id": "a"}
    assert ParquetStore(place).load().complete


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
    assert trial.about == {"run_id": "job7/h:1", "world_size": "2"}


# ── writing, and what stops it ──────────────────────────────────────────────────────────────────────────────


def test_training_does_not_wait_for_the_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ParquetStore(place).begin()
    publish, disk = Directory.publish, threading.Event()

    def stuck(self: Directory, *arguments: Any, **options: Any) -> None:
        disk.wait()
        publish(self, *arguments, **options)

    monkeypatch.setattr(Directory, "publish", stuck)
    for index in range(100):
        writer.append(step(index))
    disk.set()
    writer.close()
    assert len(ParquetStore(place).load().steps) == 100
    assert len(list(place.iterdir())) <= 4  # part 0, what the thread took at first, the rest, the end


def test_steps_that_come_fast_share_a_part(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "REST", 600.0)
    writer = ParquetStore(place).begin()
    writer.append(step(0))
    writer.flush()
    before = set(place.iterdir())
    for index in range(1, 20):
        writer.append(step(index))
        time.sleep(0.01)  # each of them time enough for a part of its own
    assert set(place.iterdir()) == before
    writer.close()
    assert len(set(place.iterdir()) - before) == 1
    assert len(ParquetStore(place).load().steps) == 20


def test_a_lost_directory_is_reported_once(written: Path, place: Path) -> None:
    store = ParquetStore(f"{place}-2")
    writer = store.begin()
    shutil.rmtree(f"{place}-2")
    writer.append(step(0))
    with pytest.raises(StoreError) as caught:
        writer.flush()
    assert caught.value.what == "the trial could not be written to its end"
    assert caught.value.where.endswith(PARTS[1])
    assert "No such file or directory" in caught.value.got
    assert "room" in caught.value.next_step
    writer.append(step(1))
    writer.describe(SPEC)
    writer.flush()
    writer.close()
    assert not Path(f"{place}-2").exists()


def test_close_reports_what_flush_did_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ParquetStore(place).begin()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    writer.append(step(0))
    with pytest.raises(StoreError, match="could not be written") as caught:
        writer.close()
    writer.close()
    assert "No space left on device" in caught.value.got
    monkeypatch.undo()
    assert [path.name for path in place.iterdir()] == PARTS[:1]
    assert not ParquetStore(place).load().complete


def test_what_cannot_be_encoded_is_reported_and_the_rest_is_kept(place: Path) -> None:
    writer = ParquetStore(place).begin()
    writer.append(step(0))
    writer.flush()
    writer.append(Step(1, observations=(replace(observation(1), layer="\ud800"),)))
    with pytest.raises(StoreError, match="could not be written"):
        writer.flush()
    writer.close()
    assert len(ParquetStore(place).load().steps) == 1


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        ParquetStore(tmp_path / "file" / "exp1").begin()
    assert caught.value.what == "the trial cannot be written"
    assert "Not a directory" in caught.value.got
    assert caught.value.next_step == "choose a directory that can be written"


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StoreError, match="a trial is a directory, and this is a file"):
        ParquetStore(tmp_path / "file").begin()
    assert (tmp_path / "file").read_text() == "kept"


def test_any_thread_may_flush_and_close(place: Path) -> None:
    writer = ParquetStore(place).begin()
    writer.append(step(0))
    threads = [
        threading.Thread(target=end) for end in (writer.flush, writer.close, writer.close, writer.flush)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ParquetStore(place).load().complete


def test_a_signal_handler_may_flush(place: Path) -> None:
    writer = ParquetStore(place).begin()
    before = signal.signal(signal.SIGUSR1, lambda *_: writer.flush())
    try:
        for index in range(50):
            writer.append(step(index))
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(ParquetStore(place).load().steps) == 50
    writer.close()


def test_a_forked_child_does_nothing(place: Path) -> None:
    require_success(child("fork", str(place)))
    trial = ParquetStore(place).load()
    assert [each.index for each in trial.steps] == [0, 1]
    assert trial.complete


@pytest.mark.parametrize(("verb", "complete"), [("close_at_exit", True), ("never_close", False)])
def test_the_interpreter_ends(place: Path, verb: str, complete: bool) -> None:
    require_success(child(verb, str(place)))
    trial = ParquetStore(place).load()
    assert len(trial.steps) == 1
    assert trial.complete is complete


# ── reading what is not a trial ─────────────────────────────────────────────────────────────────────────────


def test_nothing_there(place: Path) -> None:
    error = load_error(place, TrialNotFoundError)
    assert "there is no trial at this address" in str(error)
    assert error.got == "nothing of that name"
    assert "check the path" in error.next_step


@pytest.mark.parametrize("hidden", [[], [f".{PARTS[0]}.1-ab.tmp"]])
def test_an_empty_directory(place: Path, hidden: list[str]) -> None:
    place.mkdir()
    for name in hidden:
        (place / name).write_bytes(b"PAR1")
    assert load_error(place, TrialNotFoundError).got == "an empty directory"


def test_a_file(written: Path) -> None:
    error = load_error(written / PARTS[0])
    assert error.what == "a trial is a directory, and this is a file"
    assert error.next_step == f"give a directory, e.g. {written}"


def test_another_directory(place: Path) -> None:
    for name in ("config.yaml", "model.bin", "part-0.parquet", "part-w0-0.parquet", "x"):
        (place / name).mkdir(parents=True)
    error = load_error(place)
    assert error.what == "this directory is not a trial"
    assert error.got == "config.yaml, model.bin, part-0.parquet and 2 more"
    assert PARTS[0] in error.expected
    assert "give the directory that holds the parts" in error.next_step


# ── reading what is broken ──────────────────────────────────────────────────────────────────────────────────


def rewrite(
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    spec: Callable[[dict[str, Any]], Any] | None = None,
    more_columns: Mapping[str, Any] | None = None,
    drop: str = "",
) -> None:
    """Write a part again, changed."""
    table, entries = pq.read_table(path), dict(pq.read_metadata(path).metadata or {})
    entries |= {key.encode(): value.encode() for key, value in (metadata or {}).items()}
    if spec is not None:
        entries[b"fanin.spec"] = json.dumps(spec(json.loads(entries[b"fanin.spec"]))).encode()
    for name, value in (more_columns or {}).items():
        table = table.append_column(name, pa.array([value] * len(table)))
    if drop:
        table = table.drop_columns([drop])
    pq.write_table(table.replace_schema_metadata(entries), path)


def change(**changes: Any) -> Damage:
    return lambda path: rewrite(path, **changes)


def replaced(column: str, array: Callable[[int], pa.Array]) -> Damage:
    """Write a part with another column in the place of one."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        at = table.schema.get_field_index(column)
        pq.write_table(table.set_column(at, column, array(len(table))), path)

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "nothing in it": (lambda path: path.write_bytes(b""), "size is 0 bytes"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "footer"),
    "text": (lambda path: path.write_text("hello, this is no Parquet"), "magic bytes"),
    "version of letters": (change(metadata={"fanin.format": "new"}), "invalid literal"),
    "version 0": (change(metadata={"fanin.format": "0"}), "there is no format 0"),
    "no JSON in about": (change(metadata={"fanin.about": "{"}), "JSONDecodeError"),
    "a list in about": (change(metadata={"fanin.about": "[1]"}), "expected names and texts, got [1]"),
    "numbers in about": (change(metadata={"fanin.about": '{"a": 1}'}), "expected names and texts"),
    "no JSON in the spec": (change(metadata={"fanin.spec": "null and void"}), "JSONDecodeError"),
    "endless JSON": (change(metadata={"fanin.spec": "[" * 100_000}), "RecursionError"),
    "no spec in the spec": (change(metadata={"fanin.spec": "3"}), "expected dict, got 3"),
    "no name in the spec": (change(metadata={"fanin.spec": "{}"}), "missing 2 required"),
    "a number for a name": (change(spec=lambda spec: spec | {"name": 1}), "expected str, got 1"),
    "a text for layers": (change(spec=lambda spec: spec | {"layers": "abc"}), "expected list, got 'abc'"),
    "a column less": (change(drop="mean"), "mean"),
    "texts for numbers": (replaced("mean", lambda n: pa.array(["x"] * n)), "ArrowInvalid"),
    "no numbers": (replaced("mean", lambda n: pa.nulls(n, pa.float64())), "lacks a part of its summary"),
    "a role that is none": (replaced("role", lambda n: pa.array(["nose"] * n)), "'nose' is not a valid Role"),
    "a mode that is none": (
        replaced("mode", lambda n: pa.array(["sleep"] * n)),
        "'sleep' is not a valid Mode",
    ),
    "no step": (replaced("step", lambda n: pa.nulls(n, pa.int64())), "TypeError"),
    "a histogram without counts": (
        replaced("histogram_counts", lambda n: pa.nulls(n, pa.list_(pa.int64()))),
        "Histogram columns of different lengths",
    ),
    "units of two lengths": (
        replaced("unit_mean", lambda n: pa.array([[1.0]] * n)),
        "UnitSummary columns of different lengths",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_named(written: Path, damage: str) -> None:
    break_it, said = DAMAGES[damage]
    break_it(written / PARTS[1])
    error = load_error(written)
    assert error.what == "a part of this trial is damaged"
    assert error.where == f"{written}/{PARTS[1]}"
    assert said in error.got
    assert "\n" not in error.got
    assert error.next_step == (
        "copy it again, or delete it and the later parts of worker 0 to read what came before"
    )


def test_the_way_out_of_damage_works(written: Path) -> None:
    (written / PARTS[2]).write_bytes(b"")
    for path in sorted(written.iterdir())[2:]:
        path.unlink()
    trial = ParquetStore(written).load()
    assert plain(trial.steps) == plain((step(0),))
    assert not trial.complete


def test_no_flipped_bit_leads_to_another_kind_of_error(written: Path) -> None:
    path = written / PARTS[1]
    whole, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            ParquetStore(written).load()
        except TrialFormatError:
            refused += 1
    assert refused > 100  # the pages carry checksums; the JSON and the padding do not


def test_a_gap_is_named(written: Path) -> None:
    (written / PARTS[1]).unlink()
    error = load_error(written)
    assert error.what == "a part of this trial is missing"
    assert error.where == f"{written}/{PARTS[1]}"
    assert error.next_step.endswith("or delete the later parts of worker 0 to read what came before")


def test_a_part_number_beyond_reason_is_a_gap(written: Path) -> None:
    (written / "part-w00000-999999999999.parquet").write_bytes(b"")
    assert load_error(written).what == "a part of this trial is missing"


def test_a_part_that_a_listing_missed_is_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = Directory.entries

    def hasty(self: Directory) -> list[FileInfo]:
        return [info for info in entries(self) if info.base_name != PARTS[1]]

    monkeypatch.setattr(Directory, "entries", hasty)
    assert len(ParquetStore(written).load().steps) == 2


def test_a_trial_is_read_up_to_the_break(written: Path) -> None:
    for path in sorted(written.iterdir())[2:]:
        path.unlink()
    (written / f".{PARTS[2]}.1-ab.tmp").write_bytes(b"PAR1, and then the power went")
    (written / "notes.txt").write_text("other files beside the parts do not matter")
    trial = ParquetStore(written).load()
    assert plain(trial.steps) == plain((step(0),))
    assert not trial.complete


def test_a_parquet_file_of_somebody_else(place: Path) -> None:
    place.mkdir()
    pq.write_table(pa.table({"a": [1]}), place / PARTS[0])
    error = load_error(place)
    assert error.what == "this Parquet file is not part of a trial"
    assert error.where == f"{place}/{PARTS[0]}"
    assert "fanin.format" in error.got
    with pytest.raises(TrialFormatError, match="not part of a trial"):
        ParquetStore(place).begin(1, {"run_id": "a"})


def test_a_newer_format(written: Path) -> None:
    rewrite(written / PARTS[1], metadata={"fanin.format": "2"}, drop="mean")
    error = load_error(written)
    assert error.what == "this trial was written by a newer fanin"
    assert (error.got, error.expected) == ("format 2", "format 1")
    assert "upgrade fanin" in error.next_step


@pytest.mark.parametrize("target", ["../secret", "/dev/zero", "../exp1/../secret"])
def test_a_link_out_of_the_directory_is_not_followed(written: Path, target: str) -> None:
    (written.parent / "secret").write_bytes((written / PARTS[1]).read_bytes())
    (written / PARTS[1]).unlink()
    (written / PARTS[1]).symlink_to(target)
    error = load_error(written)
    assert error.what == "a part of this trial is a link that leads out of it"
    assert error.where == f"{written}/{PARTS[1]}"


def test_a_link_to_a_trial_is_followed(written: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(written)
    assert len(ParquetStore(tmp_path / "latest").load().steps) == 2


# ── other file systems ──────────────────────────────────────────────────────────────────────────────────────


def test_a_file_system_that_is_not_a_local_disk(tmp_path: Path) -> None:
    elsewhere = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    store = ParquetStore("bucket/exp1", elsewhere)
    writer = store.begin(0, {"run_id": "a"})
    writer.append(step(0))
    writer.close()
    store.begin(1, {"run_id": "a"}).close()
    with pytest.raises(TrialExistsError):
        store.begin(1, {"run_id": "a"})
    trial = store.load()
    assert plain(trial.steps) == plain((step(0),))
    assert (trial.complete, trial.uri) == (True, "bucket/exp1")
    with pytest.raises(FileExistsError):
        Directory(elsewhere, "bucket/exp1").publish(PARTS[0], b"", exclusive=True)
