"""Killed at any point, neither a writer nor a follower leaves anything that the next one cannot go on from.

The large version, a thousand kills, is benchmarks/follow/kills.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fanin

KILLS = 8


def test_a_kill_loses_no_acknowledged_step_no_trial_and_no_follower(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "7000", str(KILLS)],
        env=os.environ | {"PYTHONPATH": str(Path(fanin.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each for each in rounds if each["wrong"]] == []
    assert {each["killed"] for each in rounds} == {"writer", "follower"}
    assert len(rounds) == KILLS
    assert sum(each["steps"] for each in rounds) > KILLS
