"""Faults of ours and of the place where the trial is kept: training never notices."""

from __future__ import annotations

import gc
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.amp import GradScaler
from torch.optim.optimizer import _global_optimizer_post_hooks

from fanin import capture
from fanin.adapters.torch import scaling, tracing, watching
from fanin.adapters.torch.drafting import Draft
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import StoreError
from fanin.examine import load_trial
from fanin.stores.parquet import ParquetStore, writing
from fanin.stores.parquet.directory import Directory
from fanin.stores.parquet.writing import ParquetWriter

from .nets import hooks_on, loss_of, net, observe, parameters_of, same, sgd, step_of_another, train

ORIGINAL_BACKWARD = torch.autograd.backward
STEPS = 4
ENDS_S = 30.0
"""A training of four steps takes milliseconds; on a busy machine its processes may wait for seconds."""


class OurFaultError(Exception):
    """Something in fanin is broken."""


def broken(*args: Any, **kwargs: Any) -> Any:
    raise OurFaultError("broken")


def require_gone(model: torch.nn.Module) -> None:
    """Nothing of ours is left anywhere."""
    assert hooks_on(model) == []
    assert torch.autograd.backward is ORIGINAL_BACKWARD
    if _global_optimizer_post_hooks:  # of a watch that another test left to a garbage collection
        gc.collect()
        step_of_another()
    assert not _global_optimizer_post_hooks
    assert torch._C._len_torch_function_stack() == 0


