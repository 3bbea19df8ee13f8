"""A trial as a directory of Parquet files: its address, what is in it, how it is written and where nothing is."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
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
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from fanin.errors import (
    StoreError,
    TrialExistsError,
    TrialNotFoundError,
    UsageError,
)
from fanin.stores import open_store
from fanin.stores.parquet import ParquetStore, writing
from fanin.stores.parquet.directory import Directory
from fanin.stores.parquet.part import Part, decode, encode
from fanin.summary import Histogram, TensorSummary, UnitSummary
from fanin.trial import Mode, Observation, Role, Step

from .parquet_trial import ENVIRONMENT, PARTS, child, load_error, require_success, rewrite
from .samples import EMPTY, SPEC, observation, plain, step

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


# ── writing, and what stops it ──────────────────────────────────────────────────────────────────────────────


def stuck(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that takes nothing until the event is set."""
    publish, disk = Directory.publish, threading.Event()

    def waiting(self: Directory, *arguments: Any, **options: Any) -> None:
        disk.wait()
        publish(self, *arguments, **options)

    monkeypatch.setattr(Directory, "publish", waiting)
    return disk


def test_training_does_not_wait_for_the_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ParquetStore(place).begin()
    disk = stuck(monkeypatch)
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


def test_what_waits_is_as_many_parts_as_are_small_enough_to_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PART_TENSORS", 5)  # two steps of two tensors
    writer = ParquetStore(place).begin()
    disk = stuck(monkeypatch)
    for index in range(7):
        writer.append(step(index))
        while index == 0 and writer._in_hand is None:
            time.sleep(0.01)
    disk.set()
    writer.flush()
    assert [each.index for each in ParquetStore(place).load().steps] == list(range(7))
    writer.close()
    parts = [decode(path.read_bytes(), "here") for path in sorted(place.glob("part-*"))]
    assert [len(part.steps) for part in parts] == [0, 1, 2, 2, 2, 0]
    assert [part.end for part in parts] == [False] * 5 + [True]


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


@pytest.mark.parametrize("name", ["a\0b", "a\udcffb"])
def test_a_name_that_no_file_system_takes(tmp_path: Path, name: str) -> None:
    store = ParquetStore(f"{tmp_path}/{name}")
    for act, done in ((store.load, "read"), (store.begin, "written")):
        with pytest.raises(StoreError) as caught:
            act()
        assert caught.value.what == f"the trial cannot be {done}"
        assert re.match("ArrowInvalid|UnicodeEncodeError", caught.value.got)
        assert caught.value.next_step


def test_another_directory(place: Path) -> None:
    for name in ("config.yaml", "model.bin", "part-0.parquet", "part-w0-0.parquet", "x"):
        (place / name).mkdir(parents=True)
    error = load_error(place)
    assert error.what == "this directory is not a trial"
    assert error.got == "config.yaml, model.bin, part-0.parquet and 2 more"
    assert PARTS[0] in error.expected
    assert "give the directory that holds the parts" in error.next_step


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
    names = [series.name(0) for series in Directory(elsewhere, "bucket/exp1").series()]
    assert all(re.fullmatch(r"part-w0000[01]-000000-[0-9a-f]{8}\.parquet", name) for name in names)
