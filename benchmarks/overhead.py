"""The cost of watching a training: captured step / plain step, for fanin and its peers, and the step after detaching.

Two equal models train in one process, one watched and one plain, their steps in turns; the ratio is taken pair by
pair and its median reported with quartiles, so that other load on the machine hits both. `fanin.watch` captures ten
steps and then takes its hooks away, so each round makes a fresh watch: captured pairs, then pairs after it. The control
runs the same rounds with no watch at all (A/A): what it is away from 1.00 is the method's error.

    ./dev bench overhead [--rounds 8] [--threads N] [--models mlp cnn ...] [--peers fanin smdebug ...]
                         [--device cuda] [--name overhead]

fanin captures all that its rules need, to memory and to a directory, and with one rule what the documented rule reads;
its peers (`_peers.py`) capture the latter, except wandb.watch, which sees parameters and gradients. Peers that are not
installed are left out with a line. Models: `_subjects.py`. Adam, for all.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from _pairs import in_turns
from _peers import PEERS, Peer, missing
from _record import circumstances, keep, quartiles, table, told
from _subjects import ON_CPU, ON_GPU, Subject

STEPS = 10
"""Captured per watch, as many as `fanin.watch` captures by itself."""

AFTER = 5
"""Pairs that are measured after it."""

PHASES = ("captured", "step 0", "mean of 10", "after", "attach", "close")
"""attach and close are in plain steps, the others the ratio to one; `captured` is of each of the ten steps."""


def one_round(
    watched: Subject, plain: Subject, peer: Peer, folder: Path, number: int
) -> Iterator[tuple[str, float]]:
    """Phases and what they cost, relative to a plain step."""
    usual = median(time for pair in in_turns(watched.step, plain.step, 2, number) for time in pair)
    began = time.perf_counter()
    manager = peer(watched, folder)
    with manager:
        yield "attach", (time.perf_counter() - began) / usual
        times = list(in_turns(watched.step, plain.step, STEPS, number))
        began = time.perf_counter()
    yield "close", (time.perf_counter() - began) / usual
    ratios = [with_it / without for with_it, without in times]
    yield from (("captured", ratio) for ratio in ratios)
    yield "step 0", ratios[0]
    yield "mean of 10", mean(with_it for with_it, _ in times) / mean(without for _, without in times)
    for with_it, without in in_turns(watched.step, plain.step, AFTER, number):
        yield "after", with_it / without


def measured(
    subject: Callable[[], Subject], peers: dict[str, Peer], rounds: int, warm: int, device: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Quartiles of each phase over all rounds, by peer; the peers take turns as well."""
    plain = subject().on(device)
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(-warm, rounds):
        for name, peer in peers.items():
            watched = copy.deepcopy(plain)
            with tempfile.TemporaryDirectory() as folder:
                for phase, cost in one_round(watched, plain, peer, Path(folder), number):
                    if number >= 0:
                        costs[name][phase].append(cost)
    return {name: {phase: quartiles(of[phase]) for phase in PHASES} for name, of in costs.items()}


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warm", type=int, default=1, help="rounds before, as things are imported late")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", choices=[*ON_CPU, *ON_GPU])
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="overhead", help="of the file in results/")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, keep it."""
    asked = options()
    torch.set_num_threads(asked.threads)
    subjects = ON_CPU if asked.device == "cpu" else ON_GPU
    peers = {name: PEERS[name] for name in asked.peers if not missing(name)}
    for name in asked.peers:
        if missing(name):
            print(f"{name}: skipped, {missing(name)}")
    record: dict[str, Any] = circumstances("torch", "numpy", "pyarrow", "wandb", "smdebug", "triton")
    record |= {"torch_threads": asked.threads, "device": asked.device, "captured_step_over_plain_step": {}}
    for model in asked.models or subjects:
        result = measured(subjects[model], peers, asked.rounds, asked.warm, asked.device)
        record["captured_step_over_plain_step"][model] = result
        record["load_average_after"] = circumstances()["load_average"]
        rows = ((model, name, *(told(of[p]) for p in PHASES)) for name, of in result.items())
        print(table(("model", "watched by", *PHASES), rows), end="\n\n", flush=True)
        keep(asked.name, record)
    print(f"{asked.threads} threads, load {record['load_average']}; {keep(asked.name, record)}")


if __name__ == "__main__":
    main()