def failing_at(wanted: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises when it is called for the n-th time; `count` says how often it was."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        counted.count += 1  # type: ignore[attr-defined]
        if counted.count == wanted:  # type: ignore[attr-defined]
            raise OurFaultError(f"call {wanted}")
        return original(*args, **kwargs)

    counted.count = 0  # type: ignore[attr-defined]
    return counted


ENTRANCES: dict[str, tuple[Any, str]] = {
    "modules begin": (TorchWatching, "_begins"),
    "modules enter": (tracing.Tracer, "enters"),
    "modules leave": (tracing.Tracer, "leaves"),
    "modules end": (TorchWatching, "_ends"),
    "functions begin": (tracing.Tracer, "before"),
    "functions end": (tracing.Tracer, "after"),
    "gradients of parameters": (TorchWatching, "_has_gradient"),
    "backward begins": (TorchWatching, "_outermost_begins"),
    "optimizers begin": (TorchWatching, "_steps"),
    "optimizers end": (TorchWatching, "_stepped"),
    "tensors are looked at": (Draft, "observe"),
    "steps are finished": (Draft, "finished"),
    "steps are kept": (capture.Watch, "_keep"),
}
"""Everything of ours that torch calls, by what it is called for."""


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_whichever_call_of_ours_fails_training_is_the_same_and_the_fault_is_told_once(
    entrance: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = net()
    expected = train(plain, STEPS)
    where, name = ENTRANCES[entrance]
    original = getattr(where, name)

    def train_with_a_fault_at(call: int) -> int:
        counted = failing_at(call, original)
        monkeypatch.setattr(where, name, counted)
        caplog.clear()
        model = net()
        with observe(model, steps=2, on_error="warn"):
            assert train(model, STEPS) == expected
        assert same(parameters_of(model), parameters_of(plain))
        require_gone(model)
        count: int = counted.count  # type: ignore[attr-defined]
        return count

    calls = train_with_a_fault_at(0)
    assert calls >= 2
    assert not caplog.records
    for call in range(1, calls + 1):
        train_with_a_fault_at(call)
        (told,) = caplog.records
        assert (told.name, told.levelname) == ("fanin", "WARNING")
        assert "training goes on" in told.message
        assert told.exc_info is not None


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_in_ci_a_fault_of_ours_is_raised(entrance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name = ENTRANCES[entrance]
    monkeypatch.setattr(where, name, broken)
    model = net()
    seen = observe(model, steps=2, on_error="raise")
    with pytest.raises(OurFaultError):
        train(model, STEPS)
    require_gone(model)
    seen.close()


STARTS: dict[str, tuple[Any, str]] = {
    "the framework is told": (capture, "adapter_for"),
    "rules are loaded": (capture, "load_rules"),
    "needs are gathered": (capture, "needs"),
    "the run is described": (capture, "about"),
    "the optimizer is described": (capture, "brief"),
    "the trial is begun": (capture, "_begun"),
    "the model is unwrapped": (watching, "unwrapped"),
    "the model is read": (tracing.Tracer, "parameters"),
    "hooks are hung": (TorchWatching, "_attach_to_parameters"),
}
"""Everything that is done before the first step."""


@pytest.mark.parametrize("start", STARTS)
def test_a_fault_of_ours_before_the_first_step_leaves_a_training_unwatched(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    optimizer = sgd(model)
    with monkeypatch.context() as patch:
        patch.setattr(*STARTS[start], broken)
        seen = capture.watch(model, optimizer, trial=tmp_path / "trial", on_error="warn")
    with seen:
        assert train(model, STEPS) == train(net(), STEPS)
        seen.loss(1.0)
    (told,) = caplog.records
    assert "training goes on" in told.message
    assert told.exc_info is not None
    assert (seen.attached, seen.trial.steps) == (False, ())
    require_gone(model)


@pytest.mark.parametrize("start", STARTS)
def test_in_ci_a_fault_of_ours_before_the_first_step_is_raised(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    monkeypatch.setattr(*STARTS[start], broken)
    with pytest.raises(OurFaultError):
        capture.watch(model, sgd(model), on_error="raise")
    require_gone(model)


def test_a_fault_while_a_watch_is_closed_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    with observe(model, on_error="warn") as seen:
        train(model, 1)
        monkeypatch.setattr(type(seen._writer), "close", broken)
    assert [r.name for r in caplog.records] == ["fanin"]
    assert "training is not affected" in caplog.text


@pytest.mark.parametrize(("rank", "worker"), [("3", 3), ("", 0), ("worker-3", 0), ("-1", 0)])
def test_a_rank_that_is_no_number_does_not_stop_a_watch(
    rank: str, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    model = net()
    with observe(model) as seen:
        train(model, 1)
    assert seen.trial.workers == (worker,)


def test_a_fault_where_a_scaler_is_marked_is_told_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scaling, "_mark", broken)
    model, scaler = net(), GradScaler("cpu")
    optimizer = sgd(model)
    with observe(model, on_error="warn"):
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [r.name for r in caplog.records] == ["fanin"]
    assert "OurFaultError" in caplog.text
    require_gone(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_ends_it_in_our_code_too(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(Draft, "observe", interrupted)
    model = net()
    with pytest.raises(error), observe(model, on_error="warn"):
        train(model, STEPS)
    require_gone(model)


# ── the place of the trial ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["encode", "_write", "_take"])
def test_a_fault_in_the_writers_thread_is_told_once_and_nobody_waits_for_it(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = train(net(), STEPS)
    model = net()
    seen = observe(model, trial=tmp_path / "trial", on_error="warn")
    monkeypatch.setattr(writing, "PATIENCE_S", 2 * ENDS_S)
    monkeypatch.setattr(writing if what == "encode" else ParquetWriter, what, broken)
    began = time.monotonic()
    assert train(model, STEPS) == expected
    seen.close()
    assert time.monotonic() - began < ENDS_S
    assert len([r for r in caplog.records if r.name == "fanin"]) == 1
    assert "could not write the whole trial" in caplog.text


SCRIPT = """
import logging, sys, resource
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from ways.nets import net, observe, train
{limit}
model = net()
seen = observe(model, trial={trial!r}, on_error="warn", steps=6)
losses = train(model, 8)
seen.close()
print(losses == train(net(), 8))
"""


def trained(trial: Path, limit: str = "") -> subprocess.CompletedProcess[str]:
    """A training in a process of its own, which says whether it went as without a watch."""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent / "src")]
    script = SCRIPT.format(path=paths, trial=str(trial), limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"
    return done


FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"


def test_a_disk_that_is_full_costs_the_trial_its_end(tmp_path: Path) -> None:
    """No file may grow beyond a limit: system calls fail as on a full disk. Part 0 fits, the first step does not."""
    done = trained(tmp_path / "trial", FULL)
    assert done.stderr.count("fanin WARNING") == 1
    assert "could not write the whole trial" in done.stderr
    trial = load_trial(tmp_path / "trial")
    assert (trial.steps, trial.complete) == ((), False)


def mounted(place: Path, options: str) -> bool:
    """Whether this user may mount a file system there, and has."""
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return mount is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    place = tmp_path / "disk"
    if not mounted(place, "size=32k"):
        pytest.skip("this user may not mount; the limit on file sizes stands for a full disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_keeps_the_steps_that_fitted(small_disk: Path) -> None:
    done = trained(small_disk / "trial")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("fanin WARNING") == 1
    trial = load_trial(small_disk / "trial")
    assert not trial.complete
    assert len(trial.steps) < 6


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory in which nobody may write; root may whatever its mode says, but not on a disk that is read only."""
    place = tmp_path / "disk"
    if os.geteuid() != 0:
        place.mkdir(mode=0o555)
        yield place
    elif mounted(place, "ro"):
        yield place
        subprocess.run(["umount", str(place)], check=True)
    else:
        pytest.skip("root may write everywhere, and may not mount")


def test_a_directory_that_cannot_be_written_leaves_the_trial_in_memory(
    read_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    seen = observe(model, trial=read_only / "trial", on_error="warn")
    train(model, STEPS)
    assert len(seen.trial.steps) == 3
    seen.close()
    assert [r.name for r in caplog.records] == ["fanin"]
    assert "keeps the trial in memory" in caplog.text
    assert "ermission denied" in caplog.text or "Read-only file system" in caplog.text


def test_in_ci_a_directory_that_cannot_be_written_is_an_error(read_only: Path) -> None:
    model = net()
    with pytest.raises(StoreError, match="cannot be written"):
        observe(model, trial=read_only / "trial", on_error="raise")
    assert hooks_on(model) == []


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """From when it is set, nothing that is written ever arrives."""
    hangs, released = threading.Event(), threading.Event()

    def stalled(original: Callable[..., Any]) -> Callable[..., Any]:
        def late(*args: Any) -> Any:
            if hangs.is_set():
                released.wait(60)
            return original(*args)

        return late

    for name in ("claim", "publish"):
        monkeypatch.setattr(Directory, name, stalled(getattr(Directory, name)))
    monkeypatch.setattr(writing, "PATIENCE_S", 0.3)
    monkeypatch.setattr(capture, "BEGIN_S", 0.3)
    monkeypatch.setattr(capture, "LAST_S", 0.1)
    yield hangs
    released.set()


def test_a_store_that_hangs_holds_up_neither_training_nor_its_end(
    stuck: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    seen = observe(model, trial=tmp_path / "trial", on_error="warn")
    stuck.set()
    began = time.monotonic()
    assert train(model, STEPS) == train(net(), STEPS)
    seen.close()
    assert time.monotonic() - began < ENDS_S
    assert [r.name for r in caplog.records] == ["fanin"]
    assert "no part was written for 0.3 s" in caplog.text
    assert hooks_on(model) == []


def test_a_store_that_hangs_from_the_start_leaves_the_trial_in_memory(
    stuck: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stuck.set()
    model = net()
    seen = observe(model, trial=tmp_path / "trial", on_error="warn")
    train(model, STEPS)
    assert len(seen.trial.steps) == 3
    seen.close()
    assert "does not answer" in caplog.text


def test_a_place_that_is_got_too_late_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    late, claim = threading.Event(), Directory.claim

    def slow(self: Directory, *args: Any) -> Any:
        late.wait(60)
        return claim(self, *args)

    monkeypatch.setattr(Directory, "claim", slow)
    monkeypatch.setattr(capture, "BEGIN_S", 0.2)
    seen = observe(net(), trial=tmp_path / "trial", on_error="warn")
    assert "does not answer" in caplog.text
    (waiting,) = (thread for thread in threading.enumerate() if thread.name == "fanin-begin")
    late.set()
    waiting.join(60)
    assert not waiting.is_alive()
    assert list((tmp_path / "trial").iterdir()) == []
    ParquetStore(tmp_path / "trial").begin().close()
    seen.close()


def test_a_place_that_cannot_be_given_back_ends_nothing_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ParquetStore(tmp_path / "trial").begin()
    shutil.rmtree(tmp_path / "trial")
    capture._give_back((ParquetStore(tmp_path / "trial"), writer))
    assert "could not give it back; remove it" in caplog.text
    assert str(tmp_path / "trial") in caplog.text


def test_what_begins_in_the_moment_of_giving_up_is_either_used_or_undone() -> None:
    undone: list[int] = []
    used = 0
    for turn in range(200):
        try:
            capture.within(0.002, lambda turn=turn: time.sleep(0.002) or turn, undone.append)  # type: ignore[misc]
            used += 1
        except StoreError:
            pass
    for thread in threading.enumerate():
        if thread.name == "fanin-begin":
            thread.join(60)
    assert used + len(undone) == 200


def test_asking_for_a_trial_that_does_not_get_written_is_an_error_and_no_wait(
    stuck: threading.Event, tmp_path: Path
) -> None:
    model = net()
    seen = observe(model, trial=tmp_path / "trial", on_error="warn")
    stuck.set()
    train(model, 2)
    with pytest.raises(StoreError, match="could not be written to its end"):
        _ = seen.trial
    seen.close()


def test_the_limit_on_file_sizes_is_one(tmp_path: Path) -> None:
    """What stands for a full disk does make writes fail."""
    place = str(tmp_path / "file")
    script = f"import resource; {FULL}; open({place!r}, 'wb', 0).write(bytes(10_000))"
    done = subprocess.run(
        [sys.executable, "-c", script + f"; open({place!r}, 'ab', 0).write(b'1')"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File too large" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_faults_are_told_to_the_logger_that_bears_our_name() -> None:
    assert capture.log is logging.getLogger("fanin")
