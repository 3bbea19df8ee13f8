"""A watched training says that it is alive, and stops when it is asked to, as it was told to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fanin.beside import STOP, Beside, beat_name
from fanin.capture import watch
from fanin.errors import TrainingStoppedError, UsageError
from fanin.pulse import Pulse, Request
from ways.nets import hooks_on, net, observe, sgd, train

WHY = b'{"why": "FAN101 at fc1", "by": "follow on a:1"}'


def soon(is_so: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it is so within some time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def asked(place: Path) -> None:
    assert soon(place.exists)
    Beside.at(str(place)).write(STOP, WHY)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "trial"


def test_a_watched_training_beats_until_its_steps_are_captured(place: Path) -> None:
    model, beat = net(), place / beat_name(0)
    with observe(model, trial=place, steps=3):
        assert soon(beat.exists)
        first = beat.read_bytes()
        assert soon(lambda: beat.read_bytes() != first)
        train(model, 3)
        assert soon(lambda: not beat.exists())


def test_a_watch_that_ends_early_takes_its_beat_away(place: Path) -> None:
    model = net()
    with observe(model, trial=place, steps=3):
        assert soon((place / beat_name(0)).exists)
        train(model, 1)
    assert not (place / beat_name(0)).exists()


def test_nothing_beats_for_a_trial_in_memory() -> None:
    before = threading.active_count()
    with observe(net()):
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("fanin-pulse")]
    assert threading.active_count() == before


def test_raise_stops_it_at_its_next_step_and_leaves_no_hook(place: Path) -> None:
    model = net()
    with observe(model, trial=place, steps=3) as seen:
        train(model, 1)
        asked(place)
        assert soon(lambda: seen.should_stop)
        with pytest.raises(TrainingStoppedError) as raised:
            soon(lambda: _trained_into(model))
    assert "FAN101 at fc1" in str(raised.value)
    assert "follow on a:1" in str(raised.value)
    assert hooks_on(model) == []
    assert train(model, 1)  # once, and not again


def _trained_into(model: nn.Module) -> bool:
    train(model, 1)
    return False


def test_raise_works_when_the_hooks_of_capture_are_long_gone(place: Path) -> None:
    model = net()
    seen = observe(model, trial=place, steps=1)
    train(model, 3)
    assert not seen.attached
    asked(place)
    with pytest.raises(TrainingStoppedError):
        soon(lambda: _trained_into(model))
    seen.close()
    assert hooks_on(model) == []


def test_an_evaluation_is_not_stopped(place: Path) -> None:
    model = net()
    with observe(model, trial=place, steps=1) as seen:
        train(model, 1)
        asked(place)
        assert soon(lambda: seen.should_stop and bool(hooks_on(model)))
        model.eval()
        model(torch.zeros(2, 6))
        model.train()
        with pytest.raises(TrainingStoppedError):
            train(model, 1)


def test_a_model_that_is_called_unseen_is_stopped_at_its_optimizers_step(place: Path) -> None:
    model = net()
    other = nn.Linear(2, 2)
    with observe(model, trial=place, steps=1) as seen:
        train(model, 1)
        asked(place)
        assert soon(lambda: seen.should_stop and bool(hooks_on(model)))
        sgd(other).step()  # somebody else's
        with pytest.raises(TrainingStoppedError):
            sgd(model).step()
    assert hooks_on(model) == []


def test_flag_only_says_so(place: Path) -> None:
    model = net()
    with observe(model, trial=place, steps=2, on_stop="flag") as seen:
        assert not seen.should_stop
        train(model, 1)
        asked(place)
        assert soon(lambda: seen.should_stop)
        assert len(train(model, 5)) == 5


def test_terminate_sends_sigterm_to_the_process(place: Path) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with observe(net(), trial=place, on_stop="terminate"):
            asked(place)
            assert soon(lambda: bool(got))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_request_to_an_earlier_training_at_this_place_is_none_to_the_next(place: Path) -> None:
    place.mkdir()
    Beside.at(str(place)).write(STOP, WHY)
    os.utime(place / STOP, (time.time() - 60,) * 2)
    model = net()
    with observe(model, trial=place, steps=2) as seen:
        assert soon((place / beat_name(0)).exists)
        first = (place / beat_name(0)).read_bytes()
        assert soon(lambda: (place / beat_name(0)).read_bytes() != first), "so it has listened"
        assert not seen.should_stop
        assert len(train(model, 3)) == 3


def test_a_request_that_is_read_when_the_training_is_over_is_not_heard(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, free, heard = threading.Event(), threading.Event(), list[Request]()
    read = Beside.read

    def slowly(self: Beside, name: str) -> bytes | None:
        reading.set()
        free.wait(20)
        return read(self, name)

    monkeypatch.setattr(Beside, "read", slowly)
    place.mkdir()
    pulse = Pulse(str(place), 0, heard.append)
    asked(place)
    assert reading.wait(20)
    pulse.leave()
    free.set()
    assert soon(lambda: not pulse._thread.is_alive())
    assert heard == []


def test_a_way_to_stop_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        watch(net(), on_stop="explode")  # type: ignore[arg-type]
    assert raised.value.expected == "raise, flag, terminate"


def test_a_disk_that_fails_harms_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Beside, "write", fail)
    monkeypatch.setattr(Beside, "has", fail)
    model = net()
    with observe(model, trial=place, steps=2) as seen:
        assert len(train(model, 2)) == 2
        assert len(seen.trial.steps) == 2


def test_a_fault_of_ours_in_it_is_told_and_harms_nobody(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Beside, "has", fail)
    model = net()
    with observe(model, trial=place, steps=2) as seen:
        assert soon(lambda: "no longer hears" in caplog.text)
        assert len(train(model, 3)) == 3
        assert len(seen.trial.steps) == 2


def test_a_disk_that_hangs_keeps_nobody_waiting(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(Beside, "write", lambda *args: free.wait(30))
    monkeypatch.setattr("fanin.pulse.LAST_S", 0.2)
    place.mkdir()
    pulse = Pulse(str(place), 0, lambda request: None)
    began = time.monotonic()
    pulse.close()
    assert time.monotonic() - began < 10
    free.set()


def test_it_listens_only_a_while_after_the_last_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanin.pulse.LISTEN_S", 0.1)
    place.mkdir()
    heard: list[Request] = []
    pulse = Pulse(str(place), 0, heard.append)
    pulse.captured()
    assert soon(lambda: not pulse._thread.is_alive())
    asked(place)
    pulse.close()
    assert heard == []


def test_a_forked_child_has_no_pulse_to_end(place: Path) -> None:
    place.mkdir()
    pulse = Pulse(str(place), 0, lambda request: None)
    assert soon((place / beat_name(0)).exists)
    child = os.fork()
    if not child:
        pulse.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (place / beat_name(0)).exists()
    pulse.close()
