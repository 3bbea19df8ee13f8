"""Turns the recorded runs into labels: was this initialization poor, healthy, or in between?

``python -m benchmarks.initbench.labelling`` writes ``results/labels.csv`` and prints a summary.

The progress of a run is how far the loss fell below that of the best constant, at the best of its learning rates,
relative to the best sound scheme of the same architecture and condition.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.initbench.initializations import INITIALIZATIONS
from benchmarks.initbench.labels import RESULTS, SEEDS, read

POOR, HEALTHY = 0.5, 0.8
LEARNS = 0.05
"""The share of the uninformed loss that a scheme must remove for the setting to be learnable at all."""


def progress(record: dict[str, Any]) -> float:
    """How far the loss fell below the best constant's, at the best learning rate; 0 where it was not finite."""
    return max(0.0 if final is None else record["uninformed"] - final for final in record["final"])


def _label(relative: list[float], learnable: bool, condition: str) -> str:
    if len(relative) < (len(SEEDS) if condition == "none" else 1):
        return "incomplete"
    if not learnable:
        return "grey" if condition == "none" else "healthy"
    if max(relative) < POOR:
        return "poor"
    return "healthy" if min(relative) > HEALTHY else "grey"


def label(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each architecture, initialization and condition."""
    by_name = {init.name: init for init in INITIALIZATIONS}
    settings: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda each: each["seed"]):
        if record["init"] in by_name:
            settings[record["arch"], record["condition"]][record["init"]].append(record)
    rows = []
    for (arch, condition), inits in settings.items():
        sound = {
            name: fmean(map(progress, runs)) for name, runs in inits.items() if by_name[name].sound and runs
        }
        best_name = max(sound, key=lambda name: sound[name], default="")
        best = sound.get(best_name, 0.0)
        for name, runs in inits.items():
            first = runs[0]
            learnable = best >= LEARNS * first["uninformed"]
            relative = [min(1.5, max(-1.0, progress(run) / best)) if best > 0 else 0.0 for run in runs]
            row = {
                "arch": arch,
                "family": first["family"],
                "split": first["split"],
                "init": name,
                "condition": condition,
                "cause": first["cause"],
                "sound": int(by_name[name].sound),
                "single_layer": int(by_name[name].single_layer),
                "layers": " ".join(first["layers"]),
                "uninformed": round(first["uninformed"], 6),
                "best_sound": best_name,
                "best_sound_progress": round(best, 6),
                "learnable": int(learnable),
            }
            values = {run["seed"]: value for run, value in zip(runs, relative, strict=True)}
            row |= {f"progress_{seed}": round(values[seed], 4) if seed in values else "" for seed in SEEDS}
            rows.append(row | {"label": _label(relative, learnable, condition)})
    return [_judged_by_its_start(row, rows) for row in rows]


def _judged_by_its_start(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A condition says something of false alarms only with an initialization that is sound for this network: he_normal
    is not for sines."""
    if row["condition"] == "none":
        return row
    plain = [r for r in rows if (r["arch"], r["init"], r["condition"]) == (row["arch"], row["init"], "none")]
    return row if any(r["label"] == "healthy" for r in plain) else row | {"label": "grey"}


def _summary(rows: list[dict[str, Any]]) -> None:
    for split in sorted({row["split"] for row in rows}):
        for conditioned in (False, True):
            chosen = [
                row for row in rows if row["split"] == split and (row["condition"] != "none") == conditioned
            ]
            counts = Counter(row["label"] for row in chosen)
            print(f"{split:5} {'conditions' if conditioned else 'initializations':16} {dict(counts)}")
    complete = [row for row in rows if row["label"] != "incomplete"]
    twice = [row for row in complete if all(row[f"progress_{seed}"] != "" for seed in SEEDS)]
    contradictions = [row for row in twice if _contradicts([row[f"progress_{seed}"] for seed in SEEDS])]
    print(f"seeds contradict in {len(contradictions)} of {len(twice)} rows")
    for row in contradictions:
        print("   ", row["arch"], row["init"], row["condition"], *(row[f"progress_{seed}"] for seed in SEEDS))
    poor_sound = Counter(row["init"] for row in rows if row["sound"] and row["label"] == "poor")
    healthy_faults = Counter(
        row["init"]
        for row in rows
        if not row["sound"] and row["label"] == "healthy" and row["condition"] == "none"
    )
    print(f"sound schemes labelled poor: {dict(poor_sound)}")
    print(f"faults labelled healthy: {dict(healthy_faults)}")
    unlearned = sorted({row["arch"] for row in rows if not row["learnable"] and row["condition"] == "none"})
    if unlearned:
        print(f"no sound scheme learns (labelled grey): {', '.join(unlearned)}")


def _contradicts(values: list[float]) -> bool:
    return min(values) < POOR and max(values) > HEALTHY


def main() -> None:
    """Labels what has been run so far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    results = parser.parse_args().results
    rows = label(read(results))
    if not rows:
        raise SystemExit(f"no runs in {results}")
    with (results / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _summary(rows)


if __name__ == "__main__":
    main()
