"""A watched training says that it is alive, and stops when it is asked to, as it was told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from weakref import ref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_pre_hook,
)

from fanin.beside import STOP, Beside, beat_name
from fanin.capture import OnStop, _obey, watch
from fanin.errors import TrainingStoppedError, UsageError
from fanin.pulse import Pulse, Request
from fanin.stores.parquet import ParquetStore
from ways.nets import hooks_on, loss_of, net, observe, sgd, train

RUN = "8d3f0c2a9be14f76"


def soon(is_so: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it is so within some time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def asked(place: Path, run: str | None = None, why: str = "FAN101 at fc1") -> None:
    """Ask the run that writes there, or another one, to stop."""
    assert soon(lambda: any(place.glob("part-*")) or run is not None)
    said = {"why": why, "by": "follow on a:1", "run": run or ParquetStore(place).load().identity}
    Beside.at(str(place)).write(STOP, json.dumps(said).encode())


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
    before = set(threading.enumerate())
    with observe(net()):
        assert set(threading.enumerate()) <= before


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
    """Nor is anything else that takes no step, of a model in whose loop no optimizer was seen: it has a hook."""
    model = net()
    with observe(model, trial=place, steps=1) as seen:
        loss_of(model).backward()
        assert hooks_on(model)
        model.eval()
        asked(place)
        assert soon(lambda: seen.should_stop)
        for _ in range(50):
            model(torch.zeros(2, 6))
            time.sleep(0.01)
        model.train()
        with pytest.raises(TrainingStoppedError):
            train(model, 1)


def test_a_model_that_is_called_unseen_is_stopped_at_its_optimizers_step(place: Path) -> None:
    model = net()
    other = nn.Linear(2, 2)
    with observe(model, trial=place, steps=1) as seen:
        train(model, 1)
        asked(place)
        assert soon(lambda: seen.should_stop)
        sgd(other).step()  # somebody else's
        with pytest.raises(TrainingStoppedError):
            soon(lambda: bool(sgd(model).step()))
    assert hooks_on(model) == []


def test_a_loop_without_an_optimizer_is_stopped_at_its_next_pass(place: Path) -> None:
    model = net()
    with observe(model, trial=place, steps=1):
        by_hand(model)
        by_hand(model)
        asked(place)
        with pytest.raises(TrainingStoppedError):
            soon(lambda: by_hand(model))
    assert hooks_on(model) == []


def by_hand(model: nn.Module) -> bool:
    """A step without an optimizer."""
    model.zero_grad()
    loss_of(model).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    return False


def test_a_loop_whose_optimizer_steps_copies_of_the_parameters_is_stopped(place: Path) -> None:
    """As mixed precision with master weights does: what steps is no parameter of the model."""
    model = net()
    masters = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)

    def step() -> bool:
        loss_of(model).backward()
        optimizer.step()
        return False

    with observe(model, trial=place, steps=1):
        step()
        step()
        asked(place)
        with pytest.raises(TrainingStoppedError):
            soon(step)
    assert hooks_on(model) == []


def test_nothing_hangs_on_the_model_once_its_optimizer_has_stepped_and_its_steps_are_captured(
    place: Path,
) -> None:
    model = net()
    with observe(model, trial=place, steps=1):
        train(model, 2)
        assert hooks_on(model) == []


def test_what_hears_a_request_touches_no_hook_that_torch_may_be_going_through(place: Path) -> None:
    """Torch walks through the hooks of a step without a lock; one that is hung up by another thread meanwhile ends
    the training with "mutated during iteration"."""
    model = net()
    with observe(model, trial=place, steps=1) as seen:
        train(model, 2)
        before = hooks_everywhere(model)
        asked(place)
        assert soon(lambda: seen.should_stop)
        assert not soon(lambda: hooks_everywhere(model) != before, seconds=0.5)
        with pytest.raises(TrainingStoppedError):
            soon(lambda: _trained_into(model))


def hooks_everywhere(model: nn.Module) -> list[str]:
    """By number, so that one in another's place is seen."""
    hooks = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
    return [*hooks_on(model), *(str(key) for known in hooks for key in known)]


def test_a_request_that_comes_in_the_midst_of_torchs_hooks_harms_none(place: Path) -> None:
    """The others' hook waits until it is heard, and a moment longer."""
    model, heard = net(), list[bool]()

    def slow(*args: object) -> None:
        heard.append(soon(lambda: seen.should_stop))
        time.sleep(0.3)

    with observe(model, trial=place, steps=1) as seen:
        train(model, 2)
        first = register_optimizer_step_pre_hook(slow)
        second = register_optimizer_step_pre_hook(lambda *args: heard.append(True))
        try:
            asked(place)
            assert train(model, 1)
            assert heard == [True, True]
            with pytest.raises(TrainingStoppedError):
                soon(lambda: _trained_into(model))
        finally:
            first.remove()
            second.remove()


def test_nobody_asks_any_more_and_the_next_step_takes_the_hooks_away(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanin.pulse.LISTEN_S", 0.1)
    model = net()
    with observe(model, trial=place, steps=1) as seen:
        train(model, 2)
        assert _global_optimizer_post_hooks
        assert seen._pulse is not None
        assert soon(lambda: not seen._pulse._thread.is_alive())
        train(model, 1)
        assert not _global_optimizer_post_hooks
        assert not _global_optimizer_pre_hooks


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


@pytest.mark.parametrize("on_stop", ["raise", "flag", "terminate"])
def test_a_process_whose_model_is_gone_is_not_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, on_stop: OnStop
) -> None:
    """The request is read, and the model freed before it is obeyed."""
    got: list[int] = []
    monkeypatch.setattr("fanin.capture.os.kill", lambda pid, number: got.append(number))
    model = nn.Linear(2, 2)
    obey = partial(_obey, on_stop, None, ref(model))
    del model
    obey(Request("FAN101 at fc1"))
    assert got == []
    assert "asked to stop" not in caplog.text


