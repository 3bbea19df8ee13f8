"""Counts how often verdicts on the tune split were right, by their evidence: the tables in `fanin.confidence`.

``python -m benchmarks.initbench.confidences TRIALS`` judges every captured start of the tune split before any step, and
prints POOR (by the code of each fault among the findings), HEALTHY (by note) and CLEAN as (right, all). Grey starts are
left out.
"""

from __future__ import annotations

import argparse
import csv
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.initbench.capture import path_of
from benchmarks.initbench.labels import RESULTS, cases

from fanin import judgement
from fanin.confidence import HEALTHY, POOR
from fanin.diagnosis import DOCUMENTED, diagnose
from fanin.finding import Severity, Verdict

WITHHELD = "FAN903"
"""Code of a verdict of healthy that was withheld for thin evidence: it counts as healthy here."""


def main() -> None:
    """Judges and counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=Path)
    trials = parser.parse_args().trials
    with (RESULTS / "labels.csv").open(encoding="utf-8") as file:
        labels = {(row["arch"], row["init"], row["condition"]): row["label"] for row in csv.DictReader(file)}
    rules = [rule for rule in judgement.load_rules() if rule.code != DOCUMENTED]
    right: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for case in cases():
        label = labels.get((case.architecture.name, case.initialization.name, case.condition.name))
        path = path_of(trials, case)
        if case.architecture.split != "tune" or label not in ("poor", "healthy") or not path.exists():
            continue
        trial = pickle.loads(path.read_bytes())
        start = replace(trial, steps=tuple(step for step in trial.steps if step.index == 0))
        found = diagnose(start, judgement.run(rules, start))
        withheld = any(missing.code == WITHHELD for missing in found.missing)
        if found.verdict is Verdict.POOR:
            faults = [f for o in found.origins for f in (o.finding, *o.symptoms)]
            keys = {f"poor {f.code}" for f in faults if f.severity is Severity.FAULT}
        elif found.verdict is Verdict.HEALTHY or withheld:
            noted = {note.code for note in found.notes}
            keys = {f"healthy {next((code for code in HEALTHY if code in noted), 'CLEAN')}"}
        else:
            continue
        for key in keys:
            counted[key] += 1
            right[key] += label == key.split()[0]
    for key in sorted(counted):
        print(f"{key:16} ({right[key]}, {counted[key]})")
    print("codes of the table without a case:", sorted({f"poor {c}" for c in POOR} - counted.keys()))


if __name__ == "__main__":
    main()
