"""`fanin trial`: trials are listed, shown, exported, verified and removed, and nothing else is."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
from math import isnan
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow.fs import FileType

from fanin import cli_trial
from fanin.beside import STATUS, Beside, beat_name
from fanin.cli import main
from fanin.errors import FaninError, UsageError
from fanin.exports import EXPORTS, export
from fanin.exports.rows import COLUMNS, rows
from fanin.shelf import _is_left_over, kept, remove, verify
from fanin.stores import open_store
from fanin.stores.parquet.directory import Directory
from fanin.stores.smdebug.wire import as_bytes, as_text, fields
from fanin.synthetic import mlp
from fanin.trial import Mode, Trial
from stores.smdebug_writer import TrialWriter, castagnoli


def fanin(*arguments: str, given: str | None = None) -> Result:
    """Run the command line."""
    return CliRunner().invoke(main, arguments, input=given)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Two trials of ours, one of smdebug's, one that is damaged, and files of others."""
    for name, init in (("a/good", "he_normal"), ("a/zeros", "zeros")):
        write(tmp_path / name, mlp((8, 16, 16, 4), init, steps=2))
    TrialWriter(tmp_path / "b").collections().step(0, {"relu_input_0": [1.0, 2.0]}).end()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/part-w00000-000000.parquet").write_bytes(b"nothing")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/notes.txt").write_text("mine")
    return tmp_path


def write(place: Path, trial: Trial) -> None:
    """Keep a trial."""
    writer = open_store(place).begin()
    writer.describe(trial.spec)
    for step in trial.steps:
        writer.append(step)
    writer.close()


def test_trials_are_found_below_a_directory(shelf: Path) -> None:
    found = {Path(one.uri).relative_to(shelf).as_posix(): one for one in kept(shelf)}
    assert list(found) == ["a/good", "a/zeros", "b", "c"]
    assert [one.trial is None for one in found.values()] == [False, False, False, True]
    assert [Path(one.uri) for one in kept(shelf / "a/good")] == [shelf / "a/good"]
    assert list(kept(shelf / "d")) == []


def test_links_are_not_followed(shelf: Path) -> None:
    (shelf / "d/up").symlink_to(shelf)
    assert len(list(kept(shelf))) == 4


def test_a_folder_whose_name_is_no_text_is_listed_with_its_reason_and_so_are_the_others(shelf: Path) -> None:
    os.mkdir(os.fsencode(shelf) + b"/bad\xff")
    (shelf / "d" / os.fsdecode(b"file\xff")).write_text("mine")
    (shelf / "a/good" / os.fsdecode(b"file\xff")).write_text("mine")
    found = {Path(one.uri).name: one for one in kept(shelf)}
    assert list(found) == ["good", "zeros", "b", os.fsdecode(b"bad\xff"), "c"]
    assert found["good"].trial is not None
    result = fanin("trial", "ls", str(shelf))
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if "bad" in line)
    assert "bad\\udcff  cannot be read  the trial cannot be listed: UnicodeEncodeError" in line
    assert len(result.stdout.splitlines()) == 5


def test_names_that_an_address_must_escape_are_found_under_a_file_address(shelf: Path) -> None:
    for name in ("a b", "a%20b", "q?x=1"):
        write(shelf / name, mlp((4, 4), steps=1))
    os.mkdir(os.fsencode(shelf) + b"/bad\xff")
    refused = [one for one in kept(f"file://{shelf}") if one.trial is None]
    assert [one.uri.rpartition("/")[2] for one in refused] == ["bad%FF", "c"]
    found = [one for one in kept(f"file://{shelf}") if one.trial is not None]
    assert [one.uri.rpartition("/")[2] for one in found] == [
        "good",
        "zeros",
        "a%20b",
        "a%2520b",
        "b",
        "q%3Fx%3D1",
    ]


def test_a_prefix_that_no_address_leads_to_is_listed_with_its_reason(endpoint: str, bucket_uri: str) -> None:
    place = bucket_uri.rpartition("/")[0]
    writer = open_store(f"{place}/good").begin()
    writer.close()
    store, path = Directory.at(place).filesystem, place.removeprefix("s3://")
    for name in ("bad?x=1", "bad?region=eu-west-1"):
        with store.open_output_stream(f"{path}/{name}/part-w00000-000000.parquet") as file:
            file.write(b"")
    found = {one.uri.rpartition("/")[2]: one for one in kept(place)}
    assert list(found) == ["bad?region=eu-west-1", "bad?x=1", "good"]
    assert [one.trial is None for one in found.values()] == [True, True, False]
    said = fanin("trial", "ls", place)
    assert said.exit_code == 0
    assert "this name cannot stand in an address: 'bad?x=1'" in said.stdout


