"""The loss of the best output that does not depend on the input: what a network must beat to have learned anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log, nan
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.adapters.torch.describe import tensors_in

LossFunction = Callable[[Any, Any], Any]

MOST_CALLS = 40
"""Of the user's loss, which may be costly."""

ITERATIONS = 60
"""Of L-BFGS. The losses in use are convex in the output, and the constant has one value per unit."""

SETTLED = 1e-9
"""Gradient, relative to the loss, below which the constant counts as the best one."""

RAREST = 1e-12
"""Stands for the frequency of a class that the batch does not hold, whose logarithm there is none of."""

ALIKE = 1e-3
"""Relative difference up to which a loss is a cross entropy: float32 over a batch of 10^5 tokens rounds to 10^-5."""

UNBOUNDED = -1e3
"""Multiples of its value for zeros below which a loss has no lowest value for a constant (a critic's, a margin's)."""

LARGEST = 4_000_000
"""Elements of an output above which it is not expanded in float64 for every iteration: 32 MiB, a tenth of a second
for each. Of cross entropy the entropy of the labels is known without."""


def uninformed_loss(output: Any, target: Any, loss_fn: LossFunction | None, unit_axis: int | None) -> float:
    """Loss of the best constant output.

    The output is a constant for each unit, the same for every sample and position: for cross entropy the entropy of
    the labels, for the mean squared error the variance of the targets.

    Args:
        output: The model's output for this batch, for its shape.
        target: What the loss compares it with.
        loss_fn: loss_fn(output, target); None where the model returns its own loss, of which only cross entropy of
            `output.logits` [..., classes] with labels of shape [...] is known.
        unit_axis: Axis of the output that counts units; None for one constant for all.

    Returns:
        A loss in the loss's own unit; nan where it cannot be computed.
    """
    return uninformed_loss_of([(output, target)], loss_fn, unit_axis)


def uninformed_loss_of(
    examples: Sequence[tuple[Any, Any]], loss_fn: LossFunction | None, unit_axis: int | None
) -> float:
    """As `uninformed_loss`, of one constant for several batches of (output, target); the mean over batches."""
    try:
        with torch.enable_grad():
            return _of(examples, loss_fn, unit_axis)
    except Exception:  # noqa: BLE001  # the user's loss may refuse any output but the model's; then it is not known
        return nan


def _of(examples: Sequence[tuple[Any, Any]], loss_fn: LossFunction | None, unit_axis: int | None) -> float:
    if loss_fn is None:
        return _entropy([_labels(_logits(output), target) for output, target in examples])
    if not examples or not all(isinstance(output, Tensor) for output, _ in examples):
        return nan
    if sum(output.numel() for output, _ in examples) > LARGEST:
        plain = loss_fn is F.cross_entropy or _is_plain_cross_entropy(loss_fn)
        return _entropy([target for _, target in examples]) if plain else nan
    known = _by_frequencies(examples, loss_fn, unit_axis)
    return known if known is not None else _minimum(examples, loss_fn, unit_axis)


def _by_frequencies(
    examples: Sequence[tuple[Tensor, Any]], loss_fn: LossFunction, unit_axis: int | None
) -> float | None:
    """The optimum of a cross entropy, whatever wraps and scales it: the logarithm of the classes' frequencies, where
    the loss is as many times their entropy as it is log(classes) for zeros. Two calls; None for any other loss."""
    output = examples[0][0]
    labels = [target for _, target in examples]
    if (
        unit_axis is None
        or not output.ndim
        or any(not isinstance(t, Tensor) or t.is_floating_point() for t in labels)
    ):
        return None
    classes = output.shape[unit_axis]
    flat = torch.cat([t.reshape(-1) for t in labels])
    flat = flat[flat >= 0]
    if classes < 2 or not len(flat) or int(flat.max()) >= classes:
        return None
    share = torch.bincount(flat.long(), minlength=classes).float() / len(flat)
    entropy = float(-torch.special.xlogy(share, share).sum())
    shape = [1] * output.ndim
    shape[unit_axis] = classes
    best = share.clamp(min=RAREST).log().reshape(shape)

    def mean_loss(constant: Tensor) -> float:
        with torch.no_grad():
            losses = [loss_fn(constant.expand(o.shape).to(o.dtype), t) for o, t in examples]
        return float(torch.stack([loss.reshape(()).float() for loss in losses]).mean())

    scale = mean_loss(torch.zeros_like(best)) / log(classes)
    found = mean_loss(best)
    return found if abs(found - scale * entropy) <= ALIKE * abs(scale) * max(entropy, ALIKE) else None


