"""A repair as a change of files: rewritten where one call does it all, and said where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanin.patch import Call, patch
from fanin.trial import Kind, LayerSpec, ModelSpec, ParameterSpec, Role, SourceLine

HE = Call('nn.init.kaiming_normal_({w}, nonlinearity="relu")')

FILE = """\
from torch import nn
from torch.nn import init
import torch


def build():
    model = Net()
    for layer in model.layers:
        nn.init.constant_(layer.weight, 0.05)
        init.zeros_(
            tensor_of(layer),  # ünusual
        )
    torch.nn.init.normal_(model.head.weight, std=1.0)
    model.odd.data[0] = 1
    return model
"""


def spec(path: Path, lines: dict[str, int]) -> ModelSpec:
    return ModelSpec(
        "Net",
        "torch",
        tuple(
            LayerSpec(
                name,
                Kind.LINEAR,
                "Linear",
                (ParameterSpec("weight", Role.WEIGHT, (4, 4), source=SourceLine(str(path), n)),),
            )
            for name, n in lines.items()
        ),
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_call_in_a_loop_is_rewritten_where_all_that_it_draws_is_drawn_alike(file: Path) -> None:
    made = patch(spec(file, {"layers.0": 9, "layers.1": 9}), {"layers.0.weight": HE, "layers.1.weight": HE})
    assert made.elsewhere == ()
    assert "--- a/net.py" in made.diff
    assert "-        nn.init.constant_(layer.weight, 0.05)" in made.diff
    assert '+        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")' in made.diff


def test_a_call_over_several_lines_and_another_way_to_say_init(file: Path) -> None:
    made = patch(spec(file, {"layers.0": 10}), {"layers.0.weight": HE})
    assert '+        init.kaiming_normal_(tensor_of(layer), nonlinearity="relu")' in made.diff
    made = patch(spec(file, {"head": 13}), {"head.weight": Call("nn.init.normal_({w}, std={s})", 0.0213)})
    assert "+    torch.nn.init.normal_(model.head.weight, std=0.0213)" in made.diff


def test_two_lines_of_one_file_are_one_diff(file: Path) -> None:
    made = patch(spec(file, {"layers.0": 10, "head": 13}), {"layers.0.weight": HE, "head.weight": HE})
    assert made.diff.count("--- a/net.py") == 1
    assert made.diff.count("+++ ") == 1
    assert made.diff.count("kaiming_normal_") == 2


def test_numbers_that_are_about_the_same_become_their_mean(file: Path) -> None:
    calls = {
        f"layers.{i}.weight": Call("nn.init.normal_({w}, std={s})", s) for i, s in enumerate((0.1, 0.121))
    }
    assert "std=0.11)" in patch(spec(file, {"layers.0": 9, "layers.1": 9}), calls).diff


@pytest.mark.parametrize(
    ("lines", "calls", "why"),
    [
        ({"odd": 14}, {"odd.weight": HE}, "is no call of nn.init"),
        ({"layers.0": 9, "layers.1": 9}, {"layers.0.weight": HE}, "draws layers.1.weight too"),
        (
            {"layers.0": 9, "layers.1": 9},
            {"layers.0.weight": HE, "layers.1.weight": Call("nn.init.zeros_({w})")},
            "one scheme",
        ),
        ({"layers.0": 9}, {"layers.0.weight": Call("")}, "one scheme"),
        ({}, {"layers.0.weight": HE}, "was not recorded"),
    ],
)
def test_what_cannot_be_rewritten_is_said(
    file: Path, lines: dict[str, int], calls: dict[str, Call], why: str
) -> None:
    made = patch(spec(file, lines), calls)
    assert made.diff == ""
    assert why in made.elsewhere[0]
    assert "insert the code after the model is built" in made.elsewhere[0]


def test_a_file_that_is_gone_or_no_python_is_no_error(tmp_path: Path) -> None:
    assert patch(spec(tmp_path / "gone.py", {"a": 1}), {"a.weight": HE}).elsewhere
    (tmp_path / "bad.py").write_text("def (")
    assert patch(spec(tmp_path / "bad.py", {"a": 1}), {"a.weight": HE}).elsewhere
