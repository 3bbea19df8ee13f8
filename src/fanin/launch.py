"""`fanin run`: start any command, have the Python in it watched, and be invisible otherwise.

The child gets a folder in front of PYTHONPATH that holds a `sitecustomize` (see there) and the trial's address in
FANIN_TRIAL. Its arguments, standard streams, working directory, process group, signals and exit status are its own.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fanin.errors import TrialExistsError, UsageError

SITE = Path(__file__).parent / "_site"
"""The folder with our `sitecustomize`."""

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""What is meant for the script when it is sent to us."""

SI_KERNEL = 0x80
"""`si_code` of a signal from the kernel, such as Ctrl-C: the terminal has sent it to the child as well (Linux)."""

LOOK_S = 10.0
"""Seconds for the look whether an object store holds a trial already, as long as a watch waits for the place of its
trial (`capture.BEGIN_S`)."""

TAKEN = 9
"""Exit code of who looked and found one: 1 and 2 are Python's."""

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes of a shell that cannot start a command."""


def launch(command: Sequence[str], trial: str, steps: int) -> int:
    """Run a command to its end, watched.

    Args:
        command: The program and its arguments.
        trial: Where the trial shall be written, which must be free.
        steps: How many training steps to watch.

    Returns:
        The exit code; minus the signal's number where a signal ended it, as in `subprocess`.

    Raises:
        UsageError: The platform cannot do this.
        TrialExistsError: There is something at `trial`.
        OSError: The command cannot be started.
    """
    if not hasattr(os, "posix_spawnp"):
        raise UsageError("fanin run needs a POSIX system", next_step="use fanin.watch in the script itself")
    require_free(trial)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    try:
        child = os.posix_spawnp(
            command[0],
            list(command),
            environment(trial, steps),
            setsigmask=mask,
            # Python ignores these two, which the child would inherit; `subprocess` restores them as well.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        status = _waiting()(child, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return os.waitstatus_to_exitcode(status)


def end_like(status: int) -> None:
    """End this process as the child ended: by the same signal, or with the same exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        _no_second_core_dump()
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status if status >= 0 else 128 - status)


def how_ended(status: int) -> str:
    """How the child ended, in words.

    >>> how_ended(2), how_ended(-15)
    ('with status 2', 'by SIGTERM')
    """
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"by signal {-status}"


def _no_second_core_dump() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def start_failure(error: OSError, command: str) -> tuple[int, str]:
    """The exit code and the sentence of a command that cannot be started."""
    if error.errno == errno.ENOENT:
        return NOT_FOUND, f"command not found: {command}"
    return NOT_EXECUTABLE, f"cannot run {command}: {os.strerror(error.errno or errno.ENOEXEC)}"


# ── where and with what ─────────────────────────────────────────────────────────────────────────────────────


def default_trial(command: Sequence[str], now: datetime) -> str:
    """`runs/<script>-<time>`.

    >>> default_trial(["torchrun", "--nproc-per-node=2", "src/train.py"], datetime(2026, 3, 1, 9, 30))
    'runs/train-20260301-093000'
    """
    name = re.sub(r"[^\w.-]+", "_", _script(command)).lstrip(".") or "run"
    return f"runs/{name}-{now:%Y%m%d-%H%M%S}"


def _script(command: Sequence[str]) -> str:
    """What the command is about: a script, a module after `-m`, or the program itself."""
    for before, argument in pairwise(command):
        if before == "-m":
            return argument
        if argument.endswith((".py", ".sh")) and not argument.startswith("-"):
            return Path(argument).stem
    return Path(command[0]).stem


def require_free(trial: str) -> None:
    """Refuse a trial that exists, before anything is started.

    Raises:
        TrialExistsError: There is something.
    """
    if os.path.lexists(trial) if "://" not in trial else _is_taken(trial):
        from fanin.stores.place import shown  # here, where nothing is started any more

        raise TrialExistsError(
            "there is something already where the trial should go",
            where=shown(trial),
            next_step="pass another --trial, or move this one away",
        )


def _is_taken(trial: str) -> bool:
    """Whether there is a trial in an object store. By a child that is killed if the store is silent: it loads what
    the script may not notice, and who hangs in a request cannot be ended otherwise. Where the store does not answer,
    or the environment names a launcher, whose other processes may have begun this very run, the script finds out."""
    if os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("MASTER_ADDR"):
        return False
    child = os.fork()
    if not child:
        _look_and_end(trial)
    until = time.monotonic() + LOOK_S
    try:
        while time.monotonic() < until:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                child = 0
                return os.waitstatus_to_exitcode(status) == TAKEN
            time.sleep(0.01)
        return False
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _look_and_end(trial: str) -> NoReturn:
    """In the child: say by the exit code what is there."""
    code = 0
    try:
        from fanin.shelf import is_trial

        code = TAKEN if is_trial(trial) else 0
    finally:
        os._exit(code)  # whatever was raised: the parent's own end is not the child's to run


def environment(trial: str, steps: int) -> dict[str, str]:
    """The environment of the child: ours and three variables."""
    old = os.environ.get("PYTHONPATH", "")
    address = trial if "://" in trial else os.path.abspath(trial)  # the script may change its directory
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SITE), old] if old else [str(SITE)]),
        "FANIN_TRIAL": address,
        "FANIN_STEPS": str(steps),
    }


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────


def _waiting() -> Callable[[int, set[int]], int]:
    """How to wait. A signal for the process may reach any thread that has not blocked it: then waiting for it in
    this one is not enough."""
    tasks = Path("/proc/self/task")
    alone = tasks.exists() and len(list(tasks.iterdir())) == 1
    return wait_by_information if alone and hasattr(signal, "sigwaitinfo") else wait_by_handlers


def wait_by_information(child: int, mask: set[int]) -> int:
    """Wait for the child; pass on each signal that somebody sent to us, and none that the child has got already."""
    while True:
        received = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
        if received.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
        elif received.si_code != SI_KERNEL:
            os.kill(child, received.si_signo)


def wait_by_handlers(child: int, mask: set[int]) -> int:
    """The same where the origin of a signal cannot be known: what a terminal sends counts as sent by it."""

    def forward(number: int, frame: FrameType | None) -> None:
        if not (number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground()):
            os.kill(child, number)

    ignored = {number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN}
    before = {number: signal.signal(number, forward) for number in FORWARDED if number not in ignored}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return os.waitpid(child, 0)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether keys pressed at the terminal reach our process group."""
    try:
        return os.tcgetpgrp(sys.__stdin__.fileno()) == os.getpgrp() if sys.__stdin__ else False
    except OSError:
        return False
