"""The documented rule, to be invoked step by step as the original's rules are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from fanin.finding import Finding
from fanin.rules.poor_weight_initialization import RELU_INPUTS
from fanin.rules.poor_weight_initialization import PoorWeightInitialization as DocumentedRule
from fanin.sagemaker.rules.rule import Rule
from fanin.sagemaker.trials import Trial
from fanin.stores.smdebug.conversion import framework_of, ranks_of, step_of
from fanin.trial import Mode, ModelSpec, Step
from fanin.trial import Trial as JudgedTrial


@final
class PoorWeightInitialization(Rule):
    """Whether weights were drawn poorly, by the documented checks (FAN001), at each of the first training steps.

    `report["Details"]` holds, by global step, one sentence for each check that fires: which layer, which value.

    Args:
        base_trial: The trial to judge.
        activation_inputs_regex, threshold, distribution_range, patience, steps: As documented; text will do.

    Raises:
        RuleParameterError: A parameter has the wrong type or value.
        UsageError: The trial comes from XGBoost.
    """

    def __init__(
        self,
        base_trial: Trial,
        activation_inputs_regex: str | Iterable[str] | None = RELU_INPUTS,
        threshold: float | str = 10.0,
        distribution_range: float | str = 0.001,
        patience: int | str = 5,
        steps: float | str = 10,
        action_str: str = "",
        other_trials: Iterable[Trial] | None = None,
    ) -> None:
        super().__init__(base_trial, action_str, other_trials)
        self._rule = DocumentedRule(
            None, activation_inputs_regex, threshold, distribution_range, patience, steps
        )
        self._rule.require_applicable(self._of([]))
        self._seen: dict[str, list[Step]] = {}

    def invoke_at_step(self, step: int) -> bool:
        """Whether any check fires for any worker at this global step, which must be one of the first in training."""
        found = [finding for worker in self.base_trial.workers() for finding in self._findings(step, worker)]
        self.report["Datapoints"] += 1
        if found:
            self.report["RuleTriggered"] += 1
            self.report["Violations"] += len(found)
            self.report["Details"][step] = list(dict.fromkeys(map(_sentence, found)))
        return bool(found)

    def _findings(self, step: int, worker: str) -> list[Finding]:
        saved = self.base_trial.archive.saved.get(step, {}).get(worker)
        seen = saved and step_of(self.base_trial.archive, saved, ranks_of(self.base_trial.workers())[worker])
        if not seen or seen.mode is not Mode.TRAIN or seen.index >= self._rule.steps:
            return []
        window = self._seen.setdefault(worker, [])
        window.append(seen)
        del window[: -2 * self._rule.patience]  # what the check of the loss looks back on
        now, so_far = self._rule.checks(self._of([seen])), self._rule.checks(self._of(window))
        said = (now["variance"], now["gradients"], so_far["loss"])
        return [finding for finding in said if isinstance(finding, Finding)]

    def _of(self, steps: list[Step]) -> JudgedTrial:
        spec = ModelSpec("trial", framework_of(self.base_trial.archive))
        return JudgedTrial(spec, tuple(steps), uri=self.base_trial.path)


def _sentence(finding: Finding) -> str:
    place = f" at {finding.tensor}" if finding.tensor else ""
    return f"{finding.quantity} = {finding.measured}{place} (expected {finding.expected}). {finding.message}"
