"""The common case on a CPU: float32 or narrower, and finite.

`fanin.onepass` reads the tensor once. Where its library is missing, values of a size whose squares float32 can hold are
looked at by NumPy in pieces that stay in the cache while all is read from them, without a copy of the tensor. A
histogram of a large tensor looks at a sample, and says so. Whatever does not fit returns None and takes the general
way of `statistics`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import gcd, prod
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from fanin import onepass
from fanin.adapters.torch.memory import require_memory
from fanin.summary import (
    BIN_SHIFT,
    BINS_PER_SIGN,
    Floats,
    Histogram,
    TensorSummary,
    UnitSummary,
    projection_weights,
)

Singles = NDArray[np.float32]
Look = tuple[int, Singles, Singles, Singles, Singles]
"""Zeros of a piece; lowest, highest, sum and sum of squares of each of its rows or columns."""

EXACT_IN_FLOAT32: Final = frozenset(getattr(torch, name) for name in onepass.DTYPES)
"""Dtypes whose every value is one of float32."""

PIECE: Final = 2**17
"""Values looked at together: 512 KiB, which stay in the second-level cache for all reads. The float32 dot product
over a piece rounds by about 2e-6 (measured against float64)."""

SQUARES_FIT: Final = (1e-15, 1e15)
"""Largest magnitude of a tensor between which squares neither vanish nor overflow in float32 (1e-38 to 1e38), with
room for values 10^4 below it."""

LOOKED_AT: Final = 2**14
"""Values at least that a histogram looks at: the 5 % quantile of a Gaussian is then known to 4 %, little more than the
width of a bin. With four times as many a step of a small MLP took 7 % longer (four gradients of 2^18 values, 15 ms)."""

SPREAD_SHARE: Final = 0.1
"""M2 must be at least this share of Σ(x - c)²: subtracting the rest then enlarges its rounding, of 2e-6, tenfold at
most. Elsewhere c, which is 0 at first, is moved to the mean and the values are read again."""

SHORT: Final = 64
"""Values in a row below which rows are read side by side: reductions along rows of 16 took 10 times as long."""

WIDE: Final = 256
"""Columns at least that are read side by side, where the shape allows it: 16 took 20 times as long, and the fewer rows
a piece has, the less their sum rounds."""

STRIP: Final = 2048
"""Columns at most that are read together, so that a piece has rows enough for what is noted of each column to be
little beside it."""

TALL: Final = 512
"""Rows at most in a piece that is read by columns. Their float32 sum goes one by one: 2^9 roundings of up to 2^-25."""

_scratch = threading.local()


class _UnfitError(Exception):
    """What was met is for the general way."""


def quick(
    values: Tensor, histogram: bool, unit_axis: int | None, offset: int, fingerprint: bool = True
) -> TensorSummary | None:
    """The summary of a tensor, or None where the short way would not be exact.

    Raises:
        FreedError: Its memory is gone.
    """
    if not values.is_cpu or not values.numel():
        return None
    require_memory(values)
    if values.dtype not in EXACT_IN_FLOAT32:
        return None
    if onepass.is_here() and type(values) is Tensor and values.data_ptr() % values.element_size() == 0:
        return _in_one_pass(values, histogram, unit_axis, offset, fingerprint)
    values = _aliased(values)
    try:
        if unit_axis is None:
            return _whole(values, histogram)
        return _by_units(values, histogram, unit_axis, offset, fingerprint)
    except _UnfitError:
        return None


# ── by the library ──────────────────────────────────────────────────────────────────────────────────────────


def _in_one_pass(
    values: Tensor, histogram: bool, unit_axis: int | None, offset: int, fingerprint: bool
) -> TensorSummary | None:
    if unit_axis is None:
        return _at_once(values.contiguous(), histogram)
    x = _in_three(values, unit_axis, fingerprint).contiguous()
    before, units, after = x.shape
    weights = projection_weights(before * after, offset) if fingerprint else None
    found = onepass.by_units(x.data_ptr(), _name(x), (before, units, after), weights)
    if found is None:
        return None
    whole = _at_once(values.contiguous(), histogram) if histogram else None
    return _joined(*found, None if whole is None else whole.histogram)


def _at_once(values: Tensor, histogram: bool) -> TensorSummary | None:
    count = values.numel()
    stride = coprime_stride(count, LOOKED_AT) if histogram else 0
    return onepass.whole(values.data_ptr(), _name(values), count, stride)


def _name(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _joined(units: UnitSummary, zeros: int, histogram: Histogram | None) -> TensorSummary:
    """All units together; each has as many values as the others."""
    each = int(units.count[0])
    middle = float(units.mean.mean())
    spread = float(units.m2.sum() + each * np.square(units.mean - middle).sum())
    ends = float(units.minimum.min()), float(units.maximum.max())
    count = each * len(units.count)
    return TensorSummary(count, 0, 0, zeros, middle, spread, *ends, histogram, units)


# ── by NumPy ────────────────────────────────────────────────────────────────────────────────────────────────


def _aliased(tensor: Tensor) -> Tensor:
    """The same memory in a storage of its own. What NumPy has looked into cannot be resized any more, and the user's
    tensors must stay as they are: `fully_shard` frees parameters by resizing them."""
    plain = tensor.detach()
    if type(plain) is not Tensor or plain.dtype is not torch.float32:
        return plain  # which NumPy is not asked about
    return from_dlpack(to_dlpack(plain.resolve_neg()))  # by a capsule: a fifth of the time


def _require(fits: bool) -> None:
    if not fits:
        raise _UnfitError


def _room(size: int, number: int) -> Singles:
    """Memory of this thread's own for a piece; as it is kept, it costs no page faults. The four of them, 2 MiB, are all
    that is needed beside a contiguous tensor, however large it is."""
    held: dict[Any, Any] = _scratch.__dict__
    room: Singles | None = held.get(number)
    if room is None or len(room) < size:
        room = held[number] = np.empty(max(PIECE, size), np.float32)
    return room[:size]


def _single(piece: Tensor) -> Tensor:
    """The piece in float32, which holds its values exactly."""
    if piece.dtype is torch.float32:
        return piece
    return torch.from_numpy(_room(piece.numel(), 0)).view(piece.shape).copy_(piece)


# ── a tensor as a whole ─────────────────────────────────────────────────────────────────────────────────────


def _whole(values: Tensor, histogram: bool) -> TensorSummary:
    flat = values.reshape(-1)
    n = len(flat)
    pieces = flat.split(PIECE) if n > PIECE else (flat,)
    low, high, zeros, total, squares = np.inf, -np.inf, 0, 0.0, 0.0
    stride, samples = coprime_stride(n, LOOKED_AT), []
    for index, piece in enumerate(map(_single, pieces)):
        least, most = (end.item() for end in piece.aminmax())
        _require(max(-least, most) < SQUARES_FIT[1])  # which NaN is not
        low, high = min(low, least), max(high, most)
        numbers = piece.numpy()  # whose products no autocast lowers to bfloat16
        zeros += _zeros(numbers) if least <= 0 <= most else 0
        total += piece.sum().item()
        squares += float(np.dot(numbers, numbers))
        if histogram:
            samples.append(_names(numbers[-index * PIECE % stride :: stride]))
    _require(low == high == 0 or max(-low, high) > SQUARES_FIT[0])
    mean, m2 = total / n, squares - total * total / n
    if low == high:
        mean, m2 = low, 0.0
    elif m2 < SPREAD_SHARE * squares:
        mean, m2 = _around(pieces, mean, n)
    counts = _histogram(samples, stride) if histogram else None
    return TensorSummary(n, 0, 0, zeros, mean, m2, low, high, counts)


def _around(pieces: tuple[Tensor, ...], near: float, n: int) -> tuple[float, float]:
    """Mean and M2 by the corrected two-pass algorithm (Chan et al. 1983, eq. 1.7): what was rounded off the mean comes
    back through the sum of deviations."""
    centre = np.float32(near)
    rest = squares = 0.0
    for piece in map(_single, pieces):
        off = np.subtract(piece.numpy(), centre, out=_room(len(piece), 1))
        rest += float(off.sum())
        squares += float(np.dot(off, off))
    return float(centre) + rest / n, max(squares - rest * rest / n, 0.0)


# ── by units ────────────────────────────────────────────────────────────────────────────────────────────────


def _by_units(
    values: Tensor, histogram: bool, unit_axis: int, offset: int, fingerprint: bool
) -> TensorSummary:
    x = _in_three(values, unit_axis, fingerprint)
    each, units = x.shape[0] * x.shape[2], x.shape[1]
    zeros, (low, high, sums, squares) = _read(x, None)
    largest, constant = np.maximum(-low, high), low == high
    _require(bool(((largest == 0) | (largest > SQUARES_FIT[0])).all()))
    mean, m2 = sums / each, squares - sums * sums / each
    far = np.flatnonzero(~constant & (m2 < SPREAD_SHARE * squares))
    if far.size:
        mean[far], m2[far] = _around_each(x, mean[far].astype(np.float32), far)
    mean, m2 = np.where(constant, low, mean), np.where(constant, 0.0, np.maximum(m2, 0.0))
    weights = projection_weights(each, offset) if fingerprint else None
    along = np.zeros(units) if weights is None else _projection(x, weights.astype(np.float32))
    counts = _histogram_of(values.reshape(-1)) if histogram else None
    return _joined(UnitSummary(np.full(units, each), mean, m2, low, high, along), zeros, counts)


def _around_each(x: Tensor, centre: Singles, which: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Mean and M2 of some units, as `_around` has them."""
    each = x.shape[0] * x.shape[2]
    # Picking columns is slow, so that from half of them on all are read.
    if 2 * len(which) < x.shape[1]:
        _, (_, _, rest, squares) = _read(x[:, torch.from_numpy(which)], centre)
    else:
        around = np.zeros(x.shape[1], np.float32)
        around[which] = centre
        rest, squares = _read(x, around)[1][2:, which]
    return centre + rest / each, squares - rest * rest / each