@pytest.mark.parametrize("name", ["nothing", "d/notes.txt"])
def test_what_is_no_directory_has_no_trials(name: str, shelf: Path) -> None:
    with pytest.raises(UsageError, match="under a directory"):
        list(kept(shelf / name))


def test_ls_shows_verdicts(shelf: Path) -> None:
    result = fanin("trial", "ls", str(shelf))
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 4
    assert "a/zeros" in lines[1]
    assert "poor" in lines[1]
    assert "SageMaker's rule: undecided" in lines[2]
    assert "cannot be read" in lines[3]
    assert "poor" not in fanin("trial", "ls", str(shelf), "--no-verdict").stdout
    assert "no trials under" in fanin("trial", "ls", str(shelf / "d")).stdout


def test_show_counts_steps_and_tensors(shelf: Path) -> None:
    said = fanin("trial", "show", str(shelf / "a/good")).stdout
    assert "2 steps" in said
    assert "weight_grad" in said
    assert "3 tensors" in said
    assert "closed" in said


def test_names_from_a_trial_are_escaped(tmp_path: Path) -> None:
    TrialWriter(tmp_path / "x").collections().step(
        0, {"\x1b[31mNet_fc.weight": np.ones((2, 2)), "a_input_0": [1.0]}
    )
    for command in (["show", str(tmp_path / "x")], ["ls", str(tmp_path)]):
        result = fanin("trial", *command)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout


# ── export ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def trial() -> Trial:
    """Three steps of a small network."""
    return mlp((8, 16, 16, 4), steps=3)


def test_the_forms_of_the_command_line_are_those_of_the_table() -> None:
    assert tuple(EXPORTS) == cli_trial.FORMS
    with pytest.raises(UsageError, match="no such form"):
        export("xml", mlp((4, 4)))


def test_a_table_has_every_tensor_and_loss(trial: Trial) -> None:
    (data,) = export("csv", trial).values()
    table = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert tuple(table[0]) == COLUMNS
    assert len(table) == sum(len(step.observations) + len(step.losses) for step in trial.steps)
    seen = trial.steps[1].observations[0]
    (row,) = (r for r in table if (r["step"], r["tensor"], r["role"]) == ("1", seen.tensor, seen.role.value))
    assert float(row["variance"]) == seen.summary.variance
    assert [float(r["mean"]) for r in table if r["role"] == "loss"] == [step.loss for step in trial.steps]
    grad = next(r for r in table if r["role"] == "weight_grad")
    assert float(grad["p5_low"]) <= float(grad["p5_high"]) < float(grad["p95_low"])


def test_json_holds_the_same_and_is_strict(trial: Trial) -> None:
    (data,) = export("json", trial).values()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(data, parse_constant=refuse)
    assert len(found["rows"]) == len(list(rows(trial)))
    assert found["spec"]["layers"][0]["path"] == trial.spec.layers[0].path


