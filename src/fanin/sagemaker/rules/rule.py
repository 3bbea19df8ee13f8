"""The base of custom rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from fanin.config import Action, parse_actions
from fanin.sagemaker.exceptions import RuleEvaluationConditionMet
from fanin.sagemaker.rules.required import RequiredTensors
from fanin.sagemaker.trials import Trial, log, no_refresh


class Rule(ABC):
    """A rule over trials: `invoke_at_step` says whether its condition is met at a global step.

    Args:
        base_trial: The trial to judge.
        action_str: The actions of a configuration, as JSON. Optional here: the documentation never passes it, and the
            last release of the original fails without it.
        other_trials: Further trials; a second argument that is no text is taken for them too, as older releases did.

    Attributes:
        report: What was found, to be filled in: RuleTriggered, Violations, Details, Datapoints, RuleParameters.

    Raises:
        RuleParameterError: action_str is not what it should be.
    """

    def __init__(
        self,
        base_trial: Trial,
        action_str: str | Iterable[Trial] | None = "",
        other_trials: Iterable[Trial] | None = None,
    ) -> None:
        actions = action_str if isinstance(action_str, str) else ""
        others = other_trials if isinstance(action_str, str) or action_str is None else action_str
        self.base_trial = base_trial
        self.other_trials = None if others is None else list(others)
        self.trials = [base_trial, *(self.other_trials or [])]
        self.req_tensors = RequiredTensors(base_trial, self.other_trials)
        self.logger = log
        self.rule_name = type(self).__name__
        self._actions: tuple[Action, ...] = parse_actions(actions)
        self.report: dict[str, Any] = {
            "RuleTriggered": 0,
            "Violations": 0,
            "Details": {},
            "Datapoints": 0,
            "RuleParameters": "",
        }

    def set_required_tensors(self, step: int) -> None:  # noqa: B027 - most rules need nothing beforehand
        """Ask for what `invoke_at_step` will read, through `req_tensors.add`."""

    @abstractmethod
    def invoke_at_step(self, step: int) -> bool:
        """Whether the condition is met at this global step."""

    def invoke(self, step: int) -> None:
        """Wait for a global step and look at it.

        Raises:
            RuleEvaluationConditionMet: The condition is met.
            StepUnavailable, TensorUnavailable, TensorUnavailableForStep: What the rule needs was not saved.
            NoMoreData: The training ended, or broke off, before this step.
        """
        self.base_trial.wait_for_steps([step])
        with no_refresh(self.trials):  # so that all it reads is of the same moment
            self.req_tensors.clear()
            self.set_required_tensors(step)
            self.req_tensors.fetch()
            met = self.invoke_at_step(step)
        if met:
            for action in self._actions:
                self.logger.warning("%s: action %s is not run here", self.rule_name, action.name)
            raise RuleEvaluationConditionMet(self.rule_name, step)
