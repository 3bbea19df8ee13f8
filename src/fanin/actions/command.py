"""Command: run a command, the verdict as JSON on its stdin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import final

from fanin.actions.base import Action, Notice
from fanin.errors import ActionError

COMMAND_S = 60.0
"""Seconds for a command. It is to tell or to stop something; one that hangs keeps later actions waiting."""


@final
class Command(Action):
    """A line for the shell. What it prints goes to stderr: stdout belongs to the report."""

    name = "command"

    def __init__(self, line: str, seconds: float = COMMAND_S) -> None:
        self.target = line
        self._seconds = seconds

    def do(self, notice: Notice) -> str:
        """Run it to its end.

        Raises:
            ActionError: It cannot be started, takes too long, or ends with another code than 0.
        """
        child = subprocess.Popen(
            self.target,
            shell=True,  # the user's own line, which may hold pipes
            stdin=subprocess.PIPE,
            stdout=sys.__stderr__,
            stderr=sys.__stderr__,
            text=True,
            start_new_session=True,
        )
        try:
            with suppress(BrokenPipeError):  # it need not read
                child.communicate(notice.json, timeout=self._seconds)
            child.wait(self._seconds)
        except subprocess.TimeoutExpired:
            _end(child)
            raise self._error(f"still running after {self._seconds:g} s; it was ended") from None
        except BaseException:  # Ctrl-C: the terminal tells us, and not a child in a session of its own
            _end(child)
            raise
        if child.returncode:
            raise self._error(f"exit code {child.returncode}")
        return "the command ended with code 0"

    def _error(self, got: str) -> ActionError:
        return ActionError(
            "the command of --run failed",
            got=got,
            expected=f"exit code 0 within {self._seconds:g} s",
            next_step="try it by hand with the JSON of _status.json on its stdin",
        )


def _end(child: subprocess.Popen[str]) -> None:
    """It, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()
    child.wait()
