"""Rule configurations of SageMaker Debugger as JSON: what `CreateTrainingJob` takes, one rule of it, or several.

{"DebugRuleConfiguration": {"RuleConfigurationName": "PoorWeightInitialization",
                            "RuleParameters": {"rule_to_invoke": "PoorWeightInitialization",
                                               "threshold": "10.0", "action_json": "..."}},
 "CollectionConfigurations": [{"CollectionName": "relu_input",
                               "CollectionParameters": {"include_regex": ".*relu_input", "save_interval": "500"}}]}
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fanin.errors import RuleParameterError, UsageError
from fanin.rules.poor_weight_initialization import PoorWeightInitialization

RULE = PoorWeightInitialization.__name__

LARGEST = 2**20
"""Bytes of a configuration; real ones have some hundred."""

PLATFORM = ("base_trial", "source_s3_uri", "start_step", "end_step")
"""Parameters that SageMaker itself sets or reads; here the command line names the trial, and `steps` the steps."""

ACTIONS = ("stoptraining", "email", "sms")


@dataclass(frozen=True, slots=True)
class Action:
    """What to do once a rule's condition is met.

    Attributes:
        name: `stoptraining`, `email` or `sms`.
        parameters: Its parameters: `training_job_prefix`, or `endpoint`.
    """

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleConfiguration:
    """One rule, configured.

    Attributes:
        name: What the configuration calls it.
        rule: The rule with its parameters.
        actions: What to do when it fires.
        collections: Name -> parameters, of what was to be saved for it.
        notes: What of the configuration has no effect here, one sentence each.
    """

    name: str
    rule: PoorWeightInitialization
    actions: tuple[Action, ...] = ()
    collections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_configuration(path: str | os.PathLike[str]) -> tuple[RuleConfiguration, ...]:
    """The rules of a file.

    Raises:
        UsageError: It cannot be read, or is no rule configuration.
        RuleParameterError: A parameter has the wrong name, type or value.
    """
    where = os.fspath(path)
    try:
        with Path(where).open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(
            where, "the rule configuration cannot be read", f"{type(error).__name__}: {error}"
        ) from error
    return tuple(configurations(content, where))


def configurations(content: object, where: str = "the rule configuration") -> Iterator[RuleConfiguration]:
    """The rules of a configuration that was parsed.

    Raises:
        UsageError: It is none.
        RuleParameterError: A parameter has the wrong name, type or value.
    """
    entries = content if isinstance(content, list) and content else [content]
    pairs = [pair for entry in entries for pair in _entries(entry, where)]
    ours = [(rule, collections) for rule, collections in pairs if len(pairs) == 1 or _is_ours(rule)]
    if not ours:
        raise _other_rule(where, [_invoked(rule) for rule, _ in pairs], {})
    others = tuple(
        f"rule {_invoked(rule)}: not in fanin, left out"
        for rule, _ in pairs
        if len(pairs) > 1 and not _is_ours(rule)
    )
    for rule, collections in ours:
        found = _configuration(rule, _collections(collections, where), where)
        yield replace(found, notes=(*others, *found.notes)) if others else found
        others = ()


def _invoked(rule: Mapping[str, Any]) -> object:
    parameters = rule.get("RuleParameters")
    return parameters.get("rule_to_invoke") if isinstance(parameters, dict) else None


def _is_ours(rule: Mapping[str, Any]) -> bool:
    return str(_invoked(rule)).casefold() == RULE.casefold()


def _entries(content: object, where: str) -> Iterator[tuple[Mapping[str, Any], object]]:
    """Each rule with the collections that go with it, in the shapes in which they come."""
    if not isinstance(content, dict):
        raise _bad(where, "this is no rule configuration", f"{content!r:.80}")
    found = content.get("DebugRuleConfigurations") or content.get("DebugRuleConfiguration")
    if found is None and "RuleParameters" in content:
        found = content
    rules = found if isinstance(found, list) else [found]
    if not rules or not all(isinstance(rule, dict) for rule in rules):
        raise _bad(where, "this is no rule configuration", f"keys {', '.join(map(str, content)) or 'none'}")
    collections = _raw_collections(content)
    yield from ((rule, collections) for rule in rules if isinstance(rule, dict))


def _raw_collections(content: Mapping[str, Any]) -> object:
    hook = content.get("DebugHookConfig")
    inner = hook.get("CollectionConfigurations") if isinstance(hook, dict) else None
    return content.get("CollectionConfigurations") or inner or []


def _configuration(
    entry: Mapping[str, Any], collections: Mapping[str, Mapping[str, str]], where: str
) -> RuleConfiguration:
    name = str(entry.get("RuleConfigurationName") or RULE)
    parameters = entry.get("RuleParameters")
    if not isinstance(parameters, dict):
        raise _bad(where, f"rule configuration {name} has no RuleParameters", f"{parameters!r:.80}")
    if not _is_ours(entry):
        raise _other_rule(where, _invoked(entry), parameters)
    known = set(inspect.signature(PoorWeightInitialization).parameters) - {"base_trial"}
    _require_known(parameters, known, where)
    settings = {key: value for key, value in parameters.items() if key in known}
    return RuleConfiguration(
        name=name,
        rule=PoorWeightInitialization(**settings),
        actions=parse_actions(parameters.get("action_json") or ""),
        collections=collections,
        notes=tuple(_notes(parameters, collections)),
    )


def _other_rule(where: str, asked: object, parameters: Mapping[str, Any]) -> UsageError:
    custom = "source_s3_uri" in parameters
    return UsageError(
        "this rule of SageMaker Debugger is not in fanin",
        where=where,
        got=f"rule_to_invoke {asked!r:.80}" + (", a rule of your own" if custom else ""),
        expected=RULE,
        next_step="run your own rules through fanin.sagemaker.invoke_rule"
        if custom
        else "`fanin rules` lists what fanin looks for",
    )


def _require_known(parameters: Mapping[str, Any], known: set[str], where: str) -> None:
    allowed = {*known, *PLATFORM, "rule_to_invoke", "action_json"}
    for key in parameters:
        if key in allowed or key.startswith("other_trial_"):
            continue
        close = difflib.get_close_matches(key, known, n=1)
        raise RuleParameterError(
            f"{RULE} has no parameter {key!r}",
            where=where,
            expected=f"one of {', '.join(sorted(known))}",
            next_step=f"did you mean {close[0]}?" if close else "",
        )


def _notes(parameters: Mapping[str, Any], collections: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    unused = [key for key in parameters if key in PLATFORM or key.startswith("other_trial_")]
    if unused:
        yield f"{', '.join(unused)}: not used; the trial is the one named, and `steps` says which steps are judged"
    for name, settings in collections.items():
        interval = str(settings.get("save_interval", "1"))
        if interval != "1":
            yield f"collection {name} saves every {interval} steps: of the first ones the rule then sees only step 0"


def _collections(content: object, where: str) -> dict[str, Mapping[str, str]]:
    if not isinstance(content, list):
        raise _bad(where, "CollectionConfigurations is no list", f"{content!r:.80}")
    found: dict[str, Mapping[str, str]] = {}
    for entry in content:
        name = entry.get("CollectionName") if isinstance(entry, dict) else None
        # The original's own list of collections has the parameters of relu_input a level too high.
        settings = (entry.get("CollectionParameters") or entry) if isinstance(entry, dict) else None
        if not isinstance(settings, dict) or not isinstance(name, str | None):
            raise _bad(where, "a collection configuration is no object", f"{entry!r:.80}")
        found[name or f"collection {len(found)}"] = settings
    return found


def parse_actions(text: object) -> tuple[Action, ...]:
    """The actions of `action_json`: one object or a list of them, as text or parsed. Names count in any case.

    Raises:
        RuleParameterError: It is none.
    """
    if text in ("", None):
        return ()
    try:
        content = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        content = None
    entries = content if isinstance(content, list) else [content]
    return tuple(_action(entry) for entry in entries)


def _action(entry: object) -> Action:
    name = str(entry.get("name", "")).casefold() if isinstance(entry, dict) else ""
    parameters = (entry.get("parameters") or {}) if isinstance(entry, dict) else None
    if name not in ACTIONS or not isinstance(parameters, dict):
        raise RuleParameterError(
            "action_json holds no action",
            where="parameter action_json",
            got=f"{entry!r:.80}",
            expected='{"name": "stoptraining", "parameters": {"training_job_prefix": "..."}}, email or sms, or a list',
            next_step="leave action_json out where nothing is to be done",
        )
    return Action(name, {str(key): str(value) for key, value in parameters.items()})


def _bad(where: str, what: str, got: str) -> UsageError:
    return UsageError(
        what,
        where=where,
        got=" ".join(got.split())[:300],
        expected='{"DebugRuleConfiguration": {"RuleParameters": {"rule_to_invoke": "PoorWeightInitialization"}}}',
        next_step="pass the JSON that describes the rule to SageMaker",
    )
