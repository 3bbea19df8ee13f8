"""Summaries of torch tensors: one read on the tensor's device, in float64, without waiting for the device.

`measure` queues the work and returns at once; `read` brings the results of many measurements over in one transfer.
The equations are those of `fanin.summary`, whose NumPy `summarize` is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fanin.summary import (
    BIN_SHIFT,
    BINS_PER_SIGN,
    Floats,
    MOMENT_LIMIT,
    Histogram,
    TensorSummary,
    UnitSummary,
    projection_weights,
)

STATISTICS: Final = ("count", "nan", "inf", "zeros", "mean", "m2", "minimum", "maximum", "projection")
"""Rows of a measurement's state, one column for each unit."""

BINS: Final = 2 * BINS_PER_SIGN
"""Bins of a dense histogram."""

WITHOUT_FLOAT64: Final = frozenset({"mps"})
"""Device types that cannot compute in float64; their tensors are brought to the CPU first."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A summary on its device, not yet read.

    Attributes:
        state: [len(STATISTICS) * units] float64, row by row.
        counts: [BINS] int64, or None without a histogram.
        per_unit: Whether the columns are units, or the whole tensor is one.
    """

    state: Tensor
    counts: Tensor | None
    per_unit: bool


def measure(
    tensor: Tensor, *, histogram: bool = False, unit_axis: int | None = None, offset: int = 0
) -> Measurement:
    """Queue the summary of a tensor.

    Args:
        tensor: Of any shape, real dtype, layout and device.
        histogram: Keep counts by log magnitude.
        unit_axis: Keep statistics per index of this axis.
        offset: Position of the first value of each unit in the whole tensor, when this is a piece of it.
    """
    values = _plain(tensor)
    rows = values.reshape(1, -1) if unit_axis is None else values.movedim(unit_axis, 0).flatten(1)
    return Measurement(
        state=_state(rows.double(), offset if unit_axis is not None else None),
        counts=_counts(values) if histogram else None,
        per_unit=unit_axis is not None,
    )


def read(measurements: Sequence[Measurement]) -> list[TensorSummary]:
    """The summaries, in order, after one transfer for each device and kind of state."""
    states = _transfer([m.state for m in measurements])
    counts = iter(_transfer([m.counts for m in measurements if m.counts is not None]))
    return [
        _summary(
            state.astype(np.float64).reshape(len(STATISTICS), -1),
            Histogram.of_counts(next(counts)) if m.counts is not None else None,
            m.per_unit,
        )
        for m, state in zip(measurements, states, strict=True)
    ]


def summarize(
    tensor: Tensor, *, histogram: bool = False, unit_axis: int | None = None, offset: int = 0
) -> TensorSummary:
    """The summary of one tensor, read at once."""
    return read([measure(tensor, histogram=histogram, unit_axis=unit_axis, offset=offset)])[0]


def _plain(tensor: Tensor) -> Tensor:
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    if values.is_quantized:
        values = values.dequantize()
    if values.is_complex():
        values = torch.view_as_real(values)
    return values.cpu() if values.device.type in WITHOUT_FLOAT64 else values


def _state(rows: Tensor, offset: int | None) -> Tensor:
    """[len(STATISTICS) * units] of rows [units, values]; the projection only where units count (offset given)."""
    units, length = rows.shape
    if length == 0:
        empty = rows.new_zeros(len(STATISTICS), units)
        empty[6], empty[7] = torch.inf, -torch.inf
        return empty.flatten()
    low, high = rows.aminmax(dim=1)
    if rows.device.type == "cpu" and bool((low.isfinite() & high.isfinite()).all()):
        nan = inf = rows.new_zeros(units)  # extremes carry NaN and infinities, so there are none
        finite = None
        kept = rows
    else:
        finite = rows.isfinite()
        nan, inf = rows.isnan().sum(1), rows.isinf().sum(1)
        low = rows.where(finite, torch.inf).amin(1)
        high = rows.where(finite, -torch.inf).amax(1)
        kept = rows.where(finite, 0.0)
    count = length - nan - inf
    mean = kept.sum(1) / count.clamp(min=1)
    projection = kept.new_zeros(units) if offset is None else kept @ _weights(length, offset, rows.device)
    # `rows.double()` is a copy of ours for every dtype but float64: there the deviations need memory of their own.
    deviations = kept - mean[:, None]
    if finite is not None:
        deviations = deviations.where(finite, 0.0)
    rest = deviations.sum(1)  # zero but for rounding; Chan's correction takes its square out of M2
    m2 = torch.linalg.vecdot(deviations, deviations) - rest**2 / count.clamp(min=1)
    zeros = length - torch.count_nonzero(rows, dim=1)
    return torch.stack(
        [v.double() for v in (count, nan, inf, zeros, mean, m2.clamp(min=0), low, high, projection)]
    ).flatten()


def _weights(length: int, offset: int, device: torch.device) -> Tensor:
    return torch.from_numpy(projection_weights(length, offset)).to(device, non_blocking=True)


def _counts(values: Tensor) -> Tensor:
    """[BINS] int64: how many values share each pattern of upper bits of their float32."""
    if (
        values.dtype == torch.float64
    ):  # finite values beyond float32 stay finite: they go to its outermost bin
        limit = torch.finfo(torch.float32).max
        values = values.where(values.isinf(), values.clamp(-limit, limit))
    bits = values.float().flatten().view(torch.int32)
    names = bits.bitwise_right_shift(BIN_SHIFT).bitwise_and_(BINS - 1).long()
    if names.device.type == "cpu":
        return torch.bincount(names, minlength=BINS)
    # bincount's output size depends on the data, so on an accelerator it would wait for the device.
    return torch.zeros(BINS, dtype=torch.int64, device=names.device).scatter_add_(
        0, names, torch.ones_like(names)
    )


def _transfer(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The tensors' values in order, fetched with one copy from each device."""
    fetched: dict[int, np.ndarray] = {}
    for device in {t.device for t in tensors}:
        there = [i for i, t in enumerate(tensors) if t.device == device]
        together = torch.cat([tensors[i] for i in there]).cpu().numpy()
        ends = np.cumsum([len(tensors[i]) for i in there])
        fetched.update(zip(there, np.split(together, ends[:-1]), strict=True))
    return [fetched[i] for i in range(len(tensors))]


def _summary(state: Floats, histogram: Histogram | None, per_unit: bool) -> TensorSummary:
    rows = dict(zip(STATISTICS, state, strict=True))
    whole = _merged(state)
    units = UnitSummary(
        count=rows["count"].astype(np.int64),
        mean=rows["mean"],
        m2=rows["m2"],
        minimum=rows["minimum"],
        maximum=rows["maximum"],
        projection=rows["projection"],
    )
    return TensorSummary(*whole, histogram=histogram, units=units if per_unit else None)


def _merged(state: Floats) -> tuple[int, int, int, int, float, float, float, float]:
    """Count, NaN, infinities, zeros, mean, M2 and extremes of all units together."""
    count, nan, inf, zeros, mean, m2, low, high, _ = state
    total = count.sum()
    centre = float((count * mean).sum() / total) if total else 0.0
    spread = float((m2 + count * (mean - centre) ** 2).sum())
    counts = (int(v.sum()) for v in (count, nan, inf, zeros))
    n, n_nan, n_inf, n_zero = counts
    return (
        n,
        n_nan,
        n_inf,
        n_zero,
        centre,
        spread,
        float(low.min(initial=np.inf)),
        float(high.max(initial=-np.inf)),
    )
