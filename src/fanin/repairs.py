"""A cure for what `check` finds, tried on a copy, measured again, and proven in a race before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import nan
from time import monotonic
from typing import Any

from fanin import judgement, prescribe
from fanin.adapters.base import Adapter, Treated
from fanin.budget import Budget
from fanin.change import Effect, Plan, Reach, Repair, Safety
from fanin.errors import BatchError, UsageError
from fanin.examine import Report, built, check, judge
from fanin.finding import Diagnosis, Finding, Verdict
from fanin.patch import Patch, patch
from fanin.proposal import RepairReport as RepairReport
from fanin.race import MOST, Outcome, Race, RaceOptions
from fanin.trial import RECHECK, Trial

DRAWS = 3
"""Draws of one plan that race where the first ends close: most of them must win."""

LARGEST_FIRST_LOSS = 2.0
"""Of the re-draw's first loss, up to which a repair's is about the same: draws of one sound scheme differ by a few
percent, and a layer that is left too large multiplies it."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, planned): phases are `check`, `repair` and `proof`; of the proof passes are counted, and
its first call, with 0 done, comes before it begins."""


def repair(
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    apply: bool = False,
    prove: bool = True,
    optimizer: Any = None,
    layers: Sequence[str] | None = None,
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
        layers: Names of layers or modules to be drawn anew, whatever the diagnosis says; frozen ones too.
        budget: Most of the proof's forward and backward passes (500), or its time ("90s").
        seed: Of the draw: equal seeds give equal values.
        force: Repair a model that was trained or loaded, too, and apply what is not safe.
        on_progress: See `Progress`.

    Raises:
        BatchError: The model cannot run the batch.
        LossError: The loss cannot be computed or differentiated.
        UsageError: The model has been trained or loaded; or is of no known framework, cannot be copied, is sharded; or
            `layers` names what is not there.
    """
    say = on_progress or (lambda *_: None)
    batch = list(islice(batch, MOST)) if isinstance(batch, Iterator) else batch
    model, adapter = built(model)
    Budget.of(budget)
    _require_fresh(adapter, model, optimizer, force)
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
    layers: Sequence[str] | None = None,
    budget: int | str | None = None,
    seed: int = 0,
    force: bool = False,
    on_progress: Progress | None = None,
) -> RepairReport:
    """What `repair` does after its check, whose report this takes; the arguments and errors are those of `repair`."""
    began, spent = monotonic(), Budget.of(budget)
    say = on_progress or (lambda *_: None)
    model, adapter = built(model)
    doubts = _require_fresh(adapter, model, optimizer, force)
    found = _plans(report, layers, prove)
    work = _Work(adapter, model, batch, loss_fn, optimizer, report, doubts, seed, say, spent)
    result = work.proposed(found, prove) if found else RepairReport(model, report, _advised(report))
    if result.repair is not None:
        result.repair = replace(result.repair, passes=work.passes, seconds=monotonic() - began)
    if apply and result.repair is not None and result.repair.changes:
        _apply(adapter, result, work.repaired, force)
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
        loss_fn: As `fanin.check` takes it; it only tells inputs from targets.
        seed: Equal seeds give equal bits, whatever the global random state.

    Returns:
        What was changed, with the code that does the same.

    Raises:
        BatchError: The model cannot run the batch.
        UsageError: The model has been trained or loaded, or is of no known framework, lazy, or sharded.
    """
    began = monotonic()
    batch = list(islice(batch, 1)) if isinstance(batch, Iterator) else batch
    model, adapter = built(model)
    if doubts := adapter.history(model):
        raise _trained(
            doubts, "build the model anew, or name layers: fanin.repair(..., layers=[...], force=True)"
        )
    trial = adapter.trace(model, batch, loss_fn)
    repaired, _ = adapter.copy(model)
    treated = adapter.treat(repaired, batch, loss_fn, trial.spec, prescribe.whole(trial), seed)
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


def _require_fresh(adapter: Adapter, model: Any, optimizer: Any, force: bool) -> tuple[str, ...]:
    """What shows that the model is not fresh, where that is forced.

    Raises:
        UsageError: It is not, and nobody forces it.
    """
    doubts = adapter.history(model, optimizer)
    if doubts and not force:
        raise _trained(doubts)
    return doubts


# ── what is tried ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A plan, carried out on a copy."""

    plan: Plan
    repaired: Any
    treated: Treated
    after: Report


