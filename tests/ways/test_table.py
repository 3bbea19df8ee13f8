"""docs/ways.md names a test for each way to train, and each test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "ways.md"
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def functions_in(folder: Path) -> set[tuple[str, str]]:
    """Every test function, by file."""
    return {
        (path.name, node.name)
        for path in folder.glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows(page: str) -> list[list[str]]:
    """Cells of the tables' bodies."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    heads = {i for i, line in enumerate(lines[1:]) if line.startswith("|-")}
    heads |= {i + 1 for i in heads}
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for i, line in enumerate(lines) if i not in heads
    ]


def untested(page: str) -> list[str]:
    """Ways whose row names no test and does not say that there is none."""
    return [cells[0] for cells in rows(page) if not NAMED.search(cells[-1]) and "not tested" not in cells[1]]


def missing(page: str, known: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Tests that the page names and that do not exist."""
    return set(NAMED.findall(page)) - known


def test_every_test_that_the_table_names_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(NAMED.findall(page)) > 30
    assert missing(page, functions_in(HERE)) == set()


def test_every_way_names_a_test_or_says_that_it_has_none() -> None:
    assert len(rows(PAGE.read_text(encoding="utf-8"))) > 30
    assert untested(PAGE.read_text(encoding="utf-8")) == []


def test_these_checks_can_fail() -> None:
    page = "| way | captured | test |\n|---|---|---|\n| a | all | |\n| b | all | `test_x.py::test_y` |\n"
    assert untested(page) == ["a"]
    assert missing(page, {("test_x.py", "test_z")}) == {("test_x.py", "test_y")}
