"""Following a trial: what is decided when, and how it ends."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fanin.follow as module
from fanin.beside import STATUS, Beside, beat_name
from fanin.errors import RuleParameterError, StoreError, TrialFormatError
from fanin.finding import Verdict
from fanin.follow import Following, Look, follow
from fanin.glance import IDLE_S, Liveness, glance
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.status import Ended, Status
from fanin.stores.parquet import ParquetStore
from stores.smdebug_trial import pytorch
from stores.smdebug_writer import TrialWriter

from .growing import Growing, healthy, poor

AMPLE = Following(timeout=60.0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "trial"


def until(looks: Iterator[Look], seen: Callable[[Look], bool]) -> Look:
    """The first look at which it is so."""
    return next(look for look in looks if seen(look))


def last(uri: str, how: Following = AMPLE) -> Look:
    return list(follow(uri, how))[-1]


def test_a_trial_that_is_not_there_is_waited_for_and_is_poor_as_soon_as_its_first_step_says_so(
    place: Path,
) -> None:
    looks = follow(str(place), AMPLE)
    first = next(looks)
    assert (first.standing.status, first.standing.verdict, first.report) == (Status.IN_PROGRESS, None, None)
    Growing(place, poor()).step(0)
    end = list(looks)[-1].standing
    assert (end.status, end.verdict, end.ended, end.steps) == (
        Status.ISSUES_FOUND,
        Verdict.POOR,
        Ended.DECIDED,
        1,
    )
    assert "blocks.3.fc" in {found.layer for found in end.findings}


def test_a_healthy_trial_is_in_progress_until_its_writer_is_done(place: Path) -> None:
    growing = Growing(place, healthy())
    growing.step(0)
    looks = follow(str(place), AMPLE)
    seen = until(looks, lambda look: look.standing.steps == 1)
    assert (seen.standing.status, seen.standing.verdict) == (Status.IN_PROGRESS, Verdict.HEALTHY)
    growing.step(1)
    assert until(looks, lambda look: look.standing.steps == 2).standing.status is Status.IN_PROGRESS
    growing.close()
    end = list(looks)[-1].standing
    assert (end.status, end.ended) == (Status.NO_ISSUES_FOUND, Ended.TRIAL_ENDED)


def test_an_undecided_end_is_an_error_and_no_silent_pass(place: Path) -> None:
    growing = Growing(place, healthy())
    growing.begin()
    growing.close()
    end = last(growing.uri)
    assert (end.standing.status, end.standing.verdict) == (Status.ERROR, Verdict.UNDECIDED)


def test_to_the_end_it_looks_on_when_it_is_decided(place: Path) -> None:
    growing = Growing(place, poor())
    growing.step(0)
    looks = follow(growing.uri, Following(timeout=60.0, to_the_end=True))
    first = until(looks, lambda look: look.standing.steps == 1)
    assert (first.standing.status, first.standing.ended) == (Status.ISSUES_FOUND, Ended.NOT)
    growing.step(1)
    growing.close()
    end = list(looks)[-1]
    assert (end.standing.steps, end.standing.ended) == (2, Ended.TRIAL_ENDED)


def test_a_writer_whose_beat_stands_still_is_dead_and_what_it_wrote_is_judged(place: Path) -> None:
    growing = Growing(place, healthy())
    growing.step(0)
    Beside.at(growing.uri).write(beat_name(0), b"{}")
    end = last(growing.uri, Following(timeout=60.0, dead_after=0.5)).standing
    assert (end.ended, end.status, end.steps) == (Ended.WRITER_DEAD, Status.ERROR, 1)


def test_what_cannot_be_read_is_no_clean_bill_when_its_writer_is_dead(place: Path) -> None:
    growing = Growing(place, healthy())
    growing.step(0)
    (place / "part-w00000-000003.parquet").write_bytes(b"spoiled")
    end = last(growing.uri, Following(timeout=60.0, dead_after=0.5)).standing
    assert (end.ended, end.status) == (Ended.BROKEN, Status.ERROR)


def test_a_trial_that_is_removed_while_it_is_followed_is_not_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    growing = Growing(place, healthy())
    growing.step(0)
    looks = follow(growing.uri, AMPLE)
    until(looks, lambda look: look.standing.steps == 1)
    shutil.rmtree(place)
    end = list(looks)[-1]
    assert (end.standing.ended, end.standing.status) == (Ended.BROKEN, Status.ERROR)
    assert end.standing.why == "the trial was removed while it was followed"
    assert end.error is not None
    assert (end.error.where, end.error.got) == (growing.uri, "nothing of that name")
    assert "follow again" in end.error.next_step


def test_a_trial_that_comes_back_in_a_moment_is_followed_on(place: Path) -> None:
    growing = Growing(place, healthy())
    growing.step(0)
    growing.close()
    for path in sorted(place.iterdir())[1:]:
        path.unlink()
    away = place.with_name("away")
    looks = follow(growing.uri, AMPLE)
    until(looks, lambda look: look.standing.verdict is Verdict.UNDECIDED)
    place.rename(away)
    until(looks, lambda look: look.error is not None)
    away.rename(place)
    assert until(looks, lambda look: look.error is None).standing.ended is Ended.NOT


def test_a_slow_writer_that_beats_is_alive(place: Path) -> None:
    growing = Growing(place, healthy())
    growing.step(0)
    over = threading.Event()

    def beat() -> None:
        for count in range(1000):
            Beside.at(growing.uri).write(beat_name(0), str(count).encode())
            if over.wait(0.1):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    end = last(growing.uri, Following(timeout=4.0, dead_after=2.0)).standing
    over.set()
    thread.join()
    assert (end.ended, end.status) == (Ended.TIMED_OUT, Status.ERROR)


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0], ids=["behind", "alike", "ahead"])
def test_without_a_heartbeat_nothing_new_for_long_tells_whatever_the_clock_of_the_disk(
    place: Path, ahead: float
) -> None:
    """Files are dated by the machine that holds them, whose clock may be an hour from ours."""
    growing, now = Growing(place, healthy()), [0.0]
    growing.step(0)
    dated(place, time.time() + ahead)
    beside, liveness = Beside.at(growing.uri), Liveness(clock=lambda: now[0])
    assert not liveness.is_dead(glance(beside))
    now[0] = IDLE_S - 1
    assert not liveness.is_dead(glance(beside))
    growing.step(1)
    dated(place, time.time() + ahead)
    now[0] = 2 * IDLE_S - 2
    assert not liveness.is_dead(glance(beside)), "it has grown since"
    now[0] = 3 * IDLE_S - 1
    assert liveness.is_dead(glance(beside))


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0], ids=["behind", "alike", "ahead"])
def test_what_was_written_beside_it_long_after_tells_at_once_that_a_writer_is_dead(
    place: Path, ahead: float
) -> None:
    """A follower's own status, say, which the same clock dates."""
    growing = Growing(place, healthy())
    growing.step(0)
    dated(place, time.time() + ahead - IDLE_S - 10)
    (place / STATUS).write_text("{}")
    os.utime(place / STATUS, (time.time() + ahead,) * 2)
    assert Liveness().is_dead(glance(Beside.at(growing.uri)))
    assert last(growing.uri).standing.ended is Ended.WRITER_DEAD
    os.utime(place / STATUS, (time.time() + ahead - 20,) * 2)
    assert not Liveness().is_dead(glance(Beside.at(growing.uri)))


