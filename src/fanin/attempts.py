"""What is tried to cure a network: plans carried out on copies, each looked at again and raced against the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from statistics import fmean
from typing import Any

from fanin import judgement, prescribe
from fanin.adapters.base import Adapter, Treated
from fanin.budget import Budget
from fanin.change import Effect, Plan, Reach, Repair, Safety, Treatment
from fanin.errors import FaninError
from fanin.examine import Report, judge
from fanin.finding import Diagnosis, Finding, Verdict
from fanin.patch import Patch, patch
from fanin.race import CLEAR, EARLIEST, Outcome, Race, RaceOptions
from fanin.trial import RECHECK, Trial

DRAWS = 3
"""Draws of one plan that race where the first ends close: most of them must win."""

KEPT = "what is at fault may not be drawn anew: it is frozen, tied to another or quantized"
"""Why there is only advice, where the cause is in the initialization and nothing was tried."""

LARGEST_FIRST_LOSS = 2.0
"""Of the re-draw's first loss, up to which a repair's is about the same: draws of one sound scheme differ by a few
percent, and a layer that is left too large multiplies it."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, planned): phases are `check`, `repair` and `proof`; of the proof passes are counted, and
its first call, with 0 done, comes before it begins."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of the attempts.

    Attributes:
        report: What is said of the network as given; the race's word in it, where it had the last one.
        repair: The one that is proposed; None where none is.
        after: What a check says of the repaired copy; None without a repair.
        discarded: Those that did not win, or not by as much.
        copy: It holds the repair; None without one.
        passes: Forward passes taken.
    """

    report: Report
    repair: Repair | None = None
    after: Report | None = None
    discarded: tuple[Repair, ...] = ()
    copy: Any = None
    passes: int = 0


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A plan, carried out on a copy."""

    plan: Plan
    repaired: Any
    treated: Treated
    after: Report


_Candidate = tuple[_Attempt, Repair]


class Work:
    """What all attempts share."""

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
        self._passes = 0
        self._adapter = adapter
        self._model, self._batch, self._loss_fn, self._optimizer = model, batch, loss_fn, optimizer
        self._report = report
        self._doubts = doubts
        self._seed = seed
        self._say = say
        self._budget = budget

    def proposed(self, plans: Sequence[Plan], prove: bool) -> Tried:
        """The first repair that wins and is level with the wider ones, or the first that looks sound where none is to
        race."""
        discarded: list[Repair] = []
        best: _Candidate | None = None
        for attempt in self._attempts(plans):
            made = self._repair(attempt)
            tried = discarded if best is None else [*discarded, best[1]]
            if not made.changes or any(_done(made) == _done(other) for other in tried):
                continue  # the same again: what is reset may have been at its constant already
            made = self._proven(attempt, made) if prove else _unsafe(made, "it was not proven: prove=False")
            candidate = attempt, made
            best = (
                self._winner(candidate, discarded)
                if best is None
                else self._better(best, candidate, discarded)
            )
            if best is not None and not _may_be_behind(best[1]):
                break
        if best is not None:
            return self._result(*best, discarded)
        return Tried(self._report, advised(self._report), discarded=tuple(discarded), passes=self._passes)

    def _winner(self, candidate: _Candidate, discarded: list[Repair]) -> _Candidate | None:
        """It, where it wins, or where what the check found is cured and nothing could race."""
        attempt, made = candidate
        if self._wins(attempt, made) if made.proof is not None else not self._found_nothing(attempt):
            return candidate
        if made.proof is None or not self._found_nothing(attempt):
            discarded.append(made)
        return None

    def _better(self, best: _Candidate, wider: _Candidate, discarded: list[Repair]) -> _Candidate:
        """Which of two is proposed: the wider one only where it wins and the other is far behind it."""
        made, other = best[1], wider[1]
        if other.proof is None:  # there was no budget left for it
            return best
        if self._wins(*wider) and _reached(made) < CLEAR * _reached(other):
            discarded.append(replace(made, reasons=(*made.reasons, "a wider repair gets further")))
            return wider
        if other.is_proven:
            other = replace(other, reasons=(*other.reasons, "a smaller repair gets about as far"))
        discarded.append(other)
        return best

    def _found_nothing(self, attempt: _Attempt) -> bool:
        """Whether neither the check nor the user has named anything to repair."""
        return self._report.verdict is Verdict.HEALTHY and attempt.plan.reach is not Reach.NAMED

    def _proven(self, attempt: _Attempt, made: Repair) -> Repair:
        """With its races, or unsafe where there is none."""
        try:
            races = self._races(attempt)
        except FaninError as error:
            return _unsafe(made, f"it was not proven: {_said(error)}")
        if not races:
            return _unsafe(made, "it was not proven: the budget is spent")
        return replace(made, proof=races[0], repeats=tuple(races[1:]))

    def _wins(self, attempt: _Attempt, made: Repair) -> bool:
        """Where no fault was found, only what a race calls poor, and not merely behind, is drawn anew."""
        blamed = self._report.verdict is Verdict.POOR or attempt.plan.reach is Reach.NAMED
        return made.is_proven and (blamed or _is_poor(made))

    def _result(self, attempt: _Attempt, made: Repair, discarded: Iterable[Repair]) -> Tried:
        report = self._report
        if report.verdict is not Verdict.POOR and made.proof is not None:  # the race has settled it
            report = judge(replace(report.trial, race=made.proof))
        return Tried(report, made, attempt.after, tuple(discarded), attempt.repaired, self._passes)

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
        self._passes += 1
        return _Attempt(plan, copy, treated, self._looked_at(copy, optimizer))

    def _looked_at(self, copy: Any, optimizer: Any) -> Report:
        """The repaired copy beside the same re-draw as before: it is of the same architecture on the same batch."""
        rules = judgement.load_rules()
        needs = frozenset(replace(need, reference=False) for need in judgement.needs(rules))
        seen = self._adapter.examine(copy, self._batch, self._loss_fn, needs, optimizer)
        self._passes += 1 if optimizer is None else RECHECK + 1
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
            race = self._race(again.repaired, options)
            if race.steps < EARLIEST:  # the time ended it before it could show anything
                break
            races.append(race)
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
        self._passes += ran.passes + 1
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


def _done(made: Repair) -> tuple[tuple[str, Treatment], ...]:
    return tuple((change.parameter, change.treatment) for change in made.changes)


def _may_be_behind(made: Repair) -> bool:
    """Whether another repair might learn so much more that this one is not level with it: what has made CLEAR of all
    progress there is cannot be further behind. Without an uninformed loss, races are not to be compared."""
    return made.proof is not None and isfinite(made.proof.uninformed) and _reached(made) < CLEAR


def _reached(made: Repair) -> float:
    """Progress of the repaired network, over its races."""
    return fmean(race.reference for race in made.proofs)


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


def advised(report: Report) -> Repair | None:
    """Advice alone, where there is some."""
    advice = prescribe.advice(report.diagnosis)
    causes = (origin.finding.cause for origin in report.diagnosis.origins)
    kept = any(cause is not None and cause.is_initialization for cause in causes)
    return Repair(safety=Safety.ADVICE, advice=advice, reasons=(KEPT,) if kept else ()) if advice else None


def _unsafe(made: Repair, reason: str) -> Repair:
    return replace(made, safety=Safety.UNSAFE, reasons=(*made.reasons, reason))


def _said(error: FaninError) -> str:
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
