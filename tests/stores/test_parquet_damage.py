"""Parts that are damaged, missing, foreign or newer."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileInfo

from fanin.errors import (
    TrialFormatError,
)
from fanin.stores.parquet import ParquetStore
from fanin.stores.parquet.directory import Directory

from .hostile import spoiled
from .parquet_trial import PARTS, load_error, rewrite
from .samples import plain, step

Damage = Callable[[Path], object]


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
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "magic bytes"),
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
    "texts for numbers": (
        replaced("mean", lambda n: pa.array(["x"] * n)),
        "not of the type that fanin writes",
    ),
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


# ── files that are meant to harm ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_no_spoiled_stretch_leads_to_another_kind_of_error_or_much_memory(written: Path, seed: int) -> None:
    path, chance = written / PARTS[1], random.Random(seed)
    whole, refused = path.read_bytes(), 0
    before = pa.default_memory_pool().max_memory()
    for _ in range(100):
        path.write_bytes(spoiled(whole, chance))
        with suppress(TrialFormatError):
            ParquetStore(written).load()
            refused -= 1
        refused += 1
    assert refused > 80
    assert pa.default_memory_pool().max_memory() - before < 256 * 2**20


def test_a_pipe_in_the_place_of_a_part_is_not_waited_for(written: Path) -> None:
    (written / PARTS[1]).unlink()
    os.mkfifo(written / PARTS[1])
    error = load_error(written)
    assert (error.got, error.where) == ("something that is no file", f"{written}/{PARTS[1]}")


def test_a_part_of_many_gigabytes_is_not_read(written: Path) -> None:
    with (written / PARTS[1]).open("r+b") as file:
        file.truncate(2**40)  # of which the disk holds a few kilobytes
    error = load_error(written)
    assert error.got == f"{2**40} bytes"
