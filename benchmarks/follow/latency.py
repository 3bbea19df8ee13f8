"""From a step that is written to its verdict that is printed: `fanin follow` in a process of its own, on 50 trials.

    python -m benchmarks.follow.latency                            a local disk (a temporary folder)
    python -m benchmarks.follow.latency --place s3://bucket/prefix an object store, with the usual AWS_ variables

Each trial: the follower is started and waits; a writer begins the trial, pauses as a framework does before its first
step is over, and writes step 0 of a poor network. The clock starts when that step is visible to others (`flush` has
returned) and stops when the follower's line with the verdict has arrived here. `of_append` starts it when the step is
handed over, so that writing counts too. A control reads a line from a process that prints it at once.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._record import circumstances, quartiles

from fanin.stores import open_store
from fanin.synthetic import mlp, normal
from fanin.trial import Trial

RESULTS = Path(__file__).parent / "results"

FIRST_STEP_S = 0.3
"""Pause between the begin of a watch and its first step, as of a small network on two cores."""


def one(uri: str, poor: Trial) -> dict[str, float]:
    """The latency of one trial, in seconds."""
    step = next(step for step in poor.steps if step.index == 0)
    with _follower(uri) as lines:
        _until(lines, "no trial at this address yet")
        writer = open_store(uri).begin()
        writer.describe(poor.spec)
        time.sleep(FIRST_STEP_S)
        appended = time.perf_counter()
        writer.append(step)
        writer.flush()
        visible = time.perf_counter()
        _until(lines, "IssuesFound")
        said = time.perf_counter()
        writer.close()
    return {"of_visible": said - visible, "of_append": said - appended}


@contextmanager
def _follower(uri: str) -> Iterator[Any]:
    command = [sys.executable, "-m", "fanin", "follow", uri, "--timeout", "60s"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process.stderr
        finally:
            process.kill()


def _until(lines: Any, word: str) -> None:
    for line in lines:
        if word in line:
            return
    raise RuntimeError(f"the follower ended without saying {word!r}")


def control() -> float:
    """Seconds from a line that is asked for to its arrival."""
    echo = [sys.executable, "-uc", "import sys\nfor line in sys.stdin: print(line)"]
    with subprocess.Popen(echo, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print("warm", file=process.stdin, flush=True)
        process.stdout.readline(), process.stdout.readline()
        began = time.perf_counter()
        print("now", file=process.stdin, flush=True)
        process.stdout.readline()
        took = time.perf_counter() - began
        process.stdin.close()
    return took


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", help="where the trials go; a new folder under it")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--name", default="latency-local")
    asked = parser.parse_args()
    place = f"{asked.place or tempfile.mkdtemp()}/{secrets.token_hex(4)}"
    noted = circumstances("pyarrow", "numpy")
    # A twentieth of what ReLU needs at this width, in every layer: sqrt(2 / 64) = 0.18.
    poor = mlp(widths=(64,) * (asked.layers - 1) + (10,), init=normal(0.01))
    found = [one(f"{place}/trial-{number}", poor) for number in range(asked.trials)]
    result = noted | {"layers": asked.layers, "control": quartiles(control() for _ in range(20))}
    for kind in ("of_visible", "of_append"):
        values = [each[kind] for each in found]
        result[kind] = quartiles(values) | {
            "worst": max(values),
            "within_1_s": sum(value <= 1 for value in values),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{asked.name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