def _is_plain_cross_entropy(loss_fn: object) -> bool:
    return isinstance(loss_fn, nn.CrossEntropyLoss) and loss_fn.weight is None and not loss_fn.label_smoothing


def _logits(output: Any) -> Any:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _labels(logits: Any, target: Any) -> Tensor | None:
    """The labels where they fit the logits; of a language model those that are not first in their sequence."""
    labels = next((t for t in tensors_in(target) if not t.is_floating_point()), None)
    if not isinstance(logits, Tensor) or labels is None or labels.shape != logits.shape[:-1]:
        return None
    return labels[..., 1:] if labels.ndim > 1 else labels


def _entropy(labels: Sequence[Tensor | None]) -> float:
    """Entropy of class labels, nats; -100 is no label, as torch has it."""
    known = [t.reshape(-1) for t in labels if t is not None and not t.is_floating_point()]
    if not known or len(known) < len(labels):
        return nan
    counted = torch.cat(known)
    share = torch.bincount(counted[counted >= 0]).double()
    share = share[share > 0] / share.sum()
    return float(-(share * share.log()).sum()) if len(share) else nan


def _minimum(examples: Sequence[tuple[Tensor, Any]], loss_fn: LossFunction, unit_axis: int | None) -> float:
    """By L-BFGS from zero, in float64 as far as the loss takes it."""
    shape = [1] * examples[0][0].ndim
    if unit_axis is not None and shape:
        shape[unit_axis] = examples[0][0].shape[unit_axis]
    device, width = examples[0][0].device, _precision(examples, loss_fn)
    constant = torch.zeros(shape, dtype=width, device=device, requires_grad=True)
    pairs = [(output.shape, _widened(target, width)) for output, target in examples]
    descent = torch.optim.LBFGS(
        [constant], max_iter=ITERATIONS, max_eval=MOST_CALLS, line_search_fn="strong_wolfe"
    )
    descent.param_groups[0].update(tolerance_grad=SETTLED, tolerance_change=SETTLED)
    seen: list[float] = []

    def mean_loss() -> Tensor:
        parts = [loss_fn(constant.expand(shape), target) for shape, target in pairs]
        mean: Tensor = torch.stack([part.reshape(()) for part in parts]).mean()
        return mean

    first = float(mean_loss().detach())
    unit = (
        first if isfinite(first) and first > 0 else 1.0
    )  # torch's tolerances are absolute, the loss's scale is not

    def loss() -> Tensor:
        mean = mean_loss() / unit
        constant.grad = torch.autograd.grad(mean, constant)[0]
        seen.append(float(mean.detach()))
        return mean

    descent.step(loss)
    least = min((value for value in seen if isfinite(value)), default=nan)
    return nan if least < UNBOUNDED else least * unit


def _precision(examples: Sequence[tuple[Tensor, Any]], loss_fn: LossFunction) -> torch.dtype:
    """float64, or float32 for a loss that holds tensors of its own (class weights) and so takes no other."""
    output, target = examples[0]
    try:
        with torch.no_grad():
            loss_fn(torch.zeros_like(output, dtype=torch.float64), _widened(target, torch.float64))
    except (RuntimeError, TypeError):
        return torch.float32
    return torch.float64


def _widened(value: Any, width: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(width) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _widened(one, width) for key, one in value.items()}
    return type(value)(_widened(one, width) for one in value) if type(value) in (tuple, list) else value
