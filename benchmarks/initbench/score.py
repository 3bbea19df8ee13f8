"""Scores our diagnosis, and what other tools would have said, against the labels.

``python -m benchmarks.initbench.score TRIALS_FOLDER --split test --races RACES_FOLDER --details`` reads the trials that
`capture.py` pickled, and labels the runs that there are so far; it writes ``results/{split}-scores.json`` and
``results/{split}-verdicts.csv``.

Poor is the positive class. Undecided does not flag. Grey cases count in no rate but the share of undecided ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import pickle
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.initbench import labelling
from benchmarks.initbench.architectures import ARCHITECTURES
from benchmarks.initbench.capture import path_of
from benchmarks.initbench.conditions import CONDITIONS
from benchmarks.initbench.initializations import INITIALIZATIONS
from benchmarks.initbench.labels import RESULTS, SEEDS, Case, read
from benchmarks.initbench.peers import PEERS

import fanin
from fanin.finding import Diagnosis, Scope, Verdict
from fanin.trial import Mode, Trial

STEP_0, FIVE_STEPS, RACE = "step 0", "five steps", "race"
STAGES = (STEP_0, FIVE_STEPS, RACE)
POOR, HEALTHY, GREY = "poor", "healthy", "grey"
WORKERS = 2
BINS = 10
Z_95 = 1.959964
FEW = 2
"""A finding about everything points at a layer if it names no more than this many."""

ACCEPTED: dict[str, frozenset[str]] = {
    "": frozenset({"default_unsuited", "gain_too_small", "gain_too_large"}),
    "gain_too_small": frozenset({"gain_too_small", "default_unsuited"}),
    "gain_too_large": frozenset({"gain_too_large"}),
    "zero_path": frozenset({"zero_path"}),
    "symmetric_units": frozenset({"symmetric_units"}),
    "mean_offset": frozenset({"mean_offset"}),
    "bias_offset": frozenset({"bias_offset", "dead_units"}),
    "head_too_large": frozenset({"head_too_large"}),
    "embedding_too_large": frozenset({"embedding_too_large"}),
    "recurrent_kernel": frozenset({"recurrent_kernel"}),
    "norm_gain": frozenset({"norm_gain"}),
    "attention_too_large": frozenset({"attention_saturated"}),
    "wrong_fan": frozenset({"wrong_fan", "gain_too_large"}),
    "duplicate_draws": frozenset({"duplicate_draws"}),
    "special_scheme": frozenset({"special_scheme_missing"}),
    "never_written": frozenset({"never_written", "absurd_scale", "non_finite_parameter"}),
}
"""Causes in `fanin.cause` that explain what was injected; "" is a sound scheme that the network does not bear."""

HEADS = {each.name: each.head for each in ARCHITECTURES}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A case with its label and what was injected."""

    arch: str
    init: str
    condition: str
    seed: int
    split: str
    cause: str
    layers: tuple[str, ...]
    sound: bool
    single_layer: bool
    label: str
    progress: float


@dataclass(frozen=True, slots=True)
class Said:
    """A diagnosis of one stage, as far as it is scored."""

    verdict: str
    cause: str = ""
    layer: str = ""
    layers: tuple[str, ...] = ()
    everywhere: bool = False
    confidence: float | None = None

    @property
    def is_poor(self) -> bool:
        """Whether it flags."""
        return self.verdict == Verdict.POOR

    @property
    def is_undecided(self) -> bool:
        """Whether it would not say."""
        return self.verdict not in (Verdict.POOR, Verdict.HEALTHY)


@dataclass(frozen=True, slots=True)
class Judged:
    """A case and all that was said of it."""

    case: Labelled
    stages: dict[str, Said] = field(default_factory=dict)
    peers: dict[str, bool] = field(default_factory=dict)
    error: str = ""


class Answer(NamedTuple):
    """One answer about one case."""

    label: str
    poor: bool
    undecided: bool = False


# ---------------------------------------------------------------- the labels


def labelled(results: Path, split: str | None) -> list[Labelled]:
    """Every case that was trained, by the labels that the runs so far allow: those of one seed where there is only
    one."""
    rows = labelling.label(read(results)) or _kept(results)
    found, by_one, unyardsticked = [], 0, 0
    for row in rows:
        if split not in (None, row["split"]):
            continue
        if not row["best_sound"]:  # no sound scheme of this setting has been trained yet
            unyardsticked += 1
            continue
        progress = {
            s: float(row[f"progress_{s}"]) for s in SEEDS if row.get(f"progress_{s}") not in ("", None)
        }
        by_one += len(progress) < len(SEEDS)
        found += [_labelled(row, seed, list(progress.values())) for seed in progress]
    if by_one:
        _say(f"{by_one} of {len(rows)} rows are labelled by the one seed that has been trained")
    if unyardsticked:
        _say(f"{unyardsticked} rows are left out: no sound scheme of their setting has been trained yet")
    return found


