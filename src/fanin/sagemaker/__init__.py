"""The interface of SageMaker Debugger's library for analysis, under its names, without its dependencies.

    from fanin.sagemaker.trials import create_trial          # was: from smdebug.trials import create_trial
    from fanin.sagemaker.rules.rule import Rule              # was: from smdebug.rules.rule import Rule
    from fanin.sagemaker.rules import invoke_rule            # was: from smdebug.rules import invoke_rule
    from fanin.sagemaker.exceptions import NoMoreData        # was: from smdebug.exceptions import NoMoreData

Modules are called as there, so that a custom rule needs no other change. Trials are the original's own (see
`fanin.stores.smdebug`); for trainings of today there are `fanin.watch` and `fanin.judge`. Differences: no wait is for
ever, `action_str` may be left out, norms are of all values, and nothing sleeps a second at the end.
"""

from __future__ import annotations

from fanin.sagemaker.exceptions import (
    IndexReaderException,
    InsufficientInformationForRuleInvocation,
    InvalidCollectionConfiguration,
    InvalidWorker,
    MissingCollectionFiles,
    NoMoreData,
    RuleEvaluationConditionMet,
    ShapeUnavailableForStep,
    SMDebugError,
    StepNotYetAvailable,
    StepUnavailable,
    TensorUnavailable,
    TensorUnavailableForStep,
)
from fanin.sagemaker.modes import ModeKeys, modes
from fanin.sagemaker.rules import PoorWeightInitialization, Rule, invoke_rule
from fanin.sagemaker.tensor import StepState, Tensor
from fanin.sagemaker.trials import Trial, create_trial, no_refresh, refresh

__all__ = [
    "IndexReaderException",
    "InsufficientInformationForRuleInvocation",
    "InvalidCollectionConfiguration",
    "InvalidWorker",
    "MissingCollectionFiles",
    "ModeKeys",
    "NoMoreData",
    "PoorWeightInitialization",
    "Rule",
    "RuleEvaluationConditionMet",
    "SMDebugError",
    "ShapeUnavailableForStep",
    "StepNotYetAvailable",
    "StepState",
    "StepUnavailable",
    "Tensor",
    "TensorUnavailable",
    "TensorUnavailableForStep",
    "Trial",
    "create_trial",
    "invoke_rule",
    "modes",
    "no_refresh",
    "refresh",
]
