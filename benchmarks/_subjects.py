"""The models whose training and checking is timed, each with a batch and a loss: four for a CPU, two for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from _batches import Batch, images, tokens
from _own_models import MiniGPT, ResNet50, mlp, resnet18, small_cnn
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Subject:
    """A model with its batch, its loss and Adam."""

    model: nn.Module
    batch: Batch
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        """One training step as everybody writes it, waited for."""
        inputs, target = self.batch
        self.optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=inputs.is_cuda):
            loss = self.loss(self.model(inputs), target)
        loss.backward()
        self.optimizer.step()
        if inputs.is_cuda:
            torch.cuda.synchronize()

    def pass_by(self) -> None:
        """One forward and backward pass."""
        inputs, target = self.batch
        self.loss(self.model(inputs), target).backward()
        self.model.zero_grad()

    def on(self, device: str) -> Subject:
        """The same on a device."""
        inputs, target = self.batch
        return Subject(self.model.to(device), (inputs.to(device), target.to(device)), self.loss)


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of every next token."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def _language(model: nn.Module, count: int, length: int, vocabulary: int) -> Subject:
    ids = tokens(count, length + 1, vocabulary)
    return Subject(model, (ids[:, :-1], ids[:, 1:]), token_loss)


ON_CPU: dict[str, Callable[[], Subject]] = {
    # 1.19 M and 257 k parameters
    "mlp": lambda: Subject(mlp(784, 512, 512, 512, 512, 10), images(128, 28, channels=1)),
    "cnn": lambda: Subject(small_cnn(), images(64, 28, channels=1)),
    # 11.2 M and 25.1 M parameters
    "resnet18": lambda: Subject(resnet18(), images(32, 32)),
    "gpt": lambda: _language(MiniGPT(12_000, 512, 6, heads=8), 16, 64, 12_000),
}

ON_GPU: dict[str, Callable[[], Subject]] = {
    # 25.6 M parameters, ImageNet's size; 124 M parameters, GPT-2's length
    "resnet50": lambda: Subject(ResNet50(), images(128, 224, classes=1000)),
    "gpt2": lambda: _language(MiniGPT(50_257, 768, 12, heads=12, length=1024), 8, 1024, 50_257),
}
