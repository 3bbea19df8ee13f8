"""Recurrent weights: radii that every scheme in use has, and others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.finding import Finding, Scope, Severity
from fanin.rules.recurrent_kernel import RecurrentKernel

INITS: dict[str, Callable[[Tensor], object]] = {
    "default": lambda w: None,
    "orthogonal": nn.init.orthogonal_,
    "identity": nn.init.eye_,
    "xavier": nn.init.xavier_uniform_,
    "he": nn.init.kaiming_normal_,
    "4 x orthogonal": lambda w: nn.init.orthogonal_(w, 4.0),
    "4 x identity": lambda w: nn.init.eye_(w).mul_(4.0),
    "unit normal": nn.init.normal_,
    "constant": lambda w: nn.init.constant_(w, 0.1),
    "tiny": lambda w: nn.init.normal_(w, std=1e-3),
    "positive": nn.init.uniform_,
    "zeros": nn.init.zeros_,
}
SOUND = ("default", "orthogonal", "identity", "xavier", "he", "constant")


class Reader(nn.Module):
    """A recurrent layer of two levels, and a head on its last state."""

    def __init__(self, cell: type[nn.RNNBase], init: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.rnn = cell(8, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 4)
        for name, p in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                with torch.no_grad():
                    for block in p.split(64):
                        init(block)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def found(model: nn.Module) -> list[Finding]:
    batch = torch.randn(16, 10, 8), torch.randint(0, 4, (16,))
    trial = fanin.check(model, batch, nn.functional.cross_entropy, rules=[RecurrentKernel()]).trial
    return [f for f in RecurrentKernel().check(trial) if isinstance(f, Finding)]


@pytest.mark.parametrize("init", INITS)
def test_plain_layers(init: str) -> None:
    torch.manual_seed(0)
    said = found(Reader(nn.RNN, INITS[init]))
    assert [f.layer for f in said] == ([] if init in SOUND else ["rnn"])
    assert all(f.severity is Severity.SUSPECT and f.scope is Scope.LAYER for f in said)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("init", INITS)
def test_gated_cells_bear_more(cell: type[nn.RNNBase], init: str) -> None:
    torch.manual_seed(0)
    said = found(Reader(cell, INITS[init]))
    expected = {"unit normal": Severity.SUSPECT, "positive": Severity.SUSPECT, "zeros": Severity.NOTE}
    assert [f.severity for f in said] == ([expected[init]] if init in expected else [])


def test_the_tensor_is_named() -> None:
    (finding,) = found(Reader(nn.RNN, INITS["4 x orthogonal"]))
    assert finding.tensor == "rnn.weight_hh_l0"
    assert finding.measured.low == pytest.approx(4.0, rel=1e-2)


def test_frozen_reservoirs_and_projections_are_left_alone() -> None:
    model = Reader(nn.RNN, INITS["4 x orthogonal"])
    for p in model.rnn.parameters():
        p.requires_grad_(False)
    assert found(model) == []


def test_trained_weights_have_tails() -> None:
    def trained(w: Tensor) -> None:
        nn.init.normal_(w, std=0.3)[0, 0] = 4.0

    assert found(Reader(nn.RNN, trained)) == []


def test_several_layers_are_one_fault_everywhere() -> None:
    class Both(Reader):
        def __init__(self) -> None:
            super().__init__(nn.RNN, INITS["4 x orthogonal"])
            self.second = Reader(nn.RNN, INITS["4 x orthogonal"]).rnn

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1] + self.second(x)[0][:, -1])

    (finding,) = found(Both())
    assert (finding.scope, finding.layers) == (Scope.EVERYWHERE, ("rnn", "second"))
