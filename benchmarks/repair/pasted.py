"""Whether the code that a repair prints does what the repair did: pasted where the model is made, it gives its verdict.

    python -m benchmarks.repair.pasted --split test      writes results/test-pasted.json and prints what differs

Every poor start of InitBench that `fanin.repair` has code for. The code runs on the start as it was, with `torch.nn`,
`torch` and `model` alone; its draws are its own, so values differ and the verdict must not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks._record import circumstances
from benchmarks.initbench.capture import batches
from benchmarks.initbench.labels import RESULTS as LABELS
from benchmarks.initbench.labels import Case, _task, cases, initialized
from benchmarks.initbench.score import POOR, labelled
from benchmarks.repair.score import share
from benchmarks.repair.study import RESULTS
from torch import nn

import fanin


def poor(split: str, only: str | None, seeds: int) -> Iterator[Case]:
    """The starts that training called poor."""
    known = {(c.arch, c.init, c.seed) for c in labelled(LABELS, split) if c.label == POOR}
    for case in cases(only, tuple(range(seeds))):
        if (case.architecture.name, case.initialization.name, case.seed) in known:
            yield case


def pasted(case: Case) -> dict[str, Any] | None:
    """What the repair says of its copy and what a check says of the pasted code; None where there is no code."""
    network, _ = initialized(case.architecture, case.initialization, case.seed)
    loss_fn, given = _task(case.architecture.name).loss_fn, batches(case, 1)[0]
    made = fanin.repair(network, given, loss_fn, prove=False)
    if not made.code or made.after is None:
        return None
    torch.manual_seed(1 + case.seed)
    row: dict[str, Any] = {
        "arch": case.architecture.name,
        "init": case.initialization.name,
        "seed": case.seed,
    }
    row["repaired"] = str(made.after.verdict)
    try:
        exec(made.code, {"model": network, "torch": torch, "nn": nn})
    except Exception as error:  # noqa: BLE001  # code that does not run is what this is here to find
        return row | {"pasted": f"{type(error).__name__}: {error}"}
    return row | {"pasted": str(fanin.check(network, given, loss_fn).verdict)}


def main() -> None:
    """Paste, count, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--only", help="the name of one architecture")
    parser.add_argument("--seeds", type=int, default=1, help="how many of the labels' seeds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    said = circumstances("torch")
    rows = []
    for case in poor(arguments.split, arguments.only, arguments.seeds):
        row = pasted(case)
        rows += [row] if row else []
        if row and row["repaired"] != row["pasted"]:
            print(row, file=sys.stderr, flush=True)
    same = [row["repaired"] == row["pasted"] for row in rows]
    differing = [row for row, alike in zip(rows, same, strict=True) if not alike]
    said |= {"same verdict": share(rows, same), "differing": differing}
    arguments.results.mkdir(parents=True, exist_ok=True)
    out = arguments.results / f"{arguments.split}-pasted.json"
    out.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    print(f"same verdict: {said['same verdict']}")


if __name__ == "__main__":
    main()
