"""Summaries of what was saved: whole tensors, or a few reductions of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite, isinf, isnan, nan, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanin.summary import TensorSummary, summarize

PIECE = 2**20
"""Values that are summarized at once: the summary of float64 copies then stays small beside the tensor itself."""


def of_tensor(values: NDArray[Any], *, histogram: bool = False) -> TensorSummary | None:
    """The summary of a tensor, piece by piece; None where it holds no real numbers."""
    if values.dtype.kind not in "fiub":
        return None
    flat = values.reshape(-1)
    with np.errstate(invalid="ignore"):  # of signalling NaN, which only damage makes
        whole = summarize(flat[:PIECE], histogram=histogram)
        for start in range(PIECE, flat.size, PIECE):
            whole = whole.merge(summarize(flat[start : start + PIECE], histogram=histogram))
    return whole


def of_reductions(
    found: Mapping[tuple[str, bool], float], shape: tuple[int, ...] | None, *, unbiased: bool
) -> TensorSummary | None:
    """The summary that reductions support, without quantiles; None where they do not give a variance.

    How many values there are is known where the shape was saved; one value stands for them elsewhere. How many of
    them are zero is not known, unless all are.

    Args:
        found: (name, of magnitudes) -> value.
        shape: The tensor's shape, where it was saved.
        unbiased: Whether the variance was divided by n - 1, as PyTorch does.
    """
    count = prod(shape) if shape is not None else 0
    mean, variance = found.get(("mean", False), nan), _variance(found, count, unbiased)
    low, high = found.get(("min", False), -inf), found.get(("max", False), inf)
    if not_a_number := isnan(low) or isnan(high) or (isnan(mean) and ("mean", False) in found):
        return _broken(count, nans=int(not_a_number))
    if any(isinf(found.get((extreme, False), 0.0)) for extreme in ("min", "max")):
        return _broken(count, infinite=1)
    if low == high:
        mean, variance = low, 0.0
    if isnan(variance):
        return None
    n = count or 1
    zeros = n if low == high == 0 else 0
    return TensorSummary(n, 0, 0, zeros, mean if isfinite(mean) else 0.0, variance * n, low, high)


def _broken(count: int, nans: int = 0, infinite: int = 0) -> TensorSummary:
    """Of a tensor with at least one value that is not finite."""
    return TensorSummary(max(count - 1, 0), nans, infinite, 0, 0.0, nan, inf, -inf)


def _variance(found: Mapping[tuple[str, bool], float], count: int, unbiased: bool) -> float:
    """The population variance; nan where it does not follow from what was saved."""
    saved = found.get(("variance", False), found.get(("std", False), nan) ** 2)
    if not isnan(saved):  # infinite where float32 was too narrow for it
        return saved * (count - 1) / count if unbiased and count > 1 else saved
    mean, norm = found.get(("mean", False), nan), found.get(("l2", False), found.get(("l2", True), nan))
    if count and isfinite(mean) and isfinite(norm):
        return max(norm**2 / count - mean**2, 0.0)
    return nan


def loss_of(values: NDArray[Any]) -> float:
    """The loss that a tensor holds: its mean, where each example has one of its own."""
    with np.errstate(all="ignore"):
        numbers = values.astype(np.float64) if values.dtype.kind in "fiub" else np.array([])
        return float(numbers.mean()) if numbers.size else nan
