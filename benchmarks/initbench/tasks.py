"""Small learning tasks for InitBench: what its networks are trained on for 300 steps.

Every task is deterministic: it draws from its own generator and leaves the global random state alone. What counts is
how far training gets, not generalization, so a task has no test set, only a fixed subset on which to evaluate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from sklearn import datasets
from sklearn.neighbors import kneighbors_graph
from torch import Tensor
from torch.nn import functional

Batch = tuple[tuple[Tensor, ...], Tensor]

EVALUATED = 512
CLASSES = 10
VOCABULARY = 32
LENGTH = 16
NODES = 300
NUMERIC, CATEGORICAL, BINS = 20, 10, 8


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Inputs, targets and a loss. A `whole` task (a graph) has one batch: all of its samples."""

    name: str
    inputs: tuple[Tensor, ...]
    targets: Tensor
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    whole: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> Batch:
        """Inputs and targets of the samples at these indices."""
        if self.whole:
            return self.inputs, self.targets
        return tuple(values[indices] for values in self.inputs), self.targets[indices]

    def evaluation(self) -> Batch:
        """A fixed random subset of at most 512 samples."""
        order = torch.randperm(len(self), generator=_generator(512))
        return self.batch(order[:EVALUATED])

    @property
    def constant_loss(self) -> float:
        """Loss of the best constant predictor: entropy of the labels, or variance of the targets."""
        return _constant_loss(self)


@cache
def _constant_loss(task: Task) -> float:
    if task.targets.is_floating_point():
        return task.targets.var(0, correction=0).mean().item()
    frequency = task.targets.flatten().bincount().double() / task.targets.numel()
    return torch.special.entr(frequency).sum().item()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits [..., classes] and labels [...]."""
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return functional.mse_loss(output, target)


@cache
def digits_images() -> Task:
    """Handwritten digits as images [N, 1, 8, 8] of zero mean and unit variance, ten classes."""
    images, labels = _digits()
    return Task("digits images", (images[:, None],), labels, cross_entropy)


@cache
def digits_flat() -> Task:
    """Digits as vectors [N, 64]."""
    images, labels = _digits()
    return Task("digits flat", (images.flatten(1),), labels, cross_entropy)


@cache
def digits_rows() -> Task:
    """Digits as sequences of 8 rows [N, 8, 8]."""
    images, labels = _digits()
    return Task("digits rows", (images,), labels, cross_entropy)


@cache
def digits_half_rows() -> Task:
    """Digits as longer sequences, of 16 half rows [N, 16, 4]: the two halves of a row follow each other."""
    images, labels = _digits()
    return Task("digits half rows", (images.reshape(-1, 16, 4),), labels, cross_entropy)


@cache
def digits_patches() -> Task:
    """Digits as 16 patches of 2×2 pixels [N, 16, 4]."""
    images, labels = _digits()
    patches = images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
    return Task("digits patches", (patches,), labels, cross_entropy)


@cache
def digits_reconstruction() -> Task:
    """Digits as vectors [N, 64], to be reconstructed."""
    flat = _digits()[0].flatten(1)
    return Task("digits reconstruction", (flat,), flat, mse)


@cache
def digits_denoising() -> Task:
    """Digits [N, 1, 8, 8] under noise of standard deviation 0.7; the target is the clean image."""
    clean = _digits()[0][:, None]
    noise = torch.randn(clean.shape, generator=_generator(1))
    return Task("digits denoising", (clean + 0.7 * noise,), clean, mse)


@cache
def markov_tokens() -> Task:
    """Next tokens of a language of order 2: [N, 16] of 32 tokens.

    A token is a pair: one of 2 letters and one of 16 tones. The next letter follows from the letters of the two last
    tokens (their sum), the next tone from the tone of the last token but one; every tenth token is random. So the
    present token alone tells nothing of the next: both parts of it are uniform unless the one before is known too.
    """
    random = _generator(2)
    count = 4096
    following = torch.randperm(16, generator=random)
    letters = torch.randint(2, (count, LENGTH + 1), generator=random)
    tones = torch.randint(16, (count, LENGTH + 1), generator=random)
    ruled = torch.rand(count, LENGTH + 1, generator=random) < 0.9
    for t in range(2, LENGTH + 1):
        letter = (letters[:, t - 1] + letters[:, t - 2]) % 2
        letters[:, t] = torch.where(ruled[:, t], letter, letters[:, t])
        tones[:, t] = torch.where(ruled[:, t], following[tones[:, t - 2]], tones[:, t])
    spelling = torch.randperm(VOCABULARY, generator=random)
    tokens = spelling[16 * letters + tones]
    return Task("markov tokens", (tokens[:, :-1].contiguous(),), tokens[:, 1:].contiguous(), cross_entropy)


@cache
def tabular() -> Task:
    """Breast cancer: 20 standardized columns [N, 20], 10 columns in 8 bins each [N, 10], two classes."""
    table, labels = datasets.load_breast_cancer(return_X_y=True)
    columns = _standardized(torch.tensor(table, dtype=torch.float32))
    categories = columns[:, NUMERIC:].contiguous()
    borders = categories.quantile(torch.linspace(0, 1, BINS + 1)[1:-1], dim=0)
    binned = (categories[:, None, :] > borders).sum(1)
    return Task(
        "tabular", (columns[:, :NUMERIC].contiguous(), binned), torch.tensor(labels).long(), cross_entropy
    )


@cache
def diabetes() -> Task:
    """Diabetes progression from 10 standardized columns [N, 10]; the target [N, 1] is standardized."""
    table, progression = datasets.load_diabetes(return_X_y=True)
    columns = torch.tensor(table, dtype=torch.float32)
    target = torch.tensor(progression, dtype=torch.float32)[:, None]
    return Task("diabetes", (_standardized(columns),), _standardized(target), mse)


@cache
def graph() -> Task:
    """The classes of 300 digits, nodes of one graph (see `graph_adjacency`): every batch is the whole graph."""
    images, labels = _digits()
    return Task("graph", (images[:NODES].flatten(1),), labels[:NODES], cross_entropy, whole=True)


@cache
def graph_adjacency() -> Tensor:
    """[300, 300]: each digit and its five nearest neighbours, D^-½ (A + I) D^-½."""
    features = _digits()[0][:NODES].flatten(1).numpy()
    nearest = torch.tensor(kneighbors_graph(features, 5).toarray(), dtype=torch.float32)
    linked = torch.maximum(nearest, nearest.T) + torch.eye(NODES)
    scale = linked.sum(1).rsqrt()
    return scale[:, None] * linked * scale


@cache
def image_fitting() -> Task:
    """One image of 48×48 pixels, nine digits enlarged: coordinates in [-1, 1]² to standardized brightness [N, 1]."""
    images = _digits()[0][:9].view(3, 3, 8, 8)
    mosaic = images.transpose(1, 2).reshape(1, 1, 24, 24)
    picture = functional.interpolate(mosaic, (48, 48), mode="bicubic", align_corners=False)
    axis = torch.linspace(-1, 1, 48)
    places = torch.cartesian_prod(axis, axis)
    return Task("image fitting", (places,), _standardized(picture.reshape(-1, 1)), mse)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 8, 8] of zero mean and unit variance in a fixed random order, and their classes."""
    data = datasets.load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32), torch.tensor(data.target).long()
    order = torch.randperm(len(labels), generator=_generator(0))
    return ((images - images.mean()) / images.std())[order], labels[order]


def _standardized(columns: Tensor) -> Tensor:
    return (columns - columns.mean(0)) / columns.std(0, correction=0)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
