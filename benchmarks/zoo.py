"""False alarms: what `fanin.check` says of healthy models in their makers' initialization.

Every model of `_zoo_models.py` is built with random weights, run once forward and backward on structured inputs in
train mode, and judged. Whoever is called poor or undecided is a false alarm until shown otherwise. The documented
rule's answer stands beside ours; from a single step it can say poor or undecided only, so with --watch it is also
asked about ten steps of Adam under `fanin.watch`, as is our verdict.

    .venv-zoo/bin/python benchmarks/zoo.py                   all models; writes results/zoo.csv and zoo.json
    .venv-zoo/bin/python benchmarks/zoo.py --watch           the same, with ten watched steps each
    .venv-zoo/bin/python benchmarks/zoo.py alexnet vgg11     these only; their rows in the results are replaced
    .venv-zoo/bin/python benchmarks/zoo.py --train 200 vgg11 also prints the loss over 200 steps of Adam

Time is that of one check over the median of three plain forward and backward passes, after a first of each.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, circumstances, keep
from _zoo_models import Case, cases, declare_operators
from torch import Tensor, nn

import fanin
from fanin.examine import Report
from fanin.propagation import stretch

COLUMNS = (
    "model",
    "origin",
    "parameters",
    "verdict",
    "findings",
    "missing",
    "documented",
    "documented_says",
    "watched",
    "watched_documented",
    "decades",
    "excess",
    "noise",
    "layers",
    "check_s",
    "plain_s",
    "ratio",
    "error",
    "date",
    "fanin_source",
    "torch_threads",
    "load",
)
"""Of results/zoo.csv; decades to layers describe the last stretch without normalization, date to load the
run that a row is of."""

Row = dict[str, Any]


def judged(case: Case, options: argparse.Namespace) -> Row:
    """One model's row; whatever goes wrong is told in its last column."""
    try:
        return _judged(case, options)
    except Exception as fault:  # noqa: BLE001  # one broken model must not cost the others
        text = " ".join(f"{type(fault).__name__}: {fault}".split())
        return {"model": case.name, "origin": case.origin, "error": text[:300]}


