"""The surface: few names, sorted, complete, each of which exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import fanin

PUBLIC = [
    "Cause",
    "FaninError",
    "PoorWeightInitialization",
    "Repair",
    "RepairReport",
    "Report",
    "TensorSummary",
    "Trial",
    "Verdict",
    "__version__",
    "check",
    "initialize",
    "judge",
    "load_trial",
    "repair",
    "watch",
]


def test_the_public_names_are_these() -> None:
    """A name is added or taken away here too, so that it never happens by accident."""
    assert fanin.__all__ == PUBLIC


def test_the_public_names_are_sorted() -> None:
    assert fanin.__all__ == sorted(fanin.__all__)


def test_dir_lists_the_public_names() -> None:
    assert set(fanin.__all__) <= set(dir(fanin))


@pytest.mark.parametrize("name", PUBLIC)
def test_all_importable(name: str) -> None:
    """`from fanin import name` works for every public name, and finds what is called so."""
    found = getattr(__import__("fanin", fromlist=[name]), name)
    assert getattr(found, "__name__", name) == name


def test_type_checkers_see_the_same_names_as_users() -> None:
    """What `TYPE_CHECKING` imports or declares is what `__all__` lists."""
    tree = ast.parse(Path(fanin.__file__).read_text(encoding="utf-8"))
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    declared = {node.target.id for node in branch.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    assert imported | declared == set(fanin.__all__)


def test_the_assertion_for_tests_is_found_without_another_import() -> None:
    assert fanin.testing.assert_well_initialized.__module__ == "fanin.testing"


def test_the_version_is_the_installed_one() -> None:
    assert fanin.__version__ == version("fanin")


def test_a_wrong_name_is_an_attribute_error_and_suggests_the_right_one() -> None:
    with pytest.raises(AttributeError, match="module 'fanin' has no attribute 'chek'"):
        fanin.chek  # type: ignore[attr-defined]  # noqa: B018
    done = subprocess.run([sys.executable, "-c", "import fanin; fanin.chek"], capture_output=True, text=True)
    assert "Did you mean: 'check'?" in done.stderr
