"""The house rules that a machine can check, and what every rule owes its reader."""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from fanin.finding import Finding
from fanin.judgement import rule_types
from fanin.rule import PAGE_HEADINGS, Example, Rule

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(SOURCE.rglob("*.py"))
LARGEST_FILE = 20_000
ABOUT_THE_RACE = {"FAN305"}
"""Rules that judge the race alone, and so need nothing captured."""

NAMES_THAT_SAY_NOTHING = re.compile(r"util|helper|common|misc|manager", re.IGNORECASE)

in_every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
for_every_rule = pytest.mark.parametrize("rule", rule_types(), ids=lambda rule: rule.code)
for_every_example = pytest.mark.parametrize(
    ("rule", "example"),
    [
        pytest.param(rule, example, id=f"{rule.code}-{example.name}")
        for rule in rule_types()
        for example in rule.examples()
    ],
)


# ── modules ─────────────────────────────────────────────────────────────────────────────────────────────────


def undocumented(tree: ast.Module) -> list[str]:
    """The module, and its public classes and functions, where they lack a docstring."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    silent = [node.name for node in public if not ast.get_docstring(node)]
    return silent if ast.get_docstring(tree) else ["the module", *silent]


def catch_alls(tree: ast.Module) -> list[int]:
    """Lines of `except:` without a kind."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    return [node.lineno for node in nodes if node.type is None]


def test_there_are_modules_to_check() -> None:
    assert SOURCE / "fanin" / "summary.py" in MODULES


@in_every_module
def test_a_name_says_what_the_module_is_about(path: Path) -> None:
    assert not NAMES_THAT_SAY_NOTHING.search(str(path.relative_to(SOURCE)))


@in_every_module
def test_modules_and_public_names_have_docstrings(path: Path) -> None:
    assert undocumented(ast.parse(path.read_text(encoding="utf-8"))) == []


@in_every_module
def test_no_exception_is_caught_without_naming_it(path: Path) -> None:
    assert catch_alls(ast.parse(path.read_text(encoding="utf-8"))) == []


@in_every_module
def test_a_file_can_be_held_in_mind(path: Path) -> None:
    assert path.stat().st_size < LARGEST_FILE


def test_the_checks_of_modules_can_fail() -> None:
    tree = ast.parse("class A: ...\ndef f(): ...\ndef _g(): ...\ntry: f()\nexcept: pass")
    assert undocumented(tree) == ["the module", "A", "f"]
    assert catch_alls(tree) == [5]


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────


def headings(page: str) -> list[str]:
    """Lines that are underlined with dashes of their length."""
    lines = page.splitlines()
    return [line for line, under in pairwise(lines) if line and under == "-" * len(line)]


def named_by(rule: type[Rule], example: Example) -> tuple[str, ...]:
    """The layer of each finding, in the order in which the rule reports them."""
    said = rule().check(example.build())
    return tuple(finding.layer for finding in said if isinstance(finding, Finding))


def test_no_two_rules_share_a_code_or_a_name() -> None:
    counts = Counter(label for rule in rule_types() for label in (rule.code, rule.name))
    assert [label for label, count in counts.items() if count > 1] == []


@for_every_rule
def test_a_code_is_fan_and_three_digits(rule: type[Rule]) -> None:
    assert re.fullmatch(r"FAN\d{3}", rule.code)


@for_every_rule
def test_a_rule_says_what_it_needs(rule: type[Rule]) -> None:
    assert bool(rule.needs) is (rule.code not in ABOUT_THE_RACE)


@for_every_rule
def test_a_rule_has_a_page_with_every_heading_in_order(rule: type[Rule]) -> None:
    assert headings(rule.page()) == list(PAGE_HEADINGS)


@for_every_rule
def test_a_page_opens_with_a_sentence_on_one_line(rule: type[Rule]) -> None:
    """It stands in tables and in `fanin rules`, without the line that would follow."""
    assert re.fullmatch(r"[A-Z].*\.", rule.headline())


@for_every_rule
def test_a_rule_has_healthy_and_poor_examples(rule: type[Rule]) -> None:
    assert {bool(example.layers) for example in rule.examples()} == {True, False}


@for_every_example
def test_a_rule_judges_its_examples_right(rule: type[Rule], example: Example) -> None:
    """The layers of its findings are those of the example, in order: none, where it is healthy."""
    assert named_by(rule, example) == example.layers
