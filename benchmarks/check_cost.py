"""The cost of `fanin.check`: its time over that of one plain forward and backward pass of the same model.

Checks and plain passes are timed in turns, in one process; the median of the ratios of pairs is reported with
quartiles. --profile shows by function where a check's time goes.

    ./dev bench check_cost [--pairs 25] [--threads N] [--profile]

Models: a ResNet of six blocks with batch norm, batch 32 of 3 x 32 x 32, and a pre-norm transformer of four blocks,
width 192, batch 16 of 64 tokens.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _batches import Batch, images, tokens
from _own_models import MiniGPT, ResNet
from _pairs import in_turns
from _record import circumstances, keep, quartiles, table, told
from torch import Tensor, nn
from torch.nn import functional

import fanin


@dataclass(frozen=True)
class Subject:
    """A model with a batch and a loss."""

    model: nn.Module
    batch: Batch
    loss: Callable[[Tensor, Tensor], Tensor]

    def plain(self) -> None:
        """One forward and backward pass."""
        inputs, target = self.batch
        self.loss(self.model(inputs), target).backward()
        self.model.zero_grad()

    def check(self) -> None:
        """The same and all that fanin makes of it."""
        fanin.check(self.model, self.batch, self.loss)


def resnet() -> Subject:
    """Six residual blocks."""
    return Subject(ResNet(), images(32, 32), functional.cross_entropy)


def transformer() -> Subject:
    """Four pre-norm blocks, a vocabulary of 2000."""
    ids = tokens(16, 65, 2000)
    return Subject(MiniGPT(2000, 192, 4), (ids[:, :-1], ids[:, 1:]), _token_loss)


def _token_loss(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


SUBJECTS = {"resnet": resnet, "transformer": transformer}


def measured(subject: Subject, pairs: int) -> dict[str, Any]:
    """Quartiles of seconds and of their ratio."""
    for call in (subject.plain, subject.check, subject.plain, subject.check):
        call()
    times = list(in_turns(subject.check, subject.plain, pairs))
    control = list(in_turns(subject.plain, subject.plain, pairs))
    return {
        "check_ms": quartiles(1e3 * check for check, _ in times),
        "plain_ms": quartiles(1e3 * plain for _, plain in times),
        "ratio": quartiles(check / plain for check, plain in times),
        "control": quartiles(one / other for one, other in control),
    }


def profiled(subject: Subject) -> None:
    """Print where five checks spend their time, by function's own time."""
    subject.check()
    with cProfile.Profile() as profile:
        for _ in range(5):
            subject.check()
    pstats.Stats(profile).sort_stats("tottime").print_stats(22)
    pstats.Stats(profile).sort_stats("cumulative").print_stats("fanin", 30)


def main() -> None:
    """Measure, print a table, keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.profile:
        for subject in SUBJECTS.values():
            profiled(subject())
        return
    record = circumstances("torch", "numpy") | {"torch_threads": options.threads}
    results = {name: measured(subject(), options.pairs) for name, subject in SUBJECTS.items()}
    record |= {"load_average_after": circumstances()["load_average"], "results": results}
    columns = ("check_ms", "plain_ms", "ratio", "control")
    print(table(("model", *columns), ((name, *(told(r[c]) for c in columns)) for name, r in results.items())))
    print(f"\n{options.threads} threads, load {record['load_average']}; {keep('check_cost', record)}")


if __name__ == "__main__":
    main()
