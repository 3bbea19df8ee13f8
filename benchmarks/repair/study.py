"""Repairs every start of InitBench that training called poor, trains it in full, compares with the best sound scheme.

    python -m benchmarks.repair.study --split test --shard 0/2      and 1/2 beside it; resumes; about an hour each

A start is rebuilt as `initbench/labels.py` built it, handed to a method with the batches that its training would see,
and trained as the label was: 300 steps of Adam, up to three learning rates, the later ones only where they can still
change whether it is recovered. Methods:

- `repair`: `fanin.repair` with its proof, as a user would call it; what it does not propose stays as it was.
- `unproven`: the same without the proof.
- `initialize`: `fanin.initialize`, whatever the start.
- the peers of `peers.py`, whatever the start.

Some methods get healthy starts too, to see who harms them: their progress as they were is that of the label's runs.
One line a case and method in `results/runs-N.jsonl`; `score.py` makes the tables.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from benchmarks.initbench.capture import batches
from benchmarks.initbench.labels import RESULTS as LABELS
from benchmarks.initbench.labels import Case, _append, _evaluate, _task, _train, cases, initialized
from benchmarks.initbench.score import HEALTHY, POOR, Labelled, labelled
from benchmarks.repair.peers import PEERS
from torch import nn

import fanin
from fanin.repairs import repair

RESULTS = Path(__file__).parent / "results"
STEPS = 300
SEEN = 16
"""Batches that a method may see; the proof trains on all of them."""

RECOVERED = 0.8
"""Share of the best sound scheme's progress from which a start is recovered."""

CERTAIN = 0.9
"""Share from which no other learning rate is needed."""

ON_HEALTHY = ("repair", "initialize", "lsuv", "he_by_activation")
"""Methods that healthy starts are given to: ours, and those that users reach for."""

Done = tuple[str, str, int, str]
"""Architecture, initialization, seed, method."""


def _adam(case: Case) -> Callable[[Any], torch.optim.Optimizer]:
    rate = case.architecture.learning_rates[1]
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def _by_repair(network: nn.Module, case: Case, given: Sequence[Any], *, prove: bool) -> dict[str, Any]:
    task = _task(case.architecture.name)
    made = repair(
        network, given, task.loss_fn, optimizer=_adam(case), prove=prove, apply=True, force=not prove
    )
    proposed = made.repair
    return {
        "verdict": str(made.verdict),
        "applied": made.applied,
        "safety": str(proposed.safety) if proposed else "",
        "reasons": list(proposed.reasons) if proposed else [],
        "reach": str(proposed.reach) if proposed and proposed.changes else "",
        "changes": len(proposed.changes) if proposed else 0,
        "discarded": len(made.discarded),
        "passes": proposed.passes if proposed else 0,
    }


def _by_initialize(network: nn.Module, case: Case, given: Sequence[Any]) -> dict[str, Any]:
    made = fanin.initialize(network, given[0], _task(case.architecture.name).loss_fn)
    return {"applied": True, "changes": len(made.changes)}


def _by_peer(name: str, network: nn.Module, case: Case, given: Sequence[Any]) -> dict[str, Any]:
    loss_fn = _task(case.architecture.name).loss_fn
    spec = fanin.check(deepcopy(network), given[0], loss_fn).trial.spec
    torch.manual_seed(case.seed)
    PEERS[name](network, spec, [(tuple(inputs), target) for inputs, target in given], loss_fn)
    return {"applied": True}


METHODS: dict[str, Callable[[nn.Module, Case, Sequence[Any]], dict[str, Any]]] = {
    "repair": lambda network, case, given: _by_repair(network, case, given, prove=True),
    "unproven": lambda network, case, given: _by_repair(network, case, given, prove=False),
    "initialize": _by_initialize,
    **{name: lambda network, case, given, name=name: _by_peer(name, network, case, given) for name in PEERS},
}


def treated(case: Case, method: str) -> tuple[nn.Module, dict[str, Any]]:
    """The start as a method leaves it, and what the method said and cost."""
    network, _ = initialized(case.architecture, case.initialization, case.seed)
    given = batches(case, SEEN)
    began = time.perf_counter()
    try:
        said = METHODS[method](network, case, given)
    except Exception as error:  # noqa: BLE001  # a method that fails has not recovered the start; the study goes on
        return network, {"error": f"{type(error).__name__}: {error}"[:300], "applied": False}
    said["method_seconds"] = round(time.perf_counter() - began, 3)
    return network, said


