"""Time and peak memory of judging a trial on a local disk, over layers, over steps, and over the blocks of a sum.

    ./dev bench judging
    python benchmarks/judging.py 1000x10 10000x10        two sizes, layers x steps
    python benchmarks/judging.py 500x1r 1000x1r          residual networks, blocks x steps

Networks are real ones in NumPy (`fanin.synthetic.mlp`, width 16: each layer has weight, bias, input, output,
activation and gradients, with histograms and units), trained for two steps, which are repeated in turn (to train and
summarize one of a thousand layers takes 3 s), written as `watch` writes them, and judged by a process of their own
that did nothing else. Reading and judging are timed inside it; the peak is that of the process, less what it needs
for a trial of two layers. Growth is the exponent p of size^p from the smallest trial of its shape, of the processor's
time, which other work on the machine leaves nearly alone: 1 is linear. In a residual network each block reads the sum
of all before it, and its description names every branch of that: what is read grows with the square of the blocks, so
`inputs` is told beside the tensors.
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

SIZES = ["1000x10", "3000x10", "10000x10", "1000x30", "1000x100", "500x1r", "1000x1r", "2000x1r"]
"""Layers and steps, smallest first; r for residual blocks."""

WRITE = """
import sys
from dataclasses import replace
from fanin.scheme import HE_NORMAL
from fanin.stores import open_store
from fanin.stores.parquet import writing
from fanin.synthetic import mlp, scaled
uri, layers, steps, residual = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
init = scaled(HE_NORMAL, layers**-0.25 if residual else 1.0)  # a branch adds 1/n of the stream, which so stays finite
trial = mlp((16,) * (layers + residual) + (10,), init, steps=min(steps, 2), residual=residual)
writing.PATIENCE_S = 3600.0  # a part of 70,000 tensors takes longer than its 10 s, where other work has the processor
writer = open_store(uri).begin()
writer.describe(trial.spec)
for index in range(steps):
    writer.append(replace(trial.steps[index % 2], index=index) if index > 1 else trial.steps[index])
    writer.flush()
writer.close()
"""

JUDGE = """
import json, resource, sys
from time import perf_counter, process_time
from fanin import judge, load_trial
began = perf_counter(), process_time()
trial = load_trial(sys.argv[1])
read = perf_counter(), process_time()
report = judge(trial)
judged = perf_counter(), process_time()
print(json.dumps({
    "read_s": read[0] - began[0],
    "judge_s": judged[0] - read[0],
    "read_cpu_s": read[1] - began[1],
    "judge_cpu_s": judged[1] - read[1],
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "tensors": sum(len(step.observations) for step in trial.steps),
    "inputs": sum(len(layer.inputs) for layer in trial.spec.layers),
    "verdict": report.verdict.value,
}))
"""


def run(script: str, *arguments: object) -> str:
    """What a fresh process says."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(folder: str, size: str) -> dict[str, Any]:
    """One trial, written and judged."""
    place, residual = Path(folder) / size, size.endswith("r")
    layers, steps = map(int, size.removesuffix("r").split("x"))
    run(WRITE, place, layers, steps, residual)
    disk = sum(path.stat().st_size for path in place.iterdir()) / 2**20
    found: dict[str, Any] = json.loads(run(JUDGE, place))
    shape = "residual" if residual else "plain"
    return {"shape": shape, "layers": layers, "steps": steps, "disk_mb": disk} | found


def growth(rows: list[dict[str, Any]]) -> None:
    """Add the exponents, of time and of memory."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        least = first.setdefault(row["shape"], row)
        for name in ("read_cpu_s", "judge_cpu_s", "peak_mb"):
            times = math.log(row["tensors"] / least["tensors"])
            row[f"{name}_exponent"] = math.log(row[name] / least[name]) / times if times else None


def main() -> None:
    """Print the table and keep the figures."""
    record, rows = circumstances("numpy", "pyarrow"), []
    with tempfile.TemporaryDirectory() as folder:
        base = measured(folder, "2x2")["peak_mb"]
        for size in sys.argv[1:] or SIZES:
            row = measured(folder, size)
            row["peak_mb"] -= base
            rows.append(row)
            print(row, file=sys.stderr)
            growth(rows)
            keep("judging", record | {"base_mb": base, "trials": rows})  # each at once: the largest take long
    print(table(list(rows[-1]), [[_told(row.get(name, "")) for name in rows[-1]] for row in rows]))


def _told(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
