"""Summaries of torch tensors: one read on the tensor's device, in float64, without waiting for the device.

`measure` queues the work and returns at once; `read` brings the results of many measurements over in one transfer.
The equations are those of `fanin.summary`, whose NumPy `summarize` is the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fanin.adapters.torch.quick import quick
from fanin.adapters.torch.transfers import Transfer
from fanin.summary import (
    BIN_SHIFT,
    BINS_PER_SIGN,
    MOMENT_LIMIT,
    Floats,
    Histogram,
    TensorSummary,
    UnitSummary,
    projection_weights,
)

STATISTICS: Final = ("count", "nan", "inf", "zeros", "mean", "m2", "minimum", "maximum", "projection")
"""Rows of a measurement's state, one column for each unit."""

BINS: Final = 2 * BINS_PER_SIGN
"""Bins of a dense histogram."""

PIECE: Final = 2**18
"""Values looked at together on a CPU: their float64 copies (2 MiB) stay in the cache and in memory that the process
already has. Whole tensors of 10^6 took 12 ms instead of 2, nearly all of it page faults."""

WIDE_PIECE: Final = 2**24
"""The same on an accelerator, where nothing but memory sets it: four float64 copies of a piece take 0.5 GB."""

WITHOUT_FLOAT64: Final = frozenset({"mps"})
"""Device types that cannot compute in float64; their tensors are brought to the CPU first."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A summary on its device, not yet read.

    Attributes:
        state: [len(STATISTICS) * units] float64, row by row.
        counts: [BINS] int64, or None without a histogram.
        per_unit: Whether the columns are units, or pieces of the whole tensor.
        stride: Of how many values one is counted.
    """

    state: Tensor
    counts: Tensor | None
    per_unit: bool
    stride: int = 1


def measure(
    tensor: Tensor,
    *,
    histogram: bool = False,
    unit_axis: int | None = None,
    offset: int = 0,
    fingerprint: bool = True,
) -> Measurement:
    """Queue the summary of a tensor.

    Args:
        tensor: Of any shape, real dtype, layout and device.
        histogram: Keep counts by log magnitude.
        unit_axis: Keep statistics per index of this axis.
        offset: Position of the first value of each unit in the whole tensor, when this is a piece of it.
        fingerprint: Keep the projection of each unit, which tells identical ones; zeros otherwise.
    """
    values = _plain(tensor)
    if unit_axis is None and is_fused(values):
        return measure_all([values], histogram)[0]
    return Measurement(
        state=_state(values, unit_axis, offset if fingerprint else None),
        counts=_counts(values) if histogram else None,
        per_unit=unit_axis is not None,
    )


def measure_all(tensors: Sequence[Tensor], histogram: bool = False) -> list[Measurement]:
    """Queue the summaries of many tensors as wholes: one launch for each device and dtype, where there is a kernel."""
    plain = [_plain(tensor) for tensor in tensors]
    made: dict[int, Measurement] = {}
    for device in {v.device for v in plain}:
        these = [i for i, v in enumerate(plain) if v.device == device and is_fused(v)]
        found = _fused().look([plain[i] for i in these], [histogram] * len(these)) if these else []
        made.update({i: Measurement(s, c, False, k) for i, (s, c, k) in zip(these, found, strict=True)})
    return [
        made[i] if i in made else Measurement(_state(v, None, None), _counts(v) if histogram else None, False)
        for i, v in enumerate(plain)
    ]


@cache
def _fused() -> Any:
    """The kernel; None without Triton, which comes with torch for CUDA."""
    try:
        return import_module("fanin.adapters.torch.fused")
    except ImportError:
        return None


def is_fused(values: Tensor) -> bool:
    """Whether there is a kernel that reads it with many others in one launch, where no statistics by unit are asked
    for."""
    strided = values.layout is torch.strided
    return strided and _has_kernel(values) and _fused() is not None and bool(_fused().takes(values))


def _has_kernel(values: Tensor) -> bool:
    return values.is_cuda


def read(measurements: Sequence[Measurement], arrived: Transfer | None = None) -> list[TensorSummary]:
    """The summaries, in order, after one transfer from each device: the one under way, if there is one."""
    transfer = Transfer(needed_of(measurements)) if arrived is None else arrived
    return [
        _summary(
            transfer.of(m.state).reshape(len(STATISTICS), -1),
            Histogram.of_counts(transfer.of(m.counts), m.stride) if m.counts is not None else None,
            m.per_unit,
        )
        for m in measurements
    ]


def needed_of(measurements: Iterable[Measurement]) -> Iterator[Tensor]:
    """What must be brought over to read them."""
    for measurement in measurements:
        yield measurement.state
        if measurement.counts is not None:
            yield measurement.counts


def summarize(
    tensor: Tensor,
    *,
    histogram: bool = False,
    unit_axis: int | None = None,
    offset: int = 0,
    fingerprint: bool = True,
) -> TensorSummary:
    """The summary of one tensor, read at once; arguments as those of `measure`."""
    found = quick(_plain(tensor), histogram, unit_axis, offset, fingerprint)
    if found is not None:
        return found
    how = {"histogram": histogram, "fingerprint": fingerprint}
    return read([measure(tensor, unit_axis=unit_axis, offset=offset, **how)])[0]


