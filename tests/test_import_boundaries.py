"""Import directions: `import fanin` is light, imports point down, and both checks can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
HEAVY = (
    "altair",
    "click",
    "jax",
    "jinja2",
    "keras",
    "numpy",
    "pandas",
    "pyarrow",
    "rich",
    "tensorflow",
    "torch",
    "vl_convert",
)


def run(*command: str, source: Path = SOURCE) -> subprocess.CompletedProcess[str]:
    """Run Python on this source tree, in a process that has imported nothing yet."""
    environment = os.environ | {"PYTHONPATH": str(source)}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def loaded_by(snippet: str) -> set[str]:
    """The heavy modules that are loaded once a snippet has run."""
    done = run("-c", f"{snippet}\nimport sys\nprint(*sorted(sys.modules.keys() & set({HEAVY!r})))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def lint_imports(source: Path = SOURCE) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml on a source tree."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return run("-c", command, "--no-cache", "--config", str(ROOT / "pyproject.toml"), source=source)


def copy_with(target: Path, module: str, line: str) -> Path:
    """A copy of the package whose module has one more line at its end."""
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))
    with (target / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    return target


def test_importing_fanin_loads_nothing_heavy() -> None:
    assert loaded_by("import fanin") == set()


def test_the_check_of_what_is_loaded_can_fail() -> None:
    assert "torch" in loaded_by("import fanin, torch")


@pytest.mark.parametrize("module", ["fanin.judgement", "fanin.diagnosis", "fanin.stores", "fanin.examine"])
def test_judging_a_stored_trial_loads_no_framework(module: str) -> None:
    assert loaded_by(f"import {module}") & {"torch", "jax", "jinja2", "keras", "tensorflow"} == set()


def test_imports_point_down() -> None:
    done = lint_imports()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("fanin/summary.py", "import torch", "Only an adapter imports its framework"),
        ("fanin/errors.py", "import fanin.trial", "Imports point down"),
    ],
)
def test_the_check_of_import_directions_can_fail(
    tmp_path: Path, module: str, line: str, contract: str
) -> None:
    done = lint_imports(copy_with(tmp_path / "src", module, line))
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout, done.stdout + done.stderr
