"""Summaries of memory on a CPU, each from one read of it, by a small library in C that is built with the package.

Where it could not be built (no compiler, another system's wheel) nothing is missing but speed: callers ask `is_here`
and look at the values in another way. `fanin.summary` says what the numbers mean.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fanin.summary import BINS_PER_SIGN, Histogram, TensorSummary, UnitSummary

LIBRARY: Final = Path(__file__).with_name("_onepass.so")
"""What hatch_build.py makes of onepass.c, under one name on every system."""

VERSION: Final = 1
"""Of the functions' arguments; a library that was built for others is left alone."""

BITS: Final = (2 * BINS_PER_SIGN - 1).bit_length()
"""Upper bits of a float32 that name a bin."""

DTYPES: Final = {"float32": 0, "bfloat16": 1, "float16": 2}
"""What it reads, by the number that the library calls it."""

_scratch = threading.local()


def is_here() -> bool:
    """Whether the library is there."""
    return _library() is not None


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.fanin_version() != VERSION:
            return None
    except (OSError, AttributeError):
        return None
    library.fanin_whole.argtypes = (c_void_p, c_int, c_int64, c_int64, c_int, c_void_p, c_void_p, c_void_p)
    library.fanin_occupied.argtypes = (c_void_p, c_int64, c_void_p, c_void_p)
    library.fanin_occupied.restype = c_int64
    library.fanin_rows.argtypes = (c_void_p, c_int, *[c_int64] * 3, c_void_p, c_void_p, c_void_p)
    library.fanin_columns.argtypes = (c_void_p, c_int, *[c_int64] * 2, c_void_p, c_void_p, c_void_p)
    return library


class _Room:
    """Memory of one thread for results, and where it lies."""

    def __init__(self) -> None:
        self.numbers, self.zeros = np.zeros(5), np.zeros(1, np.int64)
        self.bins = np.zeros(2 * BINS_PER_SIGN, np.uint32)
        self.names = np.zeros(2 * BINS_PER_SIGN, np.int64)
        self.counts = np.zeros(2 * BINS_PER_SIGN, np.int64)
        self.at = tuple(
            a.ctypes.data for a in (self.numbers, self.zeros, self.bins, self.names, self.counts)
        )


def _room() -> _Room:
    room: _Room | None = getattr(_scratch, "room", None)
    if room is None:
        room = _scratch.room = _Room()
    return room


def whole(address: int, dtype: str, count: int, stride: int) -> TensorSummary | None:
    """The summary of `count` > 0 values that lie one after the other.

    Args:
        address: Of the first.
        dtype: One of DTYPES.
        count: How many.
        stride: Every how-many-th value the histogram counts; 0 for none.

    Returns:
        None where not all of them are finite.
    """
    room = _room()
    numbers, zeros, bins, *_ = room.at
    code = DTYPES[dtype]
    if not _library().fanin_whole(address, code, count, stride, BITS, bins, numbers, zeros):
        room.bins.fill(0)
        return None
    mean, m2, low, high, _ = room.numbers.tolist()
    histogram = _histogram(room, count, stride) if stride else None
    return TensorSummary(count, 0, 0, int(room.zeros[0]), mean, m2, low, high, histogram)


def _histogram(room: _Room, count: int, stride: int) -> Histogram:
    *_, bins, names, counts = room.at
    found = _library().fanin_occupied(bins, len(room.bins), names, counts)
    looked_at = -(-count // stride)
    variance = float(looked_at) * stride**2 if stride > 1 else 0.0
    return Histogram(room.names[:found].copy(), room.counts[:found] * stride, variance)


def by_units(
    address: int, dtype: str, shape: tuple[int, int, int], weights: NDArray[np.float64] | None
) -> tuple[UnitSummary, int] | None:
    """The summaries of the units of values that lie as [before, units, after], none of them 0.

    Args:
        address: Of the first.
        dtype: One of DTYPES.
        shape: [before, units, after].
        weights: [before * after] of the fingerprint; None for none.

    Returns:
        They, and how many values are zero; None where not all of them are finite.
    """
    before, units, after = shape
    room, found, code = _room(), np.empty((units, 5)), DTYPES[dtype]
    ends = (None if weights is None else weights.ctypes.data, found.ctypes.data, room.at[1])
    if after == 1:
        finite = _library().fanin_columns(address, code, before, units, *ends)
    else:
        finite = _library().fanin_rows(address, code, before, units, after, *ends)
    if not finite:
        return None
    mean, m2, low, high, along = np.ascontiguousarray(found.T)
    each = np.full(units, before * after)
    return UnitSummary(each, mean, m2, low, high, along), int(room.zeros[0])