def dated(place: Path, at: float) -> None:
    for file in place.iterdir():
        os.utime(file, (at,) * 2)


def test_a_trial_that_grows_is_alive_however_late_a_copy_of_it_comes(place: Path) -> None:
    """A copy keeps the dates of the machine it comes from (rsync -t), which say nothing of how late it is here."""
    growing, now = Growing(place, healthy()), [0.0]
    growing.step(0)
    beside, liveness = Beside.at(growing.uri), Liveness(clock=lambda: now[0])
    liveness.is_dead(glance(beside))
    growing.step(1)
    dated(place, time.time() - 2 * IDLE_S)
    (place / STATUS).write_text("{}")
    now[0] = 10.0
    assert not liveness.is_dead(glance(beside))


def test_of_several_workers_one_that_falls_silent_is_enough_and_one_that_is_done_is_not_missed(
    place: Path,
) -> None:
    now = [0.0]
    beside, liveness = Beside.at(str(place)), Liveness(5.0, clock=lambda: now[0])
    place.mkdir()
    for worker in (0, 1):
        beside.write(beat_name(worker), b"1")
    assert not liveness.is_dead(glance(beside))
    now[0] = 6.0
    beside.write(beat_name(0), b"22")
    assert liveness.is_dead(glance(beside))
    beside.remove(beat_name(1))
    assert not liveness.is_dead(glance(beside))


