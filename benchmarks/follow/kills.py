"""A thousand kills, of the writer of a trial and of its follower in turn, each at a random point.

    python -m benchmarks.follow.kills --shard 0/2      and 1/2 beside it; about 10 minutes each on two cores
    python -m benchmarks.follow.kills --sum            adds the shards up into results/kills.json

A round is `tests/following/killing.py`: a process writes a poor trial and says of each step when it is on the disk,
another follows it as `fanin follow` does, with an action; one of the two gets SIGKILL within half a second. Then

- writer killed: the follower must say `writer dead` by itself (beats every 0.05 s, dead after 1 s);
- follower killed: it is started anew and must say `trial ended`; the action is done at most once for a finding;
- either way the trial is readable and holds every step that was said to be on the disk, and `_status.json` is whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._record import circumstances

RESULTS = Path(__file__).parent / "results"
ROUND = Path(__file__).parents[2] / "tests" / "following" / "killing.py"


def run(shard: int, of: int, kills: int) -> None:
    """The rounds of a shard, each as a line."""
    first, last = kills * shard // of, kills * (shard + 1) // of
    noted, began = circumstances("pyarrow"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROUND), folder, str(first), str(last - first)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    noted |= {"shard": f"{shard}/{of}", "kills": len(rounds), "seconds": round(time.monotonic() - began, 1)}
    text = "\n".join(map(json.dumps, [noted, *rounds]))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"kills-{shard}-of-{of}.jsonl").write_text(text + "\n", encoding="utf-8")
    print(json.dumps(summed([(noted, rounds)]), indent=2))


def summed(shards: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> dict[str, Any]:
    """What all shards say together."""
    rounds = [each for _, found in shards for each in found]
    return {
        "runs": [noted for noted, _ in shards],
        "kills": len(rounds),
        "killed": dict(Counter(each["killed"] for each in rounds)),
        "ended": dict(Counter(each["ended"] for each in rounds)),
        "acknowledged_steps": sum(each["steps"] for each in rounds),
        "wrong": [each for each in rounds if each["wrong"]],
    }


def main() -> None:
    """Run a shard, or add them up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--sum", action="store_true")
    asked = parser.parse_args()
    if not asked.sum:
        shard, of = map(int, asked.shard.split("/"))
        return run(shard, of, asked.kills)
    parts = [path.read_text(encoding="utf-8").splitlines() for path in sorted(RESULTS.glob("kills-*.jsonl"))]
    whole = summed([(json.loads(noted), [json.loads(line) for line in lines]) for noted, *lines in parts])
    (RESULTS / "kills.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(whole, indent=2))
    return None


if __name__ == "__main__":
    main()
