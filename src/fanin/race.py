"""The race: a network as given against its sound re-draw, on the same batches with the same optimizer.

Nothing predicts training like training. What is compared is progress below the uninformed loss L_c, that of the best
output that does not depend on the input,

    p = (L_c - L) / L_c,      L the mean loss over the last quarter of the steps,

for each twin at the learning rate that suits it best; a quotient of losses would take a high first loss for a fault
and a low one for learning. Progress after 60 steps ranked 414 networks as training with several optimizers to the end
did, with an AUC of 0.95; 20 steps 0.89, 100 steps 0.96.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import inf, isfinite, nan, sqrt
from statistics import fmean, stdev
from typing import Any

RATES = (3e-4, 2e-3, 1e-2)
"""Learning rates of Adam that are tried: around its default of 1e-3 (Kingma and Ba 2015), a factor of 5 to 7 apart, no
more than what the rate that suits a network best can be off."""

FACTORS = (1 / 3, 1.0, 3.0)
"""Of the learning rate of the user's own optimizer."""

STEPS = 60
"""Steps of a race."""

MOST = 240
"""Steps of a race in which the given network is behind after STEPS, or neither has moved: it may only be slow at first.
A race that ended as soon as one twin was far behind called a quarter of the healthy starts poor (20 of 75; InitBench,
tune split): heads and layers that are too large cost tens of steps and then do no harm."""

POOR = 0.5
"""Ratio of progress below which the given initialization is poor. To be tuned on InitBench's `tune` split."""

MOVED = 0.03
"""Progress above which a twin has moved at all: the scatter of the mean loss over 15 batches of 64."""

LEARNED = 0.4
"""Progress at which the better twin has shown enough to compare."""

LEVEL = 0.9
"""Ratio from which the given network counts as level with the reference, and the race may end."""

CLEAR = 0.75
"""Ratio from which no further steps are needed after STEPS: healthy, whatever the error."""

LEAST = 0.15
"""Progress that the reference must have made for the given network to be called poor: where no weights learn, they are
not what is at fault (a learning rate 100 times too high, shuffled labels)."""

SIGMAS = 2.0
"""Standard errors that the paired difference may be off: 95 % of a normal distribution."""

EARLIEST = 12
"""Steps before which no race ends: the last quarter of them has three losses, enough for a standard error."""

CLOSE = (0.6, 0.9)
"""Ratios around CLEAR at which a second and third draw are asked: one draw of a sound scheme differs from the next by
about a tenth in progress (the two seeds of InitBench's sound tune cases)."""

LARGEST_LOSS = 2.0
"""In uninformed losses: larger ones count as this one in the paired difference, or one spike would hide it."""


class Outcome(StrEnum):
    """What a race says of the given initialization."""

    HEALTHY = "healthy"
    POOR = "poor"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class RaceOptions:
    """How to race.

    Attributes:
        learning_rates: Tried, where no optimizer is given; of a given one FACTORS of its own.
        steps, most: Steps of each twin at each rate, and where neither moves.
        seed: Of the re-draw, and of what is random in training.
        on_progress: Called with (steps taken, steps planned) after each step.
        seconds: After which it ends with what has been seen by then.
        factors: Of the learning rate of a given optimizer, as many as there are `learning_rates`.
    """

    learning_rates: tuple[float, ...] = RATES
    steps: int = STEPS
    most: int = MOST
    seed: int = 0
    on_progress: Callable[[int, int], None] | None = None
    seconds: float = inf
    factors: tuple[float, ...] = FACTORS

    @property
    def passes(self) -> int:
        """Forward and backward passes planned."""
        return race_passes(self.learning_rates, self.steps)

    @property
    def most_passes(self) -> int:
        """Forward and backward passes of a race that goes on to the end."""
        return self.taken(self.most)

    def taken(self, steps: int) -> int:
        """Forward and backward passes of so many steps: after `steps` only the best of the references goes on."""
        rates, more = len(self.learning_rates), max(0, steps - self.steps)
        return 2 * rates * (steps - more) + (rates + 1) * more

    def within(self, passes: int) -> RaceOptions | None:
        """A race of no more passes than these: what is given up first is the time to catch up, then the choice of
        learning rates, then length; None where too little is left to show anything."""
        if passes >= 2 * len(self.learning_rates) * self.steps:
            spare = (passes - 2 * len(self.learning_rates) * self.steps) // (len(self.learning_rates) + 1)
            return replace(self, most=min(self.most, self.steps + spare))
        if len(self.learning_rates) > 1:
            one = replace(self, learning_rates=_middle(self.learning_rates), factors=_middle(self.factors))
            return one.within(passes)
        steps = passes // 2
        return replace(self, steps=steps, most=steps) if steps >= EARLIEST else None