def has_listened(place: Path) -> bool:
    """Whether a watch that beats there has looked for requests since now: each beat is followed by a look."""
    beat = place / beat_name(0)
    return all(_beats_again(beat) for _ in range(2))


def _beats_again(beat: Path) -> bool:
    before = beat.read_bytes() if beat.exists() else b""
    return soon(lambda: beat.exists() and beat.read_bytes() != before)


@pytest.mark.parametrize(
    "said",
    [b"", b"[]", b"\xff", b'{"why": "FAN101"}', b'{"run": "another-run"}', b'{"run": ""}', b'{"run": 7}'],
)
def test_a_request_that_names_another_run_or_none_is_not_heard_however_young_it_is(
    place: Path, said: bytes
) -> None:
    model = net()
    with observe(model, trial=place, steps=2) as watched:
        Beside.at(str(place)).write(STOP, said)
        assert has_listened(place)
        assert not watched.should_stop
        assert len(train(model, 3)) == 3


def test_the_next_training_at_a_place_passes_over_what_the_last_one_was_asked(place: Path) -> None:
    first = net()
    with observe(first, trial=place, steps=1, on_stop="flag") as watched:
        asked(place)
        assert soon(lambda: watched.should_stop)
    for part in place.glob("part-*"):
        part.unlink()  # by hand, so that what lies beside it stays
    assert (place / STOP).exists()
    with observe(net(), trial=place, steps=1) as after:
        assert has_listened(place)
        assert not after.should_stop
        asked(place)
        assert soon(lambda: after.should_stop)


def test_every_rank_hears_a_request_by_the_identity_of_the_lowest(place: Path) -> None:
    """Both have begun at once, and so drawn one each."""
    about = {"run_id": "job7", "world_size": "2"}
    ranks = [ParquetStore(place).begin(rank, about | {"identity": f"drawn-by-{rank}"}) for rank in (1, 0)]
    assert ParquetStore(place).load().identity == "drawn-by-0"
    assert [rank.is_of("drawn-by-0") for rank in ranks] == [True, True]
    assert [rank.is_of("another") for rank in ranks] == [False, False]
    for rank in ranks:
        rank.close()


def test_a_place_that_another_run_has_taken_over_is_no_longer_ours(place: Path) -> None:
    ours = ParquetStore(place).begin(1, {"run_id": "job7"})
    for part in place.glob("part-*"):
        part.unlink()
    theirs = [ParquetStore(place).begin(rank, {"run_id": "job7"}) for rank in (0, 1)]
    assert not ours.is_of(ParquetStore(place).load().identity)
    for writer in (ours, *theirs):
        writer.end()


def test_what_a_request_says_cannot_harm_a_terminal(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    with observe(model, trial=place, steps=1) as watched:
        train(model, 1)
        asked(place, why="\x1b[2J\x1b]0;owned\x07")
        assert soon(lambda: watched.should_stop and "asked to stop" in caplog.text)
        with pytest.raises(TrainingStoppedError) as raised:
            train(model, 50)  # it is told before it is done
    for said in (str(raised.value), caplog.text):
        assert r"\x1b[2J\x1b]0;owned\x07" in said
        assert "\x1b" not in said


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
    pulse = Pulse(str(place), 0, RUN.__eq__, heard.append)
    asked(place, RUN)
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
    pulse = Pulse(str(place), 0, RUN.__eq__, lambda request: None)
    began = time.monotonic()
    pulse.close()
    assert time.monotonic() - began < 10
    free.set()


def test_it_listens_only_a_while_after_the_last_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanin.pulse.LISTEN_S", 0.1)
    place.mkdir()
    heard: list[Request] = []
    pulse = Pulse(str(place), 0, RUN.__eq__, heard.append)
    pulse.captured()
    assert soon(lambda: not pulse._thread.is_alive())
    asked(place, RUN)
    pulse.close()
    assert heard == []


def test_a_forked_child_has_no_pulse_to_end(place: Path) -> None:
    place.mkdir()
    pulse = Pulse(str(place), 0, RUN.__eq__, lambda request: None)
    assert soon((place / beat_name(0)).exists)
    child = os.fork()
    if not child:
        pulse.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (place / beat_name(0)).exists()
    pulse.close()


def test_a_training_that_ends_within_a_garbage_collection_of_its_own_pulse_hangs_nothing(place: Path) -> None:
    """A collection may free the model in the pulse's thread, in the midst of whatever wakes or makes it wait."""
    place.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", COLLECTED, str(place)], timeout=60, capture_output=True, text=True
    )
    assert child.stdout.splitlines()[-1:] == ["over"], child.stderr


COLLECTED = """
import faulthandler, sys, threading
from fanin.pulse import Pulse
faulthandler.dump_traceback_later(15, exit=True)
within_a_lock = {threading.Condition.notify.__code__, threading.Condition.wait.__code__}
pulse = Pulse(sys.argv[1], 0, str.__eq__, lambda request: None)

def traced(frame, event, arg):
    if frame.f_code in within_a_lock:
        sys.settrace(None)
        pulse.captured()  # as the finalizers of a watch and its model that are freed here
        pulse.leave()

sys.settrace(traced)
pulse.captured()
pulse.leave()
sys.settrace(None)
pulse._thread.join()
print("over")
"""
