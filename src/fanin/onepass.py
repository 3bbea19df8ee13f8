"""Summaries of memory on a CPU, each from one read of it, by a small library in C that is built with the package.

Where it could not be built (no compiler, another system's wheel) nothing is missing but speed: callers ask `is_here`
and look at the values in another way. `fanin.summary` says what the numbers mean.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import c_int, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fanin.summary import BINS_PER_SIGN, Histogram, TensorSummary, UnitSummary

LIBRARY: Final = Path(__file__).with_name("_onepass.so")
"""What hatch_build.py makes of onepass.c, under one name on every system."""

SOURCE: Final = LIBRARY.with_name("onepass.c")
"""What it must have been built from: one that is left from an older source may take other arguments."""

DTYPES: Final = {"float32": 0, "bfloat16": 1, "float16": 2}
"""What it reads, by the number that the library calls it."""

SHORT: Final = 256
"""Values that lie together up to which those of all units are read side by side: by themselves runs of 16 take eight
times as long, and of 256 nearly twice (`benchmarks/looks.py`). More do not fit into the library's STRIP."""

_scratch = threading.local()


def is_here() -> bool:
    """Whether the library is there."""
    return _library() is not None


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.fanin_source.restype = c_uint32
        made = library.fanin_source(), library.fanin_bins()
        if made != (crc32(SOURCE.read_bytes()), 2 * BINS_PER_SIGN):
            return None
    except (OSError, AttributeError):
        return None
    library.fanin_whole.argtypes = (c_void_p, c_int, *[c_int64] * 2, *[c_void_p] * 5)
    for by_units in (library.fanin_rows, library.fanin_columns):
        by_units.argtypes = (c_void_p, c_int, *[c_int64] * 3, *[c_void_p] * 3)
    return library


class _Room:
    """Memory of one thread for results, and where it lies."""

    def __init__(self) -> None:
        self.bins = np.zeros(2 * BINS_PER_SIGN, np.uint32)
        self.names, self.counts = np.zeros((2, 2 * BINS_PER_SIGN), np.int64)
        self.numbers, self.whole = np.zeros(5), np.zeros(2, np.int64)
        held = self.bins, self.names, self.counts, self.numbers, self.whole
        self.at = tuple(array.ctypes.data for array in held)


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
    if not _library().fanin_whole(address, DTYPES[dtype], count, stride, *room.at):
        return None
    mean, m2, low, high, _ = room.numbers.tolist()
    zeros, occupied = room.whole.tolist()
    histogram = _histogram(room, occupied, count, stride) if stride else None
    return TensorSummary(count, 0, 0, zeros, mean, m2, low, high, histogram)


def _histogram(room: _Room, occupied: int, count: int, stride: int) -> Histogram:
    variance = float(-(-count // stride)) * stride**2 if stride > 1 else 0.0
    return Histogram(room.names[:occupied].copy(), room.counts[:occupied] * stride, variance)


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
    room, found = _room(), np.empty((units, 5))
    side_by_side = before > 1 and after <= SHORT
    look = _library().fanin_columns if side_by_side else _library().fanin_rows
    weighed = None if weights is None else weights.ctypes.data
    finite = look(address, DTYPES[dtype], *shape, weighed, found.ctypes.data, room.at[-1])
    if not finite:
        return None
    mean, m2, low, high, along = np.ascontiguousarray(found.T)
    each = np.full(units, before * after)
    return UnitSummary(each, mean, m2, low, high, along), int(room.whole[0])