class _Work:
    """What all attempts share.

    Attributes:
        passes: Forward passes taken by now, beyond the first check.
        repaired: The copy that holds the proposed repair.
    """

    def __init__(
        self,
        adapter: Adapter,
        model: Any,
        batch: Any,
        loss_fn: Any,
        optimizer: Any,
        report: Report,
        doubts: tuple[str, ...],
        seed: int,
        say: Progress,
        budget: Budget,
    ) -> None:
        self.passes = 0
        self.repaired: Any = None
        self._adapter = adapter
        self._model, self._batch, self._loss_fn, self._optimizer = model, batch, loss_fn, optimizer
        self._report = report
        self._doubts = doubts
        self._seed = seed
        self._say = say
        self._budget = budget

    def proposed(self, plans: Sequence[Plan], prove: bool) -> RepairReport:
        """The first repair that wins, or the first that looks sound where none is to race."""
        discarded: list[Repair] = []
        for attempt in self._attempts(plans):
            made = self._repair(attempt)
            if not made.changes or any(made.parameters == tried.parameters for tried in discarded):
                continue  # the same again: what is reset may have been at its constant already
            made = self._proven(attempt, made) if prove else _unsafe(made, "it was not proven: prove=False")
            if made.proof is None and self._found_nothing(attempt):
                break
            if made.proof is None or self._wins(attempt, made):
                return self._result(attempt, made, discarded)
            if not self._found_nothing(attempt):
                discarded.append(made)
        return RepairReport(self._model, self._report, _advised(self._report), discarded=tuple(discarded))

    def _found_nothing(self, attempt: _Attempt) -> bool:
        """Whether neither the check nor the user has named anything to repair."""
        return self._report.verdict is Verdict.HEALTHY and attempt.plan.reach is not Reach.NAMED

    def _proven(self, attempt: _Attempt, made: Repair) -> Repair:
        """With its races, or unsafe where there is none."""
        try:
            races = self._races(attempt)
        except BatchError as error:
            return _unsafe(made, f"it was not proven: {_said(error)}")
        if not races:
            return _unsafe(made, "it was not proven: the budget is spent")
        return replace(made, proof=races[0], repeats=tuple(races[1:]))

    def _wins(self, attempt: _Attempt, made: Repair) -> bool:
        """Where no fault was found, only what a race calls poor, and not merely behind, is drawn anew."""
        blamed = self._report.verdict is Verdict.POOR or attempt.plan.reach is Reach.NAMED
        return made.is_proven and (blamed or _is_poor(made))

    def _result(self, attempt: _Attempt, made: Repair, discarded: Iterable[Repair]) -> RepairReport:
        self.repaired = attempt.repaired
        report = self._report
        if report.verdict is not Verdict.POOR and made.proof is not None:  # the race has settled it
            report = judge(replace(report.trial, race=made.proof))
        return RepairReport(self._model, report, made, attempt.after, tuple(discarded))

    def _attempts(self, plans: Sequence[Plan]) -> Iterator[_Attempt]:
        """Those after which the network is cured; the last one in any case: what a race says of it counts."""
        for place, plan in enumerate(plans):
            self._say("repair", place, len(plans))
            attempt = self._attempt(plan, self._seed)
            if place == len(plans) - 1 or _is_cured(self._report, attempt.after):
                yield attempt
        self._say("repair", len(plans), len(plans))

    def _attempt(self, plan: Plan, seed: int) -> _Attempt:
        copy, optimizer = self._adapter.copy(self._model, self._optimizer)
        spec = self._report.trial.spec
        treated = self._adapter.treat(copy, self._batch, self._loss_fn, spec, plan, seed)
        self.passes += 1
        return _Attempt(plan, copy, treated, self._looked_at(copy, optimizer))

    def _looked_at(self, copy: Any, optimizer: Any) -> Report:
        """The repaired copy beside the same re-draw as before: it is of the same architecture on the same batch."""
        rules = judgement.load_rules()
        needs = frozenset(replace(need, reference=False) for need in judgement.needs(rules))
        seen = self._adapter.examine(copy, self._batch, self._loss_fn, needs, optimizer)
        self.passes += 1 if optimizer is None else RECHECK + 1
        beside = self._report.trial.reference
        return judge(replace(seen, steps=(*seen.steps, beside)) if beside is not None else seen, rules=rules)

    def _races(self, attempt: _Attempt) -> list[Race]:
        """One race; two more, of other draws, where it ends close."""
        races: list[Race] = []
        for draw in range(DRAWS):
            options = self._budget.race(RaceOptions(seed=self._seed + draw))
            if options is None:
                break
            again = attempt if draw == 0 else self._attempt(attempt.plan, self._seed + draw)
            races.append(self._race(again.repaired, options))
            if draw == 0 and not races[0].is_close:
                break
        return races

    def _race(self, repaired: Any, options: RaceOptions) -> Race:
        self._say("proof", 0, options.most_passes)
        heard = replace(
            options,
            on_progress=lambda done, _: self._say("proof", options.taken(done), options.most_passes),
        )
        ran = self._adapter.race(
            self._model,
            self._batch,
            self._loss_fn,
            self._report.trial.spec,
            heard,
            self._optimizer,
            repaired,
        )
        self.passes += ran.passes + 1
        self._budget.spend(ran.passes + 1)
        return ran

    def _repair(self, attempt: _Attempt) -> Repair:
        trial, diagnosis = self._report.trial, self._report.diagnosis
        treated, patched = attempt.treated, _patched(trial, attempt.treated)
        return Repair(
            changes=treated.changes,
            safety=Safety.UNSAFE if self._doubts else Safety.SAFE,
            reasons=self._doubts,
            advice=prescribe.advice(diagnosis),
            reach=attempt.plan.reach,
            effects=tuple(_effects(diagnosis, attempt.after.diagnosis)),
            losses=(_first_loss(trial), _first_loss(attempt.after.trial)),
            verdict=attempt.after.verdict,
            code=treated.code,
            diff=patched.diff,
            elsewhere=patched.elsewhere,
            seed=self._seed,
        )


