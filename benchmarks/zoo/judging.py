"""One model, judged: its row in results/zoo.csv.

Each is built and judged in a process of its own, forked before any network has run: no model finds caches, random
states, modules or memory as another left them, and one that takes too long, too much memory or the process itself
costs its own row only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from benchmarks.zoo.case import Case
from torch import nn

import fanin
from fanin.examine import Report
from fanin.propagation import stretch

COLUMNS = (
    "model",
    "origin",
    "parameters",
    "verdict",
    "cause",
    "layer",
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
    "memory_mb",
    "error",
    "date",
    "fanin_source",
    "torch_threads",
    "load",
)
"""Cause and layer are those of the first finding; missing says what evidence a verdict still needs, and is empty where
it needs no more; decades to layers describe the last stretch without normalization; error says why there is no
verdict; date to load are of the run."""

Row = dict[str, Any]

FORK = multiprocessing.get_context("fork")


def judged_apart(case: Case, options: argparse.Namespace) -> Row:
    """One model's row; why there is no verdict, where there is none, is told in its column `error`."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send, args=(there, case, options))
    process.start()
    there.close()
    row = _received(here, options.seconds)
    if process.is_alive():
        process.join(5)
        process.kill()
    process.join()
    return {"model": case.name, "origin": case.origin} | row


def _received(here: Connection, seconds: float) -> Row:
    try:
        if here.poll(seconds):
            return here.recv()
    except EOFError:
        return {"error": "its process died, of too much memory perhaps"}
    return {"error": f"skipped: took more than {seconds:g} s"}


def _send(there: Connection, case: Case, options: argparse.Namespace) -> None:
    _limit_memory(options.memory)
    try:
        row = plainly_run(case, options.seed) if options.plain else judged(case, options)
    except Exception as fault:  # noqa: BLE001  # one broken model must not cost the others
        text = " ".join(f"{type(fault).__name__}: {fault}".split())
        short = isinstance(fault, MemoryError) or "can't allocate memory" in text
        row = {"error": f"skipped: took more than {options.memory:g} GiB" if short else text[:300]}
    there.send(row)


def _limit_memory(gibibytes: float) -> None:
    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def judged(case: Case, options: argparse.Namespace) -> Row:
    """One model's row."""
    torch.manual_seed(options.seed)
    model, batch = case.build().train(), case.batch(options.seed)
    if not options.once:
        fanin.check(model, batch, case.loss)  # warms caches, allocators and imports
    began = time.perf_counter()
    report = fanin.check(model, batch, case.loss)
    taken = time.perf_counter() - began
    row = {"parameters": sum(p.numel() for p in model.parameters())} | _said(report) | _reach(report)
    row |= {"check_s": round(taken, 3)}
    if not options.once:
        plain = statistics.median(_plain_seconds(model, batch, case) for _ in range(3))
        row |= {"plain_s": round(plain, 3), "ratio": round(taken / plain, 2)}
    if options.watch:
        row |= _watched(case, model)
    if options.train:
        print(f"  {case.name}: {_trained(case, model, options.train, options.lr)}", flush=True)
    return row | {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def _said(report: Report) -> Row:
    diagnosis = report.diagnosis
    first = diagnosis.origins[0].finding if diagnosis.origins else None
    return {
        "verdict": report.verdict.value,
        "cause": first.cause.value if first and first.cause else "",
        "layer": first.layer if first else "",
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


def _plain_seconds(model: nn.Module, batch: Any, case: Case) -> float:
    began = time.perf_counter()
    case.loss_of(model, batch).backward()
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
    verdict = diagnosis.verdict.value
    return {
        "watched": verdict if verdict == "healthy" else f"{verdict}: {diagnosis.why}",
        "watched_documented": f"{said}: {why}" if why else said,
    }


def _train_step(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    optimizer.zero_grad()
    loss = case.loss_of(model, case.batch(step))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _trained(case: Case, model: nn.Module, steps: int, lr: float) -> str:
    """Mean loss of each tenth of so many steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = [_train_step(case, model, optimizer, step) for step in range(steps)]
    tenth = max(1, steps // 10)
    marks = [statistics.fmean(losses[i : i + tenth]) for i in range(0, steps, tenth)]
    return f"loss over {steps} steps of Adam at {lr:g}: " + " ".join(f"{m:.3f}" for m in marks)


def plainly_run(case: Case, seed: int) -> Row:
    """One forward and backward pass without any judgement: seconds and loss."""
    torch.manual_seed(seed)
    model, batch = case.build().train(), case.batch(seed)
    began = time.perf_counter()
    loss = case.loss_of(model, batch)
    loss.backward()
    taken = time.perf_counter() - began
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    sound = bool(loss.isfinite()) and all(bool(g.isfinite().all()) for g in gradients)
    if not sound:
        raise ArithmeticError(f"loss {float(loss.detach())} or a gradient is not finite")
    return {"plain_s": round(taken, 3), "loss": round(float(loss.detach()), 4)}
