"""The status beside a trial: whole, described, and never taken back."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fanin.beside import OURS, STATUS, Beside
from fanin.errors import UsageError
from fanin.finding import Verdict
from fanin.follow import Following, follow
from fanin.shelf import removable
from fanin.status import Done, Ended, Standing, Status, StatusFile

from .growing import Growing, healthy, poor

SCHEMA: dict[str, Any] = json.loads(files("fanin").joinpath("status.schema.json").read_text(encoding="utf-8"))


def read(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / STATUS).read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def standing(place: Path, status: Status = Status.IN_PROGRESS, **more: Any) -> Standing:
    return Standing(str(place), status, **{"verdict": Verdict.HEALTHY} | more)


def test_a_status_is_as_its_schema_says_with_everything_in_it(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "trial", poor())
    growing.step(0)
    seen = list(follow(growing.uri, Following(timeout=60.0)))[-1].standing
    StatusFile.of_trial(growing.uri).write(seen.with_actions([Done("stop", "done", "asked")]))
    said = read(tmp_path / "trial")
    assert (said["status"], said["verdict"], said["ended"]) == ("IssuesFound", "poor", "decided")
    assert said["findings"][0]["layer"] == "blocks.3.fc"
    assert said["actions"] == [{"action": "stop", "outcome": "done", "detail": "asked"}]


def test_the_schema_can_fail() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"status": "Perhaps"}, SCHEMA)


@pytest.mark.parametrize("ended", [Ended.NOT, Ended.TIMED_OUT])
def test_before_the_trial_exists_nothing_is_written_beside_it(tmp_path: Path, ended: Ended) -> None:
    place = tmp_path / "trial"
    early = Standing(str(place), Status.IN_PROGRESS, ended=ended)
    assert not StatusFile.of_trial(str(place)).write(early)
    assert not place.exists()
    place.mkdir()  # as a writer does just before its first part
    assert not StatusFile.of_trial(str(place)).write(early)
    assert list(place.iterdir()) == []


def test_a_verdict_stays_whoever_is_still_looking_or_was_stopped(tmp_path: Path) -> None:
    file = StatusFile.of_trial(str(tmp_path))
    assert file.write(standing(tmp_path))
    assert file.write(standing(tmp_path, Status.ISSUES_FOUND, verdict=Verdict.POOR, ended=Ended.DECIDED))
    assert not file.write(standing(tmp_path))
    assert not file.write(standing(tmp_path, Status.ERROR, ended=Ended.TIMED_OUT))
    assert read(tmp_path)["status"] == "IssuesFound"


@pytest.mark.parametrize("text", [b"", b"no", b"[]", b'{"status": "Perhaps"}', b"[" * 9999])
def test_a_status_that_somebody_spoiled_is_written_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / STATUS).write_bytes(text)
    assert StatusFile.of_trial(str(tmp_path)).write(standing(tmp_path))
    assert read(tmp_path)["status"] == "InProgress"


def test_a_status_of_many_findings_is_still_whole(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "trial", poor())
    growing.step(0)
    seen = list(follow(growing.uri, Following(timeout=60.0)))[-1].standing
    long = replace(seen.findings[0], message="m" * 3000)
    StatusFile.of_trial(growing.uri).write(replace(seen, findings=(long,) * 500))
    assert read(tmp_path / "trial")["findings"]


def test_a_file_of_ones_own_is_in_a_directory_that_exists(tmp_path: Path) -> None:
    file = StatusFile.at(str(tmp_path / "state.json"))
    assert file.write(standing(tmp_path))
    assert (tmp_path / "state.json").exists()
    with pytest.raises(UsageError, match="cannot be written there"):
        StatusFile.at(str(tmp_path / "none" / "state.json"))


def test_what_lies_beside_a_trial_goes_with_it(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "trial", healthy())
    growing.step(0)
    growing.close()
    beside = Beside.at(growing.uri)
    for name in ("_beat-w00000", "_stop.json", STATUS, "_done-0123456789abcdef.json"):
        assert OURS.fullmatch(name)
        beside.write(name, b"{}")
    beside.write("_notes.txt", b"mine")
    (tmp_path / "trial" / "._status.json.7-0123abcd.tmp").write_bytes(b"{")  # of one that was killed
    assert {name for name in removable(growing.uri) if name.startswith(("_", "._"))} == {
        "._status.json.7-0123abcd.tmp",
        "_beat-w00000",
        "_stop.json",
        STATUS,
        "_done-0123456789abcdef.json",
    }
