"""Bare weights and weights computed from others, judged end to end: experts, LoRA's factors, weight_norm."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fanin
from fanin.finding import Verdict
from no_trace import Untouched

WIDTH, HIDDEN, EXPERTS, DEPTH, CLASSES = 32, 64, 4, 6, 10


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def batch() -> tuple[Tensor, Tensor]:
    """Clusters, a class each."""
    y = torch.arange(64) % CLASSES
    return 1.5 * torch.randn(CLASSES, WIDTH)[y] + 0.5 * torch.randn(64, WIDTH), y


def check(model: nn.Module) -> fanin.Report:
    """The report on a model, after which it is what it was."""
    given = batch()
    with Untouched(model, given):
        return fanin.check(model, given, F.cross_entropy)


def he(*shape: int, fan_in: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * sqrt(2 / fan_in))


class Experts(nn.Module):
    """Stacked experts, each of which sees all that comes in; used by bmm, or one after the other."""

    def __init__(self, by_index: bool) -> None:
        super().__init__()
        self.up = he(EXPERTS, HIDDEN, WIDTH, fan_in=WIDTH)
        self.down = he(EXPERTS, WIDTH, HIDDEN, fan_in=HIDDEN)
        self.act = nn.ReLU()
        self.by_index = by_index

    def forward(self, x: Tensor) -> Tensor:
        """[experts, batch, width] to the same."""
        if self.by_index:
            each = (F.linear(self.act(F.linear(x[i], self.up[i])), self.down[i]) for i in range(EXPERTS))
            return torch.stack(list(each)).relu()
        return torch.bmm(self.act(torch.bmm(x, self.up.mT)), self.down.mT).relu()


class Mixture(nn.Module):
    """Experts in depth, without a layer that torch knows but the head."""

    def __init__(self, by_index: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Experts(by_index) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] to [batch, classes]."""
        h = x.expand(EXPERTS, *x.shape)
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(0))


def written(model: nn.Module, write: Callable[[Tensor], object], part: str) -> nn.Module:
    """The model with this done to the parameters whose name has the part in it."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if part in name:
                write(p)
    return model


@pytest.mark.parametrize("by_index", [False, True])
def test_experts_drawn_by_their_own_fan_in_are_healthy(by_index: bool) -> None:
    report = check(Mixture(by_index))
    assert report.verdict is Verdict.HEALTHY
    assert report.findings == ()


FAULTS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "zeros": (lambda p: p.zero_(), "FAN402"),
    "a constant": (lambda p: p.fill_(0.05), "FAN403"),
    "a thousandth": (lambda p: p.mul_(1e-3), "FAN101"),
    "the experts counted as inputs": (nn.init.kaiming_uniform_, "FAN101"),  # torch takes [1:] for the fan_in
}


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_faulty_experts_are_named(name: str, by_index: bool) -> None:
    write, code = FAULTS[name]
    report = check(written(Mixture(by_index), write, "blocks."))
    assert report.verdict is Verdict.POOR
    assert (report.findings[0].code, report.findings[0].layer) == (code, "blocks.0.up")


class Lora(nn.Module):
    """A frozen layer and two factors."""

    def __init__(self, fan_in: int, fan_out: int, rank: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(fan_in, fan_out).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(fan_in, rank) / sqrt(fan_in))
        self.b = nn.Parameter(torch.zeros(rank, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, fan_in] to [batch, fan_out]."""
        return self.fc(x) + x @ self.a @ self.b


def lora() -> nn.Sequential:
    return nn.Sequential(
        Lora(WIDTH, HIDDEN), nn.ReLU(), Lora(HIDDEN, HIDDEN), nn.ReLU(), Lora(HIDDEN, CLASSES)
    )


def test_lora_with_one_factor_of_zeros_is_healthy() -> None:
    assert check(lora()).verdict is Verdict.HEALTHY


def test_lora_with_two_is_not() -> None:
    report = check(written(lora(), lambda p: p.zero_(), ".a"))
    assert report.verdict is Verdict.POOR
    assert (report.findings[0].code, report.findings[0].layer) == ("FAN402", "0.a")


class ByHand(nn.Module):
    """Nothing but matrices in a list."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.hidden = nn.ParameterList([factor * he(WIDTH, WIDTH, fan_in=WIDTH) for _ in range(8)])
        self.out = nn.Parameter(torch.randn(WIDTH, CLASSES) / sqrt(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] to [batch, classes]."""
        for weight in self.hidden:
            x = (x @ weight).relu()
        return x @ self.out


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.HEALTHY), (0.05, Verdict.POOR)])
def test_a_network_written_by_hand_is_judged(factor: float, verdict: Verdict) -> None:
    report = check(ByHand(factor))
    assert report.verdict is verdict
    assert [f.layer for f in report.findings[:1]] == ([] if factor == 1.0 else ["hidden.0"])


def normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    hidden = [m for _ in range(8) for m in (wrap(nn.Linear(WIDTH, WIDTH)), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_networks_of_computed_weights_are_judged(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert check(normed(wrap)).verdict is Verdict.HEALTHY


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize(
    ("wrap", "length"),
    [(parametrizations.weight_norm, "original0"), (nn.utils.weight_norm, "weight_g")],
    ids=["parametrization", "old"],
)
def test_lengths_of_weight_norm_that_are_too_small_are_a_fault_of_the_layer(
    wrap: Callable[[nn.Module], nn.Module], length: str
) -> None:
    report = check(written(normed(wrap), lambda p: p.mul_(1e-3), length))
    assert report.verdict is Verdict.POOR
    assert (report.findings[0].code, report.findings[0].layer) == ("FAN101", "0")
    assert report.findings[0].tensor == "0.weight"
