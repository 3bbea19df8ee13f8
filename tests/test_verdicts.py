"""Verdicts on real PyTorch networks that are easy to get wrong: each is healthy, poor or undecided for a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.errors import BatchError, UsageError
from fanin.finding import Verdict


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def plain(depth: int, std: float | None = None, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Zero biases; he_normal, or a standard deviation, or PyTorch's default for std 0."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(64, 64)
        nn.init.zeros_(linear.bias)
        if std is None:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        elif std:
            nn.init.normal_(linear.weight, std=std)
        layers += [linear, act()]
    return nn.Sequential(*layers)


class Adapted(nn.Module):
    """A layer with a LoRA adapter, whose B is zero, in front of a trunk."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.base, self.a = nn.Linear(64, 64), nn.Linear(64, 4, bias=False)
        self.b = nn.Linear(4, 64, bias=False)
        nn.init.zeros_(self.b.weight)
        self.trunk, self.head = trunk, nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(self.base(x) + self.b(self.a(x))))


class Towers(nn.Module):
    """Parallel stacks whose outputs are concatenated."""

    def __init__(self, towers: int, depth: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(plain(depth, 0.0) for _ in range(towers))
        self.head = nn.Linear(64 * towers, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([tower(x * 10.0**-i) for i, tower in enumerate(self.towers)], dim=1))


class Bare(nn.Module):
    """Tiny weights that belong to no layer, used as they are or by a product of two, which shows no fans."""

    def __init__(self, depth: int, by: Tensor | None = None) -> None:
        super().__init__()
        self.by = by
        self.weights = nn.ParameterList(0.01 * torch.randn(64, 64) for _ in range(depth))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for w in self.weights:
            x = torch.relu(x @ (w if self.by is None else w @ self.by))
        return self.head(x)


def parametrized(depth: int) -> nn.Module:
    """Tiny weights under weight_norm, which the layers compute anew at each pass."""
    stack = plain(depth, 1e-2)
    for i in range(0, 2 * depth, 2):
        nn.utils.parametrizations.weight_norm(stack[i])
    return stack


def with_head(trunk: nn.Module) -> nn.Module:
    return nn.Sequential(trunk, nn.Linear(64, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], float, Verdict]] = {
    "he_normal": (lambda: with_head(plain(8)), 1.0, Verdict.HEALTHY),
    "PyTorch's default, 4 layers": (lambda: with_head(plain(4, 0.0)), 1.0, Verdict.HEALTHY),
    "PyTorch's default, 12 layers": (lambda: with_head(plain(12, 0.0)), 1.0, Verdict.POOR),
    "std 0.01 behind a zero adapter": (lambda: Adapted(plain(20, 1e-2)), 1.0, Verdict.POOR),
    "sound behind a zero adapter": (lambda: Adapted(plain(8)), 1.0, Verdict.HEALTHY),
    "six shallow towers": (lambda: Towers(6, 3), 1.0, Verdict.HEALTHY),
    "tanh on unscaled input": (lambda: with_head(plain(6, 0.0, nn.Tanh)), 1e3, Verdict.HEALTHY),
    "bare parameters": (lambda: Bare(15), 1.0, Verdict.POOR),
    "bare parameters by another": (lambda: Bare(15, nn.Parameter(torch.eye(64))), 1.0, Verdict.UNDECIDED),
    "parametrized weights": (lambda: with_head(parametrized(15)), 1.0, Verdict.POOR),
    "the same input throughout": (lambda: with_head(plain(8)), 0.0, Verdict.UNDECIDED),
}


def checked(model: nn.Module, scale: float = 1.0) -> fanin.Report:
    batch = scale * torch.randn(64, 64), torch.randint(0, 10, (64,))
    return fanin.check(model, batch, nn.functional.cross_entropy)


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_right(case: str) -> None:
    build, scale, verdict = CASES[case]
    report = checked(build(), scale)
    assert report.verdict is verdict, str(report)


def test_a_batch_without_examples_is_refused() -> None:
    with pytest.raises(BatchError, match="holds no example"):
        fanin.check(nn.Linear(64, 10), (torch.randn(0, 64), torch.zeros(0)), nn.functional.cross_entropy)


def test_an_optimizer_that_steps_in_backward_does_not_step_in_a_check() -> None:
    model = nn.Linear(64, 10)
    optimizers = {p: torch.optim.Adam([p]) for p in model.parameters()}
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    before = [p.detach().clone() for p in model.parameters()]
    checked(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(o.state for o in optimizers.values())
    model(torch.randn(4, 64)).sum().backward()
    assert all(o.state for o in optimizers.values()), "the user's hooks are back"


def test_a_loss_with_parameters_of_its_own_is_left_as_it_was() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return self.scale * nn.functional.cross_entropy(output, target)

    loss: Any = Loss()
    fanin.check(nn.Linear(64, 10), (torch.randn(8, 64), torch.randint(0, 10, (8,))), loss)
    assert loss.scale.grad is None
    assert loss.calls == 0


def test_a_watch_that_sees_no_gradient_gets_out_of_the_way(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(8, 2)
    with caplog.at_level(logging.WARNING, "fanin"), fanin.watch(model) as watch:
        for _ in range(150):
            torch.autograd.grad(model(torch.randn(4, 8)).sum(), list(model.parameters()))
        assert not watch.attached
    assert "no gradient" in caplog.text


def test_a_transform_inside_the_model_is_passed_over() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(self.fc)(x)

    assert checked(Mapped()).verdict is not Verdict.POOR


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_model_is_refused_in_one_message() -> None:
    with pytest.raises(UsageError, match="not a model that fanin knows"):
        checked(torch.jit.script(nn.Linear(64, 10)))
