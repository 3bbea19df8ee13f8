"""Sine networks and state-space models."""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.finding import Finding, Scope
from fanin.rules.special_scheme import SpecialScheme


class Sines(nn.Module):
    """A sine network with frequency ω, by its authors' scheme times a factor; PyTorch's default for factor 0."""

    def __init__(self, factor: float, frequency: float = 30.0, layers: int = 4) -> None:
        super().__init__()
        self.frequency = frequency
        self.layers = nn.ModuleList([nn.Linear(2, 128), *(nn.Linear(128, 128) for _ in range(layers - 1))])
        self.head = nn.Linear(128, 1)
        if factor:
            nn.init.uniform_(self.layers[0].weight, -1 / 2, 1 / 2)
            for layer in self.layers[1:]:
                bound = factor * sqrt(6 / 128) / frequency
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.frequency * layer(x))
        return self.head(x)


class StateSpace(nn.Module):
    """The parameters of a Mamba layer in their reference names, used as gates."""

    def __init__(self, bias: Tensor | None = None, rates: Tensor | None = None) -> None:
        super().__init__()
        self.dt_proj, self.head = nn.Linear(32, 32), nn.Linear(32, 4)
        self.A_log = nn.Parameter(torch.arange(1, 17).float().log().repeat(32, 1) if rates is None else rates)
        if bias is not None:
            self.dt_proj.bias.data = bias

    def forward(self, x: Tensor) -> Tensor:
        dt = nn.functional.softplus(self.dt_proj(x))
        return self.head(x * torch.exp(-dt * self.A_log.exp().mean(1)))


def found(model: nn.Module, features: int) -> list[Finding]:
    batch = 2 * torch.rand(64, features) - 1, torch.randn(64, 1)
    loss = lambda out, y: (out - y).square().mean()  # noqa: E731
    trial = fanin.check(model, batch, loss, rules=[SpecialScheme()]).trial
    return [f for f in SpecialScheme().check(trial) if isinstance(f, Finding)]


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_authors_scheme_is_sound(factor: float) -> None:
    assert found(Sines(factor), 2) == []


@pytest.mark.parametrize("factor", [0.0, 0.01, 8.0])
def test_other_scales_of_a_sine_network_are_not(factor: float) -> None:
    (finding,) = found(Sines(factor), 2)
    assert finding.scope is Scope.EVERYWHERE
    assert finding.layers == ("layers.1", "layers.2", "layers.3")


def test_a_single_sine_and_snakes_are_passed() -> None:
    class Snake(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sin(x).square()

    assert found(Sines(0.0, layers=1), 2) == []
    layers = [m for _ in range(3) for m in (nn.Linear(8, 8), Snake())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=1e-3)  # type: ignore[arg-type]
    assert found(nn.Sequential(*layers, nn.Linear(8, 1)), 8) == []


def steps(low: float, high: float) -> Tensor:
    """Biases whose softplus is log-uniform between these."""
    dt = torch.exp(torch.empty(32).uniform_(log(low), log(high)))
    return dt + torch.log(-torch.expm1(-dt))


def test_step_sizes_of_the_authors_are_sound() -> None:
    assert found(StateSpace(steps(1e-3, 0.1)), 32) == []
    assert found(StateSpace(steps(1e-3, 2.0)), 32) == []  # trained: some anywhere


@pytest.mark.parametrize("bias", [None, torch.zeros(32), torch.ones(32), torch.full((32,), -14.0)])
def test_other_step_sizes_are_not(bias: Tensor | None) -> None:
    (finding,) = found(StateSpace(bias), 32)
    assert (finding.layer, finding.tensor) == ("dt_proj", "dt_proj.bias")
    assert finding.measured.low not in finding.expected


def test_frozen_step_sizes_are_not_judged() -> None:
    model = StateSpace()
    model.dt_proj.bias.requires_grad_(False)
    assert found(model, 32) == []


@pytest.mark.parametrize("rates", [0.02 * torch.randn(32, 16), torch.zeros(32, 16)])
def test_rates_drawn_like_weights(rates: Tensor) -> None:
    (finding,) = found(StateSpace(steps(1e-3, 0.1), rates), 32)
    assert finding.tensor == "A_log"
    assert finding.measured.low not in finding.expected


def test_rates_of_mamba_2_are_sound() -> None:
    rates = torch.empty(32, 1).uniform_(1, 16).log()
    assert found(StateSpace(steps(1e-3, 0.1), rates), 32) == []
