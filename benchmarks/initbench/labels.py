"""Trains every network of the benchmark from every initialization, and records how far each got.

``python -m benchmarks.initbench.labels --shard 0/2`` takes every second case. It may be killed at any time and
started again: cases that any ``runs-*.jsonl`` already holds are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.initbench.architectures import ARCHITECTURES, Architecture
from benchmarks.initbench.conditions import CONDITIONS, Condition
from benchmarks.initbench.initializations import INITIALIZATIONS, Initialization
from benchmarks.initbench.tasks import Task
from torch import nn

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1)
MILESTONES = (150,)
CONDITIONED = ("he_normal",)
"""The initializations that the conditions are run with."""

Key = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the results: a network, how it starts, under which condition, with which seed."""

    architecture: Architecture
    initialization: Initialization
    condition: Condition
    seed: int

    @property
    def key(self) -> Key:
        """What identifies the case."""
        return self.architecture.name, self.initialization.name, self.condition.name, self.seed


@cache
def _task(name: str) -> Task:
    return next(each for each in ARCHITECTURES if each.name == name).task()


@cache
def _changed_task(name: str, condition: Condition) -> Task:
    return condition.change(_task(name))


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts, and on nothing else."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def cases(only: str | None = None, seeds: tuple[int, ...] = SEEDS) -> list[Case]:
    """All cases, by seed, then initialization, then architecture: a prefix covers every architecture."""
    chosen = [each for each in ARCHITECTURES if only in (None, each.name)]
    applicable = {
        each.name: {init.name for init in INITIALIZATIONS if init.applies(each, network)}
        for each, network in ((each, each.build()) for each in chosen)
    }
    pairs = [(init, CONDITIONS[0]) for init in INITIALIZATIONS]
    pairs += [
        (init, condition)
        for condition in CONDITIONS[1:]
        for init in INITIALIZATIONS
        if init.name in CONDITIONED
    ]
    return [
        Case(each, init, condition, seed)
        for seed in seeds
        for init, condition in pairs
        for each in (chosen if seed == SEEDS[0] else sorted(chosen, key=lambda one: one.split != "test"))
        if init.name in applicable[each.name] and condition.applies(_task(each.name))
        if seed == SEEDS[0]
        or condition is CONDITIONS[0]  # what is no fault of the weights needs no second draw
    ]


