"""The six networks on which the readings of the documented rule were settled, trained and saved as smdebug saves them.

MLP: 5 blocks of Linear(64) and ReLU, a head Linear(10). CNN: 3 blocks of Conv3x3 (8, 16, 16 channels) and ReLU, the
first two pooled, a block Linear(64) and ReLU, a head Linear(10). Ten Gaussian clusters, inputs of variance 1, half of
that within a cluster; batches of 32, SGD with a rate of 0.05, cross-entropy, biases of zero; weights by he_normal, or
N(0, 1e-4^2), or N(0, 1).
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .smdebug_writer import TrialWriter

STEPS = 10


class Block(nn.Module):
    """A layer, its activation, and what follows."""

    def __init__(self, layer: nn.Module, *after: nn.Module) -> None:
        super().__init__()
        self.layer, self.relu, self.after = layer, nn.ReLU(), nn.Sequential(*after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In that order."""
        out: torch.Tensor = self.after(self.relu(self.layer(x)))
        return out


class MLP(nn.Sequential):
    """Named as its parameters are."""


class CNN(nn.Sequential):
    """Named as its parameters are."""


def mlp() -> nn.Module:
    """Five hidden layers."""
    blocks = nn.Sequential(*(Block(nn.Linear(64, 64)) for _ in range(5)))
    return MLP(OrderedDict(blocks=blocks, head=nn.Linear(64, 10)))


def cnn() -> nn.Module:
    """Three convolutions and a hidden layer, for images of 16 x 16."""
    pool = lambda: nn.MaxPool2d(2)  # noqa: E731
    blocks = nn.Sequential(
        Block(nn.Conv2d(1, 8, 3, padding=1), pool()),
        Block(nn.Conv2d(8, 16, 3, padding=1), pool()),
        Block(nn.Conv2d(16, 16, 3, padding=1), nn.Flatten()),
    )
    return CNN(OrderedDict(blocks=blocks, fc=Block(nn.Linear(256, 64)), head=nn.Linear(64, 10)))


def draw(model: nn.Module, std: float | None) -> None:
    """Weights by he_normal, or of one standard deviation; biases of zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.zeros_(module.bias)
            if std is None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, 0.0, std)


def write(folder: Path, kind: str, std: float | None, seed: int = 0, steps: int = STEPS) -> Path:
    """Train one of the networks for some steps and save its trial."""
    torch.manual_seed(seed)
    model, shape = (mlp(), (64,)) if kind == "mlp" else (cnn(), (1, 16, 16))
    draw(model, std)
    centers = torch.randn(10, *shape)
    writer = TrialWriter(folder).collections()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen: dict[str, Any] = {}
    watch(model, seen)
    for step in range(steps):
        targets = torch.randint(10, (32,))
        seen.clear()
        parameters = {f"{kind.upper()}_{n}": p.detach().clone().numpy() for n, p in model.named_parameters()}
        loss = nn.functional.cross_entropy(
            model((centers[targets] + torch.randn(32, *shape)) / 2**0.5), targets
        )
        optimizer.zero_grad()
        loss.backward()
        gradients = {
            f"gradient/{kind.upper()}_{n}": p.grad.numpy().copy()
            for n, p in model.named_parameters()
            if p.grad is not None
        }
        writer.step(
            step, parameters | seen | {"CrossEntropyLoss_output_0": loss.detach().numpy()} | gradients
        )
        optimizer.step()
    return writer.end().folder


def watch(model: nn.Module, seen: dict[str, Any]) -> None:
    """Note the inputs of the activations as they are before these run."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):

            def note(_: nn.Module, given: tuple[torch.Tensor, ...], name: str = name) -> None:
                seen[f"{name}_input_0"] = given[0].detach().clone().numpy()

            module.register_forward_pre_hook(note)
