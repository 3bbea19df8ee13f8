"""`fanin check --fix`: a proposal, its proof and its code; the cost is said first, and Ctrl-C costs no verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fanin import race
from fanin.adapters.torch import TorchAdapter
from fanin.cli import main

MODULE = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, -0.1)
    x = torch.randn(256, 8)
    return model, (x, (x @ torch.randn(8, 3)).argmax(dim=1)), nn.CrossEntropyLoss()
def trained():
    model, *rest = build()
    optimizer = torch.optim.Adam(model.parameters())
    rest[1](model(rest[0][0]), rest[0][1]).backward()
    optimizer.step()
    return model, *rest, optimizer
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(race.RaceOptions, "within", lambda self, _: race.replace(self, steps=25, most=25))
    path = tmp_path / "fixing_target.py"
    path.write_text(MODULE)
    return str(path)


def fixed(target: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["check", target, *options])


def test_the_repair_stands_below_the_verdict(place: str) -> None:
    result = fixed(f"{place}:build", "--fix")
    assert result.exit_code == 1, "the verdict of the network as given"
    assert result.stderr.startswith("proof: up to ")
    assert "Ctrl-C" in result.stderr
    assert result.stdout.index("POOR  FAN402") < result.stdout.index("REPAIR  safe")
    assert "(model[2].weight" in result.stdout
    assert "the repair wins" in result.stdout
    assert "--- a/" not in result.stdout


def test_the_diff_is_of_the_line_that_drew_it(place: str) -> None:
    result = fixed(f"{place}:build", "--diff")
    assert "-    nn.init.zeros_(model[2].weight)" in result.stdout
    assert "+    nn.init." in result.stdout


def test_json_holds_the_repair(place: str) -> None:
    read = json.loads(fixed(f"{place}:build", "--fix", "--format", "json").stdout)
    assert read["verdict"] == "poor"
    assert read["repair"]["safety"] == "safe"
    assert read["repair"]["proven"] is True
    assert [change["parameter"] for change in read["repair"]["changes"]] == ["2.weight"]
    assert read["applied"] is False


def test_a_trained_model_is_refused_unless_forced(place: str) -> None:
    result = fixed(f"{place}:trained", "--fix")
    assert result.exit_code == 2
    assert "no fresh initialization" in result.stderr
    assert "REPAIR  unsafe" in fixed(f"{place}:trained", "--fix", "--force").stdout


def test_a_budget_that_is_none_is_an_error(place: str) -> None:
    result = fixed(f"{place}:build", "--fix", "--budget", "soon")
    assert result.exit_code == 2
    assert "this is no budget" in result.stderr


def test_an_interrupt_leaves_the_verdict(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchAdapter, "race", interrupted)
    result = fixed(f"{place}:build", "--fix")
    assert result.exit_code == 1
    assert "the verdict is without it" in result.stderr
    assert "POOR  FAN402" in result.stdout


def test_options_of_a_repair_want_a_repair(place: str) -> None:
    for option in (["--budget", "90s"], ["--force"]):
        result = fixed(f"{place}:build", *option)
        assert result.exit_code == 2
        assert "--fix or --diff" in result.stderr


def test_a_wrong_budget_is_refused_before_any_work(place: str) -> None:
    result = fixed(f"{place}:nowhere", "--fix", "--budget", "much")
    assert result.exit_code == 2
    assert "this is no budget" in result.stderr, "not: there is no function of this name"


def test_where_no_repair_can_be_had_the_verdict_stands(place: str) -> None:
    result = fixed(f"{place}:trained", "--fix")
    assert result.exit_code == 2, "what was asked for cannot be had"
    assert "POOR  FAN402" in result.stdout
    assert "no fresh initialization" in result.stderr
    assert "--force" in result.stderr


def test_check_and_repair_look_at_the_same_batches_of_a_generator(place: str) -> None:
    text = MODULE + (
        "def streamed():\n"
        "    model, (x, y), loss = build()\n"
        "    return model, ((x[i : i + 64], y[i : i + 64]) for i in (0, 64, 128, 192)), loss\n"
    )
    Path(place).write_text(text)
    result = fixed(f"{place}:streamed", "--fix")
    assert result.exit_code == 1
    assert "the repair wins" in result.stdout


def test_where_the_report_goes_to_a_file_the_verdict_is_said(place: str, tmp_path: Path) -> None:
    result = fixed(f"{place}:build", "--fix", "-o", str(tmp_path / "fix.md"))
    assert result.exit_code == 1
    assert "POOR  FAN402" in result.stderr
    assert f"report {tmp_path / 'fix.md'}" in result.stderr
    assert "REPAIR" in (tmp_path / "fix.md").read_text()
