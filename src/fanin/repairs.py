"""A cure for what `check` finds, tried on a copy, measured again, and proven in a race before anything is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from fanin import prescribe, reports
from fanin.adapters.base import Adapter
from fanin.attempts import Progress, Tried, Work, advised
from fanin.budget import Budget
from fanin.change import Plan, Reach, Repair, Safety
from fanin.errors import UsageError
from fanin.examine import Report, built, check
from fanin.finding import Verdict
from fanin.measures import has_learned, uninformed_loss
from fanin.race import MOST
from fanin.trial import Step, Trial

NAMED_ALL_THE_SAME = (
    "build the model anew; or name layers, and have them drawn whatever they hold: "
    "fanin.repair(..., layers=[...], prove=False, force=True, apply=True)"
)


@dataclass(slots=True)
class RepairReport:
    """A network, what is wrong with it, and what would cure it. `print(report)` shows all of it.

    Attributes:
        model: The model as given, or as the given function built it.
        report: What `check` says of it as it was.
        repair: The repair that is proposed; None where there is none.
        after: What `check` says of the repaired network; None without a repair.
        discarded: Repairs that were tried and did not win, or not by as much.
        applied: Whether the model now holds the repair.
    """

    model: Any
    report: Report
    repair: Repair | None = None
    after: Report | None = None
    discarded: tuple[Repair, ...] = ()
    applied: bool = False
    _undo: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def verdict(self) -> Verdict:
        """Of the network as given: healthy, poor or undecided."""
        return self.report.verdict

    @property
    def code(self) -> str:
        """Plain initialization code that repairs a model called `model`; empty where nothing is proposed."""
        return self.repair.code if self.repair is not None else ""

    def undo(self) -> None:
        """Give the model the values back that it had, bit for bit; nothing where nothing was applied."""
        if self._undo is not None and self.applied:
            self._undo()
            self.applied = False

    def render(
        self, form: str = "terminal", *, diff: bool = False, width: int = 80, color: bool = False
    ) -> str:
        """The report as text, in a format of `fanin.reports`; with the change of files where `diff` asks for it."""
        return reports.render_repair(
            form,
            self.report.trial,
            self.report.diagnosis,
            self.repair,
            self.discarded,
            applied=self.applied,
            after=self._after,
            diff=diff,
            width=width,
            color=color,
        )

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page that opens from anywhere; needs the extra `html`.

        Raises:
            UsageError: The extra is not installed.
        """
        Path(path).write_text(self.render("html"), encoding="utf-8")

    @property
    def _after(self) -> Trial | None:
        return self.after.trial if self.after is not None else None

    def __str__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        from fanin.reports import notebook

        trial, diagnosis = self.report.trial, self.report.diagnosis
        return notebook.of_repair(trial, diagnosis, self.repair, self.discarded, self.applied, self._after)


def repair(
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    apply: bool = False,
    prove: bool = True,
    optimizer: Any = None,
    layers: Sequence[str] | str | None = None,
    budget: int | str | None = None,
    seed: int = 0,
    force: bool = False,
    on_progress: Progress | None = None,
) -> RepairReport:
    """Propose the smallest new initialization that cures what `check` finds, and prove it by training.

    The model is diagnosed; a copy is repaired and looked at again; copies of both are trained on the same batches. A
    repair that does not win is discarded. Where the check finds no fault, a race against a sound re-draw has the last
    word: a network that makes less than half of its progress is poor all the same, and is drawn anew as a whole.
    Nothing is written to the model unless `apply` asks for it, and then only what is safe. Interrupted at any point,
    the model is bit for bit what it was.

    Args:
        model, batch, loss_fn, optimizer: As `fanin.check` takes them. The proof needs several batches, or a large one.
        apply: Write the repair into the model, if it is safe; `.undo()` takes it back.
        prove: Whether to let it race. Without a proof no repair is safe.
        layers: Names of layers or modules, or one, to be drawn anew whatever the diagnosis says, frozen ones too. They
            must win their race all the same, unless `prove=False`.
        budget: Most of the proof's forward and backward passes (500, say; by default what three whole races take), or
            its time ("90s").
        seed: Of the draw: equal seeds give equal values.
        force: Repair a model that was trained or loaded, too, and apply what is not safe.
        on_progress: See `Progress`.

    Raises:
        BatchError: The model cannot run the batch.
        LossError: The loss cannot be computed or differentiated.
        UsageError: The model has been trained or loaded; or is of no known framework, cannot be copied; or
            `layers` names what is not there.
    """
    say = on_progress or (lambda *_: None)
    batch = list(islice(batch, MOST)) if isinstance(batch, Iterator) else batch
    model, adapter = built(model)
    _require_fresh(adapter, model, optimizer, force)
    batch = _agreed(adapter, model, batch, Budget.of(budget))
    say("check", 0, 1)
    report = check(model, batch, loss_fn, optimizer=optimizer)
    say("check", 1, 1)
    return repaired(
        report,
        model,
        batch,
        loss_fn,
        apply=apply,
        prove=prove,
        optimizer=optimizer,
        layers=layers,
        budget=budget,
        seed=seed,
        force=force,
        on_progress=say,
    )


