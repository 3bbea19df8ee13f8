"""A writer that is killed loses nothing that it was told is safe."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fanin
from fanin.errors import TrialNotFoundError
from fanin.stores import open_store

from .children import TENSORS, step
from .samples import plain

KILLS = 24
CHILDREN = Path(__file__).with_name("children.py")


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process that forks writers (see children.py)."""
    process = subprocess.Popen(
        [sys.executable, str(CHILDREN), "nursery"],
        env=os.environ | {"PYTHONPATH": str(Path(fanin.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("seed", range(KILLS))
def test_acknowledged_steps_survive_a_kill(nursery: subprocess.Popen[str], tmp_path: Path, seed: int) -> None:
    acknowledged = killed(nursery, tmp_path / "trial", random.Random(seed))
    if not acknowledged and not list(tmp_path.glob("trial/part-*")):
        with pytest.raises(TrialNotFoundError):
            open_store(tmp_path / "trial").load()
        return
    trial = open_store(tmp_path / "trial").load()
    assert not trial.complete
    assert acknowledged == list(range(len(acknowledged)))
    assert len(trial.steps) >= len(acknowledged)
    assert [each.index for each in trial.steps] == list(range(len(trial.steps)))
    assert all(len(each.observations) == TENSORS for each in trial.steps)
    assert plain(trial.steps[-1:]) == plain(tuple(step(each.index) for each in trial.steps[-1:]))


def killed(nursery: subprocess.Popen[str], place: Path, chance: random.Random) -> list[int]:
    """Let a writer write to a random moment, kill it, and return the steps that it had acknowledged."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    print(place, file=nursery.stdin, flush=True)
    writer = int(nursery.stdout.readline())
    before = [int(nursery.stdout.readline()) for _ in range(chance.choice([0, 1, 3, 10, 30]))]
    time.sleep(chance.uniform(0, 0.02))  # any moment will do: this picks one
    os.kill(writer, signal.SIGKILL)
    after = iter(nursery.stdout.readline, "dead\n")
    return before + [int(line) for line in after]
