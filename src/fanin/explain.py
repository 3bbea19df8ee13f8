"""Rules and causes by the names that people type, and their pages."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence

from fanin.cause import Cause
from fanin.errors import RuleParameterError, UsageError
from fanin.judgement import rule_types
from fanin.reports.outline import sentence
from fanin.rule import Rule
from fanin.trust import DOUBTS, Doubt

CODE = re.compile(r"[a-z]+[-_ ]?\d+", re.IGNORECASE)
"""What is meant as a code: letters, then a number."""


def find_rule(name: str) -> type[Rule]:
    """A rule by its code, its name or its class, in any case.

    Raises:
        UsageError: There is none.
    """
    for rule in rule_types():
        if name.casefold() in _names(rule):
            return rule
    raise _unknown("there is no such rule", name, _all_names())


def make_rule(name: str, settings: Iterable[str] = ()) -> Rule:
    """A rule with parameters given as `key=value`.

    Raises:
        UsageError: There is no such rule.
        RuleParameterError: There is no such parameter, or it cannot have this value.
    """
    rule = find_rule(name)
    known = list(inspect.signature(rule).parameters)
    parameters = dict(_setting(rule, text, known) for text in settings)
    return rule(**parameters)


def _setting(rule: type[Rule], text: str, known: Sequence[str]) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if equals and key in known:
        return key, value
    close = difflib.get_close_matches(key, known, n=1)
    raise RuleParameterError(
        f"{rule.name} has no parameter {key!r}" if equals else "a parameter is set with key=value",
        where=f"--set {text}",
        got="" if equals else repr(text),
        expected=f"one of {', '.join(known)}" if known else "nothing: this rule has no parameters",
        next_step=f"did you mean {close[0]}?" if close else "",
    )


def page(name: str) -> str:
    """The page of a rule, a cause or a doubt, as Markdown that reads well as it is.

    Raises:
        UsageError: There is neither.
    """
    for cause in Cause:
        if name.casefold() in (cause.value, cause.value.replace("_", "-")):
            return _cause_page(cause)
    for rule in rule_types():
        if name.casefold() in _names(rule):
            return f"# {rule.code} {rule.name}\n\n{rule.page()}"
    for doubt in DOUBTS:
        if name.casefold() in (doubt.code.casefold(), doubt.name):
            return f"# {doubt.code} {doubt.name}\n\n{doubt.page}"
    raise _unknown("there is nothing to explain by this name", name, _all_names(Cause, DOUBTS))


def _cause_page(cause: Cause) -> str:
    place = (
        "It lies in the initialization."
        if cause.is_initialization
        else "It does not lie in the initialization."
    )
    sections = [
        f"# {cause.value}\n\n{sentence(cause.title)} {place}",
        f"What may lie behind it\n----------------------\n{sentence(cause.hypotheses)}",
        f"What to do\n----------\n{sentence(cause.remedy)}",
    ]
    return "\n\n".join(sections)


def rows() -> list[tuple[str, str, str]]:
    """Code, name and headline of every rule and doubt, by code."""
    rules = [(rule.code, rule.name, rule.headline()) for rule in rule_types()]
    return rules + [(doubt.code, doubt.name, doubt.headline) for doubt in DOUBTS]


def _names(rule: type[Rule]) -> tuple[str, str, str]:
    return rule.code.casefold(), rule.name.casefold(), rule.__name__.casefold()


def _all_names(causes: Iterable[Cause] = (), doubts: Iterable[Doubt] = ()) -> list[str]:
    """Names to suggest; no codes, since one that looks alike means something else."""
    shown = [name for rule in rule_types() for name in (rule.name, rule.__name__)]
    return shown + [doubt.name for doubt in doubts] + [cause.value for cause in causes]


def _unknown(what: str, name: str, known: Sequence[str]) -> UsageError:
    by_folded = {text.casefold(): text for text in known}
    close = [] if CODE.fullmatch(name) else difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return UsageError(
        what,
        got=repr(name),
        expected="a code, as in FAN101, or a name",
        next_step=f"did you mean {by_folded[close[0]]}?"
        if close
        else "run `fanin rules`, which lists them all",
    )
