"""The cost of `fanin.watch` in a training loop: captured step / plain step, and the step after it has detached.

Two equal models train in one process, one watched and one plain, their steps in turns; the ratio is taken pair by
pair and its median reported with quartiles, so that other load on the machine hits both. A watch captures ten steps
and then takes its hooks away, so each round makes a fresh watch: ten captured pairs, then ten pairs after detaching.
The control runs the same rounds with no watch at all (A/A): what it is away from 1.00 is the method's error.

    ./dev bench overhead [--rounds 12] [--threads N]

Captured: all that fanin's rules need, to memory and to a directory. Models: a ReLU MLP of 1.19 M parameters, batch
128, and a CNN of 257 k, batch 64 of 28 x 28 (those of facts/smdebug.md, section 6). Adam, for both.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _batches import Batch, images
from _own_models import mlp, small_cnn
from _pairs import in_turns
from _record import circumstances, keep, quartiles, table, told
from torch import nn
from torch.nn import functional

import fanin

STEPS = 10
"""Captured per watch, and measured after it."""

PHASES = ("attach", "step 0", "steps 1-9", "steps 0-9", "after", "close")
"""attach and close are in plain steps, the others the ratio to one."""


@dataclass
class Trainee:
    """A model with its optimizer and its batch."""

    model: nn.Module
    batch: Batch
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def step(self) -> None:
        """One training step as everybody writes it."""
        inputs, target = self.batch
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(inputs), target).backward()
        self.optimizer.step()


def mlp_trainee() -> Trainee:
    """1.19 M parameters, batch 128."""
    return Trainee(mlp(784, 512, 512, 512, 512, 10), images(128, 28, channels=1))


def cnn_trainee() -> Trainee:
    """257 k parameters, batch 64."""
    return Trainee(small_cnn(), images(64, 28, channels=1))


Watch = Callable[[Trainee, Path], contextlib.AbstractContextManager[Any]]

TRAINEES = {"mlp": mlp_trainee, "cnn": cnn_trainee}

WATCHES: dict[str, Watch] = {
    "control": lambda trainee, folder: contextlib.nullcontext(),
    "memory": lambda trainee, folder: fanin.watch(trainee.model, trainee.optimizer, on_error="raise"),
    "directory": lambda trainee, folder: fanin.watch(
        trainee.model, trainee.optimizer, trial=folder / str(time.monotonic_ns()), on_error="raise"
    ),
}


def one_round(
    watched: Trainee, plain: Trainee, watch: Watch, folder: Path, number: int
) -> Iterator[tuple[str, float]]:
    """Phases and what they cost, relative to a plain step."""
    usual = median(time for pair in in_turns(watched.step, plain.step, 4, number) for time in pair)
    began = time.perf_counter()
    manager = watch(watched, folder)
    with manager:
        yield "attach", (time.perf_counter() - began) / usual
        for index, (with_it, without) in enumerate(in_turns(watched.step, plain.step, STEPS, number)):
            yield ("steps 1-9" if index else "step 0"), with_it / without
            yield "steps 0-9", with_it / without
        for with_it, without in in_turns(watched.step, plain.step, STEPS, number):
            yield "after", with_it / without
        began = time.perf_counter()
    yield "close", (time.perf_counter() - began) / usual


def measured(trainee: Callable[[], Trainee], watch: Watch, rounds: int) -> dict[str, dict[str, float]]:
    """Quartiles of each phase over all rounds."""
    plain = trainee()
    costs: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            watched = copy.deepcopy(plain)
            for phase, cost in one_round(watched, plain, watch, Path(folder), number):
                if number:  # the first round warms what is imported and compiled late
                    costs[phase].append(cost)
    return {phase: quartiles(costs[phase]) for phase in PHASES}


def main() -> None:
    """Measure, print a table, keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = circumstances("torch", "numpy", "pyarrow") | {"torch_threads": options.threads}
    results = {
        name: {kind: measured(trainee, watch, options.rounds) for kind, watch in WATCHES.items()}
        for name, trainee in TRAINEES.items()
    }
    record |= {
        "load_average_after": circumstances()["load_average"],
        "captured_step_over_plain_step": results,
    }
    rows = [
        (model, kind, *(told(phases[p]) for p in PHASES))
        for model, kinds in results.items()
        for kind, phases in kinds.items()
    ]
    print(table(("model", "to", *PHASES), rows))
    print(f"\n{options.threads} threads, load {record['load_average']}; {keep('overhead', record)}")


if __name__ == "__main__":
    main()
