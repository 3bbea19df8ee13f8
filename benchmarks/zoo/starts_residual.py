"""Odd starts of residual networks: branches, heads and adapters that begin at zero or close to it."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks._batches import images
from benchmarks._own_models import Block, MiniGPT, ResNet
from torch import Tensor, nn
from torch.nn import functional


def zero_gamma() -> ResNet:
    """The last gain of each branch is zero (Goyal et al. 2017)."""
    model = ResNet()
    for block in model.blocks:
        nn.init.zeros_(block.bn2.weight)
    return model


class PlainBranch(nn.Module):
    """x + scale · conv(relu(conv(relu(x)))), with Fixup's scalars."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bias3 = nn.Parameter(torch.zeros(1))
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, h, w] to the same."""
        h = self.conv1(functional.relu(x + self.bias1) + self.bias2)
        return x + self.scale * self.conv2(functional.relu(h + self.bias3))


class Unnormalized(nn.Module):
    """Residual blocks without normalization: SkipInit (De and Smith 2020) or Fixup (Zhang et al. 2019)."""

    def __init__(self, start: str, depth: int = 8, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        nn.init.kaiming_normal_(self.stem.weight, nonlinearity="relu")
        self.blocks = nn.Sequential(*(PlainBranch(width, float(start == "fixup")) for _ in range(depth)))
        self.head = nn.Linear(width, 10)
        for block in self.blocks:
            nn.init.kaiming_normal_(block.conv1.weight, nonlinearity="relu")
            nn.init.kaiming_normal_(block.conv2.weight, nonlinearity="relu")
            if start == "fixup":
                block.conv1.weight.data *= depth**-0.5
                nn.init.zeros_(block.conv2.weight)
        if start == "fixup":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, 10]."""
        return self.head(functional.relu(self.blocks(self.stem(x))).mean((2, 3)))


class ScaledBranch(nn.Module):
    """ConvNeXt's block (Liu et al. 2022): LayerScale 1e-6, weights truncated N(0, 0.02²)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, h, w] to the same."""
        h = self.norm(self.mix(x).permute(0, 2, 3, 1))
        h = self.gamma * self.fc2(functional.gelu(self.fc1(h)))
        return x + h.permute(0, 3, 1, 2)


