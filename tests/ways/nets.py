"""What the tests of ways to train have in common: a network, its batches, a plain loop, a rule that asks for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanin.capture import Watch, watch
from fanin.rule import Need, Rule
from fanin.summary import TensorSummary
from fanin.trial import Role, Step, Trial

INPUTS, HIDDEN, CLASSES, EXAMPLES = 6, 8, 4, 16

UPDATED = Callable[[nn.Module, torch.optim.Optimizer, Tensor], None]


class Everything(Rule):
    """Asks for every role at every step."""

    code, name = "TEST", "everything"
    needs = frozenset(Need(role, every_step=True, histogram=True, units=True) for role in Role)

    def check(self, trial: Trial) -> Iterator[Any]:
        """Says nothing."""
        yield from ()

    @classmethod
    def examples(cls) -> Iterator[Any]:
        """None."""
        yield from ()


class Net(nn.Module):
    """Two layers and a ReLU, computed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.fc2(self.relu(self.fc1(x)))
        return out


def net(seed: int = 0) -> Net:
    """Equal seeds, equal weights."""
    torch.manual_seed(seed)
    return Net()


def batch(seed: int = 0, size: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    """Equal seeds, equal examples."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(size, INPUTS, generator=made), torch.randint(CLASSES, (size,), generator=made)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    """Cross-entropy on a batch."""
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    """The plainest optimizer."""
    return torch.optim.SGD(model.parameters(), lr=lr)


def train(model: nn.Module, steps: int, first: int = 0) -> list[float]:
    """A plain loop; returns the losses."""
    optimizer, losses = sgd(model), []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def step_of_another() -> None:
    """Nobody's model takes a step: a moment at which it is safe to take away what was hung up all over torch."""
    model = nn.Linear(1, 1)
    model(torch.zeros(1, 1)).sum().backward()
    sgd(model).step()


def observe(model: nn.Module, **how: Any) -> Watch:
    """Watch every role for three steps, faults raised, unless told otherwise."""
    return watch(model, **{"rules": [Everything()], "steps": 3, "on_error": "raise"} | how)


def losses(seen: Watch) -> list[float]:
    """By step, as captured."""
    return [step.loss for step in seen.trial.steps]


def of(step: Step, role: Role) -> dict[str, TensorSummary]:
    """Summaries by tensor."""
    return {name: o.summary for name, o in step.of(role).items()}


def gradient(step: Step, parameter: str) -> TensorSummary:
    """Of the gradient of a weight."""
    return of(step, Role.WEIGHT_GRAD)[f"gradient/{parameter}"]


def parameters_of(model: nn.Module) -> list[Tensor]:
    """Their values now."""
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """To the bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def hooks_on(model: nn.Module) -> list[str]:
    """Every hook on a model's modules and parameters."""
    on_modules = [f"{p}.{h}" for p, m in model.named_modules() for h in HOOKS if getattr(m, h)]
    hung = [n for n, p in model.named_parameters() if p._post_accumulate_grad_hooks or p._backward_hooks]
    return on_modules + hung
