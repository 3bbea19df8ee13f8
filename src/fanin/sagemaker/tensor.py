"""A tensor of a trial: its values, or reductions of them, by step, mode and worker."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fanin.sagemaker.exceptions import (
    InvalidWorker,
    NoMoreData,
    ShapeUnavailableForStep,
    StepNotYetAvailable,
    StepUnavailable,
    TensorUnavailableForStep,
)
from fanin.sagemaker.modes import ModeKeys
from fanin.stores.smdebug.index import Location

if TYPE_CHECKING:
    from fanin.sagemaker.trials import Trial

Array = NDArray[Any]


class StepState(Enum):
    """Whether a step can be read."""

    UNAVAILABLE = 0
    AVAILABLE = 1
    NOT_YET_AVAILABLE = 2


@dataclass(slots=True)
class Stored:
    """What one worker saved of a tensor at one step.

    Attributes:
        name: The tensor's name, as the record has it.
        location: Where its value lies; None where it was not saved.
        shape: Its shape, where that was saved.
        reductions: (reduction, of magnitudes) -> name and place of its record.
        value: The value, where it was read and is kept.
    """

    name: str
    location: Location | None = None
    shape: tuple[int, ...] | None = None
    reductions: dict[tuple[str, bool], tuple[str, Location]] = field(default_factory=dict)
    value: Array | None = None


def _norm(order: int) -> Callable[[Array], Any]:
    """Of all values: what is stored is never the norm of a matrix."""
    return lambda values: np.linalg.norm(values.reshape(-1), order)


REDUCTIONS: Mapping[str, Callable[[Array], Any]] = {
    "min": np.min,
    "max": np.max,
    "mean": np.mean,
    "std": np.std,
    "variance": np.var,
    "sum": np.sum,
    "prod": np.prod,
    "l1": _norm(1),
    "l2": _norm(2),
}
"""How a reduction is computed where the values were saved and it was not."""


class Tensor:
    """A tensor of a trial. Steps are global ones unless a mode is given."""

    def __init__(self, name: str, trial: Trial, cache: bool = False) -> None:
        self.name = name
        self.original_name: str | None = None
        self.trial = trial
        self.cache = cache
        self._stored: dict[int, dict[str, Stored]] = {}

    def steps(self, mode: ModeKeys = ModeKeys.GLOBAL, show_incomplete_steps: bool = False) -> list[int]:
        """The steps at which it was saved, counted in this mode."""
        wanted = self.trial.steps(mode, show_incomplete_steps)
        return [step for step in wanted if self.trial.global_step(mode, step) in self._stored]

    def value(self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> Array:
        """Its value at a step, as the first worker by name saved it unless one is given.

        Raises:
            TensorUnavailableForStep: It was not saved at this step, or only reductions of it.
            StepUnavailable, StepNotYetAvailable, NoMoreData: There is no such step, not yet, or never.
            InvalidWorker: That worker did not save it.
            IndexReaderException: Its record is damaged; the message names file and byte.
        """
        stored = self._at(step_num, mode, worker)
        if stored.location is None:
            raise TensorUnavailableForStep(self.name, step_num, mode, bool(stored.reductions))
        return self._fetched(stored, stored.location)

    def values(self, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None) -> dict[int, Array]:
        """Its values by step."""
        return {step: self.value(step, mode, worker) for step in self.steps(mode)}

    def shape(
        self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None
    ) -> tuple[int, ...]:
        """Its shape at a step.

        Raises:
            ShapeUnavailableForStep: Neither it nor its shape was saved.
        """
        stored = self._at(step_num, mode, worker)
        if stored.shape is not None:
            return stored.shape
        if stored.location is None:
            raise ShapeUnavailableForStep(self.name, step_num, mode)
        return self._fetched(stored, stored.location).shape

    def reduction_value(
        self,
        step_num: int,
        reduction_name: str,
        mode: ModeKeys = ModeKeys.GLOBAL,
        worker: str | None = None,
        abs: bool = False,  # noqa: A002 - the original's name
    ) -> Any:
        """A reduction of it: the one that was saved, else computed from the value.

        Raises:
            TensorUnavailableForStep: Neither was saved.
            ValueError: There is no such reduction.
        """
        stored = self._at(step_num, mode, worker)
        if (saved := stored.reductions.get((reduction_name, abs))) is not None:
            return self.trial.fetch(saved[1], saved[0])
        if reduction_name not in REDUCTIONS:
            raise ValueError(f"Invalid reduction type {reduction_name}")
        if stored.location is None:
            raise TensorUnavailableForStep(self.name, step_num, mode, bool(stored.reductions))
        values = self._fetched(stored, stored.location)
        return REDUCTIONS[reduction_name](np.absolute(values) if abs else values)

    def reduction_values(
        self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL, worker: str | None = None
    ) -> dict[tuple[str, bool], Any]:
        """The reductions that were saved: (name, of magnitudes) -> value."""
        saved = self._at(step_num, mode, worker).reductions
        return {key: self.trial.fetch(place, name) for key, (name, place) in saved.items()}

    def workers(self, step_num: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[str]:
        """The workers that saved it at a step.

        Raises:
            TensorUnavailableForStep: None did.
        """
        step = self.trial.global_step(mode, step_num)
        if step is None or step not in self._stored:
            raise TensorUnavailableForStep(self.name, step_num, mode)
        return sorted(self._stored[step])

    def prev_steps(self, step: int, n: int | None = None, mode: ModeKeys = ModeKeys.GLOBAL) -> list[int]:
        """The last n steps up to this one and with it; all of them without n."""
        steps = self.steps(mode)
        earlier = steps[: bisect_right(steps, step)]
        return earlier[-n:] if n else earlier

    # ── for the trial ───────────────────────────────────────────────────────────────────────────────────────

    def stored(self, step: int, worker: str) -> Stored:
        """What a worker saved of it at a global step, to be filled in."""
        return self._stored.setdefault(step, {}).setdefault(worker, Stored(self.name))

    def _fetched(self, stored: Stored, location: Location) -> Array:
        if stored.value is not None:
            return stored.value
        value = self.trial.fetch(location, stored.name)
        if self.cache:
            stored.value = value
        return value

    def _at(self, step_num: int, mode: ModeKeys, worker: str | None) -> Stored:
        by_worker = self._found(step_num, mode)
        if by_worker is None:
            self.trial.maybe_refresh()
            by_worker = self._found(step_num, mode)
        if by_worker is None:
            raise self._absence(step_num, mode)
        if worker is not None and worker not in by_worker:
            raise InvalidWorker(worker)
        return by_worker[worker or min(by_worker)]

    def _found(self, step_num: int, mode: ModeKeys) -> dict[str, Stored] | None:
        step = self.trial.known_global_step(mode, step_num)
        return None if step is None else self._stored.get(step)

    def _absence(self, step_num: int, mode: ModeKeys) -> Exception:
        state = self.trial.has_passed_step(step_num, mode)
        if state is StepState.AVAILABLE:
            return TensorUnavailableForStep(self.name, step_num, mode)
        steps = self.trial.steps(mode)
        if self.trial.loaded_all_steps and step_num > max(steps, default=-1):
            return NoMoreData(step_num, mode, max(steps, default=-1))
        if state is StepState.UNAVAILABLE:
            return StepUnavailable(step_num, mode)
        return StepNotYetAvailable(step_num, mode)
