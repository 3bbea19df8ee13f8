"""Processes that write trials, for tests to run and to kill: `python children.py VERB ARGUMENTS`."""

from __future__ import annotations

import atexit
import os
import sys

import numpy as np

from fanin.stores import open_store
from fanin.summary import summarize
from fanin.trial import Mode, ModelSpec, Observation, Role, Step

SPEC = ModelSpec("Net", "numpy")
VALUES = np.linspace(-1, 1, 4096).reshape(64, 64)
TENSORS = 8


def step(index: int, worker: int = 0) -> Step:
    """A step of some ten kilobytes, so that there is something to interrupt."""
    seen = tuple(
        Observation(
            f"fc{i}", Role.OUTPUT, f"fc{i}_output_0", summarize(VALUES + index, unit_axis=0), worker=worker
        )
        for i in range(TENSORS)
    )
    return Step(index, Mode.TRAIN, seen, {worker: float(index)})


def write(uri: str, worker: str, steps: str) -> None:
    """Write some steps as one worker, and close."""
    writer = open_store(uri).begin(int(worker))
    writer.describe(SPEC)
    for index in range(int(steps)):
        writer.append(step(index, int(worker)))
    writer.close()


def forever(uri: str) -> None:
    """Say who we are; then write without end, saying the number of each step once it is flushed."""
    say(os.getpid())
    writer = open_store(uri).begin()
    writer.describe(SPEC)
    index = 0
    while True:
        writer.append(step(index))
        writer.flush()
        say(index)
        index += 1


def endless(uri: str) -> None:
    """The same as a process of its own, which no fork could hand a store's broken threads."""
    forever(uri)


def nursery() -> None:
    """For each address on stdin, a process that writes there forever; say `dead` when somebody killed it.

    Forked, for each to start in a millisecond. This process itself has no thread that a fork could break.
    """
    for line in sys.stdin:
        child = os.fork()
        if not child:
            forever(line.strip())
        os.waitpid(child, 0)
        say("dead")


def fork(uri: str) -> None:
    """Fork amid writing, as a data loader does: the child uses its copy of the writer, then the parent goes on."""
    writer = open_store(uri).begin()
    writer.append(step(0))
    child = os.fork()
    if not child:
        writer.describe(SPEC)
        writer.append(step(99))
        writer.flush()
        writer.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.append(step(1))
    writer.close()


def close_at_exit(uri: str) -> None:
    """Leave the closing to the end of the interpreter."""
    writer = open_store(uri).begin()
    atexit.register(writer.close)
    writer.append(step(0))


def never_close(uri: str) -> None:
    """End without closing."""
    writer = open_store(uri).begin()
    writer.append(step(0))
    writer.flush()


def say(word: object) -> None:
    """Put a line on stdout at once."""
    os.write(1, f"{word}\n".encode())


VERBS = {f.__name__: f for f in (write, endless, nursery, fork, close_at_exit, never_close)}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
