"""Tables of the repair study, from `results/runs-*.jsonl`.

    python -m benchmarks.repair.score --split test       writes results/test-scores.json and prints it

Recovered: at least 0.8 of the best sound scheme's progress after full training. Harmed: a healthy start whose progress
falls by more than 0.1. Of `repair` three shares are given: of all poor starts (those that the diagnosis misses count as
not recovered), of those it proposed as safe, and of those diagnosed.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks._record import circumstances
from benchmarks.initbench.score import HEALTHY, POOR, wilson
from benchmarks.repair.study import RECOVERED, RESULTS, read

HARM = 0.1
"""Loss of progress that counts as harm."""

Row = dict[str, Any]


def share(rows: Sequence[Row], good: Iterable[bool]) -> dict[str, Any]:
    """How many of these, with the 95 % interval of the share."""
    hits = sum(good)
    low, high = wilson(hits, len(rows))
    return {
        "of": len(rows),
        "count": hits,
        "share": round(hits / len(rows), 4) if rows else None,
        "low": low,
        "high": high,
    }


def _recovered(rows: Sequence[Row]) -> dict[str, Any]:
    found = share(rows, (row["after"] >= RECOVERED for row in rows))
    return found | {
        "mean_before": round(fmean(row["before"] for row in rows), 3) if rows else None,
        "mean_after": round(fmean(row["after"] for row in rows), 3) if rows else None,
    }


def of_method(rows: Sequence[Row]) -> dict[str, Any]:
    """What one method did."""
    poor = [row for row in rows if row["label"] == POOR]
    healthy = [row for row in rows if row["label"] == HEALTHY]
    safe = [row for row in rows if row.get("safety") == "safe" and row["applied"]]
    diagnosed = [row for row in poor if row.get("verdict") == "poor"]
    families: dict[str, list[Row]] = defaultdict(list)
    for row in poor:
        families[row["family"]].append(row)
    found = {
        "poor recovered": _recovered(poor),
        "healthy harmed": share(healthy, (row["before"] - row["after"] > HARM for row in healthy)),
        "healthy changed": sum(row["applied"] for row in healthy),
        "failed": sum("error" in row for row in rows),
        "seconds_median": round(median(s), 3)
        if (s := [r["method_seconds"] for r in rows if "method_seconds" in r])
        else None,
        "by_family": {
            name: f"{sum(r['after'] >= RECOVERED for r in them)}/{len(them)}"
            for name, them in sorted(families.items())
        },
    }
    if diagnosed:
        found["diagnosed and recovered"] = _recovered(diagnosed)
    if safe:
        found["safe and better"] = share(safe, (_wins(row) for row in safe))
        found["safe, poor, recovered"] = _recovered([row for row in safe if row["label"] == POOR])
    return found


def _median(values: Sequence[float]) -> float | None:
    return round(median(values), 3) if values else None


def _of(rows: Sequence[Row]) -> str:
    return f"{sum(row['after'] >= RECOVERED for row in rows)}/{len(rows)}"


def _wins(row: Row) -> bool:
    """Better than before; of a healthy start no worse."""
    return (
        bool(row["after"] > row["before"]) if row["label"] == POOR else row["before"] - row["after"] <= HARM
    )


def unrecovered(rows: Sequence[Row], method: str) -> list[str]:
    """The poor starts that a method leaves poor, and what it said."""
    return [
        f"{r['arch']} {r['init']} seed {r['seed']}: {r['before']:.2f} -> {r['after']:.2f}, {r.get('verdict', '')} "
        f"{r.get('reach', '')} {'; '.join(r.get('reasons', []))[:90]}{r.get('error', '')}"
        for r in rows
        if r["method"] == method and r["label"] == POOR and r["after"] < RECOVERED
    ]


def main() -> None:
    """Score, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [row for row in read(arguments.results) if row["split"] == arguments.split]
    methods: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        methods[row["method"]].append(row)
    found = {name: of_method(them) for name, them in methods.items()}
    for name, said in found.items():
        poor, harm = said["poor recovered"], said["healthy harmed"]
        print(
            f"{name:18} recovered {poor['count']}/{poor['of']} ({poor['share']}, {poor['low']} to {poor['high']}) "
            f"mean {poor['mean_before']} -> {poor['mean_after']}; harmed {harm['count']}/{harm['of']}; "
            f"failed {said['failed']}; {said['seconds_median']} s"
        )
        for key in ("diagnosed and recovered", "safe and better", "safe, poor, recovered"):
            if key in said:
                print(f"{'':18} {key}: {said[key]['count']}/{said[key]['of']} ({said[key]['share']})")
    for name in ("repair", "initialize"):
        print(f"not recovered by {name}:", *unrecovered(rows, name), sep="\n  ")
    record = circumstances("torch", "numpy") | {"split": arguments.split, "methods": found}
    path = arguments.results / f"{arguments.split}-scores.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