def _plain(tensor: Tensor) -> Tensor:
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    if values.is_quantized:
        values = values.dequantize()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    values = values.resolve_neg()
    return values.cpu() if values.device.type in WITHOUT_FLOAT64 else values


def _state(values: Tensor, unit_axis: int | None, offset: int | None) -> Tensor:
    """[len(STATISTICS) * columns]: a column for each unit, or for each piece of a tensor without units."""
    if unit_axis is not None:
        rows = values.movedim(unit_axis, 0).unsqueeze(-1).flatten(1)
        pieces = rows.split(max(1, _piece(values) // max(1, rows.shape[1])))
    else:
        flat = values.reshape(1, -1)
        pieces = flat.split(_piece(values), dim=1)
    return torch.cat([_columns(piece, unit_axis, offset) for piece in pieces], dim=1).flatten()


def _piece(values: Tensor) -> int:
    return PIECE if on_cpu(values) else WIDE_PIECE


def on_cpu(tensor: Tensor) -> bool:
    """Whether its values can be looked at without waiting for a device."""
    return tensor.is_cpu


def _columns(rows: Tensor, unit_axis: int | None, offset: int | None) -> Tensor:
    """[len(STATISTICS), units] of rows [units, values]; the projection only where there is a unit axis and
    an offset."""
    if rows.numel() == 0:
        return _nothing(len(rows), rows.device)
    wide = rows.double()
    low, high, nan, inf, kept = _finite(wide)
    count = rows.shape[1] - nan - inf
    mean = kept.sum(1) / count.clamp(min=1)
    # Counted over the whole tensor: torch counts along an axis three times slower, and float8 not at all.
    zeros = torch.zeros_like(mean)
    zeros[0] = rows.numel() - torch.count_nonzero(wide if rows.element_size() == 1 else rows)
    wanted = unit_axis is not None and offset is not None
    along = kept @ _weights(kept, offset or 0) if wanted else mean.new_zeros(len(rows))
    m2 = _squared_deviations(kept, mean, count, wide.isfinite() if kept is not wide else None)
    return torch.stack([v.double() for v in (count, nan, inf, zeros, mean, m2, low, high, along)])


def _nothing(units: int, device: torch.device) -> Tensor:
    """The state of units without values."""
    empty = torch.zeros(len(STATISTICS), units, dtype=torch.float64, device=device)
    empty[STATISTICS.index("minimum")] = torch.inf
    empty[STATISTICS.index("maximum")] = -torch.inf
    return empty


def _finite(wide: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Extremes of the finite values, NaN and infinities, each [units], and the values with those made zero."""
    low, high = wide.amin(1), wide.amax(1)  # ten times faster than aminmax(dim=1) in torch 2.13
    none = torch.zeros_like(low)
    if on_cpu(wide):  # looking costs nothing there; on an accelerator it would wait for the device
        largest = torch.maximum(low.abs(), high.abs()).max()  # NaN and infinities show in the extremes
        if largest <= MOMENT_LIMIT:
            return low, high, none, none, wide
    finite = wide.isfinite()
    low = wide.where(finite, torch.inf).amin(1)
    high = wide.where(finite, -torch.inf).amax(1)
    kept = wide.where(finite, 0.0).clamp_(-MOMENT_LIMIT, MOMENT_LIMIT)
    return low, high, wide.isnan().sum(1), wide.isinf().sum(1), kept


def _squared_deviations(kept: Tensor, mean: Tensor, count: Tensor, finite: Tensor | None) -> Tensor:
    """M2 [units] by the corrected two-pass algorithm (Chan et al. 1983, eq. 1.7): the rounding of the mean leaves
    through the sum of deviations."""
    deviations = kept - mean[:, None]
    if finite is not None:
        deviations = deviations.where(finite, 0.0)
    rest = deviations.sum(1)
    squares = torch.dot(deviations[0], deviations[0])[None] if len(kept) == 1 else deviations.square_().sum(1)
    return (squares - rest**2 / count.clamp(min=1)).clamp_(min=0)


def _weights(like: Tensor, offset: int) -> Tensor:
    """[length] of `projection_weights`, on the tensor's device."""
    weights = torch.from_numpy(projection_weights(like.shape[1], offset))
    return weights.to(like.device, non_blocking=True)


def _counts(values: Tensor) -> Tensor:
    """[BINS] int64: how many values share each pattern of upper bits of their float32."""
    flat = values.flatten()
    if on_cpu(values):
        counts = torch.zeros(BINS, dtype=torch.int64)
        for piece in flat.split(PIECE):
            counts += torch.bincount(_bins(piece), minlength=BINS)
        return counts
    # bincount's output size depends on the data, so on an accelerator it would wait for the device.
    counts = torch.zeros(BINS, dtype=torch.int64, device=flat.device)
    for piece in flat.split(_piece(values)):
        bins = _bins(piece)
        counts.scatter_add_(0, bins, torch.ones_like(bins))
    return counts


def _bins(values: Tensor) -> Tensor:
    """[n] int64: the upper bits of each value's float32."""
    if (
        values.dtype == torch.float64
    ):  # finite values beyond float32 stay finite: they go to its outermost bin
        limit = torch.finfo(torch.float32).max
        values = values.where(values.isinf(), values.clamp(-limit, limit))
    return values.float().view(torch.int32).bitwise_right_shift(BIN_SHIFT).bitwise_and_(BINS - 1).long()


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