def trained(case: Case, network: nn.Module, bar: float) -> list[float | None]:
    """The final loss at each learning rate, the middle one first; None where it was not needed or not finite."""
    task = _task(case.architecture.name)
    finals: list[float | None] = [None] * len(case.architecture.learning_rates)
    for index in (1, 2, 0):
        if any(f is not None and task.constant_loss - f >= bar for f in finals):
            continue
        copy = deepcopy(network).train()
        finals[index] = _train(copy, task, case, case.architecture.learning_rates[index], STEPS).get(STEPS)
    return finals


def record(case: Case, label: Labelled, best: float, method: str) -> dict[str, Any]:
    """One line of the results. A start that a method leaves as it was keeps the progress of its label."""
    network, said = treated(case, method)
    row = {
        "arch": case.architecture.name,
        "family": case.architecture.family,
        "split": case.architecture.split,
        "init": case.initialization.name,
        "seed": case.seed,
        "label": label.label,
        "before": label.progress,
        "method": method,
        **said,
    }
    if not said["applied"]:
        return row | {"after": label.progress}
    started = _evaluate(deepcopy(network), _task(case.architecture.name))
    finals = trained(case, network, CERTAIN * best)
    reached = max(
        (_task(case.architecture.name).constant_loss - f for f in finals if f is not None), default=-best
    )
    return row | {"start": started, "final": finals, "after": round(max(-1.0, min(1.5, reached / best)), 4)}


def _todo(arguments: argparse.Namespace, done: set[Done]) -> Iterator[tuple[Case, Labelled, str]]:
    known = {(c.arch, c.init, c.seed): c for c in labelled(LABELS, arguments.split) if c.condition == "none"}
    for label in arguments.labels:
        for case in cases(arguments.only, tuple(range(arguments.seeds))):
            one = known.get((case.architecture.name, case.initialization.name, case.seed))
            if one is None or one.label != label or case.condition.name != "none":
                continue
            wanted = arguments.methods if label == POOR else [m for m in arguments.methods if m in ON_HEALTHY]
            yield from (
                (case, one, method)
                for method in wanted
                if (case.architecture.name, case.initialization.name, case.seed, method) not in done
            )


def read(results: Path) -> list[dict[str, Any]]:
    """Every whole line of every shard."""
    rows = []
    for path in sorted(results.glob("runs-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # cut off by a kill
                continue
    return rows


def best_of(split: str | None) -> dict[str, float]:
    """Progress of the best sound scheme by architecture, in the loss's own unit."""
    with (LABELS / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["condition"] == "none" and split in (None, r["split"])]
    return {row["arch"]: float(row["best_sound_progress"]) for row in rows}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--only", help="the name of one architecture")
    parser.add_argument("--seeds", type=int, default=1, help="how many of the labels' seeds")
    parser.add_argument("--labels", nargs="+", default=[POOR, HEALTHY], choices=[POOR, HEALTHY])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Runs one shard."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    index, count = map(int, arguments.shard.split("/"))
    arguments.results.mkdir(parents=True, exist_ok=True)
    done = {(r["arch"], r["init"], r["seed"], r["method"]) for r in read(arguments.results)}
    best = best_of(arguments.split)
    todo = list(_todo(arguments, set()))[index::count]
    todo = [
        t for t in todo if (t[0].architecture.name, t[0].initialization.name, t[0].seed, t[2]) not in done
    ]
    began = time.monotonic()
    for number, (case, label, method) in enumerate(todo, 1):
        row = record(case, label, best[case.architecture.name], method)
        _append(arguments.results / f"runs-{index}.jsonl", row)
        left = (time.monotonic() - began) / number * (len(todo) - number) / 60
        print(
            f"{number}/{len(todo)} {case.architecture.name} {case.initialization.name} {method} "
            f"{row['before']:.2f} -> {row['after']:.2f} ({left:.0f} min left)",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    main()
