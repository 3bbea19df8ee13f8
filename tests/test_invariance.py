"""A verdict does not depend on the loss's scale and reduction, on the batch size or on the number of classes.

The large version is benchmarks/invariance.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fanin
from fanin.finding import Verdict

WIDTH, CLASSES, BATCH, POSITIONS = 32, 10, 64, 8
Init = Callable[[Tensor], object]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def stack(depth: int, init: Init, classes: int) -> nn.Module:
    """ReLU layers of one width and a head of LeCun's scale, biases zero."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        init(layers[-2].weight)  # type: ignore[arg-type]
    layers.append(nn.Linear(WIDTH, classes))
    nn.init.normal_(layers[-1].weight, std=WIDTH**-0.5)  # type: ignore[arg-type]
    for layer in layers[::2]:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


class Transformer(nn.Module):
    """A block of attention and MLP, normalized first; query and key weights are multiplied. Mean over positions."""

    def __init__(self, factor: float, classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, classes)
        with torch.no_grad():
            for layer in (self.query, self.key):
                layer.weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            layer(h).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x).mean(1))


class Tied(nn.Module):
    """A residual block between a table of tokens and a head that shares its weight."""

    def __init__(self, std: float, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(classes, WIDTH)
        self.norm1, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, classes, bias=False)
        nn.init.normal_(self.tokens.weight, std=std)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        return self.head(self.norm(x + self.fc2(F.relu(self.fc1(self.norm1(x))))))


def he_normal(weight: Tensor) -> object:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def tiny(weight: Tensor) -> object:
    return nn.init.normal_(weight, std=0.01)


def unit(weight: Tensor) -> object:
    return nn.init.normal_(weight)


def vectors(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, WIDTH), torch.randint(CLASSES, (size,))


def sequences(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, POSITIONS, WIDTH), torch.randint(CLASSES, (size,))


def tokens(size: int) -> tuple[Tensor, Tensor]:
    return torch.randint(CLASSES, (size,)), torch.randint(CLASSES, (size,))


@dataclass(frozen=True)
class Network:
    """How to build it for so many classes, its batches, and what is right about it."""

    build: Callable[[int], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    verdict: Verdict
    cause: str = ""


NETWORKS = {
    "healthy": Network(lambda c: stack(12, he_normal, c), vectors, Verdict.HEALTHY),
    "vanishing": Network(lambda c: stack(20, tiny, c), vectors, Verdict.POOR, "gain_too_small"),
    "exploding": Network(lambda c: stack(12, unit, c), vectors, Verdict.POOR, "gain_too_large"),
    "transformer": Network(lambda c: Transformer(1.0, c), sequences, Verdict.HEALTHY),
    "saturated transformer": Network(
        lambda c: Transformer(30.0, c), sequences, Verdict.POOR, "attention_saturated"
    ),
    "tied, small": Network(lambda c: Tied(0.02, c), tokens, Verdict.HEALTHY),
}


@dataclass(frozen=True)
class Situation:
    """What may change about a check."""

    scale: float = 1.0
    reduction: str = "mean"
    batch: int = BATCH
    classes: int = CLASSES


SITUATIONS = {
    "loss x 1e-3": Situation(scale=1e-3),
    "loss x 1e4": Situation(scale=1e4),
    "sum": Situation(reduction="sum"),
    "batch x 4": Situation(batch=4 * BATCH),
    "batch / 4": Situation(batch=BATCH // 4),
    "classes x 2": Situation(classes=2 * CLASSES),
}

Said = tuple[Verdict, str, str]


def report(network: Network, situation: Situation) -> fanin.Report:
    torch.manual_seed(0)
    model = network.build(situation.classes)  # the head is drawn last: all before it stays what it is
    torch.manual_seed(1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return situation.scale * F.cross_entropy(output, target, reduction=situation.reduction)

    return fanin.check(model, network.batch(situation.batch), loss)


def said(report: fanin.Report) -> Said:
    """Verdict, first cause and first layer."""
    if not report.diagnosis.origins:
        return report.verdict, "", ""
    first = report.diagnosis.origins[0].finding
    return report.verdict, first.cause.value if first.cause else "", first.layer


@pytest.mark.parametrize("name", NETWORKS)
def test_the_verdict_stays(name: str) -> None:
    network = NETWORKS[name]
    plain = said(report(network, Situation()))
    assert plain[:2] == (network.verdict, network.cause)
    changed = {told: said(report(network, situation)) for told, situation in SITUATIONS.items()}
    assert changed == dict.fromkeys(SITUATIONS, plain)


@pytest.mark.parametrize("situation", [s for s in SITUATIONS if s.startswith(("loss", "sum"))])
def test_the_findings_stay_under_another_loss(situation: str) -> None:
    """Notes too: of a unit normal under a tied head, whose logits FAN412 holds against the first loss."""
    network = Network(lambda c: Tied(1.0, c), tokens, Verdict.HEALTHY)
    plain, changed = (
        {(f.code, f.layer) for f in report(network, s).findings} for s in (Situation(), SITUATIONS[situation])
    )
    assert changed == plain
