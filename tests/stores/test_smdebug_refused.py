"""Trials of SageMaker Debugger that are damaged, hostile or not there."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fanin import judge, load_trial
from fanin.errors import FaninError, StoreError, TrialFormatError, TrialNotFoundError, UsageError
from fanin.stores import open_store
from fanin.stores.smdebug import SmdebugStore
from fanin.stores.smdebug.index import LARGEST_JSON
from fanin.trial import Trial

from . import samples
from .smdebug_trial import COLLECTIONS, EVENTS, INDEX, pytorch, ten_steps
from .smdebug_writer import TrialWriter

Change = Callable[[Path], object]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return ten_steps(tmp_path / "trial")


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