class LayerScaled(nn.Module):
    """Six blocks of ConvNeXt."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(ScaledBranch(width) for _ in range(6)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, 10]."""
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class FullBlock(nn.Module):
    """A pre-norm transformer block that sees everything."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 4 x 4, four blocks, glorot_uniform weights as JAX's ViT has them."""

    def __init__(self, width: int = 96, places: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, places, width))
        self.blocks = nn.Sequential(*(FullBlock(width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif "fc" in name:
                nn.init.normal_(parameter, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, 32, 32] to [batch, 10]."""
        h = self.stem(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(h)).mean(1))


def vit_zero_head() -> ViT:
    """The classifier is zero (Dosovitskiy et al. 2021, JAX code)."""
    model = ViT()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


class ReZeroBlock(nn.Module):
    """x + α f(x) with α = 0, no normalization (Bachlechner et al. 2021)."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = x + self.alpha * self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return x + self.alpha * self.fc2(functional.relu(self.fc1(x)))


class ReZero(nn.Module):
    """Eight blocks of ReZero between an embedding and a head, PyTorch's initialization for the rest."""

    def __init__(self, vocabulary: int = 500, width: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(ReZeroBlock(width) for _ in range(8)))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, length, vocabulary] logits."""
        return self.head(self.blocks(self.tokens(ids) + self.places(torch.arange(ids.shape[1]))))


class LoRA(nn.Module):
    """A frozen linear layer and a way round it, B A x, with B = 0 (Hu et al. 2022)."""

    def __init__(self, frozen: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.lora_a = nn.Linear(frozen.in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_a.weight, a=5**0.5)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., fan_in] to [..., fan_out]."""
        return self.frozen(x) + 2 * self.lora_b(self.lora_a(x))


def lora() -> MiniGPT:
    """A frozen GPT whose packed projections and MLPs are adapted."""
    model = MiniGPT(500, 96, 4).requires_grad_(False)
    for block in model.blocks:
        block.qkv, block.fc1, block.fc2 = LoRA(block.qkv), LoRA(block.fc1), LoRA(block.fc2)
    return model


class MuP(nn.Module):
    """A GPT in maximal update parametrization (Yang et al. 2022): zero head and queries, logits over width."""

    def __init__(self, vocabulary: int = 500, width: int = 128, depth: int = 4, base: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.logit_scale = base / width
        for name, parameter in self.blocks.named_parameters():
            if parameter.ndim > 1:
                ends = name.endswith(("proj.weight", "fc2.weight"))
                std = 0.02 * (base / width) ** 0.5
                nn.init.normal_(parameter, std=std / (2 * depth) ** 0.5 if ends else std)
        for block in self.blocks:
            nn.init.zeros_(block.qkv.weight.data[:width])
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] ids to [batch, length, vocabulary] logits."""
        h = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.logit_scale * self.head(self.norm(self.blocks(h)))


def unit_embedding() -> MiniGPT:
    """Embeddings N(0, 1), as nn.Embedding draws them, and a head of its own at N(0, 1/width)."""
    model = MiniGPT(500, 128, 4)
    model.head.weight = nn.Parameter(torch.randn(500, 128) / 128**0.5)
    nn.init.normal_(model.tokens.weight)
    return model


class AdaLN(nn.Module):
    """A block of DiT (Peebles and Xie 2023): shift, scale and gate come from a zero layer."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """[batch, length, width] and a condition [batch, width] to the same."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(told)[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(h, h, h, need_weights=False)[0]
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.fc2(functional.gelu(self.fc1(h)))


class DiT(nn.Module):
    """Four blocks, and a last layer at zero."""

    def __init__(self, width: int = 96, patch: int = 4, side: int = 32) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.stem = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(AdaLN(width) for _ in range(4))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, 3 * patch**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.time[0].weight, std=0.02)
        nn.init.normal_(self.time[2].weight, std=0.02)
        ends = (*(block.modulation[1] for block in self.blocks), self.modulation[1], self.head)
        for end in ends:
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Noised images [batch, 3, side, side] and times [batch] to the noise."""
        angle = time[:, None] * torch.logspace(0, 4, 32)[None]
        told = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.stem(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            h = block(h, told)
        shift, scale = self.modulation(told)[:, None].chunk(2, -1)
        out = self.head(self.norm(h) * (1 + scale) + shift).transpose(1, 2)
        return functional.fold(out, (self.side, self.side), self.patch, stride=self.patch)


def noised(seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Images with noise, how much of it, and the noise."""
    pixels, _ = images(16, 32, seed=seed)
    random = torch.Generator().manual_seed(seed)
    time, noise = torch.rand(16, generator=random), torch.randn(pixels.shape, generator=random)
    kept = (0.5 * torch.pi * time).cos()[:, None, None, None]
    return (kept * pixels + (1 - kept**2).sqrt() * noise, time), noise


class ControlNet(nn.Module):
    """A frozen network, a trained copy of its first half, and zero convolutions between (Zhang et al. 2023)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.frozen_stem, self.frozen_down = nn.Conv2d(3, width, 3, padding=1), _stage(width)
        self.frozen_up, self.frozen_head = _stage(width), nn.Conv2d(width, 3, 3, padding=1)
        self.requires_grad_(False)
        self.stem, self.down = nn.Conv2d(3, width, 3, padding=1), _stage(width)
        self.stem.load_state_dict(self.frozen_stem.state_dict())
        self.down.load_state_dict(self.frozen_down.state_dict())
        self.hint, self.zero_in = nn.Conv2d(3, width, 3, padding=1), _zero(width)
        self.zero_out = _zero(width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to the same; brightness is the hint."""
        hint = x.mean(1, keepdim=True).expand_as(x)
        told = self.down(self.stem(x) + self.zero_in(functional.silu(self.hint(hint))))
        h = self.frozen_down(self.frozen_stem(x)) + self.zero_out(told)
        return self.frozen_head(self.frozen_up(h))


def _stage(width: int) -> nn.Sequential:
    first, second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), first, nn.GroupNorm(8, width), nn.SiLU(), second)


def _zero(width: int) -> nn.Conv2d:
    layer = nn.Conv2d(width, width, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def frozen_backbone() -> ResNet:
    """Only the head is trained."""
    model = ResNet().requires_grad_(False)
    model.head.requires_grad_(True)
    return model


class Coupling(nn.Module):
    """Half of the features shift and scale the other half, by a network that ends in zeros (Kingma et al. 2018)."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width // 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, width] to the same, halves exchanged, and log |det| [batch]."""
        kept, moved = x.chunk(2, 1)
        shift, log_scale = self.net(kept).chunk(2, 1)
        log_scale = torch.tanh(log_scale)
        return torch.cat([moved * log_scale.exp() + shift, kept], 1), log_scale.sum(1)


class Flow(nn.Module):
    """Six couplings."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(width) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] to log-likelihoods [batch], up to a constant."""
        total = torch.zeros(len(x))
        for coupling in self.couplings:
            x, volume = coupling(x)
            total = total + volume
        return total - 0.5 * x.square().sum(1)


def likelihood(output: Tensor, target: Any) -> Tensor:
    """The mean negative log-likelihood."""
    return -output.mean()
