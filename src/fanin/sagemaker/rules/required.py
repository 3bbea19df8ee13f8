"""Which tensors a rule needs at a step, so that they are there, and whole, before it looks."""

from __future__ import annotations

from collections.abc import Iterable, KeysView

from fanin.sagemaker.exceptions import TensorUnavailable
from fanin.sagemaker.tensor import Tensor
from fanin.sagemaker.trials import Trial


class RequiredTensors:
    """The tensors of one step, by trial."""

    def __init__(self, base_trial: Trial, other_trials: Iterable[Trial] | None = None) -> None:
        self.base_trial = base_trial
        self._wanted: dict[int, dict[str, list[int]]] = {}
        self._trials = {id(trial): trial for trial in (base_trial, *(other_trials or ()))}

    def add(
        self, name: str, steps: Iterable[int], trial: Trial | None = None, should_match_regex: bool = False
    ) -> None:
        """Ask for a tensor at some global steps, or for all that a regex finds.

        Raises:
            TensorUnavailable: None of this name was saved.
        """
        asked = trial or self.base_trial
        if not should_match_regex and not asked.has_tensor(name):
            raise TensorUnavailable(name)
        for found in asked.tensor_names(regex=name) if should_match_regex else [name]:
            self._of(trial).setdefault(found, []).extend(steps)

    def get(self, trial: Trial | None = None) -> list[Tensor]:
        """The tensors asked for."""
        return [(trial or self.base_trial).tensor(name) for name in self._of(trial)]

    def get_names(self, trial: Trial | None = None) -> KeysView[str]:
        """Their names."""
        return self._of(trial).keys()

    def get_tensor_steps(self, name: str, trial: Trial | None = None) -> list[int]:
        """The steps at which one was asked for."""
        return self._of(trial)[name]

    def fetch(self) -> None:
        """Wait for every step asked for and read every value.

        Raises:
            TensorUnavailableForStep, StepUnavailable: One was not saved.
            NoMoreData: The training ended before one of the steps.
        """
        for key, wanted in self._wanted.items():
            trial = self._trials[key]
            trial.wait_for_steps(sorted({step for steps in wanted.values() for step in steps}))
            for name, steps in wanted.items():
                for step in steps:
                    trial.tensor(name).value(step)

    def clear(self) -> None:
        """Ask for nothing."""
        self._wanted.clear()

    def _of(self, trial: Trial | None) -> dict[str, list[int]]:
        return self._wanted.setdefault(id(trial or self.base_trial), {})
