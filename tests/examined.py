"""Networks and batches for tests of `check`."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import torch
from torch import Tensor, nn

INPUTS, HIDDEN, CLASSES, BATCH = 6, 8, 3, 16


cross_entropy = nn.functional.cross_entropy


class Net(nn.Module):
    """A network with all that a pass can change: running statistics, random numbers, attributes, lists."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.history: list[float] = []
        self.recent: deque[int] = deque(maxlen=3)
        self.known: dict[str, int] = {"a": 1}
        self.cache = torch.zeros(HIDDEN)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        self.history.append(float(x.detach().sum()))
        self.recent.append(self.calls)
        self.known["b"] = self.calls
        self.last_input = x
        hidden = self.drop(self.relu(self.norm(self.fc1(x))))
        self.cache += hidden.detach()[0]
        random.random()
        np.random.rand()
        out: Tensor = self.fc2(hidden)
        return out


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(width: int = INPUTS) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, width, generator=made), torch.randint(CLASSES, (BATCH,), generator=made)


class Named(nn.Module):
    """Takes named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, CLASSES)

    def forward(self, x: Tensor, second: Tensor | None = None) -> Tensor:
        """Logits."""
        out: Tensor = self.fc(x if second is None else x + second)
        return out


X, Y = batch()