def _judged(case: Case, options: argparse.Namespace) -> Row:
    torch.manual_seed(options.seed)
    model, batch = case.build().train(), case.batch(options.seed)
    fanin.check(model, batch, case.loss)  # warms caches, allocators and imports
    began = time.perf_counter()
    report = fanin.check(model, batch, case.loss)
    taken = time.perf_counter() - began
    plain = statistics.median(_plain_seconds(model, batch, case) for _ in range(3))
    row = {
        "model": case.name,
        "origin": case.origin,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    row |= _said(report) | _reach(report)
    row |= {"check_s": round(taken, 3), "plain_s": round(plain, 3), "ratio": round(taken / plain, 2)}
    if options.watch:
        row |= _watched(case, model)
    if options.train:
        print(f"  {case.name}: {_trained(case, model, options.train, options.lr)}", flush=True)
    return row


def _said(report: Report) -> Row:
    diagnosis = report.diagnosis
    return {
        "verdict": report.verdict.value,
        "findings": "; ".join(
            f"{f.code} {f.layer or '-'} ({len(f.layers)} layers): {f.evidence}" for f in report.findings
        ),
        "missing": "; ".join(
            f"{m.code}{'' if m.blocks else ' (does not block)'}: {m.what}" for m in diagnosis.missing
        ),
        "documented": diagnosis.documented.value if diagnosis.documented else "",
        "documented_says": "; ".join(f"{f.quantity} = {f.measured}" for f in diagnosis.documented_findings),
    }


def _reach(report: Report) -> Row:
    path = stretch(report.trial)
    if path is None:
        return {}
    return {
        "decades": round(path.decades, 2),
        "excess": round(path.excess, 2),
        "noise": round(path.noise, 2),
        "layers": len(path.links),
    }


def _output_and_loss(model: nn.Module, batch: Any, case: Case) -> Tensor:
    if case.loss is None:
        return model(**batch).loss
    inputs, target = batch
    return case.loss(model(inputs), target)


def _plain_seconds(model: nn.Module, batch: Any, case: Case) -> float:
    began = time.perf_counter()
    _output_and_loss(model, batch, case).backward()
    taken = time.perf_counter() - began
    model.zero_grad()
    return taken


def _watched(case: Case, model: nn.Module) -> Row:
    """Ten steps of Adam under watch, each on a batch of its own."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with fanin.watch(model, optimizer, on_error="raise") as watch:
        for step in range(10):
            _train_step(case, model, optimizer, step)
    diagnosis = fanin.judge(watch.trial).diagnosis
    said = diagnosis.documented.value if diagnosis.documented else ""
    why = "; ".join(f"{f.quantity} = {f.measured}" for f in diagnosis.documented_findings)
    ours = (
        diagnosis.verdict.value
        if diagnosis.verdict.value == "healthy"
        else f"{diagnosis.verdict}: {diagnosis.why}"
    )
    return {"watched": ours, "watched_documented": f"{said}: {why}" if why else said}


def _train_step(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    optimizer.zero_grad()
    loss = _output_and_loss(model, case.batch(step), case)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _trained(case: Case, model: nn.Module, steps: int, lr: float) -> str:
    """Mean loss of the first and of the last tenth of so many steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = [_train_step(case, model, optimizer, step) for step in range(steps)]
    tenth = max(1, steps // 10)
    marks = [statistics.fmean(losses[i : i + tenth]) for i in range(0, steps, tenth)]
    return f"loss over {steps} steps of Adam at {lr:g}: " + " ".join(f"{m:.3f}" for m in marks)


# -- all of them


def summary(rows: list[Row]) -> str:
    """Counts, then each that is not called healthy."""
    ran = [r for r in rows if "verdict" in r]
    lines = [f"{len(ran)} models ran, {len(rows) - len(ran)} did not"]
    for who, column in (("ours", "verdict"), ("documented, step 0", "documented")):
        lines.append(f"{who}: {_count(ran, column)}")
    if any("watched" in r for r in ran):
        lines.append(f"ours, 10 steps: {_count(ran, 'watched')}")
        lines.append(f"documented, 10 steps: {_count(ran, 'watched_documented')}")
    ratios = sorted(float(r["ratio"]) for r in ran)
    lines.append(f"check / (forward + backward): median {statistics.median(ratios)}, highest {ratios[-1]}")
    lines += [
        f"  {r['model']}: {r['verdict']}: {r.get('findings') or r.get('missing')}"
        for r in _suspects(ran, "verdict")
    ]
    lines += [f"  {r['model']}: watched {r['watched']}" for r in _suspects(ran, "watched")]
    lines += [f"  {r['model']}: did not run: {r['error']}" for r in rows if "error" in r]
    return "\n".join(lines)


def _count(rows: list[Row], column: str) -> str:
    words = [str(r.get(column, "")).split(":")[0] for r in rows]
    return ", ".join(f"{words.count(w)} {w}" for w in ("healthy", "undecided", "poor"))


def _suspects(rows: list[Row], column: str) -> Iterator[Row]:
    return (r for r in rows if r.get(column, "healthy") != "healthy")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="only these")
    parser.add_argument("--origin", help="only models of own, torchvision, timm or transformers")
    parser.add_argument("--watch", action="store_true", help="also watch ten steps")
    parser.add_argument("--train", type=int, default=0, help="also train so many steps")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's, for --train")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _wanted(options: argparse.Namespace) -> list[Case]:
    return [
        case
        for case in cases()
        if (not options.models or case.name in options.models) and options.origin in (None, case.origin)
    ]


def main() -> int:
    """Judge, print, and keep the results unless only some models were asked for."""
    options = _arguments()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    declared = declare_operators()
    about = circumstances("torch", "timm", "torchvision", "transformers", "numpy")
    about["torch_threads"] = torch.get_num_threads()
    run = {k: about[k] for k in ("date", "fanin_source", "torch_threads")}
    rows: list[Row] = []
    for case in _wanted(options):
        load = round(os.getloadavg()[0], 2)
        rows.append(judged(case, options) | run | {"load": load})
        print(_line(rows[-1]), flush=True)
    print(summary(rows))
    _keep(rows, about)
    del declared
    return 0


def _line(row: Row) -> str:
    if "error" in row:
        return f"{row['origin']:12} {row['model']:32} {row['error']}"
    reach = f"{row.get('decades', '')}/{row.get('excess', '')} in {row.get('layers', 0)}"
    return (
        f"{row['origin']:12} {row['model']:32} {row['verdict']:9} documented {row['documented']:9} "
        f"{row['check_s']:6.2f} s = {row['ratio']:4.2f} x  decades/excess {reach}  "
        f"{row['findings']} {row['missing']} {row.get('watched', '')} {row.get('watched_documented', '')}"
    ).rstrip()


def _keep(rows: list[Row], about: dict[str, Any]) -> None:
    """New rows take the place of old ones; the record is of the last run and sums up all rows."""
    path = RESULTS / "zoo.csv"
    RESULTS.mkdir(exist_ok=True)
    together = {(r["origin"], r["model"]): r for r in [*_kept(path), *rows]}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(together.values())
    kept = _kept(path)
    said = [
        f"fanin sources: {', '.join(sorted({r['fanin_source'] for r in kept}))}",
        *summary(kept).splitlines(),
    ]
    print(f"\n{path} and {keep('zoo', about | {'summary': said})}")


def _kept(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


if __name__ == "__main__":
    sys.exit(main())
