"""Structured inputs for benchmarks: images that look a little like images, tokens that look a little like text.

Noise alone would not do: statistics of a network depend on what its inputs have in common. Images are smooth random
fields (1/f spectrum) plus a blob whose place depends on the class, normalized per batch; tokens are drawn by Zipf's
law and follow one another by a fixed table half of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Batch = tuple[Tensor, Tensor]


def images(count: int, side: int, *, channels: int = 3, classes: int = 10, seed: int = 0) -> Batch:
    """Images [count, channels, side, side] of zero mean and unit variance, and labels [count]."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    scene = sum(_field(count, channels, side, cells, random) / cells**0.5 for cells in (2, 4, 8, 16, 32))
    pixels = scene + 2 * _blobs(labels, classes, side)[:, None]
    return (pixels - pixels.mean()) / pixels.std(), labels


def _field(count: int, channels: int, side: int, cells: int, random: torch.Generator) -> Tensor:
    coarse = torch.randn(count, channels, cells, cells, generator=random)
    return functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)


def _blobs(labels: Tensor, classes: int, side: int) -> Tensor:
    """[count, side, side]: a Gaussian bump on a circle, at the angle of its class."""
    angle = 2 * torch.pi * labels / classes
    axis = torch.linspace(-1, 1, side)
    x, y = axis[None, :] - 0.5 * angle.cos()[:, None], axis[None, :] - 0.5 * angle.sin()[:, None]
    return torch.exp(-(y[:, :, None] ** 2 + x[:, None, :] ** 2) / 0.05)


def segments(count: int, side: int, *, classes: int = 5, seed: int = 0) -> Batch:
    """Images, and for each pixel the quantile of its brightness as label [count, side, side]."""
    pixels, _ = images(count, side, seed=seed)
    bright = pixels.mean(1)
    borders = bright.flatten().quantile(torch.linspace(0, 1, classes + 1)[1:-1])
    return pixels, torch.bucketize(bright, borders)


def tokens(count: int, length: int, vocabulary: int, *, seed: int = 0) -> Tensor:
    """Token ids [count, length], from 3 up: smaller ones are often special."""
    random = torch.Generator().manual_seed(seed)
    usual = vocabulary - 3
    frequency = 1 / torch.arange(1, usual + 1).float()
    fresh = torch.multinomial(frequency, count * length, True, generator=random).view(count, length)
    follower = torch.randperm(usual, generator=torch.Generator().manual_seed(1))
    follows = torch.rand(count, length, generator=random) < 0.5
    for t in range(1, length):
        fresh[:, t] = torch.where(follows[:, t], follower[fresh[:, t - 1]], fresh[:, t])
    return fresh + 3


def waves(count: int, length: int, *, seed: int = 0) -> Tensor:
    """Sounds [count, length] of unit variance: a few harmonics and noise, as 16 kHz audio."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / 16_000
    pitch = 100 + 200 * torch.rand(count, 1, generator=random)
    sound = torch.stack([torch.sin(2 * torch.pi * k * pitch * time) / k for k in (1, 2, 3, 5)]).sum(0)
    sound = sound + 0.3 * torch.randn(count, length, generator=random)
    return sound / sound.std()
