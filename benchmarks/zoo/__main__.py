"""False alarms: what `fanin.check` says of healthy models in their makers' initialization.

Every model is built with random weights, run forward and backward on structured inputs in train mode, and judged,
each in a process of its own. Whoever is called poor or undecided is a false alarm until shown otherwise. The
documented rule's answer stands beside ours; from a single step it can say poor or undecided only, so with --watch it
is also asked about ten steps of Adam under `fanin.watch`, as is our verdict.

    .venv-zoo/bin/python -m benchmarks.zoo                    all models; writes results/zoo.csv and zoo.json
    .venv-zoo/bin/python -m benchmarks.zoo --shard 1/2        every second one, from the first; run 2/2 beside it
    .venv-zoo/bin/python -m benchmarks.zoo alexnet vgg11      these only, judged again
    .venv-zoo/bin/python -m benchmarks.zoo --origin start     these only: own, start, torchvision, timm, transformers
    .venv-zoo/bin/python -m benchmarks.zoo --watch            the same, with ten watched steps each
    .venv-zoo/bin/python -m benchmarks.zoo --train 200 vgg11  also prints the loss over 200 steps of Adam
    .venv-zoo/bin/python -m benchmarks.zoo --once             one check each and no plain passes: half the time
    .venv-zoo/bin/python -m benchmarks.zoo --list             their names
    .venv-zoo/bin/python -m benchmarks.zoo --plain            only whether each runs: no verdict, nothing is written

Each row is written at once, in place of that model's older one; a later run goes on where this one ended, as rows that
hold a verdict of the same source of fanin are passed over (--again: not). A model that takes more than --seconds or
--memory is listed with the reason. The process makes itself nice; one thread unless --threads says otherwise.

Time is that of one check over the median of three plain forward and backward passes, after a first of each.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import statistics
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from benchmarks._record import RESULTS, circumstances, keep
from benchmarks.zoo import own_models, starts, timm_models, torchvision_models, transformers_models
from benchmarks.zoo.case import Case
from benchmarks.zoo.judging import COLUMNS, Row, judged_apart

from fanin import judgement
from fanin.adapters import adapter_for

LIBRARIES = {"torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}
"""Origins that have to be installed; all in .venv-zoo (see README.md)."""

TABLE = RESULTS / "zoo.csv"


def cases() -> Iterator[Case]:
    """All animals whose library is installed."""
    yield from own_models.cases()
    yield from starts.cases()
    for library, models in LIBRARIES.items():
        if find_spec(library):
            yield from models.cases()
        else:
            print(f"zoo: without {library}, which benchmarks/README.md says how to install", file=sys.stderr)


def main() -> int:
    """Judge, print and keep."""
    options = _arguments()
    os.nice(15)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    _import_all()
    about = circumstances("torch", "timm", "torchvision", "transformers", "numpy")
    about["torch_threads"] = options.threads
    wanted = list(_wanted(options, about["fanin_source"]))
    if options.list:
        print("\n".join(f"{case.origin:12} {case.name}" for case in wanted))
        return 0
    for number, case in enumerate(wanted, 1):
        row = judged_apart(case, options)
        print(f"{number}/{len(wanted)} {_line(row)}", flush=True)
        if not options.plain:
            _keep(_dated(row, about))
    if not options.plain:
        _sum_up(about)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="only these, judged again")
    parser.add_argument("--origin", choices=["own", "start", *LIBRARIES], help="only models from there")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="the I-th of N parts")
    parser.add_argument("--again", action="store_true", help="also models that this source has judged")
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("--plain", action="store_true", help="only run them, without a verdict")
    parser.add_argument("--once", action="store_true", help="check once, without timing: half the time")
    parser.add_argument("--watch", action="store_true", help="also watch ten steps")
    parser.add_argument("--train", type=int, default=0, help="also train so many steps")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's, for --train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="that a model may take, all in all")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that a model may take")
    return parser.parse_args()


def _shard(text: str) -> tuple[int, int]:
    part, parts = (int(number) for number in text.split("/"))
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with 1 <= I <= N")
    return part, parts


def _import_all() -> None:
    """Import now what a check imports late, so that one run is of one source even while that is being edited."""
    judgement.load_rules()
    adapter = adapter_for(torch.nn.Identity())
    for path in sorted(Path(sys.modules[type(adapter).__module__].__file__ or "").parent.glob("[!_]*.py")):
        with suppress(ModuleNotFoundError):  # Triton, where there is no GPU for it
            import_module(f"fanin.adapters.torch.{path.stem}")


def _wanted(options: argparse.Namespace, source: str) -> Iterator[Case]:
    part, parts = options.shard
    there = [case for case in cases() if options.origin in (None, case.origin)]
    unknown = set(options.models) - {case.name for case in there}
    if unknown:
        sys.exit(f"zoo: no model {', '.join(sorted(unknown))} here; --list names them")
    ours = [case for case in there if not options.models or case.name in options.models][part - 1 :: parts]
    if options.models or options.again or options.list or options.plain:
        return iter(ours)
    done = {_key(r) for r in _kept() if r.get("fanin_source") == source and "verdict" in r}
    return (case for case in ours if (case.origin, case.name) not in done)


# -- what is kept


def _key(row: Row) -> tuple[str, str]:
    return row["origin"], row["model"]


def _dated(row: Row, about: dict[str, Any]) -> Row:
    return row | {k: about[k] for k in ("date", "fanin_source", "torch_threads")} | {
        "load": round(os.getloadavg()[0], 2)
    }  # fmt: skip


@contextmanager
def _alone() -> Iterator[None]:
    """One shard at a time."""
    RESULTS.mkdir(exist_ok=True)
    folder = os.open(RESULTS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _keep(row: Row) -> None:
    """The new row takes the place of the old one."""
    with _alone():
        together = {_key(r): r for r in [*_kept(), row]}
        fresh = TABLE.with_suffix(".part")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(together.values())
        fresh.replace(TABLE)


def _kept() -> list[Row]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def _sum_up(about: dict[str, Any]) -> None:
    """Say what all rows of the table come to; the record is of the last run."""
    with _alone():
        rows = _kept()
        if not rows:
            return
        sources = ", ".join(sorted({r["fanin_source"] for r in rows}))
        said = [f"fanin sources: {sources}", *_summary(rows)]
        print("\n".join(said))
        print(f"\n{TABLE} and {keep('zoo', about | {'summary': said})}")


def _summary(rows: list[Row]) -> Iterator[str]:
    """Counts, then each that is not called healthy."""
    ran = [r for r in rows if "verdict" in r]
    yield f"{len(ran)} models judged, {len(rows) - len(ran)} not"
    for origin in dict.fromkeys(r["origin"] for r in ran):
        of = [r for r in ran if r["origin"] == origin]
        yield f"  {origin}: {len(of)}: {_count(of, 'verdict')}"
    yield f"ours: {_count(ran, 'verdict')}"
    yield f"documented, step 0: {_count(ran, 'documented')}"
    if any("watched" in r for r in ran):
        yield f"ours, 10 steps: {_count(ran, 'watched')}"
        yield f"documented, 10 steps: {_count(ran, 'watched_documented')}"
    ratios = sorted(float(r["ratio"]) for r in ran if "ratio" in r)
    if ratios:
        yield f"check / (forward + backward): median {statistics.median(ratios):.2f}, highest {ratios[-1]}"
    yield from (
        f"  {r['model']}: {r['verdict']}: {r.get('findings') or r.get('missing')}"
        for r in _suspects(ran, "verdict")
    )
    yield from (f"  {r['model']}: watched {r['watched']}" for r in _suspects(ran, "watched"))
    yield from (f"  {r['model']}: not judged: {r.get('error')}" for r in rows if "verdict" not in r)


def _count(rows: list[Row], column: str) -> str:
    words = [str(r.get(column, "")).split(":")[0] for r in rows]
    return ", ".join(f"{words.count(w)} {w}" for w in ("healthy", "undecided", "poor"))


def _suspects(rows: list[Row], column: str) -> Iterator[Row]:
    return (r for r in rows if r.get(column, "healthy") != "healthy")


def _line(row: Row) -> str:
    head = f"{row['origin']:12} {row['model']:32}"
    if "verdict" not in row:
        return f"{head} {row.get('error', row)}"
    reach = f"{row.get('decades', '')}/{row.get('excess', '')} in {row.get('layers', 0)}"
    return (
        f"{head} {row['verdict']:9} documented {row['documented']:9} "
        f"{row['check_s']:6.2f} s = {row.get('ratio', '?')} x  decades/excess {reach}  "
        f"{row['findings']} {row['missing']} {row.get('watched', '')} {row.get('watched_documented', '')}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
