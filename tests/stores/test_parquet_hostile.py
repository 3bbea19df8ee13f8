"""Parts that are meant to harm are refused before they take memory, and none ends the process that reads it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanin.errors import TrialFormatError
from fanin.stores import parquet
from fanin.stores.parquet import ParquetStore, pages
from fanin.stores.parquet.footer import footer_of
from fanin.stores.parquet.part import Part, decode, encode
from fanin.stores.parquet.table import SCHEMA, from_table, to_table
from fanin.stores.parquet.thrift import BINARY, FALSE, I32, I64, LIST, STRUCT, TRUE, Field, Reader, written
from fanin.summary import summarize
from fanin.trial import Step

from . import fuzzing, hostile
from .parquet_trial import ENVIRONMENT, PARTS, load_error
from .samples import observation, plain, step

TESTS = str(Path(__file__).parents[1])


def run(*arguments: object) -> dict[str, Any]:
    """A process of its own, which must live to its end."""
    command = [sys.executable, "-m", "stores.hostile", *map(str, arguments)]
    paths = os.pathsep.join((ENVIRONMENT["PYTHONPATH"], TESTS))
    known = ENVIRONMENT | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.returncode} {done.stderr[-2000:]}"
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_a_file_that_claims_what_it_does_not_hold_is_refused_without_memory(
    written: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = hostile.HOSTILE[name]()
    (written / PARTS[1]).write_bytes(data)
    assert load_error(written).where == f"{written}/{PARTS[1]}"
    monkeypatch.setattr("fanin.stores.parquet.part._table", lambda *_: pytest.fail("Arrow was asked"))
    tracemalloc.start()
    with pytest.raises((ValueError, TrialFormatError)):
        decode(data, "here")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * len(data) + 2**22


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peaks of memory are those that Linux tells"
)
@pytest.mark.parametrize("name", hostile.ALLOWED)
def test_what_may_be_decoded_takes_no_more_than_was_counted(tmp_path: Path, name: str) -> None:
    file = tmp_path / "part"
    file.write_bytes(data := hostile.ALLOWED[name]())
    took = run("take", file)
    assert took["said"] != "read"
    footer, before = footer_of(data)
    _, counted = pages.bounded(data, footer, before)
    assert 0.4 * counted < took["peak_mib"] * 2**20 < counted < pages.FREE + pages.RATIO * len(data)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peaks of memory are those that Linux tells"
)
def test_spoiled_parts_end_no_process_and_take_little(tmp_path: Path) -> None:
    found = run("fuzz", 400, 0, tmp_path / "last")
    assert found["refused"] + found["read"] == 400
    assert min(found["refused"], found["read"]) > 50  # both what is refused and what comes to Arrow
    assert found["peak_mib"] < 64


@pytest.mark.parametrize("which", fuzzing.MAKERS)
def test_a_trial_of_which_a_file_is_spoiled_is_refused_with_a_way_out_or_read(
    which: str, tmp_path: Path
) -> None:
    found = fuzzing.fuzz(fuzzing.MAKERS[which](tmp_path / "trial"), 40, 0)
    assert set(found) == {"refused", "read"}, found
    assert found.total() == 40


def zeros(index: int) -> bytes:
    """A part of a network that is dead, and so of little but repetition."""
    summary = summarize(np.zeros((4, 64)), histogram=True, unit_axis=1)
    seen = replace(observation(0), summary=summary)
    return encode(Part((Step(index, observations=(seen,) * 1000),)))


def test_many_small_parts_together_are_bounded_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ParquetStore(place).begin()
    excess = 0
    for index in range(2):
        (place / PARTS[index + 1]).write_bytes(zeros(index))
        excess += decode(zeros(index), "here").excess
    assert excess > 2 * 2**20
    monkeypatch.setattr(parquet, "LARGEST_TABLE", excess)
    assert len(ParquetStore(place).load().steps) == 2
    monkeypatch.setattr(parquet, "LARGEST_TABLE", excess - 1)
    error = load_error(place)
    assert error.what == "this trial would take more memory than files of its size do"
    assert error.where == f"{place}/{PARTS[2]}"


REWRITTEN: dict[str, dict[str, Any]] = {
    "as Arrow does by itself": {"compression": "snappy", "store_schema": True},
    "not compressed": {"compression": "none"},
    "in groups of rows": {"row_group_size": 2},
    "without dictionaries": {"use_dictionary": False},
    "in small pages": {"data_page_size": 64, "use_dictionary": False},
}


@pytest.mark.parametrize("how", REWRITTEN)
def test_a_part_that_others_have_written_again_is_read_alike(how: str, tmp_path: Path) -> None:
    part = Part((step(0), step(1)), about={"a": "b"})
    table = to_table(part.steps).append_column("novel", pa.array([{"deep": [1]}] * 6))
    entries = pq.read_metadata(pa.BufferReader(encode(part))).metadata
    pq.write_table(table.replace_schema_metadata(entries), tmp_path / "part", **REWRITTEN[how])
    assert plain(decode((tmp_path / "part").read_bytes(), "here")) == plain(part)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": "gzip"}, "are not as fanin writes them"),
        ({"data_page_version": "2.0"}, "a page of kind 3"),
    ],
)
def test_what_fanin_never_writes_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decode(hostile.put(to_table((step(0),)), **options), "here")


def test_indices_that_leave_their_dictionary_are_refused() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0, 7], pa.int32()), pa.array(["a"]), safe=False)
    table = hostile.rows(2)
    spoiled = table.set_column(3, "layer", words)
    with pytest.raises(pa.ArrowInvalid):
        list(from_table(spoiled))


def test_of_two_columns_of_one_name_none_is_chosen() -> None:
    columns = [pa.nulls(1, field.type) for field in SCHEMA]
    with pytest.raises(ValueError, match="two columns of the name 'mean'"):
        decode(hostile.put(pa.table([*columns, columns[0]], names=[*SCHEMA.names, "mean"])), "here")


# ── Thrift ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_structure_comes_back_as_it_was_written() -> None:
    inner = {1: Field(TRUE, True), 2: Field(FALSE, False), 300: Field(BINARY, b"x" * 200)}
    whole = {
        1: Field(I32, -(2**31)),
        2: Field(I64, 2**63 - 1),
        40: Field(LIST, (STRUCT, [inner] * 20)),
        41: Field(LIST, (I32, list(range(-3, 30)))),
        42: Field(STRUCT, {}),
    }
    data = written(whole)
    reader = Reader(memoryview(data + b"and more"))
    assert reader.structure() == whole
    assert reader.at == len(data)


def test_what_breaks_off_at_any_byte_is_refused() -> None:
    data = written(footer_of(encode(Part((step(0),))))[0])
    for end in random.Random(0).sample(range(len(data)), 200):
        with pytest.raises(ValueError, match=r"breaks off|claim|belongs|of type|deep"):
            Reader(memoryview(data[:end])).structure()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x15\x02\x05\x02\x02\x00", "field 1 where another"),  # number 1 twice
        (b"\x15" + b"\xff" * 9 + b"\x01\x00", "a number of 32 bits"),
        (b"\x1b\x00\x00", "of type 11"),  # a map
        (b"\x1e\x00", "of type 14"),
        (b"\x05\x00\x02\x00", "field 0"),
        (b"\x18\xff\xff\xff\xff\x0f", "4294967295 bytes are claimed"),
    ],
)
def test_what_arrow_could_take_for_something_else_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reader(memoryview(data)).structure()


def test_footers_are_read_as_arrow_reads_them() -> None:
    data = encode(Part((step(0),), about={"a": "b"}))
    footer, _ = footer_of(data)
    theirs = pq.read_metadata(pa.BufferReader(data))
    ours = [chunk[3].value for group in footer[4].value[1] for chunk in group[1].value[1]]
    assert len(ours) == theirs.num_columns
    for i, chunk in enumerate(ours):
        column = theirs.row_group(0).column(i)
        assert chunk[7].value == column.total_compressed_size
        assert chunk[9].value == column.data_page_offset
        assert chunk[5].value == column.num_values


def test_a_trial_that_is_refused_says_so_as_one(written: Path) -> None:
    (written / PARTS[1]).write_bytes(hostile.two_billion("shape"))
    with pytest.raises(TrialFormatError, match="a part of this trial is damaged") as caught:
        ParquetStore(written).load()
    assert "bytes of memory" in caught.value.got
