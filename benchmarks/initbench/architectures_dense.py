"""Networks of InitBench made of dense layers: plain, normalized, residual, gated; for codes, tables, graphs, images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from benchmarks.initbench.tasks import BINS
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Hidden layers of one width, each Linear, norm (if any), activation; then a linear head."""

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        depth: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        """`depth` counts all Linear layers, the head too."""
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth - 1):
            layers.append(nn.Linear(inputs if i == 0 else width, width))
            if norm is not None:
                layers.append(norm(width))
            layers.append(activation())
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class FunctionalMLP(nn.Module):
    """The same without norms, its activation a function called in `forward`."""

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        depth: int,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        """`depth` counts all Linear layers, the head too."""
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 2))
        self.head = nn.Linear(width, outputs)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


class ResidualDense(nn.Module):
    """x + fc2(relu(fc1(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x)))


class ResidualMLP(nn.Module):
    """Residual dense blocks without norms."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(ResidualDense(width) for _ in range(blocks)))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class RMSNorm(nn.Module):
    """Divides by the root mean square, then scales."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class SwiGLU(nn.Module):
    """x + down(silu(gate(norm x)) · up(norm x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class GatedMLP(nn.Module):
    """Gated residual blocks, normalized first, as in present language models."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(SwiGLU(width, 2 * width) for _ in range(blocks))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Autoencoder(nn.Module):
    """Dense layers down to a linear code and up again."""

    def __init__(self, widths: Sequence[int], activation: Callable[[], nn.Module]) -> None:
        """`widths` from the input to the code; the decoder mirrors them."""
        super().__init__()
        self.encoder = self._stack(widths[:-1], activation)
        self.code = nn.Linear(widths[-2], widths[-1])
        self.decoder = self._stack(widths[:0:-1], activation)
        self.head = nn.Linear(widths[1], widths[0])

    @staticmethod
    def _stack(widths: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.code(self.encoder(x))))


class TabularNet(nn.Module):
    """Embeddings of the categories beside the numeric columns, then a plain MLP of four layers."""

    def __init__(self, numeric: int, categorical: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(BINS, 4) for _ in range(categorical))
        self.fc1 = nn.Linear(numeric + 4 * categorical, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        embedded = [embedding(categories[:, i]) for i, embedding in enumerate(self.embeddings)]
        x = torch.cat([numeric, *embedded], 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = F.relu(self.fc3(x))
        return self.head(x)


class GraphConvolution(nn.Module):
    """The features of a node's neighbours, mixed by a Linear layer."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ self.linear(x)


class GCN(nn.Module):
    """Graph convolutions over one graph, which it holds as a buffer."""

    def __init__(self, adjacency: Tensor, inputs: int, width: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency.clone())
        self.convs = nn.ModuleList(
            GraphConvolution(inputs if i == 0 else width, width) for i in range(depth - 1)
        )
        self.head = GraphConvolution(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x, self.adjacency))
        return self.head(x, self.adjacency)


class Sine(nn.Module):
    """sin(ω · Linear(x)), initialized as by its makers (Sitzmann and others, 2020)."""

    def __init__(self, fan_in: int, fan_out: int, *, omega: float = 30.0, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)
        self.omega = omega
        bound = 1 / fan_in if first else math.sqrt(6 / fan_in) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


class Siren(nn.Module):
    """Sine layers and a linear head: an image as a function of coordinates."""

    def __init__(self, inputs: int, width: int, outputs: int, depth: int, omega: float = 30.0) -> None:
        """`depth` counts all Linear layers, the head too."""
        super().__init__()
        self.stem = Sine(inputs, width, omega=omega, first=True)
        self.layers = nn.Sequential(*(Sine(width, width, omega=omega) for _ in range(depth - 2)))
        self.head = nn.Linear(width, outputs)
        bound = math.sqrt(6 / width) / omega
        nn.init.uniform_(self.head.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)))
