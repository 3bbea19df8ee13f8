"""FAN305: in a race against its sound re-draw the network stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import ClassVar

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope
from fanin.race import POOR, Heat, Outcome, Race
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval
from fanin.synthetic import mlp
from fanin.trial import Trial


class LostRace(Rule):
    """In a race against its own sound re-draw the network stays far behind.

    What it detects
    ---------------
    Whatever the statistics say: the same network, drawn anew by a sound scheme, learns much more in the same steps on
    the same batches with the same optimizer.

    Why it matters
    --------------
    That is what poorly initialized means. Everything else is a prediction of it.

    How it is measured
    ------------------
    Copies of the network as given and of its re-draw are trained for up to 60 steps (240 while the network as given is
    behind, or neither has moved) at several learning rates. Progress is the share of the uninformed loss that is gone,
    averaged over the last quarter of the steps, at the learning rate that suits each best. A fault when the network as
    given makes less than half of the re-draw's progress, beyond two standard errors of the difference, paired by batch.

    When it is wrong
    ----------------
    A scheme that is slow at first and better in the end loses. Few batches, or batches that differ much, leave the
    race undecided. The re-draw has no knowledge that pretrained weights hold: do not race those.

    Fix
    ---
    The findings beside this one say what is unusual; drawing those layers anew is what the winner did.

    References
    ----------
    - Dauphin and Schoenholz 2019, MetaInit, on comparing initializations by short training.
    """

    code: ClassVar[str] = "FAN305"
    name: ClassVar[str] = "lost-race"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most; none without a race."""
        race = trial.race
        if race is None:
            return
        if race.outcome is Outcome.POOR:
            yield self._finding(trial, race)
        elif race.outcome is Outcome.UNDECIDED:
            what = f"after {race.steps} steps the race is open: progress {race.given:.2f} against {race.reference:.2f}"
            yield Missing(self.code, what, "race longer, or on more batches", blocks=False)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A race that is won, one that is open, one that is lost, and none."""
        yield Example("no race", mlp)
        yield Example("level", lambda: _raced(0.02, 0.02))
        yield Example("ahead", lambda: _raced(0.03, 0.02))
        yield Example("neither moves", lambda: _raced(0.0, 0.0))
        yield Example("far behind", lambda: _raced(0.001, 0.02), ("blocks.0.fc",))

    def _finding(self, trial: Trial, race: Race) -> Finding:
        first = trial.spec.weight_layers[0].path if trial.spec.weight_layers else ""
        return Finding(
            self.code,
            self.name,
            first,
            0,
            Interval(race.ratio, race.ratio),
            Interval(POOR, inf),
            "progress / progress of the sound re-draw",
            f"After {race.steps} steps of {race.optimizer} the network as given has made {race.given:.0%} progress "
            f"below the uninformed loss, its sound re-draw {race.reference:.0%}.",
            Cause.SLOW_START,
            scope=Scope.EVERYWHERE,
            layers=tuple(layer.path for layer in trial.spec.weight_layers),
        )


def _raced(given: float, reference: float) -> Trial:
    """Losses that fall by these amounts per step."""

    def curve(slope: float) -> tuple[float, ...]:
        return tuple(2.3 - slope * step + 0.002 * (step % 3) for step in range(60))

    return replace(mlp(), race=Race((Heat(1e-3, curve(given), curve(reference)),), uninformed=2.3))
