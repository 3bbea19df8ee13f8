"""The status beside a trial: whole, described, and never taken back."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
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
    return Standing(str(place), status, **{"verdict": Verdict.HEALTHY, "run": "this"} | more)


POOR = {"verdict": Verdict.POOR, "ended": Ended.DECIDED}
FINE = {"verdict": Verdict.HEALTHY, "ended": Ended.TRIAL_ENDED}


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, another follower writes."""
    return lambda: monkeypatch.setattr("fanin.status._ourselves", lambda: {"host": "elsewhere", "pid": 7})


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


def test_another_run_at_the_same_address_starts_afresh(tmp_path: Path) -> None:
    file = StatusFile.at(str(tmp_path / "state.json"))
    assert file.write(standing(tmp_path, Status.ISSUES_FOUND, **POOR))
    assert file.write(standing(tmp_path, run="that"))
    said = json.loads((tmp_path / "state.json").read_text())
    assert (said["status"], said["run"]) == ("InProgress", "that")


def test_a_follower_that_waits_for_a_trial_leaves_no_verdict_on_an_earlier_one(tmp_path: Path) -> None:
    file = StatusFile.at(str(tmp_path / "state.json"))
    assert file.write(standing(tmp_path, Status.NO_ISSUES_FOUND, **FINE))
    assert file.write(Standing(str(tmp_path), is_awaited=True))
    assert json.loads((tmp_path / "state.json").read_text())["status"] == "InProgress"


def test_a_trial_that_cannot_be_reached_for_a_moment_keeps_its_verdict(tmp_path: Path) -> None:
    file = StatusFile.of_trial(str(tmp_path))
    assert file.write(standing(tmp_path, Status.ISSUES_FOUND, **POOR))
    assert not file.write(Standing(str(tmp_path), Status.ERROR, ended=Ended.BROKEN))
    assert read(tmp_path)["status"] == "IssuesFound"


def test_a_status_of_an_older_fanin_names_no_run_and_gives_way(tmp_path: Path) -> None:
    file = StatusFile.of_trial(str(tmp_path))
    file.write(standing(tmp_path, Status.ISSUES_FOUND, **POOR))
    said = json.loads((tmp_path / STATUS).read_text())
    del said["run"]
    (tmp_path / STATUS).write_text(json.dumps(said))
    assert file.write(standing(tmp_path))


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        pytest.param(
            (Status.ISSUES_FOUND, ["A"], 1), (Status.NO_ISSUES_FOUND, [], 9), True, id="better, of all"
        ),
        pytest.param(
            (Status.ISSUES_FOUND, [], 1), (Status.NO_ISSUES_FOUND, ["A"], 1), True, id="better, of one"
        ),
        pytest.param(
            (Status.NO_ISSUES_FOUND, [], 9), (Status.ISSUES_FOUND, ["A"], 1), False, id="worse, of one"
        ),
        pytest.param(
            (Status.NO_ISSUES_FOUND, [], 1), (Status.NO_ISSUES_FOUND, ["A"], 1), True, id="same, of one"
        ),
        pytest.param(
            (Status.NO_ISSUES_FOUND, ["A"], 1), (Status.NO_ISSUES_FOUND, [], 1), False, id="same, of all"
        ),
        pytest.param(
            (Status.ISSUES_FOUND, ["A"], 1), (Status.ISSUES_FOUND, ["A", "B"], 1), False, id="of more"
        ),
        pytest.param((Status.ISSUES_FOUND, ["A"], 1), (Status.ISSUES_FOUND, ["B"], 1), True, id="of others"),
        pytest.param((Status.ISSUES_FOUND, [], 2), (Status.ISSUES_FOUND, [], 1), True, id="of fewer steps"),
        pytest.param((Status.ERROR, [], 9), (Status.IN_PROGRESS, ["A"], 1), False, id="no verdict"),
    ],
)
def test_a_verdict_is_not_weakened_by_another_follower_and_says_whose_it_is(
    tmp_path: Path,
    another: Callable[[], None],
    first: tuple[Status, list[str], int],
    second: tuple[Status, list[str], int],
    stays: bool,
) -> None:
    file = StatusFile.of_trial(str(tmp_path))
    seen = [standing(tmp_path, s, rules=tuple(rules), steps=steps) for s, rules, steps in (first, second)]
    assert file.write(seen[0])
    whose = read(tmp_path)["follower"]
    another()
    assert file.write(seen[1]) is not stays
    said = read(tmp_path)
    assert (said["follower"] == whose) is stays
    assert said["rules"] == (first if stays else second)[1]


def test_a_follower_adds_to_its_own_verdict(tmp_path: Path) -> None:
    file = StatusFile.of_trial(str(tmp_path))
    poor = standing(tmp_path, Status.ISSUES_FOUND, rules=("A",), **POOR)
    assert file.write(poor)
    assert file.write(poor.with_actions([Done("stop", "done", "asked")]))
    assert read(tmp_path)["actions"] != []


def test_of_two_verdicts_that_come_at_once_the_worse_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slowly, so that both would have looked before either writes."""
    read_now = Beside.read

    def slowly(beside: Beside, name: str) -> bytes | None:
        found = read_now(beside, name)
        time.sleep(0.1 if threading.current_thread().name == "better" else 0.03)
        return found

    monkeypatch.setattr(Beside, "read", slowly)
    file = StatusFile.of_trial(str(tmp_path))
    said = {
        "better": standing(tmp_path, Status.NO_ISSUES_FOUND),
        "worse": standing(tmp_path, Status.ISSUES_FOUND),
    }
    threads = [threading.Thread(target=file.write, args=(each,), name=name) for name, each in said.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(tmp_path)["status"] == "IssuesFound"
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def test_a_follower_that_hangs_while_it_writes_keeps_no_other_from_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanin.status.PATIENCE_S", 0.1)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert StatusFile.of_trial(str(tmp_path)).write(standing(tmp_path))
    os.close(holder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no",
        b"[]",
        b'{"status": "Perhaps"}',
        b"[" * 9999,
        b'{"status": "IssuesFound", "steps": Infinity}',
    ],
)
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
