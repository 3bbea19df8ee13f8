"""Looks at every case of the benchmark as `fanin.check` does, and keeps the trials: what rules are then scored on.

``python -m benchmarks.initbench.capture --shard 0/2 FOLDER`` writes one pickled trial a case (they are ours, they are
read by `score.py` alone, and they are not committed). A trial holds step 0, five steps of Adam at the middle learning
rate, and the reference re-draw; scoring "before any step" leaves the later steps out.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.initbench.labels import Case, _task, cases, initialized, seed_of

from fanin.adapters import adapter_for
from fanin.rule import Need
from fanin.trial import RECHECK, Role, Trial

HISTOGRAMS = frozenset({Role.ACTIVATION_INPUT, Role.WEIGHT_GRAD})
EVERY_STEP = frozenset({Role.WEIGHT_GRAD, Role.ACTIVATION_INPUT})
"""Roles that the documented rule wants at every step."""

EVERYTHING = frozenset(
    Need(
        role,
        every_step=role in EVERY_STEP,
        recheck=True,
        reference=True,
        histogram=role in HISTOGRAMS,
        units=True,
    )
    for role in Role
)


def batches(case: Case, count: int) -> list[tuple[Any, Any]]:
    """The first batches that training this case would see."""
    task = case.condition.change(_task(case.architecture.name))
    order = torch.Generator().manual_seed(seed_of(case.architecture.name, "batches", case.seed))
    found = []
    for _ in range(count):
        indices = torch.randint(len(task.targets), (case.architecture.batch_size,), generator=order)
        inputs, targets = task.batch(indices)
        found.append((tuple(inputs), targets))
    return found


def captured(case: Case) -> Trial:
    """The case as check sees it, with Adam at the middle learning rate."""
    network, _ = initialized(case.architecture, case.initialization, case.seed)
    task = case.condition.change(_task(case.architecture.name))
    rate = case.architecture.learning_rates[1] * case.condition.learning_rate_factor
    return adapter_for(network).examine(
        network,
        batches(case, RECHECK + 1),
        task.loss_fn,
        EVERYTHING,
        lambda parameters: torch.optim.Adam(parameters, lr=rate),
    )


def path_of(folder: Path, case: Case) -> Path:
    """Where a case's trial lies."""
    return (
        folder
        / case.architecture.name
        / f"{case.initialization.name}-{case.condition.name}-{case.seed}.pickle"
    )


def main() -> None:
    """Captures one shard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--only")
    parser.add_argument("--split")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    index, count = map(int, arguments.shard.split("/"))
    mine = [c for c in cases(arguments.only) if arguments.split in (None, c.architecture.split)][index::count]
    todo = [case for case in mine if not path_of(arguments.folder, case).exists()]
    started = time.monotonic()
    for number, case in enumerate(todo, 1):
        target = path_of(arguments.folder, case)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            trial: Any = captured(case)
        except Exception as error:  # noqa: BLE001  # one case must not end the run
            print(f"{case.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        target.with_suffix(".part").write_bytes(pickle.dumps(trial, protocol=5))
        target.with_suffix(".part").rename(target)
        if number % 50 == 0:
            left = (time.monotonic() - started) / number * (len(todo) - number)
            print(f"{number}/{len(todo)}, {left / 60:.1f} min left", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
