"""Writer and follower of one trial, killed in turn at random points: `python killing.py FOLDER FIRST COUNT`.

A line of JSON on stdout for each round: what was killed, how the follower ended, and what was wrong; nothing is.
Processes are forked from this one, which has everything imported and no thread, so that a round takes seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich.console
import rich.text  # noqa: F401  # before any fork

from fanin import cli_follow, pulse
from fanin.actions.base import Action, Notice
from fanin.beside import STATUS
from fanin.errors import TrialNotFoundError
from fanin.follow import Following, follow  # noqa: F401  # before any fork
from fanin.judgement import load_rules
from fanin.status import Ended, Status
from fanin.stores import open_store
from fanin.synthetic import mlp
from fanin.trial import Trial

HANGS_S = 30.0
"""Seconds after which a follower that has not ended hangs: its own limits are 1 s and 20 s."""

STEPS = 6
"""Of a writer that is let to its end."""

DEAD_AFTER_S = 1.0
"""Of the follower whose writer is killed; the writer beats 20 times in it."""

ENDS = {ended: 10 + number for number, ended in enumerate(Ended)}
"""As an exit code."""


class Noted(Action):
    """Notes in a file that it was done; a line for each finding."""

    name = "noted"

    def __init__(self, log: Path) -> None:
        self._log = log

    def do(self, notice: Notice) -> str:
        """Append to it, each line at once."""
        found = json.loads(notice.json)["findings"]
        lines = "".join(f"{one['code']} {one['layer']}\n" for one in found)
        file = os.open(self._log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(file, lines.encode())
        os.close(file)
        return "noted"


def poor() -> Trial:
    """A small one."""
    return mlp((8, 8, 8, 8, 4), overrides={"blocks.1.fc.weight": "zeros"})


def writes(place: Path, trial: Trial, steps: int | None, seed: int, said: int) -> None:
    """Write so many steps, or without end; say the number of each once it is on the disk."""
    pulse.EVERY_S = DEAD_AFTER_S / 20
    chance, start = random.Random(seed), trial.steps[0]
    writer = open_store(place).begin()
    beating = pulse.Pulse(str(place), 0, writer.is_of, lambda request: None)
    writer.describe(trial.spec)
    index = 0
    while steps is None or index < steps:
        time.sleep(chance.uniform(0, 0.05))
        writer.append(replace(start, index=index))
        writer.flush()
        os.write(said, f"{index}\n".encode())
        index += 1
    writer.close()
    beating.close()


def follows(place: Path, log: Path, dead_after: float) -> int:
    """Follow as the command does; how it ended, as an exit code."""
    how = Following(dead_after=dead_after, timeout=20.0, to_the_end=True)
    look = cli_follow.followed(str(place), how, [Noted(log)], None, None)
    return ENDS[look.standing.ended]


def forked(work: Callable[[], int | None]) -> int:
    """A child that does this and ends; what it says of itself goes nowhere."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(work() or 0)
    except BaseException:  # noqa: BLE001  # a child must not go on as its parent
        os._exit(99)


def waited(child: int, seconds: float = HANGS_S) -> int | None:
    """Its exit code; None where it hangs, and is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    killed(child)
    return None


def killed(child: int) -> None:
    """Kill it."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def turn(place: Path, seed: int) -> dict[str, Any]:
    """One round; even ones kill the writer, odd ones the follower."""
    chance, log = random.Random(seed), place.with_suffix(".log")
    victim = "follower" if seed % 2 else "writer"
    read, write = os.pipe()
    steps = STEPS if victim == "follower" else None
    writer = forked(lambda: writes(place, poor(), steps, seed, write))
    os.close(write)
    dead_after = HANGS_S if victim == "follower" else DEAD_AFTER_S
    follower = forked(lambda: follows(place, log, dead_after))
    time.sleep(chance.uniform(0, 0.5))
    killed(follower if victim == "follower" else writer)
    if victim == "follower":
        follower = forked(lambda: follows(place, log, dead_after))
    ended = _ended(place, writer, follower, victim)
    with os.fdopen(read) as file:
        acknowledged = [int(line) for line in file]
    wrong = [*_wrong_end(victim, ended), *_wrong_trial(place, acknowledged, victim), *_wrong_deeds(log)]
    return {"seed": seed, "killed": victim, "ended": ended, "steps": len(acknowledged), "wrong": wrong}


def _ended(place: Path, writer: int, follower: int, victim: str) -> str:
    if victim == "follower" and waited(writer) != 0:
        killed(follower)
        return "the writer failed"
    if not list(place.glob("part-*")):
        killed(follower)  # it would wait for a trial, as it should
        return "nothing was written"
    code = waited(follower)
    names = {number: ended.value for ended, number in ENDS.items()}
    return "hangs" if code is None else names.get(code, f"exit code {code}")


def _wrong_end(victim: str, ended: str) -> Iterator[str]:
    right = {"trial ended"} if victim == "follower" else {"writer dead", "nothing was written"}
    if ended not in right:
        yield f"the follower's end: {ended}"


def _wrong_trial(place: Path, acknowledged: list[int], victim: str) -> Iterator[str]:
    try:
        trial = open_store(place).load()
    except TrialNotFoundError:
        if acknowledged:
            yield "acknowledged steps, and no trial"
        return
    except Exception as error:  # noqa: BLE001  # whatever it is, the trial is unreadable
        yield f"unreadable: {type(error).__name__}"
        return
    kept = [step.index for step in trial.steps]
    if kept != list(range(len(kept))) or len(kept) < len(acknowledged):
        yield f"lost: {len(acknowledged)} acknowledged, {kept} kept"
    if trial.complete is not (victim == "follower"):
        yield f"complete is {trial.complete}"
    if kept:
        yield from _wrong_status(place)


def _wrong_status(place: Path) -> Iterator[str]:
    try:
        said = json.loads((place / STATUS).read_text())
    except (OSError, ValueError) as error:
        yield f"status: {type(error).__name__}"
        return
    if said["status"] != Status.ISSUES_FOUND:
        yield f"status: {said['status']}"


def _wrong_deeds(log: Path) -> Iterator[str]:
    lines = log.read_text().splitlines() if log.exists() else []
    if len(lines) != len(set(lines)):
        yield "done twice"


def main(folder: str, first: str, count: str) -> None:
    """So many rounds."""
    load_rules()
    for seed in range(int(first), int(first) + int(count)):
        print(json.dumps(turn(Path(folder) / f"trial-{seed}", seed)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
