"""Networks of our own that benchmarks measure: each in its usual form, with PyTorch's or its paper's initialization."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp(*widths: int) -> nn.Sequential:
    """A plain ReLU network with he_normal weights."""
    layers: list[nn.Module] = [nn.Flatten()]
    for taken, made in pairwise(widths):
        layers += [nn.Linear(taken, made), nn.ReLU()]
    return _he(nn.Sequential(*layers[:-1]))


def small_cnn() -> nn.Sequential:
    """About 257 k parameters, for 28 x 28 grey images."""
    return _he(
        nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 49, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
    )


def _he(model: nn.Sequential) -> nn.Sequential:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a way round them (He et al. 2016)."""

    def __init__(self, taken: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(taken, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        same = taken == made and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(taken, made, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, taken, h, w] to [batch, made, h / stride, w / stride]."""
        h = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """Six residual blocks for 32 x 32 images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        plan = ((32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        self.blocks = nn.Sequential(*(Residual(*block) for block in plan))
        self.head = nn.Linear(128, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, 32, 32] to [batch, classes]."""
        h = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(h.mean((2, 3)))


def resnet18() -> nn.Module:
    """ResNet-18 as it is trained on 32 x 32 images: 11.2 M parameters, no pooling after the stem."""
    plan = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1))
    return _residual(
        64, [Residual(*b) for b in (*plan, (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))]
    )


def _residual(width: int, blocks: list[nn.Module]) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return _fan_out(nn.Sequential(stem, *blocks, head))


def _fan_out(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, and a way round them (He et al. 2016)."""

    def __init__(self, taken: int, width: int, stride: int) -> None:
        super().__init__()
        made = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(taken, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, made, 1, bias=False), nn.BatchNorm2d(made)
        same = taken == made and stride == 1
        conv = nn.Conv2d(taken, made, 1, stride, bias=False)
        self.skip = nn.Identity() if same else nn.Sequential(conv, nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, taken, h, w] to [batch, 4 width, h / stride, w / stride]."""
        h = functional.relu(self.bn1(self.conv1(x)))
        h = functional.relu(self.bn2(self.conv2(h)))
        return functional.relu(self.bn3(self.conv3(h)) + self.skip(x))


class ResNet50(nn.Module):
    """25.6 M parameters, for 224 x 224 images."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        taken = 64
        for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for index in range(depth):
                blocks.append(Bottleneck(taken, width, 2 if index == 0 and width > 64 else 1))
                taken = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(taken, classes)
        _fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, 224, 224] to [batch, classes]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class MiniGPT(nn.Module):
    """GPT-2 in small, with its initialization: N(0, 0.02²), ends of branches scaled by 1/√(2 depth)."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                ends = name.endswith(("proj.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if ends else 0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, length, vocabulary] logits."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


class Recurrent(nn.Module):
    """A classifier of token sequences by LSTM or GRU, PyTorch's initialization."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cell = cell(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, 10] logits."""
        return self.head(self.cell(self.embedding(ids))[0][:, -1])


def autoencoder() -> nn.Sequential:
    """Convolutions down, transposed convolutions up, PyTorch's initialization."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(64, 16, 3, 2, 1),
        nn.ConvTranspose2d(16, 64, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1),
    )


def dense_autoencoder() -> nn.Sequential:
    """784-128-32-128-784 with sigmoids in the end, PyTorch's initialization."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 128),
        nn.ReLU(),
        nn.Linear(128, 784),
        nn.Sigmoid(),
    )


def _twice(taken: int, made: int, normed: bool) -> nn.Sequential:
    norm = nn.BatchNorm2d if normed else lambda _: nn.Identity()
    first, second = nn.Conv2d(taken, made, 3, padding=1), nn.Conv2d(made, made, 3, padding=1)
    return nn.Sequential(first, norm(made), nn.ReLU(), second, norm(made), nn.ReLU())


class UNet(nn.Module):
    """Three scales with skips (Ronneberger et al. 2015), with or without batch norm, PyTorch's initialization."""

    def __init__(self, classes: int = 5, width: int = 16, normed: bool = True) -> None:
        super().__init__()
        self.down1, self.down2 = _twice(3, width, normed), _twice(width, 2 * width, normed)
        self.middle = _twice(2 * width, 4 * width, normed)
        self.up2, self.up1 = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 2, 2),
        )
        self.join2, self.join1 = _twice(4 * width, 2 * width, normed), _twice(2 * width, width, normed)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, classes, h, w]."""
        a = self.down1(x)
        b = self.down2(functional.max_pool2d(a, 2))
        c = self.middle(functional.max_pool2d(b, 2))
        d = self.join2(torch.cat([b, self.up2(c)], 1))
        return self.head(self.join1(torch.cat([a, self.up1(d)], 1)))