def _kept(results: Path) -> list[dict[str, Any]]:
    path = results / "labels.csv"
    if not path.exists():
        raise SystemExit(f"neither runs-*.jsonl nor labels.csv in {results}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _labelled(row: dict[str, Any], seed: int, progress: list[float]) -> Labelled:
    label = row["label"]
    if label == "incomplete":
        label = labelling._label(progress * len(SEEDS), bool(int(row["learnable"])), row["condition"])
    return Labelled(
        arch=row["arch"],
        init=row["init"],
        condition=row["condition"],
        seed=seed,
        split=row["split"],
        cause=row["cause"],
        layers=tuple(row["layers"].split()),
        sound=bool(int(row["sound"])),
        single_layer=bool(int(row["single_layer"])),
        label=label,
        progress=float(row[f"progress_{seed}"]),
    )


def _path(folder: Path, case: Labelled) -> Path:
    return path_of(
        folder,
        Case(
            next(each for each in ARCHITECTURES if each.name == case.arch),
            next(each for each in INITIALIZATIONS if each.name == case.init),
            next(each for each in CONDITIONS if each.name == case.condition),
            case.seed,
        ),
    )


# ---------------------------------------------------------------- judging

HAS_RACE = any(each.name == "race" for each in fields(Trial))
"""Whether this version of fanin knows of races."""


def judged(task: tuple[Labelled, Path, Path | None]) -> Judged:
    """What every stage and every peer says of one case."""
    case, path, race = task
    try:
        trial = _without_race(pickle.loads(path.read_bytes()))
        stages = {STEP_0: _said(_at_start(trial)), FIVE_STEPS: _said(trial)}
        if race is not None and HAS_RACE and race.exists():
            outcome: Any = {"race": pickle.loads(race.read_bytes())}
            stages[RACE] = _said(replace(trial, **outcome))
        return Judged(case, stages, {name: peer(trial) for name, peer in PEERS.items()})
    except Exception as error:  # noqa: BLE001  # one trial that cannot be judged is reported, and the others scored
        return Judged(case, error=f"{type(error).__name__}: {error}")


def _without_race(trial: Trial) -> Trial:
    nothing: Any = {"race": None}
    return replace(trial, **nothing) if HAS_RACE else trial


def _at_start(trial: Trial) -> Trial:
    """As a check without an optimizer sees it."""
    return replace(trial, steps=tuple(s for s in trial.steps if s.mode is not Mode.TRAIN or s.index == 0))


def _said(trial: Trial) -> Said:
    diagnosis: Diagnosis = fanin.judge(trial).diagnosis
    confidence = getattr(diagnosis, "confidence", None)
    confidence = None if confidence is None else float(confidence)
    if not diagnosis.origins:
        return Said(str(diagnosis.verdict), confidence=confidence)
    first = diagnosis.origins[0].finding
    return Said(
        verdict=str(diagnosis.verdict),
        cause=first.cause.value if first.cause else "",
        layer=first.layer,
        layers=first.layers,
        everywhere=first.scope is Scope.EVERYWHERE,
        confidence=confidence,
    )


def judge_all(
    cases: Sequence[Labelled], trials: Path, races: Path | None, workers: int = WORKERS
) -> list[Judged]:
    """Every case that has been captured, in order."""
    tasks = [(case, _path(trials, case), _path(races, case) if races else None) for case in cases]
    tasks = [task for task in tasks if task[1].exists()]
    _say(f"{len(tasks)} of {len(cases)} labelled cases have been captured")
    if races and not HAS_RACE:
        _say("this version of fanin has no Trial.race: the stage 'race' is left out")
    started, found = time.monotonic(), []
    with multiprocessing.get_context("fork").Pool(min(workers, WORKERS)) as pool:
        for number, each in enumerate(pool.imap(judged, tasks, chunksize=8), 1):
            found.append(each)
            if each.error:
                _say(f"FAILED {each.case.arch} {each.case.init} {each.case.condition}: {each.error}")
            if number % 200 == 0:
                left = (time.monotonic() - started) / number * (len(tasks) - number)
                _say(f"{number}/{len(tasks)}, {left:.0f} s left")
    return found


# ---------------------------------------------------------------- rates


def rates(answers: Iterable[Answer]) -> dict[str, Any]:
    """Precision, recall and the others of these answers; None where there is nothing to divide by."""
    answers = list(answers)
    counts = Counter((each.label, each.poor) for each in answers)
    tp, fn = counts[POOR, True], counts[POOR, False]
    fp, tn = counts[HEALTHY, True], counts[HEALTHY, False]
    low, high = wilson(fp, fp + tn)
    undecided = Counter(each.label for each in answers if each.undecided)
    return {
        "cases": tp + fn + fp + tn,
        "poor": tp + fn,
        "healthy": fp + tn,
        "true_alarms": tp,
        "false_alarms": fp,
        "misses": fn,
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, tp + fn),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "false_alarm_rate": _share(fp, fp + tn),
        "false_alarm_low": low,
        "false_alarm_high": high,
        "grey": counts[GREY, True] + counts[GREY, False],
        "grey_called_poor": counts[GREY, True],
        "undecided": undecided.total(),
        "undecided_share": _share(undecided.total(), len(answers)),
        "undecided_poor": undecided[POOR],
        "undecided_healthy": undecided[HEALTHY],
    }


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float | None, float | None]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not trials:
        return None, None
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _of_stage(judgements: Iterable[Judged], stage: str) -> list[tuple[Labelled, Said]]:
    return [(each.case, each.stages[stage]) for each in judgements if stage in each.stages]


