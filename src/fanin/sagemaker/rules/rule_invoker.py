"""A rule over all steps of a trial, as it grows."""

from __future__ import annotations

from fanin.sagemaker.exceptions import (
    RuleEvaluationConditionMet,
    StepUnavailable,
    TensorUnavailable,
    TensorUnavailableForStep,
)
from fanin.sagemaker.rules.rule import Rule
from fanin.sagemaker.trials import log


def invoke_rule(
    rule_obj: Rule, start_step: int | None = 0, end_step: int | None = None, raise_eval_cond: bool = False
) -> None:
    """Invoke a rule at every global step from start_step to before end_step.

    Steps and tensors that were not saved are passed over.

    Args:
        raise_eval_cond: Whether to raise where the condition is met, rather than to note it and go on.

    Raises:
        RuleEvaluationConditionMet: The condition is met, and raise_eval_cond.
        NoMoreData: The training has ended before end_step, as it does in the original.
    """
    step = start_step or 0
    while end_step is None or step < end_step:
        try:
            rule_obj.invoke(step)
        except (StepUnavailable, TensorUnavailable, TensorUnavailableForStep) as error:
            log.debug("%s", error)
        except RuleEvaluationConditionMet as met:
            if raise_eval_cond:
                raise
            log.info("%s", met)
            if met.end_of_rule:
                break
        step += 1
