"""Custom rules as they were written for smdebug, each in its own manner. Only their imports were changed: `smdebug`
became `fanin.sagemaker`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fanin.sagemaker import modes
from fanin.sagemaker.exceptions import TensorUnavailableForStep
from fanin.sagemaker.rules.rule import Rule


class VanishingGradientRule(Rule):
    """A threshold on one collection, the parameters text: as the first example of the documentation."""

    def __init__(self, base_trial: Any, threshold: Any = 0.0000001) -> None:
        super().__init__(base_trial)
        self.threshold = float(threshold)

    def invoke_at_step(self, step: int) -> bool:
        for tname in self.base_trial.tensor_names(collection="gradients"):
            t = self.base_trial.tensor(tname)
            abs_mean = t.reduction_value(step, "mean", abs=True)
            if abs_mean < self.threshold:
                return True
            self.logger.info(f"Abs mean of {tname} at {step}: {abs_mean}")
        return False


class WeightUpdateRatioRule(Rule):
    """Two steps compared through required tensors, and state between the steps."""

    def __init__(self, base_trial: Any, large_threshold: Any = 10.0, other_trials: Any = None) -> None:
        super().__init__(base_trial, other_trials=other_trials)
        self.large_threshold = float(large_threshold)
        self.ratios: dict[tuple[str, int], float] = {}

    def set_required_tensors(self, step: int) -> None:
        if step > 0:
            self.req_tensors.add("weight$", steps=[step - 1, step], should_match_regex=True)

    def invoke_at_step(self, step: int) -> bool:
        for name in self.req_tensors.get_names():
            if name.startswith("gradient/"):
                continue
            before, now = self.req_tensors.get_tensor_steps(name)
            tensor = self.base_trial.tensor(name)
            prev, curr = tensor.value(before), tensor.value(now)
            ratio = np.mean(np.abs(curr - prev)) / (np.mean(np.abs(prev)) + 1e-7)
            self.ratios[name, step] = float(ratio)
            if ratio > self.large_threshold:
                self.report["RuleTriggered"] += 1
                self.report["Details"][step] = name
                return True
        return False


class LossGapRule(Rule):
    """Two trials, train mode, scalars and an exception of its own accord: compares the loss with another job's."""

    def __init__(self, base_trial: Any, other_trials: Any, factor: str = "2") -> None:
        super().__init__(base_trial, other_trials)
        self.factor = float(factor)
        self.missing: list[int] = []

    def invoke_at_step(self, step: int) -> bool:
        if self.base_trial.mode(step) not in (modes.TRAIN, modes.GLOBAL):
            return False
        mode_step = self.base_trial.mode_step(step)
        name = self.base_trial.tensor_names(regex=["[Ll]oss.*output"])[0]
        mine = self.base_trial.tensor(name).value(step)
        try:
            theirs = self.other_trials[0].tensor(name).value(mode_step)
        except TensorUnavailableForStep:
            self.missing.append(step)
            return False
        return bool(mine > self.factor * theirs)