def _answers(pairs: Iterable[tuple[Labelled, Said]]) -> list[Answer]:
    return [Answer(case.label, said.is_poor, said.is_undecided) for case, said in pairs]


POPULATIONS: dict[str, Callable[[Labelled], bool]] = {
    "all": lambda case: True,
    "initializations": lambda case: case.condition == "none",
    "sound initializations": lambda case: case.sound and case.condition == "none",
    "conditions": lambda case: case.condition != "none",
}
"""Which cases a table is about."""


# ---------------------------------------------------------------- the right layer, the right cause


def points_at(said: Said, layers: Sequence[str]) -> bool:
    """Whether the first origin names one of these layers; one that is everywhere must name few."""
    if said.everywhere:
        return len(said.layers) <= FEW and any(_same(a, b) for a in said.layers for b in layers)
    return any(_same(said.layer, layer) for layer in layers)


def _same(a: str, b: str) -> bool:
    """Equal, or one of them a part of the other (`attention` and `attention.in_proj`)."""
    if a == b:
        return True
    long, short = (a, b) if len(a) > len(b) else (b, a)
    return bool(short) and (long.startswith(f"{short}.") or long.endswith(f".{short}"))


def explains(case: Labelled, said: Said) -> bool:
    """Whether the first origin's cause is what was injected."""
    if said.cause in ACCEPTED[case.cause]:
        return True
    if case.cause == "gain_too_large":
        return said.cause == "head_too_large" and _same(said.layer, HEADS[case.arch])
    if case.cause == "zero_path":
        return said.cause == "gain_too_small" and (not case.layers or points_at(said, case.layers))
    return False


def layer_score(pairs: Iterable[tuple[Labelled, Said]]) -> dict[str, Any]:
    """How often the first origin is the one layer at fault, of the poor cases with one."""
    poor = [(c, s) for c, s in pairs if c.label == POOR and c.single_layer and c.layers]
    called = [(c, s) for c, s in poor if s.is_poor]
    right = sum(points_at(s, c.layers) for c, s in called)
    return _first_score(right, len(called), len(poor))


def cause_score(pairs: Iterable[tuple[Labelled, Said]]) -> dict[str, Any]:
    """How often the first origin's cause is what was injected, of the poor cases of a known cause."""
    poor = [(c, s) for c, s in pairs if c.label == POOR and c.cause in ACCEPTED]
    called = [(c, s) for c, s in poor if s.is_poor]
    first: dict[str, Counter[str]] = defaultdict(Counter)
    for c, s in called:
        first[c.cause or "(sound)"][f"{s.cause}{'' if explains(c, s) else ' (wrong)'}"] += 1
    right = sum(explains(c, s) for c, s in called)
    by_cause = {cause: dict(counts.most_common()) for cause, counts in sorted(first.items())}
    return _first_score(right, len(called), len(poor)) | {"first_causes": by_cause}


