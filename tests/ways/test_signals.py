"""SIGINT and SIGTERM end a training as they would without us, and the trial is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fanin.examine import load_trial

TESTS = Path(__file__).parents[1]

SCRIPT = """
import os, signal, sys, threading, time
sys.path[:0] = {path!r}
if {watched}:
    import torch
    torch.set_num_threads(1)
    from ways.nets import net, observe, train
else:
    net, train = lambda: None, lambda model, steps: time.sleep(0.01 * steps)
{handlers}
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
model = net()
if {watched}:
    seen = observe(model, trial={trial!r}, steps=50)
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
train(model, 3)
if {watched}:
    seen.trial  # waits until the two steps that are over are on the disk
print("ready", flush=True)
{waiting}
train(model, 2)
print("went on", flush=True)
"""

LOOPING = "while not globals().get('stop'): train(model, 1); time.sleep(0.01)"
HANGING = (
    "threading.Lock().acquire(); import ctypes; ctypes.CDLL(None).pause()"  # in C, where no handler runs
)
EXITING = "signal.signal(signal.SIGTERM, lambda *args: sys.exit(3))"
SETTING = """
def note(*args):
    global stop
    stop = True
signal.signal(signal.SIGTERM, note)
"""


def ended(
    folder: Path, number: int, watched: bool, handlers: str = "", waiting: str = LOOPING
) -> tuple[int, str, str]:
    """Exit status, output and the last line of the errors of a training that is sent a signal; without a watch it is a
    loop that sleeps, which spares the import of torch."""
    script = SCRIPT.format(
        path=[str(TESTS), str(TESTS.parent / "src")],
        handlers=handlers,
        watched=watched,
        trial=str(folder / "trial"),
        waiting=waiting,
    )
    started = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    time.sleep(0.2)
    os.kill(started.pid, number)
    said, errors = started.communicate(timeout=60)
    return started.returncode, said, errors.strip().rpartition("\n")[2]


CASES = {
    "SIGINT": (signal.SIGINT, "", LOOPING, -signal.SIGINT),
    "SIGTERM": (signal.SIGTERM, "", LOOPING, -signal.SIGTERM),
    "SIGTERM in a call that does not return": (signal.SIGTERM, "", HANGING, -signal.SIGTERM),
    "SIGTERM with a handler that exits": (signal.SIGTERM, EXITING, LOOPING, 3),
    "SIGTERM with a handler that lets the loop end": (signal.SIGTERM, SETTING, LOOPING, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_a_training_as_without_a_watch_and_the_trial_is_closed(
    case: str, tmp_path: Path
) -> None:
    number, handlers, waiting, status = CASES[case]
    plain = ended(tmp_path, number, False, handlers, waiting)
    watched = ended(tmp_path, number, True, handlers, waiting)
    assert plain[0] == status
    assert watched == plain
    trial = load_trial(tmp_path / "trial")
    assert trial.complete
    assert len(trial.steps) >= 2
    marks = [path.name for path in (tmp_path / "trial").iterdir() if path.name.startswith(".")]
    assert marks == ([".stopped-w00000"] if status == -signal.SIGTERM else [])


def test_neither_a_child_that_is_told_to_stop_nor_a_kill_closes_the_trial(tmp_path: Path) -> None:
    """Data loaders stop their workers so, which are forks of the training."""
    forking = """
child = os.fork()
if not child:
    time.sleep(30)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
os.waitpid(child, 0)
assert not seen.trial.complete
os.kill(os.getpid(), signal.SIGKILL)
"""
    handlers = "import warnings; warnings.simplefilter('ignore')"
    assert ended(tmp_path, 0, True, handlers, forking)[0] == -signal.SIGKILL
    assert not load_trial(tmp_path / "trial").complete
