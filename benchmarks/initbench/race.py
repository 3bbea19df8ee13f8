"""Races every case of the benchmark as ``fanin.check(..., race=True)`` would, and keeps the outcomes for `score.py`.

``python -m benchmarks.initbench.race TRIALS OUT --split test --shard 0/2`` pickles one race for each captured trial, at
the same relative path under OUT. It may be killed at any time and started again.
"""

from __future__ import annotations

import argparse
import inspect
import pickle
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.initbench.capture import batches, path_of
from benchmarks.initbench.labels import Case, _task, cases, initialized

from fanin.adapters.torch.racing import race
from fanin.trial import Trial

BATCHES = 30
"""Different batches that a race goes round."""

SPREAD = 3.0
"""Factor between neighbouring learning rates, where the race has no default of its own."""


def raced(case: Case, trial: Trial) -> Any:
    """The race of this case: Adam at the architecture's middle learning rate is what its user would train with."""
    network, _ = initialized(case.architecture, case.initialization, case.seed)
    task = case.condition.change(_task(case.architecture.name))
    rate = case.architecture.learning_rates[1] * case.condition.learning_rate_factor
    optimizer = partial(torch.optim.Adam, lr=rate)
    return race(
        network, batches(case, BATCHES), task.loss_fn, trial.spec, optimizer=optimizer, **_rates(rate)
    )


def _rates(rate: float) -> dict[str, tuple[float, ...]]:
    """The race's own choice of learning rates, if it has one; else three around the user's."""
    if inspect.signature(race).parameters["learning_rates"].default is not inspect.Parameter.empty:
        return {}
    return {"learning_rates": (rate / SPREAD, rate, rate * SPREAD)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=Path, help="what capture.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard", default="0/1", help="which part of how many, such as 0/2")
    parser.add_argument("--only", help="the name of one architecture")
    parser.add_argument("--split", choices=("tune", "test"))
    return parser.parse_args()


def main() -> None:
    """Races one shard."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the labels are trained
    index, count = map(int, arguments.shard.split("/"))
    mine = [c for c in cases(arguments.only) if arguments.split in (None, c.architecture.split)][index::count]
    captured = [case for case in mine if path_of(arguments.trials, case).exists()]
    todo = [case for case in captured if not path_of(arguments.out, case).exists()]
    print(
        f"{len(mine)} cases, {len(captured)} captured, {len(captured) - len(todo)} already raced",
        file=sys.stderr,
        flush=True,
    )
    started = time.monotonic()
    for number, case in enumerate(todo, 1):
        began = time.monotonic()
        target = path_of(arguments.out, case)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            trial = pickle.loads(path_of(arguments.trials, case).read_bytes())
            outcome = raced(case, trial)
        except Exception as error:  # noqa: BLE001  # one case must not end the run
            print(f"FAILED {case.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        target.with_suffix(".part").write_bytes(pickle.dumps(outcome, protocol=5))
        target.with_suffix(".part").rename(target)
        eta = (time.monotonic() - started) / number * (len(todo) - number) / 60
        print(
            f"{number}/{len(todo)} {'/'.join(map(str, case.key))} {time.monotonic() - began:.1f}s "
            f"ETA {eta:.0f} min",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    main()
