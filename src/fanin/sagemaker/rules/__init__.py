"""Rules as the original's custom rules are written and run."""

from __future__ import annotations

from fanin.sagemaker.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.sagemaker.rules.rule import Rule
from fanin.sagemaker.rules.rule_invoker import invoke_rule

__all__ = ["PoorWeightInitialization", "Rule", "invoke_rule"]