def _in_three(values: Tensor, unit_axis: int, in_order: bool) -> Tensor:
    """[before, units, after]: rows of a weight, channels of an image, features of a token. Without a copy where the
    memory allows it; where channels come last in it too, if the order of the values does not matter."""
    shape, axis = values.shape, range(values.ndim)[unit_axis]
    if not in_order and values.ndim == 4 and axis == 1 and not values.is_contiguous():
        last = values.permute(0, 2, 3, 1)
        if last.is_contiguous():
            return last.reshape(-1, shape[1], 1)
    return values.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))


def _read(x: Tensor, centre: Singles | None) -> tuple[int, Floats]:
    """Zeros, and [4, units] lowest, highest, Σ(x - c) and Σ(x - c)² with c of each unit, or 0 without a centre. Around
    a centre zeros and extremes are not looked for."""
    before, units, after = x.shape
    if before == 1 or after >= SHORT:
        rows = None if centre is None else np.tile(centre, before)
        zeros, seen = _by_rows(x.reshape(before * units, after), rows)
        return zeros, _merged(seen.reshape(4, before, units, 1))
    side = _side_by_side(before, units * after)
    columns = None if centre is None else np.tile(np.repeat(centre, after), side)
    zeros, seen = _by_columns(x.reshape(before // side, side * units * after), columns)
    return zeros, _merged(seen.reshape(4, side, units, after))


def _side_by_side(rows: int, columns: int) -> int:
    """How many rows to lay side by side, so that there are enough columns."""
    side = 1
    while side * columns < WIDE and rows % (2 * side) == 0:
        side *= 2
    return side


def _merged(seen: Floats) -> Floats:
    """[4, units] of [4, groups, units, groups]."""
    if seen.shape[1] == seen.shape[3] == 1:
        return seen[:, 0, :, 0]
    low, high = seen[0].min((0, 2)), seen[1].max((0, 2))
    return np.stack([low, high, seen[2].sum((0, 2)), seen[3].sum((0, 2))])


def _by_rows(x: Tensor, centre: Singles | None) -> tuple[int, Floats]:
    """Zeros, and [4, rows] as `_read` has them."""
    looks = []
    height = max(1, PIECE // min(PIECE, x.shape[1]))
    for rows in range(0, len(x), height):
        middle = None if centre is None else centre[rows : rows + height, None]
        strips = x[rows : rows + height].split(PIECE, dim=1)
        looks.append(_together([_piece(strip, 1, middle) for strip in strips]))
    return sum(few for few, _ in looks), np.concatenate([seen for _, seen in looks], axis=1)


def _by_columns(x: Tensor, centre: Singles | None) -> tuple[int, Floats]:
    """Zeros, and [4, columns] as `_read` has them."""
    looks = []
    for columns in range(0, x.shape[1], STRIP):
        strip = x[:, columns : columns + STRIP]
        middle = None if centre is None else centre[columns : columns + STRIP]
        pieces = strip.split(min(TALL, max(1, PIECE // strip.shape[1])))
        looks.append(_together([_piece(piece, 0, middle) for piece in pieces]))
    return sum(few for few, _ in looks), np.concatenate([seen for _, seen in looks], axis=1)


def _together(looks: list[Look]) -> tuple[int, Floats]:
    """Zeros, and [4, n] of several parts of the same rows or columns."""
    zeros, low, high, sums, squares = zip(*looks, strict=True)
    if len(looks) == 1:
        return zeros[0], np.array([low[0], high[0], sums[0], squares[0]], np.float64)
    seen = np.empty((4, len(low[0])))
    np.min(low, axis=0, out=seen[0])
    np.max(high, axis=0, out=seen[1])
    np.sum(sums, axis=0, dtype=np.float64, out=seen[2])
    np.sum(squares, axis=0, dtype=np.float64, out=seen[3])
    return sum(zeros), seen


def _piece(piece: Tensor, axis: int, centre: Singles | None) -> Look:
    """A look along one axis of a piece that is in the cache."""
    single = _single(piece)
    numbers, zeros = single.numpy(), 0
    if centre is None:
        low, high = single.amin(axis).numpy(), single.amax(axis).numpy()
        least, most = float(low.min()), float(high.max())
        _require(max(-least, most) < SQUARES_FIT[1])  # before NumPy warns; NaN is not
        zeros = _zeros(numbers) if least <= 0 <= most else 0
    else:
        numbers = np.subtract(numbers, centre, out=_room(piece.numel(), 1).reshape(piece.shape))
        low = high = np.zeros(piece.shape[1 - axis], np.float32)
    return zeros, low, high, *(_sums_of_rows(numbers) if axis else _sums_of_columns(numbers))


def _sums_of_rows(numbers: Singles) -> tuple[Singles, Singles]:
    return torch.from_numpy(numbers).sum(1).numpy(), _dots(numbers, numbers)


def _sums_of_columns(numbers: Singles) -> tuple[Singles, Singles]:
    """By products with ones, which read faster than sums along the first axis."""
    ones = np.ones(len(numbers), np.float32)
    squares = np.multiply(numbers, numbers, out=_room(numbers.size, 2).reshape(numbers.shape))
    return ones @ numbers, ones @ squares


def _dots_without_vecdot(one: Singles, other: Singles) -> Singles:
    return np.asarray(np.einsum("ij,ij->i", one, other))


_dots: Callable[[Singles, Singles], Singles] = getattr(np, "vecdot", _dots_without_vecdot)
"""NumPy has had it since 2.0; it is three times as fast."""


def _projection(x: Tensor, weights: Singles) -> Floats:
    """[units] Σ r(i) x(i) of x [before, units, after] with weights [before * after]: matrix-vector products where the
    layout allows it. By NumPy, whose products no autocast lowers to bfloat16."""
    before, units, after = x.shape
    if before == 1:
        rows = x[0].split(max(1, PIECE // after))
        return np.concatenate([_single(piece).numpy() @ weights for piece in rows]).astype(np.float64)
    if after == 1:
        count = max(1, PIECE // units)
        pieces = enumerate(x.reshape(before, units).split(count))
        products = (weights[i * count : (i + 1) * count] @ _single(piece).numpy() for i, piece in pieces)
        return np.asarray(np.sum([product.astype(np.float64) for product in products], axis=0))
    weighted = x.float() * torch.from_numpy(weights).reshape(before, 1, after)
    return np.asarray(weighted.sum((0, 2)).double().numpy())


def _zeros(numbers: Singles) -> int:
    """NumPy counts the ones of a mask ten times faster than torch."""
    mask = _room(-(-numbers.size // 4), 3).view(np.bool_)[: numbers.size].reshape(numbers.shape)
    return int(np.count_nonzero(np.equal(numbers, 0, out=mask)))


# ── quantiles ───────────────────────────────────────────────────────────────────────────────────────────────


def coprime_stride(n: int, looked_at: int) -> int:
    """How far apart to look at n values so that at least about so many are seen. It has no factor in common with n, so
    that it meets every row and column of a matrix alike."""
    stride = max(1, n // looked_at)
    while stride > 1 and gcd(stride, n) > 1:
        stride += 1
    return stride


def _histogram_of(flat: Tensor) -> Histogram:
    stride = coprime_stride(len(flat), LOOKED_AT)
    return _histogram([_names(flat[::stride].float().numpy())], stride)


def _names(sample: Singles) -> NDArray[np.uint16]:
    """Names of bins: the upper bits."""
    return (np.ascontiguousarray(sample).view(np.uint32) >> BIN_SHIFT).astype(np.uint16)


def _histogram(samples: list[NDArray[np.uint16]], stride: int) -> Histogram:
    names = samples[0] if len(samples) == 1 else np.concatenate(samples)
    return Histogram.of_counts(np.bincount(names, minlength=2 * BINS_PER_SIGN), stride)
