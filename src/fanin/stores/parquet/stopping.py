"""A trial that is ended by SIGTERM, without a handler for it.

Where nobody handles SIGTERM the kernel ends the process at once, and no Python of ours runs. To handle it ourselves
would change how the process ends: a handler in Python waits for the main thread, which may hang in a collective, and
whoever looks at `signal.getsignal` finds it. `faulthandler` writes from C, at once, and passes the signal on; so the
file that it is given says, by not being empty, that this worker was told to stop, and where it was at that moment.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress
from typing import BinaryIO

_file: BinaryIO | None = None
_paths: set[str] = set()
"""`faulthandler` knows one file for a signal: all writers of this process share it, by links of their own."""


def mark_when_stopped(path: str) -> None:
    """From now on SIGTERM leaves a mark here, before it does what it does. Where somebody handles it already nothing
    happens: the process is then ended by whoever does, and in order."""
    global _file
    if not hasattr(faulthandler, "register") or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    with suppress(OSError):  # without a mark the trial is one that was broken off
        if _file is not None:
            os.link(next(iter(_paths)), path)
        else:
            _file = open(path, "ab", buffering=0)  # noqa: SIM115  # for as long as the writer is at work
            faulthandler.register(signal.SIGTERM, _file, all_threads=False, chain=True)
        _paths.add(path)


def leave_unmarked(path: str) -> None:
    """The writer is done: no mark from now on."""
    if path not in _paths:
        return
    _paths.remove(path)
    with suppress(OSError):
        os.unlink(path)
    if not _paths:
        _stop_marking()


def _stop_marking() -> None:
    global _file
    file, _file = _file, None
    if file is not None:
        # To unregister puts back what was there; a handler that somebody has installed since must stay.
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            faulthandler.unregister(signal.SIGTERM)
        file.close()


def _is_another_process() -> None:
    _paths.clear()
    _stop_marking()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_is_another_process)  # whose end is not that of the training
