"""FAN414: ranks that must hold the same parameters hold others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, TensorSummary
from fanin.synthetic import mlp
from fanin.trial import Observation, Role, Trial

Key = tuple[str, tuple[int, ...]]
"""Full name of a parameter, and where in it the block begins."""


class RanksDisagree(Rule):
    """Ranks that must start with the same parameters start with different ones.

    What it detects
    ---------------
    At step 0, parameters of which several ranks hold the same values by design, and do not: those of a model in
    DistributedDataParallel, and blocks of a DTensor that are replicated over a dimension of its mesh.

    Why it matters
    --------------
    The ranks average gradients that were taken at different points and apply the average to each: every rank trains
    a network of its own on gradients that are not its own. Nothing fails, the loss of rank 0 may even fall, and a
    checkpoint saves what one rank holds.

    How it is measured
    ------------------
    Two ranks hold the same values if the counts of values, zeros, NaN and infinities, the minimum and the maximum are
    equal, for the tensor and for each of its units. None of these depends on the order of summation, so equal values
    never differ in them; two random draws never agree. Sums are not compared. Nothing is exchanged between ranks: each
    writes what it sees, and they are compared where the trial is judged.

    When it is wrong
    ----------------
    Ranks whose parameters are copies by convention only (an all-reduce by hand, without a wrapper) are not compared:
    nothing tells them from ranks that hold different parts of a model. Values that differ while all their extremes
    agree are missed.

    Fix
    ---
    Initialize before the model is wrapped, which makes all ranks equal to the first; or with the same seed on each;
    or broadcast what was written since.

    References
    ----------
    Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, section 3.2.1.
    """

    code: ClassVar[str] = "FAN414"
    name: ClassVar[str] = "ranks-disagree"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.WEIGHT, units=True), Need(Role.BIAS)})
    across_workers: ClassVar[bool] = True

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding about all parameters that differ."""
        differing = list(dict.fromkeys(seen.tensor for seen in _disagreeing(trial)))
        if differing:
            yield self._finding(trial, differing)

    def _finding(self, trial: Trial, tensors: list[str]) -> Finding:
        concerned = [seen for seen in _shared(trial) if seen.tensor in tensors]
        holders = {seen.layer for seen in concerned}
        layers = tuple(layer.path for layer in trial.spec.layers if layer.path in holders)
        mixing = [layer for layer in trial.spec.weight_layers if layer.calls]
        first = next(seen for seen in concerned if seen.layer == layers[0])
        ranks = sorted({seen.worker for seen in concerned})
        ends = "; ".join(
            f"rank {o.worker}: {o.summary.minimum:.6g} to {o.summary.maximum:.6g}"
            for o in concerned
            if o.tensor == first.tensor and o.worker in ranks[:2]
        )
        return Finding(
            self.code,
            self.name,
            first.layer,
            0,
            Interval(len(tensors), len(tensors)),
            Interval(0, 0),
            "parameters that differ between ranks",
            f"{first.tensor} ranges otherwise on each rank ({ends}), and must be the same on all.",
            Cause.RANKS_DISAGREE,
            scope=Scope.EVERYWHERE if len(layers) >= max(2, len(mixing)) else Scope.LAYER,
            layers=layers,
            tensor=first.tensor,
            workers=tuple(ranks),
            severity=Severity.FAULT,
        )

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Ranks that agree, that need not, and that must and do not."""
        other = {"head.weight": "glorot_uniform"}
        yield Example("one rank", mlp)
        yield Example("two ranks with the same draw", lambda: _ranks(mlp(), mlp()))
        yield Example(
            "two ranks, each with its own tensors", lambda: _ranks(mlp(), mlp(seed=1), shared=False)
        )
        yield Example(
            "two ranks with different seeds", lambda: _ranks(mlp(), mlp(seed=1)), layers=("blocks.0.fc",)
        )
        yield Example(
            "a head drawn after the others were made equal",
            lambda: _ranks(mlp(), mlp(overrides=other)),
            layers=("head",),
        )


def _shared(trial: Trial) -> list[Observation]:
    """Parameters at step 0 that are not a rank's own."""
    seen = trial.start.observations if trial.start else ()
    return [o for o in seen if o.role in (Role.WEIGHT, Role.BIAS) and o.offset is not None]


def _disagreeing(trial: Trial) -> Iterator[Observation]:
    first: dict[Key, Observation] = {}
    for seen in _shared(trial):
        other = first.setdefault((seen.tensor, seen.offset or ()), seen)
        if other is not seen and _extremes(other.summary) != _extremes(seen.summary):
            yield seen


def _extremes(summary: TensorSummary) -> tuple[object, ...]:
    """What does not depend on the order in which values are added up."""
    s, units = summary, summary.units
    rows = (units.count, units.minimum, units.maximum) if units else ()
    whole = (s.count, s.nan, s.inf, s.zeros, s.minimum, s.maximum)
    return (*whole, *(row.tobytes() for row in rows))


def _ranks(*trials: Trial, shared: bool = True) -> Trial:
    """What several ranks saw, as one trial."""
    starts = [trial.start for trial in trials if trial.start is not None]
    seen = tuple(
        replace(o, worker=rank, offset=(0,) * len(o.shape) if shared else None)
        for rank, start in enumerate(starts)
        for o in start.observations
    )
    losses = {rank: start.loss for rank, start in enumerate(starts)}
    return replace(trials[0], steps=(replace(starts[0], observations=seen, losses=losses),))
