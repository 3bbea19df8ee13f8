"""Small networks, each with one fault of its initialization, for tests of repairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, CLASSES, EXAMPLES = 32, 5, 64

Batch = tuple[Tensor, Tensor]


def batches(count: int = 6) -> list[Batch]:
    """Vectors, labelled by a linear teacher."""
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(WIDTH, CLASSES, generator=generator)
    inputs = [torch.randn(EXAMPLES, WIDTH, generator=generator) for _ in range(count)]
    return [(x, (x @ teacher).argmax(dim=1)) for x in inputs]


def tokens(count: int = 6) -> list[Batch]:
    """Sequences of eight tokens; the label is how often the first one occurs, at most four."""
    generator = torch.Generator().manual_seed(4)
    drawn = [torch.randint(0, 12, (EXAMPLES, 8), generator=generator) for _ in range(count)]
    return [(x, (x == x[:, :1]).sum(dim=1).clamp(max=CLASSES) - 1) for x in drawn]


class Net(nn.Module):
    """Six blocks of Linear and ReLU, and a head; he_normal."""

    def __init__(self, depth: int = 6, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.activation = activation
        for block in self.blocks:
            nn.init.kaiming_normal_(block.weight, nonlinearity="relu")
            nn.init.zeros_(block.bias)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 5]."""
        for block in self.blocks:
            x = self.activation(block(x))
        return self.head(x)


class Normed(nn.Module):
    """Residual blocks with layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.relu(layer(norm(x)))
        return self.head(x)


class Attending(nn.Module):
    """One layer of attention over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.norm(self.embedding(x))
        return self.head(h[:, 0] + self.attention(h, h, h, need_weights=False)[0].mean(dim=1))


class Remembering(nn.Module):
    """An LSTM over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


class Embedded(nn.Module):
    """Embedded tokens in a plain network."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.hidden = nn.Linear(64, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.embedding.weight.mul_(100)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(torch.tanh(self.hidden(self.embedding(x).flatten(1))))


def _edited(model: nn.Module, edit: Callable[[nn.Module], object]) -> nn.Module:
    with torch.no_grad():
        edit(model)
    return model


def _every(model: nn.Module, edit: Callable[[nn.Linear], object]) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            edit(module)


def _twins(layer: nn.Linear) -> None:
    layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))


FAULTS: dict[str, Callable[[], nn.Module]] = {
    "constant everywhere": lambda: _edited(
        Net(), lambda m: _every(m, lambda layer: layer.weight.fill_(0.05))
    ),
    "identical units": lambda: _edited(Net(), lambda m: _every(m, _twins)),
    "offset": lambda: _edited(Net(), lambda m: _every(m, lambda layer: layer.weight.uniform_(0, 1))),
    "tiny everywhere": lambda: _edited(Net(), lambda m: _every(m, lambda layer: layer.weight.mul_(0.01))),
    "huge everywhere": lambda: _edited(Net(), lambda m: _every(m, lambda layer: layer.weight.mul_(10))),
    "a layer of zeros": lambda: _edited(Net(), lambda m: m.blocks[2].weight.zero_()),
    "a layer of NaN": lambda: _edited(Net(), lambda m: m.blocks[2].weight.fill_(float("nan"))),
    "a layer never written": lambda: _edited(Net(), lambda m: m.blocks[2].weight.view(-1)[::7].fill_(1e20)),
    "a layer x 100": lambda: _edited(Net(), lambda m: m.blocks[2].weight.mul_(100)),
    "biases of -3": lambda: _edited(
        Net(),
        lambda m: [block.bias.fill_(-3) for block in m.blocks],  # type: ignore[union-attr]
    ),
    "a head x 300": lambda: _edited(Net(), lambda m: m.head.weight.mul_(300)),
    "gains of zero": lambda: _edited(Normed(), lambda m: [norm.weight.zero_() for norm in m.norms]),  # type: ignore[union-attr]
    "queries and keys x 30": lambda: _edited(Attending(), lambda m: m.attention.in_proj_weight[:64].mul_(30)),
    "recurrent kernel x 20": lambda: _edited(Remembering(), lambda m: m.lstm.weight_hh_l0.mul_(20)),
    "embeddings x 100": Embedded,
    "PyTorch's default, deep and narrow": lambda: nn.Sequential(
        *(layer for _ in range(30) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())),
        nn.Linear(WIDTH, CLASSES),
    ),
}
"""Each builds the same network every time after `torch.manual_seed(0)`."""


MENDED_BY_TRAINING = {
    "a layer x 100": ["blocks.2"],
    "a head x 300": ["head"],
    "gains of zero": ["norms"],
    "recurrent kernel x 20": ["lstm"],
    "embeddings x 100": ["embedding"],
}
"""Faults that Adam gets over: no verdict of poor, and a repair only where the layers are named."""


def built(fault: str) -> nn.Module:
    """The network, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FAULTS[fault]()


def batches_for(fault: str) -> list[Batch]:
    """What the network eats."""
    return tokens() if fault.startswith(("queries", "recurrent", "embeddings")) else batches()


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(output, target)