def _first_score(right: int, called: int, poor: int) -> dict[str, Any]:
    return {
        "right": right,
        "called_poor": called,
        "poor": poor,
        "share_of_called": _share(right, called),
        "share_of_poor": _share(right, poor),
    }


def calibration(pairs: Iterable[tuple[Labelled, Said]]) -> dict[str, Any] | None:
    """How often verdicts of each confidence are right, and the expected calibration error; None without any."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for case, said in pairs:
        if said.confidence is None or said.is_undecided or case.label not in (POOR, HEALTHY):
            continue
        place = min(BINS - 1, max(0, int(said.confidence * BINS)))
        bins[place].append((said.confidence, said.verdict == case.label))
    total = sum(map(len, bins))
    if not total:
        return None
    table, error = [], 0.0
    for place, members in enumerate(bins):
        if not members:
            continue
        confidence = math.fsum(c for c, _ in members) / len(members)
        right = sum(is_right for _, is_right in members) / len(members)
        error += abs(confidence - right) * len(members) / total
        table.append(
            {
                "from": place / BINS,
                "to": (place + 1) / BINS,
                "mean_confidence": round(confidence, 4),
                "share_right": round(right, 4),
                "count": len(members),
            }
        )
    return {"expected_calibration_error": round(error, 4), "verdicts": total, "bins": table}


# ---------------------------------------------------------------- tables


def by(pairs: Iterable[tuple[Labelled, Said]], name: str) -> dict[str, dict[str, int]]:
    """False alarms and misses by architecture or initialization, the worst first."""
    groups: dict[str, list[tuple[Labelled, Said]]] = defaultdict(list)
    for case, said in pairs:
        groups[getattr(case, name)].append((case, said))
    kept = ("false_alarms", "healthy", "misses", "poor", "undecided")
    tables = {key: rates(_answers(group)) for key, group in groups.items()}
    worst = sorted(tables.items(), key=lambda item: (-item[1]["false_alarms"], -item[1]["misses"], item[0]))
    return {key: {column: table[column] for column in kept} for key, table in worst}


def wrong(pairs: Iterable[tuple[Labelled, Said]], label: str) -> list[dict[str, Any]]:
    """The cases of this label that were called otherwise, one entry for each network and initialization."""
    found: dict[tuple[str, ...], list[tuple[Labelled, Said]]] = defaultdict(list)
    for case, said in pairs:
        if case.label == label and said.is_poor == (label == HEALTHY):
            found[case.arch, case.init, case.condition].append((case, said))
    return [
        {
            "arch": arch,
            "init": init,
            "condition": condition,
            "seeds": [case.seed for case, _ in members],
            "progress": [case.progress for case, _ in members],
            "said": [" ".join(filter(None, (s.verdict, s.cause, s.layer))) for _, s in members],
        }
        for (arch, init, condition), members in sorted(found.items())
    ]


def scored(judgements: Sequence[Judged]) -> dict[str, Any]:
    """All numbers, as they are written."""
    whole = [each for each in judgements if not each.error]
    stages = {}
    for stage in STAGES:
        pairs = _of_stage(whole, stage)
        if not pairs:
            continue
        stages[stage] = {
            "rates": {
                name: rates(_answers((c, s) for c, s in pairs if belongs(c)))
                for name, belongs in POPULATIONS.items()
            },
            "layer_first": layer_score(pairs),
            "cause_first": cause_score(pairs),
            "calibration": calibration(pairs),
            "by_architecture": by(pairs, "arch"),
            "by_initialization": by(((c, s) for c, s in pairs if c.condition == "none"), "init"),
            "by_condition": by(pairs, "condition"),
            "false_alarms": wrong(pairs, HEALTHY),
            "misses": wrong(pairs, POOR),
        }
    peers = {
        name: {
            population: rates(Answer(j.case.label, j.peers[name]) for j in whole if belongs(j.case))
            for population, belongs in POPULATIONS.items()
        }
        for name in PEERS
    }
    return {
        "cases": len(whole),
        "failed": len(judgements) - len(whole),
        "labels": dict(Counter(each.case.label for each in whole)),
        "seeds": sorted({each.case.seed for each in whole}),
        "stages": stages,
        "peers": peers,
    }


# ---------------------------------------------------------------- in words


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _line(name: str, table: dict[str, Any]) -> str:
    interval = f"{_number(table['false_alarm_low'])}..{_number(table['false_alarm_high'])}"
    return (
        f"{name:31} P {_number(table['precision'])} R {_number(table['recall'])} F1 {_number(table['f1'])} "
        f"FAR {_number(table['false_alarm_rate'])} [{interval}] n {table['cases']} "
        f"(poor {table['poor']}) undecided {_number(table['undecided_share'])} "
        f"grey {table['grey']} ({table['grey_called_poor']} called poor)"
    )


def report(scores: dict[str, Any], details: bool) -> None:
    """Prints what was written."""
    print(f"{scores['cases']} cases {scores['labels']}, seeds {scores['seeds']}, {scores['failed']} failed")
    for population in POPULATIONS:
        if not any(tables[population]["cases"] for tables in scores["peers"].values()):
            continue
        print(f"\n{population}")
        for stage, found in scores["stages"].items():
            print(_line(stage, found["rates"][population]))
        for name, tables in scores["peers"].items():
            print(_line(name, tables[population]))
    for stage, found in scores["stages"].items():
        print(f"\n{stage}")
        for what in ("layer_first", "cause_first"):
            first = found[what]
            print(
                f"  {what.replace('_', ' ')}: {first['right']} of {first['called_poor']} called poor "
                f"({_number(first['share_of_called'])}), of all {first['poor']} {_number(first['share_of_poor'])}"
            )
        _report_calibration(found["calibration"])
        if details or stage == list(scores["stages"])[-1]:
            _report_tables(found)
        if details:
            _report_details(found)


def _report_calibration(found: dict[str, Any] | None) -> None:
    if found is None:
        return
    print(f"  calibration error {found['expected_calibration_error']:.3f} of {found['verdicts']} verdicts")
    for row in found["bins"]:
        print(
            f"    {row['from']:.1f}..{row['to']:.1f} confidence {row['mean_confidence']:.3f} "
            f"right {row['share_right']:.3f} n {row['count']}"
        )


def _report_tables(found: dict[str, Any]) -> None:
    for name in ("by_architecture", "by_initialization", "by_condition"):
        print(f"  {name.replace('_', ' ')}")
        for key, row in found[name].items():
            print(
                f"    {key:28} false alarms {row['false_alarms']:3}/{row['healthy']:<3} "
                f"misses {row['misses']:3}/{row['poor']:<3} undecided {row['undecided']}"
            )


def _report_details(found: dict[str, Any]) -> None:
    for name in ("false_alarms", "misses"):
        print(f"  {name.replace('_', ' ')}")
        for row in found[name]:
            progress = " ".join(f"{p:.2f}" for p in row["progress"])
            said = " | ".join(dict.fromkeys(row["said"]))
            print(f"    {row['arch']:22} {row['init']:26} {row['condition']:18} progress {progress}: {said}")
    print("  first causes")
    for cause, counts in found["cause_first"]["first_causes"].items():
        print(f"    {cause:22} {', '.join(f'{first} {count}' for first, count in counts.items())}")


def write_verdicts(path: Path, judgements: Iterable[Judged]) -> None:
    """One row for each case and stage; p is the progress of the run relative to the best sound scheme's."""
    columns = (
        "arch",
        "init",
        "condition",
        "seed",
        "stage",
        "verdict",
        "cause",
        "layer",
        "confidence",
        "label",
        "p",
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for each in judgements:
            for stage, said in each.stages.items():
                row = asdict(each.case) | asdict(said) | {"stage": stage, "p": each.case.progress}
                writer.writerow(row | {"confidence": "" if said.confidence is None else said.confidence})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=Path, help="what capture.py wrote")
    parser.add_argument("--split", choices=("tune", "test"), help="both if not given")
    parser.add_argument("--races", type=Path, help="what race.py wrote")
    parser.add_argument("--details", action="store_true", help="every false alarm and every miss")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"at most {WORKERS}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the runs are")
    parser.add_argument("--out", type=Path, help="where to write; by default where the runs are")
    return parser.parse_args()


def main() -> None:
    """Scores what has been captured so far."""
    arguments = _arguments()
    cases = labelled(arguments.results, arguments.split)
    judgements = judge_all(cases, arguments.trials, arguments.races, arguments.workers)
    if not judgements:
        raise SystemExit(f"no trial of a labelled case in {arguments.trials}")
    scores = {"split": arguments.split or "all"} | scored(judgements)
    out = arguments.out or arguments.results
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
    (out / f"{scores['split']}-scores.json").write_text(f"{text}\n", encoding="utf-8")
    write_verdicts(out / f"{scores['split']}-verdicts.csv", judgements)
    report(scores, arguments.details)


if __name__ == "__main__":
    main()
