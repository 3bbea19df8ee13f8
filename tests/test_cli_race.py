"""`fanin check --race`: what it costs is said first, and Ctrl-C costs no verdict."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fanin import race
from fanin.adapters.torch import TorchAdapter
from fanin.cli import main

MODULE = """
import torch
from torch import nn
def build(size=128):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, (torch.randn(size, 8), torch.arange(size) % 3), nn.CrossEntropyLoss()
def small(): return build(20)
"""


@pytest.fixture
def place(tmp_path: Path) -> str:
    path = tmp_path / "racing_target.py"
    path.write_text(MODULE)
    return str(path)


def raced(target: str) -> Result:
    return CliRunner().invoke(main, ["check", target, "--race", "--fail-on", "never"])


def test_the_cost_is_said_before_the_race(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race.RaceOptions, "__init__", _short)
    result = raced(f"{place}:build")
    assert result.exit_code == 0
    assert result.stderr.startswith("race: up to ")
    assert "Ctrl-C" in result.stderr


def _short(self: race.RaceOptions, **given: object) -> None:
    short = {"learning_rates": (1e-2,), "steps": 2, "most": 2}
    for field in fields(self):
        object.__setattr__(self, field.name, {field.name: field.default, **given, **short}[field.name])


def test_an_interrupt_leaves_the_verdict(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchAdapter, "race", interrupted)
    result = raced(f"{place}:build")
    assert result.exit_code == 0
    assert "the verdict is without it" in result.stderr
    assert "loss" in result.stdout


def test_one_small_batch_is_an_error_that_says_so(place: str) -> None:
    result = raced(f"{place}:small")
    assert result.exit_code == 2
    assert "a race needs several batches" in result.stderr
