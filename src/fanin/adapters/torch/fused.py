"""Summaries of many CUDA tensors in one launch: one read of each, by a kernel in Triton.

The short way for accelerators, as `quick` is for CPUs; the plain torch operations of `statistics` are its reference
and take what it does not: statistics by unit, other dtypes, tensors that are not contiguous. Nothing here waits for the
device. Triton comes with torch for CUDA; `statistics` imports this file where there is one.

Each program reads one chunk of one tensor in blocks, and merges their moments (Chan et al. 1979, eq. 2.1) in float64: a
block lies in registers, so that its M2 about its own mean costs no second read. The chunks of a tensor are merged when
they are read. Of the histogram of a large tensor a sample is counted, and its intervals say so.

It agrees with the NumPy reference under Triton's interpreter. It has never run on a GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fanin.adapters.torch.quick import coprime_stride
from fanin.summary import BIN_SHIFT, BINS_PER_SIGN

STATISTICS: Final = 9
"""Rows of a state, in the order of `statistics.STATISTICS`; the last one, a fingerprint of units, stays 0."""

BLOCK: Final = 1024
"""Values in registers at once: 8 for each of 128 threads. To be tuned on a device."""

CHUNK: Final = 2**16
"""Values that one program reads: 400 programs for the 25 million of a ResNet-50, three for each multiprocessor of an
H100. To be tuned on a device."""

LOOKED_AT: Final = 2**20
"""Values at least that a histogram counts: rank errors of 0.1 % where the median is asked for."""

BINS: Final = 2 * BINS_PER_SIGN

KINDS: Final = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Dtypes that it reads: those whose every value is one of float32."""


@triton.jit  # type: ignore[untyped-decorator]
def _look(  # type: ignore[no-untyped-def]
    table, state, counts, kind: tl.constexpr, block: tl.constexpr, shift: tl.constexpr, bins: tl.constexpr
):
    """Read one chunk. A row of the table: address of the tensor, first value of the chunk, its size, where its column
    of the state begins, columns of the tensor, histogram (-1 for none), stride of the sample."""
    row = table + tl.program_id(0) * 7
    values = tl.load(row).to(tl.pointer_type(kind))
    start = tl.load(row + 1)
    size = tl.load(row + 2)
    column = tl.load(row + 3)
    columns = tl.load(row + 4)
    histogram = tl.load(row + 5)
    stride = tl.load(row + 6)
    n = tl.zeros([], tl.float64)
    nans = tl.zeros([], tl.float64)
    infs = tl.zeros([], tl.float64)
    zeros = tl.zeros([], tl.float64)
    mean = tl.zeros([], tl.float64)
    m2 = tl.zeros([], tl.float64)
    low = tl.full([], float("inf"), tl.float64)
    high = tl.full([], float("-inf"), tl.float64)
    for first in range(0, size, block):
        within = first + tl.arange(0, block)
        there = within < size
        at = start + within
        x = tl.load(values + at, mask=there, other=0.0).to(tl.float32)
        is_nan = there & (x != x)
        is_inf = there & (tl.abs(x) == float("inf"))
        finite = there & (x == x) & (tl.abs(x) != float("inf"))
        wide = tl.where(finite, x, 0.0).to(tl.float64)
        here = tl.sum(finite.to(tl.float64), 0)
        middle = tl.sum(wide, 0) / tl.maximum(here, 1.0)
        off = tl.where(finite, wide - middle, 0.0)
        both = tl.maximum(n + here, 1.0)
        delta = middle - mean
        m2 += tl.sum(off * off, 0) + delta * delta * n * here / both
        mean += delta * here / both
        n += here
        nans += tl.sum(is_nan.to(tl.float64), 0)
        infs += tl.sum(is_inf.to(tl.float64), 0)
        zeros += tl.sum((there & (x == 0.0)).to(tl.float64), 0)
        low = tl.minimum(low, tl.min(tl.where(finite, x, float("inf")), 0).to(tl.float64))
        high = tl.maximum(high, tl.max(tl.where(finite, x, float("-inf")), 0).to(tl.float64))
        if histogram >= 0:
            name = (x.to(tl.int32, bitcast=True) >> shift) & (bins - 1)
            counted = finite & (at % stride == 0)
            tl.atomic_add(counts + histogram * bins + name, tl.full([block], 1, tl.int32), mask=counted)
    out = state + column
    tl.store(out, n)
    tl.store(out + columns, nans)
    tl.store(out + 2 * columns, infs)
    tl.store(out + 3 * columns, zeros)
    tl.store(out + 4 * columns, mean)
    tl.store(out + 5 * columns, m2)
    tl.store(out + 6 * columns, low)
    tl.store(out + 7 * columns, high)
    tl.store(out + 8 * columns, tl.zeros([], tl.float64))


def takes(tensor: Tensor) -> bool:
    """Whether the kernel reads such tensors: it goes by address, which one that wraps another does not have."""
    return tensor.dtype in KINDS and tensor.is_contiguous() and tensor.numel() > 0 and tensor.data_ptr() != 0


def look(tensors: Sequence[Tensor], histograms: Sequence[bool]) -> list[tuple[Tensor, Tensor | None, int]]:
    """Queue the summaries of tensors of one device, a launch for each dtype.

    Args:
        tensors: All of them such that the kernel `takes` them.
        histograms: Of which to keep counts by log magnitude.

    Returns:
        In order, state [STATISTICS * chunks] float64, counts [BINS] int32 or None, and of how many values one was
        counted.
    """
    found: dict[int, tuple[Tensor, Tensor | None, int]] = {}
    by_dtype: dict[torch.dtype, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        by_dtype[tensor.dtype].append(index)
    for dtype, these in by_dtype.items():
        results = _launch([tensors[i] for i in these], [histograms[i] for i in these], KINDS[dtype])
        found.update(zip(these, results, strict=True))
    return [found[index] for index in range(len(tensors))]


def _launch(
    tensors: list[Tensor], histograms: list[bool], kind: Any
) -> list[tuple[Tensor, Tensor | None, int]]:
    device = tensors[0].device
    chunks = [-(-t.numel() // CHUNK) for t in tensors]
    ends = np.cumsum([0, *chunks])
    strides = [coprime_stride(t.numel(), LOOKED_AT) for t in tensors]
    places = np.cumsum([0, *histograms])
    rows = [
        (
            t.data_ptr(),
            c * CHUNK,
            min(CHUNK, t.numel() - c * CHUNK),
            STATISTICS * ends[i] + c,
            chunks[i],
            places[i] if histograms[i] else -1,
            strides[i],
        )
        for i, t in enumerate(tensors)
        for c in range(chunks[i])
    ]
    table = torch.tensor(rows, dtype=torch.int64, device="cpu")
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    state = torch.empty(STATISTICS * int(ends[-1]), dtype=torch.float64, device=device)
    counts = torch.zeros(max(1, int(places[-1])) * BINS, dtype=torch.int32, device=device)
    with (
        torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    ):  # Triton launches on the current one
        _look[(len(rows),)](table, state, counts, kind=kind, block=BLOCK, shift=BIN_SHIFT, bins=BINS)
    states = state.split([STATISTICS * c for c in chunks])
    dense = counts.view(-1, BINS)
    return [(states[i], dense[places[i]] if histograms[i] else None, strides[i]) for i in range(len(tensors))]