def _middle(rates: tuple[float, ...]) -> tuple[float, ...]:
    return (sorted(rates)[len(rates) // 2],)


def race_passes(learning_rates: Iterable[float], steps: int) -> int:
    """Forward and backward passes of a race: two twins at each rate, and the one pass that scales the re-draw."""
    return 2 * len(tuple(learning_rates)) * steps + 1


@dataclass(frozen=True, slots=True)
class Heat:
    """Both twins at one learning rate.

    Attributes:
        learning_rate: Of the optimizer's first group.
        given, reference: Loss at each step, before the update; nan from where it was not finite.
    """

    learning_rate: float
    given: tuple[float, ...]
    reference: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Race:
    """What a race has shown.

    Attributes:
        heats: One for each learning rate; of the references only the best went on after STEPS.
        uninformed: Loss of the best constant output over the raced batches; nan where that is not known. Then what
            counts is progress below the lower of the twins' first losses.
        optimizer: Its class.
        seed: Of the re-draw.
        batches: How many different ones there were.
    """

    heats: tuple[Heat, ...]
    uninformed: float = nan
    optimizer: str = "Adam"
    seed: int = 0
    batches: int = 0

    @property
    def steps(self) -> int:
        """Steps that each twin took at each learning rate."""
        return max((len(heat.given) for heat in self.heats), default=0)

    @property
    def baseline(self) -> float:
        """The loss below which progress is measured."""
        if isfinite(self.uninformed):
            return self.uninformed
        first = [loss for heat in self.heats for loss in (*heat.given[:1], *heat.reference[:1])]
        return min((loss for loss in first if isfinite(loss)), default=nan)

    @property
    def given(self) -> float:
        """Progress as given, at the best learning rate, from 0 to 1."""
        return self.progress(self._best([heat.given for heat in self.heats]))

    @property
    def reference(self) -> float:
        """Progress of the sound re-draw, at the best learning rate, from 0 to 1."""
        return self.progress(self._best(self._references))

    @property
    def curves(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The losses of both twins, each at its best learning rate: as given, and of the reference."""
        return self._best([heat.given for heat in self.heats]), self._best(self._references)

    @property
    def _references(self) -> list[tuple[float, ...]]:
        """The re-draw's curves that went all the way: after STEPS only the best one goes on."""
        return [heat.reference for heat in self.heats if len(heat.reference) >= self.steps]

    def progress(self, losses: tuple[float, ...]) -> float:
        """Progress over the last quarter of the steps; 0 for losses that are not finite or above the baseline."""
        return max(0.0, fmean(self._progresses(losses, -inf))) if losses else 0.0

    @property
    def ratio(self) -> float:
        """Progress as given over that of the reference; nan where the reference made none."""
        return self.given / self.reference if self.reference > 0 else nan

    @property
    def difference(self) -> tuple[float, float]:
        """How much the reference is ahead in progress over the last quarter of the steps, batch by batch: mean and
        standard error (inf with fewer than two steps)."""
        ours = self._progresses(self._best([heat.given for heat in self.heats]), 1 - LARGEST_LOSS)
        theirs = self._progresses(self._best(self._references), 1 - LARGEST_LOSS)
        ahead = [b - a for a, b in zip(ours, theirs, strict=False)]
        return fmean(ahead or [0.0]), stdev(ahead) / sqrt(len(ahead)) if len(ahead) > 1 else inf

    @property
    def moved(self) -> bool:
        """Whether one of the twins has learned anything."""
        return max(self.given, self.reference) >= MOVED

    @property
    def outcome(self) -> Outcome:
        """poor where the given initialization makes less than POOR of the reference's progress, beyond the error of
        the comparison; healthy where it makes more; undecided where neither moves, or the error spans POOR."""
        if not self.moved:
            return Outcome.UNDECIDED
        if self.given >= CLEAR * self.reference:
            return Outcome.HEALTHY
        error = SIGMAS * self.difference[1] / self.reference
        if self.reference < LEAST or abs(self.ratio - POOR) <= error:
            return Outcome.UNDECIDED
        return Outcome.POOR if self.ratio < POOR else Outcome.HEALTHY

    @property
    def reference_wins(self) -> bool:
        """Whether the reference is ahead by more than the error of the comparison, and by enough to matter."""
        ahead, error = self.difference
        return self.moved and self.given < CLEAR * self.reference and ahead > SIGMAS * error

    @property
    def is_close(self) -> bool:
        """Whether another draw might end differently."""
        if not self.moved or self.given >= CLOSE[1] * self.reference:
            return False
        return not self.reference_wins or self.ratio > CLOSE[0]

    @property
    def passes(self) -> int:
        """Forward passes taken, each with its backward pass; of the scaling pass without one."""
        return sum(len(heat.given) + len(heat.reference) for heat in self.heats)

    @property
    def caught_up(self) -> bool:
        """Whether the given network has learned and is level: more steps would show nothing new."""
        enough = self.steps >= EARLIEST and max(self.given, self.reference) >= LEARNED
        return enough and self.given >= LEVEL * self.reference

    @property
    def is_clear(self) -> bool:
        """Whether the race may end at its usual length."""
        return self.moved and self.given >= CLEAR * self.reference

    def _best(self, curves: list[tuple[float, ...]]) -> tuple[float, ...]:
        return max(curves, key=self.progress, default=())

    def _progresses(self, losses: tuple[float, ...], least: float) -> list[float]:
        """Of each of the last quarter of the steps; `least` bounds them, and what is not finite is none."""
        scale, base = abs(self.baseline) or 1.0, self.baseline
        last = losses[-max(1, len(losses) // 4) :] if losses else ()
        return [max((base - loss) / scale, least) if isfinite(base - loss) else 0.0 for loss in last]

    def to_json(self) -> str:
        """For a trial's `about`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Race:
        """What `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            known: dict[str, Any] = json.loads(text)
            heats = tuple(
                Heat(heat["learning_rate"], tuple(heat["given"]), tuple(heat["reference"]))
                for heat in known.pop("heats")
            )
            return cls(heats, **known)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a race: {error}") from error