def messages(data: bytes) -> list[memoryview]:
    """The records of an event file, checked by checksums of the tests' own."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        head, payload, foot = data[8:12], data[12 : 12 + length], data[12 + length : 16 + length]
        assert struct.unpack("<II", head + foot) == (castagnoli(data[:8]), castagnoli(payload))
        found.append(memoryview(payload))
        data = data[16 + length :]
    return found


def test_tensorboard_files_hold_scalars_and_histograms(trial: Trial) -> None:
    (data,) = (
        d for name, d in export("tensorboard", trial).items() if name == "train/events.out.tfevents.0.fanin"
    )
    first, *events = messages(data)
    assert as_text(dict(fields(first))[3]) == "brain.Event:2"
    assert [dict(fields(event))[2] for event in events] == [0, 1, 2]
    values = [
        dict(fields(as_bytes(v)))
        for v in (value for _, value in fields(as_bytes(dict(fields(events[1]))[5])))
    ]
    by_tag = {as_text(value[1]): value for value in values}
    assert struct.unpack("<f", as_bytes(by_tag["loss"][2]))[0] == pytest.approx(trial.steps[1].loss, rel=1e-6)
    gradient = next(iter(trial.steps[1].of(trial.steps[1].observations[-1].role).values()))
    tag = f"{gradient.role.value}/{gradient.tensor}"
    assert struct.unpack("<f", as_bytes(by_tag[f"{tag}/variance"][2]))[0] == pytest.approx(
        gradient.summary.variance, rel=1e-6
    )
    histograms = [value[5] for tag, value in by_tag.items() if 5 in value]
    assert histograms
    for histogram in histograms:
        found = dict(fields(as_bytes(histogram)))
        counts = np.frombuffer(as_bytes(found[7]), "<f8")
        assert counts.sum() == struct.unpack("<d", as_bytes(found[3]))[0] > 0
        assert len(counts) == len(as_bytes(found[6])) // 8


def test_a_constant_tensor_has_a_histogram_too() -> None:
    zeros = mlp((8, 8, 4), init="zeros", steps=1)
    assert messages(next(iter(export("tensorboard", zeros).values())))


def test_modes_are_runs_of_their_own(tmp_path: Path) -> None:
    writer = TrialWriter(tmp_path).collections()
    writer.step(0, {"loss_output_0": 1.0}, "TRAIN", 0).step(1, {"loss_output_0": np.nan}, "EVAL", 0)
    found = open_store(tmp_path).load()
    assert {step.mode for step in found.steps} == {Mode.TRAIN, Mode.EVAL}
    assert sorted(export("tensorboard", found)) == [
        "eval/events.out.tfevents.0.fanin",
        "train/events.out.tfevents.0.fanin",
    ]
    assert isnan([float(row["mean"]) for row in rows(found)][1])


@pytest.mark.parametrize("form", cli_trial.FORMS)
def test_an_export_is_written_once_and_nothing_is_overwritten(form: str, shelf: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "exported"
    arguments = ("trial", "export", str(shelf / "a/good"), "--to", form, "-o", str(target))
    assert fanin(*arguments).exit_code == 0
    assert target.is_dir() == (form == "tensorboard")
    again = fanin(*arguments)
    assert again.exit_code == 2
    assert "there is something at this path already" in again.stderr


@pytest.mark.parametrize(("name", "start"), [("t.csv", b"mode,step,"), ("t.JSON", b"{")])
def test_the_name_of_an_export_chooses_its_form(name: str, start: bytes, shelf: Path, tmp_path: Path) -> None:
    result = fanin("trial", "export", str(shelf / "a/good"), "-o", str(tmp_path / name))
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / name).read_bytes().lstrip().startswith(start)


def test_a_form_that_is_asked_for_wins_over_the_name(shelf: Path, tmp_path: Path) -> None:
    fanin("trial", "export", str(shelf / "a/good"), "--to", "csv", "-o", str(tmp_path / "t.json"))
    assert (tmp_path / "t.json").read_bytes().startswith(b"mode,step,")


@pytest.mark.parametrize("name", ["t.pdf", "logs"])
def test_an_export_of_a_name_that_stands_for_no_form_is_refused(name: str, tmp_path: Path) -> None:
    result = fanin("trial", "export", "nowhere", "-o", str(tmp_path / name))
    assert result.exit_code == 2
    assert ".csv (csv), .json (json)" in result.stderr
    assert "--to tensorboard for a folder" in result.stderr
    assert "nowhere" not in result.stderr


def test_an_export_that_cannot_be_written_is_refused_before_the_trial_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, said in (("file", "already"), ("file/t.csv", "is no directory")):
        result = fanin("trial", "export", "nowhere", "--to", "csv", "-o", str(tmp_path / name))
        assert result.exit_code == 2
        assert said in result.stderr
        assert "nowhere" not in result.stderr


# ── verify and remove ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_whole_is_said_to_be(shelf: Path) -> None:
    assert "2 steps of 1 workers" in verify(shelf / "a/good")
    assert "1 steps of 1 workers, 1 records; closed" in verify(shelf / "b")
    result = fanin("trial", "verify", str(shelf / "a/good"))
    assert (result.exit_code, result.stdout.startswith("whole: ")) == (0, True)


def test_damage_is_found_in_what_no_rule_looks_at(shelf: Path) -> None:
    TrialWriter(shelf / "b").step(1, {"gradient/a.bias": np.ones(9)})
    file = shelf / "b/events/000000000001/000000000001_worker_0.tfevents"
    file.write_bytes(file.read_bytes()[:-1])
    open_store(shelf / "b").load()
    with pytest.raises(FaninError, match="is damaged"):
        verify(shelf / "b")
    for name in ("b", "c"):
        assert fanin("trial", "verify", str(shelf / name)).exit_code == 2


def test_a_trial_is_removed_after_asking_and_nothing_else(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_trial, "on_terminal", lambda: True)
    place = shelf / "a/good"
    (place / "mine.txt").write_text("stays")
    (place / ".part-w00000-000009.parquet.1-0123abcd.tmp").write_bytes(b"")
    assert fanin("trial", "rm", str(place), given="n\n").exit_code == 2
    assert len(list(place.iterdir())) > 2
    assert fanin("trial", "rm", str(place), given="y\n").exit_code == 0
    assert [path.name for path in place.iterdir()] == ["mine.txt"]
    assert fanin("trial", "rm", str(shelf / "a/zeros"), "--yes").exit_code == 0
    assert not (shelf / "a/zeros").exists()


STRANGERS = [
    "._notes.tmp",
    ".part-weights.tmp",
    ".part-w00000-000009.parquet.tmp",
    ".part-w00000-0000009.parquet.1-0123abcd.tmp",
    "._status.json.backup.tmp",
    "part-w000000-000000.parquet",
    "_done-mine.json",
    "_status.json.bak",
]
LEFT_OVER = [
    ".part-w00000-000009.parquet.4711-0123abcd.tmp",
    ".part-w00000-000009-0a1b2c3d.parquet.0123abcd.tmp",
    "._status.json.4711-0123abcd.tmp",
    "._beat-w00000.4711-0123abcd.tmp",
    "._done-0123456789abcdef.json-0123abcd.tmp",
    "_done-0123456789abcdef.json",
    ".stopped-w00000",
]


def test_of_what_lies_beside_a_trial_only_what_its_writers_name_so_is_removed(shelf: Path) -> None:
    place = shelf / "a/good"
    written = len(list(place.iterdir()))
    for name in STRANGERS + LEFT_OVER:
        (place / name).write_text("")
    for name in ("part-w00000-000007.parquet", "_status.json", "._x.tmp"):
        (place / name).mkdir()
    assert remove(place) == written + len(LEFT_OVER)
    left = {path.name for path in place.iterdir()}
    assert left == {*STRANGERS, "part-w00000-000007.parquet", "_status.json", "._x.tmp"}


def test_what_writers_leave_when_they_are_killed_bears_the_names_that_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside.at(str(tmp_path))
    monkeypatch.setattr("os.replace", lambda *_: None)
    monkeypatch.setattr("os.link", lambda *_: None)
    monkeypatch.setattr("os.unlink", lambda *_: None)
    directory = Directory.at(str(tmp_path))
    directory.publish("part-w00000-000001.parquet", b"")
    directory.claim(3, b"")
    beside.write(beat_name(3), b"")
    beside.write(STATUS, b"")
    beside.claim("_done-0123456789abcdef", b"")
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 5
    assert all(_is_left_over(name) for name in names)


def test_nothing_of_a_trial_stays_in_a_bucket(endpoint: str, bucket_uri: str) -> None:
    for name in ("exp1", "exp10"):
        writer = open_store(bucket_uri.replace("exp1", name)).begin()
        writer.close()
    store, path = Directory.at(bucket_uri).filesystem, bucket_uri.removeprefix("s3://")
    assert remove(bucket_uri) == 2
    assert store.get_file_info(path).type is FileType.NotFound
    assert len(Directory.at(f"{bucket_uri}0").series()) == 1
    with store.open_output_stream(f"{path}0/mine.txt") as file:
        file.write(b"stays")
    remove(f"{bucket_uri}0")
    assert [info.base_name for info in Directory.at(f"{bucket_uri}0").entries()] == ["mine.txt"]


def test_without_a_terminal_nothing_is_asked_and_nothing_removed(shelf: Path) -> None:
    command = [sys.executable, "-m", "fanin", "trial", "rm", str(shelf / "a/good")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing was removed" in done.stderr
    assert "pass --yes" in done.stderr
    assert list((shelf / "a/good").iterdir())


def test_nobody_is_asked_about_what_is_no_trial(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_trial, "on_terminal", lambda: True)
    result = fanin("trial", "rm", str(shelf / "d"), given="y\n")
    assert result.exit_code == 2
    assert "Remove the trial" not in result.output
    assert "not a trial that fanin wrote" in result.stderr


@pytest.mark.parametrize("name", ["b", "d", "d/notes.txt", "nothing", "."])
def test_what_fanin_did_not_write_it_does_not_remove(name: str, shelf: Path) -> None:
    before = sorted(shelf.rglob("*"))
    with pytest.raises(UsageError, match="not a trial that fanin wrote"):
        remove(shelf / name)
    assert sorted(shelf.rglob("*")) == before