def repaired(
    report: Report,
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    apply: bool = False,
    prove: bool = True,
    optimizer: Any = None,
    layers: Sequence[str] | str | None = None,
    budget: int | str | None = None,
    seed: int = 0,
    force: bool = False,
    on_progress: Progress | None = None,
) -> RepairReport:
    """What `repair` does after its check, whose report this takes; the arguments and errors are those of `repair`."""
    began, spent = monotonic(), Budget.of(budget)
    say = on_progress or (lambda *_: None)
    model, adapter = built(model)
    doubts = _require_fresh(adapter, model, optimizer, force, report.trial)
    found = _plans(report, layers, prove)
    work = Work(adapter, model, batch, loss_fn, optimizer, report, doubts, seed, say, spent)
    tried = work.proposed(found, prove) if found else Tried(report, advised(report))
    made = tried.repair
    if made is not None:
        made = replace(made, passes=tried.passes, seconds=monotonic() - began)
    result = RepairReport(model, tried.report, made, tried.after, tried.discarded)
    if apply and result.repair is not None and result.repair.changes:
        _apply(adapter, result, tried.copy, force)
    return result


def initialize(
    model: Any, batch: Any, loss_fn: Callable[[Any, Any], Any] | None = None, *, seed: int = 0
) -> Repair:
    """Give a fresh model a sound start, in place, by the machinery of `repair`: every layer drawn by its role and
    scaled in one forward pass. No diagnosis, no loss, no labels.

    Zeros that stand for a deliberate start (heads, branches, adapters), tied, frozen and quantized parameters, and
    buffers stay as they are. Two forward passes in all.

    Args:
        model: Written in place.
        batch: As `fanin.check` takes it; inputs alone will do.
        loss_fn: As `fanin.check` takes it. With targets it shows a model that has learned, which is refused.
        seed: Equal seeds give equal bits, whatever the global random state.

    Returns:
        What was changed, with the code that does the same.

    Raises:
        BatchError: The model cannot run the batch.
        UsageError: The model has been trained or loaded, or is of no known framework, or lazy. Without targets that
            shows only in what was written to it: weights that were copied, or loaded into it elsewhere, look fresh.
    """
    began = monotonic()
    batch = list(islice(batch, 1)) if isinstance(batch, Iterator) else batch
    model, adapter = built(model)
    if doubts := adapter.history(model):
        raise _trained(doubts, NAMED_ALL_THE_SAME)
    batch = _agreed(adapter, model, batch, Budget.of(None))
    trial = adapter.trace(model, batch, loss_fn)
    repaired, _ = adapter.copy(model)
    treated = adapter.treat(repaired, batch, loss_fn, trial.spec, prescribe.whole(trial), seed)
    if trial.start is not None and (doubts := _learned(trial.start, treated.loss)):
        raise _trained(doubts, NAMED_ALL_THE_SAME)
    adapter.adopt(model, repaired, [change.parameter for change in treated.changes])
    return Repair(
        treated.changes,
        Safety.SAFE,
        reach=Reach.EVERYTHING,
        code=treated.code,
        seed=seed,
        passes=2,
        seconds=monotonic() - began,
    )


def _require_fresh(
    adapter: Adapter, model: Any, optimizer: Any, force: bool, seen: Trial | None = None
) -> tuple[str, ...]:
    """What shows that the model is not fresh, where that is forced.

    Args:
        adapter, model, optimizer, force: As in `repair`.
        seen: What a check of it saw, once there is one.

    Raises:
        UsageError: It is not, and nobody forces it.
    """
    doubts = adapter.history(model, optimizer)
    if seen is not None and seen.start is not None and seen.reference is not None:
        doubts = (*doubts, *_learned(seen.start, seen.reference.loss))
    if doubts and not force:
        raise _trained(doubts)
    return doubts


def _learned(start: Step, sound: float) -> tuple[str, ...]:
    """What its first loss says: weights that were loaded or copied look fresh otherwise."""
    if not has_learned(start, sound):
        return ()
    guess = uninformed_loss(start)
    return (
        f"its loss is {start.loss:.3g}, where always answering the same costs {guess:.3g} and soundly drawn weights "
        f"{sound:.3g}: it has learned",
    )


def _agreed(adapter: Adapter, model: Any, batch: Any, budget: Budget) -> Any:
    """The same batches in all processes that hold parts of a model, and no clocks: they must decide alike.

    Raises:
        UsageError: The budget is a time.
    """
    if not adapter.is_spread(model):
        return batch
    if budget.until < inf:
        raise UsageError(
            "the model is spread over processes, whose clocks differ",
            where="budget",
            got="a time",
            expected="a number of passes, after which all of them stop alike",
            next_step="pass budget=500, or leave it out",
        )
    return adapter.shared(model, batch)


def _plans(report: Report, layers: Sequence[str] | str | None, prove: bool) -> tuple[Plan, ...]:
    """What to try. Where no cause is known, only a race can tell whether anything helps."""
    if layers is not None:
        return (prescribe.named(report.trial, layers),)
    if report.verdict is not Verdict.POOR and not prove:
        return ()
    return prescribe.plans(report.trial, report.diagnosis)


def _apply(adapter: Adapter, result: RepairReport, repaired: Any, force: bool) -> None:
    made = result.repair
    if made is None or (made.safety is not Safety.SAFE and not force):
        return
    result._undo = adapter.adopt(result.model, repaired, made.parameters)
    result.applied = True


def _trained(doubts: Sequence[str], next_step: str = "") -> UsageError:
    return UsageError(
        "this model is no fresh initialization, and a repair would destroy what it has learned",
        got="; ".join(doubts),
        expected="a model before its first training step, and an optimizer without state",
        next_step=next_step or "build the model anew and repair that, or force it: force=True, or --force",
    )