def initialized(
    architecture: Architecture, initialization: Initialization, seed: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network as the initialization leaves it, in train mode, and the paths of the layers at fault."""
    torch.manual_seed(seed_of(architecture.name, "build", seed))
    network = architecture.build().train()
    generator = torch.Generator().manual_seed(seed_of(architecture.name, initialization.name, seed))
    return network, initialization.apply(architecture, network, generator)


@torch.no_grad()
def _evaluate(network: nn.Module, task: Task) -> float | None:
    inputs, targets = task.evaluation()
    loss = float(task.loss_fn(network(*inputs), targets))
    return loss if math.isfinite(loss) else None


def _train(network: nn.Module, task: Task, case: Case, lr: float, steps: int) -> dict[int, float | None]:
    """The evaluation loss at the milestones and at the end; nothing after the loss is no longer finite."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    batches = torch.Generator().manual_seed(seed_of(case.architecture.name, "batches", case.seed))
    losses: dict[int, float | None] = {}
    for step in range(1, steps + 1):
        indices = torch.randint(len(task.targets), (case.architecture.batch_size,), generator=batches)
        inputs, targets = task.batch(indices)
        loss = task.loss_fn(network(*inputs), targets)
        if not math.isfinite(loss.item()):
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step in MILESTONES or step == steps:
            losses[step] = _evaluate(network, task)
    return losses


CERTAIN = 0.9
"""Share of the best sound progress at which the case is healthy (0.8) whatever its other learning rates would give."""

SOUND_SEEN = 3
"""Sound initializations of a network that must have been trained before its cases may stop early."""


def _bar(case: Case, results: Path) -> float:
    """The progress that makes further learning rates needless; infinite while the best sound one is not known."""
    if case.initialization.sound:
        return math.inf
    sound = {init.name for init in INITIALIZATIONS if init.sound}
    known = [
        max(each["uninformed"] - loss for loss in each["final"] if loss is not None)
        for each in read(results)
        if each["arch"] == case.architecture.name
        and each["condition"] == case.condition.name == "none"
        and each["init"] in sound
        and any(loss is not None for loss in each["final"])
    ]
    return CERTAIN * max(known) if len(known) >= SOUND_SEEN else math.inf


def run(case: Case, steps: int, results: Path) -> dict[str, Any]:
    """Trains the case at its three learning rates, the middle one first, as long as they can change its label; the
    record to write. The learning rates that were not needed are `skipped`."""
    task = _changed_task(case.architecture.name, case.condition)
    rates = [rate * case.condition.learning_rate_factor for rate in case.architecture.learning_rates]
    curves: list[dict[int, float | None]] = [{} for _ in rates]
    start, layers, bar, skipped = None, (), _bar(case, results), []
    for index in (1, 2, 0):
        if any(task.constant_loss - curve[steps] >= bar for curve in curves if curve.get(steps) is not None):
            skipped.append(rates[index])
            continue
        network, layers = initialized(case.architecture, case.initialization, case.seed)
        start = _evaluate(network, task)
        curves[index] = _train(network, task, case, rates[index], steps)
    record = {
        "arch": case.architecture.name,
        "family": case.architecture.family,
        "split": case.architecture.split,
        "init": case.initialization.name,
        "condition": case.condition.name,
        "cause": case.condition.cause or case.initialization.cause,
        "layers": list(layers),
        "seed": case.seed,
        "steps": steps,
        "uninformed": float(task.constant_loss),
        "lrs": rates,
        "skipped": skipped,
        "start": start,
        "final": [curve.get(steps) for curve in curves],
    }
    for milestone in MILESTONES:
        if milestone < steps:
            record[f"loss_{milestone}"] = [curve.get(milestone) for curve in curves]
    return record


def read(results: Path) -> list[dict[str, Any]]:
    """Every whole line of every shard; one that was cut off by a kill is not a record."""
    records: dict[Key, dict[str, Any]] = {}
    for path in sorted(results.glob("runs-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            records.setdefault((record["arch"], record["init"], record["condition"], record["seed"]), record)
    return list(records.values())


def _append(path: Path, record: dict[str, Any]) -> None:
    """One whole line, after the end of a line that a kill may have cut off."""
    with path.open("ab+") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        file.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", default="0/1", help="which part of how many, such as 0/2")
    parser.add_argument("--only", help="the name of one architecture")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Runs one shard."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # speed alone: vanished signals are many times slower as denormals
    index, count = map(int, arguments.shard.split("/"))
    arguments.results.mkdir(parents=True, exist_ok=True)
    done = {(each["arch"], each["init"], each["condition"], each["seed"]) for each in read(arguments.results)}
    mine = cases(arguments.only, tuple(range(arguments.seeds)))[index::count]
    todo = [case for case in mine if case.key not in done]
    print(f"{len(mine)} cases, {len(mine) - len(todo)} already done", file=sys.stderr, flush=True)
    started = time.monotonic()
    for number, case in enumerate(todo, 1):
        began = time.monotonic()
        try:
            record = run(case, arguments.steps, arguments.results)
        except (RuntimeError, ValueError, IndexError) as error:
            print(f"FAILED {case.key}: {error!r}", file=sys.stderr, flush=True)
            continue
        record["seconds"] = round(time.monotonic() - began, 2)
        _append(arguments.results / f"runs-{index}.jsonl", record)
        eta = (time.monotonic() - started) / number * (len(todo) - number) / 60
        print(
            f"{len(mine) - len(todo) + number}/{len(mine)} {'/'.join(map(str, case.key))} "
            f"{record['seconds']}s start {record['start']} final {record['final']} ETA {eta:.0f} min",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    main()
