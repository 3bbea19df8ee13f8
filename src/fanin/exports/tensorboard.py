"""A trial as event files of TensorBoard: a run for each mode and worker, scalars and histograms for each tensor.

train/events.out.tfevents.0.fanin      (train-w1/ and so on for further workers)

Event: 1 wall_time, 2 step, 3 file_version, 5 Summary;   Summary: 1 Value, repeated
Value: 1 tag, 2 simple_value, 5 histo;   histo: 1 min, 2 max, 3 num, 4 sum, 5 sum_squares, 6 limits, 7 counts
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np

from fanin.stores.smdebug.crc32c import masked
from fanin.summary import TensorSummary
from fanin.trial import Observation, Step, Trial

VERSION = "brain.Event:2"
"""What every event file begins with."""

BUCKETS = 64
"""Bars of a histogram: TensorBoard draws 30 by default, and ours have up to some thousand bins."""


def export(trial: Trial) -> Mapping[str, bytes]:
    """A file for each mode and worker. Wall times are steps, since a trial has no clock."""
    found: dict[str, bytearray] = {}
    for step in trial.steps:
        for worker in sorted({o.worker for o in step.observations} | set(step.losses)):
            run = step.mode.value + (f"-w{worker}" if worker else "")
            data = found.setdefault(run, bytearray(_record(_double(1, 0.0) + _bytes(3, VERSION.encode()))))
            values = b"".join(_bytes(1, value) for value in _values(step, worker))
            data += _record(_double(1, float(step.index)) + _number(2, step.index) + _bytes(5, values))
    return {f"{run}/events.out.tfevents.0.fanin": bytes(data) for run, data in found.items()}


def _values(step: Step, worker: int) -> Iterator[bytes]:
    if worker in step.losses:
        yield _scalar("loss", step.losses[worker])
    for seen in step.observations:
        if seen.worker == worker:
            yield from _of(seen)


def _of(seen: Observation) -> Iterator[bytes]:
    summary, name = seen.summary, f"{seen.role.value}/{seen.tensor}"
    if summary.count:
        yield _scalar(f"{name}/variance", summary.variance)
        yield _scalar(f"{name}/mean", summary.mean)
    if summary.non_finite:
        yield _scalar(f"{name}/non_finite", summary.non_finite)
    if summary.histogram is not None and summary.count:
        yield _bytes(1, name.encode()) + _bytes(5, _histogram(summary))


def _histogram(summary: TensorSummary) -> bytes:
    """Bars of equal width over the range of the values; a bin lies in the bar of its middle."""
    assert summary.histogram is not None
    low, high = summary.histogram.edges()
    middle = np.clip((low + high) / 2, summary.minimum, summary.maximum)
    counts, edges = np.histogram(middle, _bars(summary), weights=summary.histogram.counts)
    fields = (
        _double(1, summary.minimum),
        _double(2, summary.maximum),
        _double(3, float(summary.count)),
        _double(4, summary.mean * summary.count),
        _double(5, summary.second_moment * summary.count),
        _bytes(6, struct.pack(f"<{len(counts)}d", *edges[1:])),
        _bytes(7, struct.pack(f"<{len(counts)}d", *counts)),
    )
    return b"".join(fields)


def _bars(summary: TensorSummary) -> list[float]:
    width = summary.maximum - summary.minimum
    if not 0 < width < np.inf:
        return [summary.minimum, float(np.nextafter(summary.maximum, np.inf))]
    edges = summary.minimum + width * np.linspace(0, 1, BUCKETS + 1)
    edges[-1] = summary.maximum
    return [float(edge) for edge in np.unique(edges)]


# ── the wire ────────────────────────────────────────────────────────────────────────────────────────────────


def _record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked(length)) + payload + struct.pack("<I", masked(payload))


def _scalar(tag: str, value: float) -> bytes:
    with np.errstate(over="ignore"):
        return _bytes(1, tag.encode()) + _varint(2 << 3 | 5) + np.float32(value).tobytes()


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
