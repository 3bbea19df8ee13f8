"""Time and peak memory of judging a trial on a local disk, over layers and over steps.

    ./dev bench judging

Networks are real ones in NumPy (`fanin.synthetic.mlp`, width 16: each layer has weight, bias, input, output,
activation and gradients, with histograms and units), trained, written as `watch` writes them, and judged by a process
of their own that did nothing else. Reading and judging are timed inside it; the peak is that of the process, less what
it needs for a trial of two layers. Growth is the exponent p of size^p from the smallest trial: 1 is linear.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._record import circumstances, keep, table

SIZES = ((1000, 10), (3000, 10), (10_000, 10), (1000, 30), (1000, 100))
"""Layers and steps, smallest first."""

WRITE = """
import sys
from fanin.stores import open_store
from fanin.synthetic import mlp
uri, layers, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
trial = mlp(widths=(16,) * layers + (10,), steps=steps)
writer = open_store(uri).begin()
writer.describe(trial.spec)
for step in trial.steps:
    writer.append(step)
    writer.flush()
writer.close()
"""

JUDGE = """
import json, resource, sys
from time import perf_counter
from fanin import judge, load_trial
began = perf_counter()
trial = load_trial(sys.argv[1])
read = perf_counter()
report = judge(trial)
print(json.dumps({
    "read_s": read - began,
    "judge_s": perf_counter() - read,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "tensors": sum(len(step.observations) for step in trial.steps),
    "verdict": report.verdict.value,
}))
"""


def run(script: str, *arguments: object) -> str:
    """What a fresh process says."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def measured(folder: str, layers: int, steps: int) -> dict[str, Any]:
    """One trial, written and judged."""
    place = Path(folder) / f"{layers}-{steps}"
    run(WRITE, place, layers, steps)
    size = sum(path.stat().st_size for path in place.iterdir()) / 2**20
    found: dict[str, Any] = json.loads(run(JUDGE, place))
    return {"layers": layers, "steps": steps, "disk_mb": size} | found


def growth(rows: list[dict[str, Any]]) -> None:
    """Add the exponents, of time and of memory."""
    first = rows[0]
    for row in rows[1:]:
        times = math.log(row["tensors"] / first["tensors"])
        for name in ("read_s", "judge_s", "peak_mb"):
            row[f"{name}_exponent"] = math.log(row[name] / first[name]) / times


def main() -> None:
    """Print the table and keep the figures."""
    sizes = [tuple(map(int, size.split("x"))) for size in sys.argv[1:]] or SIZES
    record, rows = circumstances("numpy", "pyarrow"), []
    with tempfile.TemporaryDirectory() as folder:
        base = measured(folder, 2, 2)["peak_mb"]
        for layers, steps in sizes:
            row = measured(folder, layers, steps)
            row["peak_mb"] -= base
            rows.append(row)
            print(row, file=sys.stderr)
    growth(rows)
    print(table(list(rows[-1]), [[_told(row.get(name, "")) for name in rows[-1]] for row in rows]))
    keep("judging", record | {"base_mb": base, "trials": rows})


def _told(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
