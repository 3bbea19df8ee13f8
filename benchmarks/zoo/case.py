"""What an animal of the zoo is, and what they eat: batches and losses that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks._batches import images, segments, tokens, waves
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
VOCABULARY = 1000

Eats = Callable[[int], Any]
"""A batch, made of a seed."""


@dataclass(frozen=True, slots=True)
class Case:
    """One animal: what makes it, and what it eats.

    Attributes:
        name: As its library calls it.
        origin: own, start, torchvision, timm or transformers.
        build: The model.
        batch: Of a seed, what `fanin.check` takes.
        loss: loss_fn(output, target); None where the model returns its own.
    """

    name: str
    origin: str
    build: Callable[[], nn.Module]
    batch: Eats
    loss: Callable[[Any, Any], Tensor] | None = functional.cross_entropy

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one plain forward pass."""
        if self.loss is None:
            return model(**batch).loss
        inputs, target = batch
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        return self.loss(output, target)


# -- batches


def pictures(count: int, side: int, channels: int = 3) -> Eats:
    """Images [count, channels, side, side] and their classes."""
    return lambda seed: images(count, side, channels=channels, classes=CLASSES, seed=seed)


def masks(count: int, side: int, classes: int = 5) -> Eats:
    """Images, and a class for each pixel."""
    return lambda seed: segments(count, side, classes=classes, seed=seed)


def clips(count: int, frames: int, side: int) -> Eats:
    """Videos [count, 3, frames, side, side], in each of which an image passes by, and their classes."""

    def eats(seed: int) -> tuple[Tensor, Tensor]:
        pixels, labels = images(count, side, classes=CLASSES, seed=seed)
        return torch.stack([pixels.roll(t, -1) for t in range(frames)], 2), labels

    return eats


def itself(count: int, side: int, channels: int = 3) -> Eats:
    """Images, and the same again as target."""

    def eats(seed: int) -> tuple[Tensor, Tensor]:
        pixels, _ = images(count, side, channels=channels, seed=seed)
        return pixels, pixels

    return eats


def text_classes(count: int = 32, length: int = 32, vocabulary: int = 500) -> Eats:
    """Token ids [count, length], and a class that the last of them tells."""

    def eats(seed: int) -> tuple[Tensor, Tensor]:
        ids = tokens(count, length, vocabulary, seed=seed)
        return ids, ids[:, -1] % CLASSES

    return eats


def next_token(count: int = 16, length: int = 64, vocabulary: int = 500) -> Eats:
    """Token ids [count, length], and those that follow them."""

    def eats(seed: int) -> tuple[Tensor, Tensor]:
        ids = tokens(count, length + 1, vocabulary, seed=seed)
        return ids[:, :-1], ids[:, 1:]

    return eats


def measurements(count: int = 128, width: int = 16, outputs: int = 1) -> Eats:
    """Standardized features [count, width] that correlate, and a smooth function of them [count, outputs]."""

    def eats(seed: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        mixes = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width**0.5
        x = torch.randn(count, width, generator=random) @ (torch.eye(width) + mixes)
        x = (x - x.mean(0)) / x.std(0)
        y = torch.stack([torch.sin(x[:, k]) + 0.5 * x[:, k + 1] * x[:, k + 2] for k in range(outputs)], 1)
        return x, y + 0.1 * torch.randn(count, outputs, generator=random)

    return eats


def sounds(count: int = 4, length: int = 8000) -> Eats:
    """Waves [count, length] under the name that speech models give them, and classes."""
    return lambda seed: {"input_values": waves(count, length, seed=seed), "labels": torch.arange(count)}


# -- losses


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of logits [batch, length, vocabulary]."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def flat_mse(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of flat pixels between 0 and 1."""
    return functional.mse_loss(output, target.flatten(1).clamp(0, 1))


def its_own(output: Tensor, target: Tensor) -> Tensor:
    """The output: some models return their loss."""
    return output
