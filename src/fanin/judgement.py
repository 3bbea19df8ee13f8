"""Judging a trial: which rules there are, what they need captured, and what each says."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from inspect import isabstract

import fanin.rules
from fanin.finding import Finding, Missing
from fanin.rule import Need, Rule
from fanin.trial import Trial


@dataclass(frozen=True, slots=True)
class Result:
    """What one rule says of a trial."""

    rule: Rule
    findings: tuple[Finding, ...] = ()
    missing: tuple[Missing, ...] = ()


@cache
def rule_types() -> tuple[type[Rule], ...]:
    """Every rule in `fanin.rules`, by code."""
    found = set()
    for module in pkgutil.iter_modules(fanin.rules.__path__, "fanin.rules."):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Rule) and not isabstract(value):
                found.add(value)
    return tuple(sorted(found, key=lambda rule: rule.code))


def load_rules() -> tuple[Rule, ...]:
    """Every rule with its default parameters, by code."""
    return tuple(rule() for rule in rule_types())


def needs(rules: Iterable[Rule]) -> frozenset[Need]:
    """What must be captured so that one pass serves all these rules."""
    return frozenset(need for rule in rules for need in rule.needs)


def run(rules: Iterable[Rule], trial: Trial) -> tuple[Result, ...]:
    """What each rule says of a trial; the same finding by several workers counts once."""
    whole = trial.joined()
    views = {worker: whole.of_worker(worker) for worker in trial.workers or (0,)}
    return tuple(_judge_together(r, trial) if r.across_workers else _judge(r, views) for r in rules)


def _judge_together(rule: Rule, trial: Trial) -> Result:
    said = tuple(rule.check(trial))
    findings = tuple(s for s in said if isinstance(s, Finding))
    return Result(rule, findings, tuple(s for s in said if isinstance(s, Missing)))


def _judge(rule: Rule, views: Mapping[int, Trial]) -> Result:
    findings: dict[tuple[str, str, str, int], Finding] = {}
    missing: dict[Missing, None] = {}
    for worker, view in views.items():
        for said in rule.check(view):
            if isinstance(said, Missing):
                missing[said] = None
                continue
            key = (said.layer, said.tensor, said.quantity, said.step)
            seen = findings.get(key)
            workers = (*seen.workers, worker) if seen else (worker,)
            findings[key] = replace(seen or said, workers=workers)
    return Result(rule, tuple(findings.values()), tuple(missing))