def _is_poor(made: Repair) -> bool:
    """Whether most races call the given network poor, and not merely behind."""
    poor = sum(race.outcome is Outcome.POOR for race in made.proofs)
    return 2 * poor > len(made.proofs)


def _is_cured(before: Report, after: Report) -> bool:
    """Whether nothing is left of what was wrong, not even as a note, and the first loss is about that of a sound
    re-draw: a fault half cured may train, and still far worse than a sound network."""
    if after.verdict is Verdict.POOR:
        return False
    was = [f for o in before.diagnosis.origins for f in (o.finding, *o.symptoms)]
    left = {(f.code, layer) for f in after.findings for layer in (f.layer, *f.layers)}
    if any((f.code, layer) in left for f in was for layer in (f.layer, *f.layers)):
        return False
    reference = before.trial.reference
    sound = reference.loss if reference is not None else nan
    return not (sound > 0 and _first_loss(after.trial) > LARGEST_FIRST_LOSS * sound)


def _plans(report: Report, layers: Sequence[str] | None, prove: bool) -> tuple[Plan, ...]:
    """What to try. Where no cause is known, only a race can tell whether anything helps."""
    if layers is not None:
        return (prescribe.named(report.trial, layers),)
    if report.verdict is not Verdict.POOR and not prove:
        return ()
    return prescribe.plans(report.trial, report.diagnosis)


def _advised(report: Report) -> Repair | None:
    """Advice alone, where there is some."""
    advice = prescribe.advice(report.diagnosis)
    return Repair(safety=Safety.ADVICE, advice=advice) if advice else None


def _unsafe(made: Repair, reason: str) -> Repair:
    return replace(made, safety=Safety.UNSAFE, reasons=(*made.reasons, reason))


def _said(error: BatchError) -> str:
    return f"{error.what} ({error.got})" if error.got else error.what


def _patched(trial: Trial, treated: Treated) -> Patch:
    return patch(trial.spec, treated.calls)


def _first_loss(trial: Trial) -> float:
    return trial.start.loss if trial.start is not None else nan


def _effects(before: Diagnosis, after: Diagnosis) -> Iterator[Effect]:
    """Each origin's own measurement, as it was and as it is."""
    for finding in (origin.finding for origin in before.origins):
        same = _same(finding, (*after.findings,))
        yield Effect(
            finding.code,
            finding.layer,
            finding.quantity,
            finding.expected,
            finding.measured,
            same.measured if same is not None else None,
        )


def _same(finding: Finding, others: Iterable[Finding]) -> Finding | None:
    """What the same rule measured of the same thing, at this layer if it did there."""
    alike = [o for o in others if o.code == finding.code and o.quantity == finding.quantity]
    return next((o for o in alike if o.layer == finding.layer), alike[0] if alike else None)


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
        next_step=next_step or "build the model anew and repair that, or pass force=True",
    )
