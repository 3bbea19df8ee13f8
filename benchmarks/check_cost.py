"""The cost of `fanin.check`: its time over that of one plain forward and backward pass of the same model.

Checks and plain passes are timed in turns, in one process; the median of the ratios of pairs is reported with
quartiles. --profile shows by function where a check's time goes.

    ./dev bench check_cost [--pairs 25] [--threads N] [--models mlp ...] [--profile]

Models: `_subjects.py`. The re-draw is looked at with a quarter of the batch, so a smaller batch than 16 sequences or 32
images costs more than this.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from functools import partial
from typing import Any

import torch
from _pairs import in_turns
from _record import circumstances, keep, quartiles, table, told
from _subjects import ON_CPU, Subject

import fanin


def checked(subject: Subject) -> None:
    """A forward and backward pass and all that fanin makes of it."""
    fanin.check(subject.model, subject.batch, subject.loss)


def measured(subject: Subject, pairs: int) -> dict[str, Any]:
    """Quartiles of seconds and of their ratio."""
    check, plain = partial(checked, subject), subject.pass_by
    for call in (plain, check, plain, check):
        call()
    times = list(in_turns(check, plain, pairs))
    control = list(in_turns(plain, plain, pairs))
    return {
        "check_ms": quartiles(1e3 * with_it for with_it, _ in times),
        "plain_ms": quartiles(1e3 * without for _, without in times),
        "ratio": quartiles(with_it / without for with_it, without in times),
        "control": quartiles(one / other for one, other in control),
    }


def profiled(subject: Subject) -> None:
    """Print where five checks spend their time, by function's own time."""
    checked(subject)
    with cProfile.Profile() as profile:
        for _ in range(5):
            checked(subject)
    pstats.Stats(profile).sort_stats("tottime").print_stats(22)
    pstats.Stats(profile).sort_stats("cumulative").print_stats("fanin", 30)


def main() -> None:
    """Measure, print a table, keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", choices=list(ON_CPU), default=list(ON_CPU))
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.profile:
        for name in options.models:
            profiled(ON_CPU[name]())
        return
    record = circumstances("torch", "numpy") | {"torch_threads": options.threads}
    asked = {name: ON_CPU[name] for name in options.models}
    results = {name: measured(subject(), options.pairs) for name, subject in asked.items()}
    record |= {"load_average_after": circumstances()["load_average"], "results": results}
    columns = ("check_ms", "plain_ms", "ratio", "control")
    print(table(("model", *columns), ((name, *(told(r[c]) for c in columns)) for name, r in results.items())))
    print(f"\n{options.threads} threads, load {record['load_average']}; {keep('check_cost', record)}")


if __name__ == "__main__":
    main()
