"""What the tests of watching have in common: a network that uses random numbers, its batches, a plain loop."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks

from ways.nets import sgd, step_of_another

ORIGINAL_BACKWARD = torch.autograd.backward
INPUTS, CLASSES = 6, 3
LossFn = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """A network with dropout, so that its training uses random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, 8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.fc2(self.drop(self.relu(self.fc1(x))))
        return out


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(size, INPUTS, generator=made), torch.randint(CLASSES, (size,), generator=made)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x), y)


def train(
    model: nn.Module, steps: int, each: Callable[[int], None] = lambda step: None, first: int = 0
) -> list[float]:
    """Plain training; `each(step)` runs before each step. Returns the losses."""
    optimizer, losses = sgd(model), []
    for step in range(first, first + steps):
        each(step)
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def require_nothing_global() -> None:
    """What is forgotten, rather than closed, goes with the next step that anybody takes."""
    if _global_optimizer_post_hooks:
        gc.collect()
        step_of_another()
    assert torch.autograd.backward is ORIGINAL_BACKWARD
    assert not _global_optimizer_post_hooks
    assert torch._C._len_torch_function_stack() == 0


def accumulation(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model)
    for step in range(steps):
        for micro in range(3):
            (loss_of(model, 3 * step + micro) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
