"""A record of an event file, and the tensor in it.

    record  = length (u64) | masked CRC-32C of those eight bytes (u32) | Event | footer (u32)      little-endian
    Event   : 2 step, 5 Summary;    Summary: 1 Value, repeated
    Value   : 1 tag, the tensor's name;  2 simple_value;  8 TensorProto;  9 metadata {1 plugin {1 name, 2 content}}
    Tensor  : 1 dtype;  2 shape {2 dim {1 size}};  4 content, C order;  8 strings

The footer of smdebug's files is one constant, and no sum of the payload: a value that was altered without altering
its length cannot be told from the original. Everything else is checked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanin.stores.smdebug.crc32c import masked
from fanin.stores.smdebug.wire import as_bytes, as_number, as_text, fields

HEADER, FOOTER = 12, 4
"""Bytes before and after the payload."""

CONSTANT_FOOTER = 0x062DC0B3
"""What smdebug writes in place of the payload's sum: that of the ten letters `0x12345678`."""

LARGEST = 2**31
"""Bytes of a record: a protobuf message is shorter than 2 GiB."""

DTYPES: dict[int, str] = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    8: "<c8",
    9: "<i8",
    10: "?",
    17: "<u2",
    18: "<c16",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
"""TensorFlow's numbers of dtypes -> NumPy's names."""

MODE_NUMBERS = {"1": "TRAIN", "2": "EVAL", "3": "PREDICT", "4": "GLOBAL"}
"""Modes as a record's metadata has them."""

LARGEST_RANK = 32
"""Axes of a tensor; NumPy before version 2 can do no more."""


def tensor(record: bytes | memoryview, name: str, step: tuple[str, int] | None = None) -> NDArray[Any]:
    """The tensor of this name in a record.

    Args:
        step: Its mode, and its step in that mode, which the record must then agree with where it says them.

    Raises:
        ValueError: The record is damaged, or holds another tensor.
    """
    tags = []
    for value in _values(payload(memoryview(record))):
        found = dict(fields(value))
        tags.append(as_text(found.get(1, memoryview(b""))))
        if tags[-1] == name:
            if step is not None and 9 in found:
                _require_step(as_bytes(found[9]), step)
            return _decoded(found)
    raise ValueError(f"it holds {', '.join(repr(tag[:80]) for tag in tags[:3]) or 'no tensor'}")


def payload(record: memoryview) -> memoryview:
    """What a record holds.

    Raises:
        ValueError: It is damaged.
    """
    if len(record) < HEADER + FOOTER:
        raise ValueError(f"{len(record)} bytes are too few for a record")
    length, checksum = struct.unpack_from("<QI", record)
    if checksum != masked(record[:8]):
        raise ValueError("the checksum of its length is wrong")
    if length != len(record) - HEADER - FOOTER:
        raise ValueError(f"it claims {length} bytes where the index gives {len(record) - HEADER - FOOTER}")
    content = record[HEADER : HEADER + length]
    (footer,) = struct.unpack_from("<I", record, HEADER + length)
    if footer != CONSTANT_FOOTER and footer != masked(content):
        raise ValueError("its footer is neither smdebug's nor the checksum of its content")
    return content


def _values(event: memoryview) -> Iterator[memoryview]:
    for number, summary in fields(event):
        if number == 5:
            yield from (as_bytes(value) for inner, value in fields(as_bytes(summary)) if inner == 1)


def _require_step(metadata: memoryview, step: tuple[str, int]) -> None:
    said: dict[str, str] = {}
    for number, plugin in fields(metadata):
        if number == 1:
            entry = dict(fields(as_bytes(plugin)))
            said[as_text(entry.get(1, memoryview(b"")))] = as_text(entry.get(2, memoryview(b"")))
    mode, counted = MODE_NUMBERS.get(said.get("mode", ""), step[0]), said.get("mode_step", str(step[1]))
    if (mode, counted) != (step[0], str(step[1])):
        raise ValueError(
            f"it is of step {counted[:20]!r} in mode {mode} where the index has {step[1]} in {step[0]}"
        )


def _decoded(value: dict[int, int | memoryview]) -> NDArray[Any]:
    if 8 in value:
        return _array(as_bytes(value[8]))
    if 2 in value:
        return np.frombuffer(as_bytes(value[2]), "<f4")[0:1].reshape(()).copy()
    raise ValueError("it holds no tensor")


def _array(proto: memoryview) -> NDArray[Any]:
    dtype, content = 0, memoryview(b"")
    shape: tuple[int, ...] = ()
    strings = []
    for number, value in fields(proto):
        if number == 1:
            dtype = as_number(value)
        elif number == 2:
            shape = _shape(as_bytes(value))
        elif number == 4:
            content = as_bytes(value)
        elif number == 8:
            strings.append(as_text(value))
    if strings:
        return _shaped(np.array(strings, object), shape)  # of equal width they could take any memory
    if dtype not in DTYPES:
        raise ValueError(f"its dtype has the number {dtype}, which fanin does not know")
    kind = np.dtype(DTYPES[dtype])
    if len(content) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{len(content)} bytes for shape {list(shape)} of {kind.name}")
    return np.frombuffer(content, kind).reshape(shape).copy()  # a view would hold the whole file in memory


def _shape(proto: memoryview) -> tuple[int, ...]:
    sizes = [as_number(dict(fields(as_bytes(dim))).get(1, 0)) for number, dim in fields(proto) if number == 2]
    if len(sizes) > LARGEST_RANK or any(size >= LARGEST for size in sizes):
        raise ValueError(f"its shape is {sizes[:LARGEST_RANK]}")
    return tuple(sizes)


def _shaped(strings: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if not shape or math.prod(shape) != len(strings):
        return strings
    return strings.reshape(shape)