def test_a_trial_of_smdebug_is_followed_by_the_documented_rule(place: Path) -> None:
    looks = follow(str(place), Following((PoorWeightInitialization(),), timeout=60.0))
    assert next(looks).standing.status is Status.IN_PROGRESS
    writer = TrialWriter(place).collections()
    writer.step(0, pytorch(0, scale=1e-5))
    end = list(looks)[-1].standing
    assert (end.status, end.ended, end.steps) == (Status.ISSUES_FOUND, Ended.DECIDED, 1)
    assert end.rules == ("FAN001",)


def test_a_directory_of_somebody_else_is_waited_at(place: Path) -> None:
    place.mkdir()
    (place / "config.yaml").write_text("lr: 1")
    looks = follow(str(place), AMPLE)
    assert next(looks).error is None
    Growing(place, poor()).step(0)
    assert list(looks)[-1].standing.ended is Ended.DECIDED


def test_a_part_that_stays_damaged_ends_it_with_the_file_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    Growing(place, healthy()).step(0)
    (place / "part-w00000-000001.parquet").write_bytes(b"no")
    end = last(str(place))
    assert (end.standing.ended, end.standing.status) == (Ended.BROKEN, Status.ERROR)
    assert isinstance(end.error, TrialFormatError)
    assert "part-w00000-000001" in end.error.where


def test_a_part_that_is_whole_after_a_moment_was_being_copied(place: Path) -> None:
    Growing(place, poor()).step(0)
    part = place / "part-w00000-000001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:100])
    looks = follow(str(place), AMPLE)
    assert next(looks).error is not None
    part.write_bytes(whole)
    assert list(looks)[-1].standing.ended is Ended.DECIDED


def test_looking_again_reads_nothing_while_nothing_is_new(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Growing(place, healthy()).step(0)
    loads: list[str] = []
    load = module.load_trial
    monkeypatch.setattr(module, "load_trial", lambda uri: (loads.append(uri), load(uri))[1])
    end = last(str(place), Following(timeout=1.5)).standing
    assert end.ended is Ended.TIMED_OUT
    assert len(loads) == 2  # at the beginning, and once more at the end


def test_a_secret_in_an_address_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(beside: Beside) -> None:
        raise OSError("no network")

    def unreadable(uri: str) -> None:
        raise StoreError("no network")

    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    monkeypatch.setattr(module, "glance", refuse)
    monkeypatch.setattr(module, "load_trial", unreadable)
    end = last("s3://key:s3cret@bucket/job?region=us-east-1")
    assert (end.standing.ended, end.standing.trial) == (Ended.BROKEN, "s3://bucket/job")
    assert "s3cret" not in repr(end) + str(end.error)


def test_the_run_is_named_from_the_first_step_to_the_end(place: Path) -> None:
    looks = follow(str(place), AMPLE)
    first = next(looks).standing
    assert (first.run, first.is_awaited) == ("", True)
    growing = Growing(place, healthy())
    growing.step(0)
    growing.close()
    runs = {(look.standing.run, look.standing.is_awaited) for look in looks}
    assert runs == {(ParquetStore(place).load().identity, False)}


def test_a_rule_that_cannot_apply_ends_it_and_names_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(rule: object, trial: object) -> None:
        raise RuleParameterError("this rule is not for trees")

    monkeypatch.setattr(PoorWeightInitialization, "require_applicable", refuse)
    Growing(place, healthy()).step(0)
    look = last(str(place), Following((PoorWeightInitialization(),), timeout=60.0))
    assert (look.standing.status, look.standing.ended) == (Status.ERROR, Ended.BROKEN)
    assert look.standing.why == "this rule is not for trees"
    assert look.standing.run == ParquetStore(place).load().identity
    assert isinstance(look.error, RuleParameterError)
