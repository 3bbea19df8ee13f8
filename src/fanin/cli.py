"""The command line. Results go to stdout, everything else to stderr; the exit code is the verdict."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from fanin.errors import FaninError
from fanin.reports import FORMATS
from fanin.terminal import Output

if TYPE_CHECKING:
    from fanin.examine import Report
    from fanin.rule import Rule

F = TypeVar("F", bound=Callable[..., Any])

HEALTHY, POOR, BROKEN, UNDECIDED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141
"""Exit codes; the last two are those of a shell whose command was ended by SIGINT and SIGPIPE."""

EXITS = {
    "undecided": {"healthy": HEALTHY, "poor": POOR, "undecided": UNDECIDED},
    "poor": {"healthy": HEALTHY, "poor": POOR, "undecided": HEALTHY},
    "never": {"healthy": HEALTHY, "poor": HEALTHY, "undecided": HEALTHY},
}
"""--fail-on -> verdict -> exit code."""
