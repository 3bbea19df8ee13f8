"""The wire format of Protocol Buffers, as far as events use it: fields of a message, one after the other.

Read by hand: the few fields that matter here do not outweigh a dependency whose versions clash with those that
frameworks pin.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4, groups, are not used by events."""

WIDTHS = {FIXED64: 8, FIXED32: 4}

LONGEST_VARINT = 10
"""Bytes of a 64-bit number, seven bits each."""

Value = int | memoryview
"""A number, or the bytes of a string, a submessage or a fixed-width field."""


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field, in order. Views, never copies, so a length that lies allocates nothing.

    Raises:
        ValueError: The message breaks off, or is none.
    """
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = varint(message, at)
        elif kind in WIDTHS:
            length = WIDTHS[kind]
        else:
            raise ValueError(f"field {number} has wire type {kind}")
        if length > len(message) - at:
            raise ValueError(f"field {number} claims {length} bytes where {len(message) - at} are left")
        yield number, message[at : at + length]
        at += length


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends.

    Raises:
        ValueError: It does not end.
    """
    value = 0
    for i, byte in enumerate(message[at : at + LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + i + 1
    raise ValueError("a number does not end")


def as_number(value: Value) -> int:
    """A field that holds a number.

    Raises:
        ValueError: It holds something else.
    """
    if isinstance(value, int):
        return value
    raise ValueError("bytes where a number belongs")


def as_bytes(value: Value) -> memoryview:
    """A field that holds bytes.

    Raises:
        ValueError: It holds something else.
    """
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def as_text(value: Value) -> str:
    """A field that holds text.

    Raises:
        ValueError: It holds something else.
    """
    return bytes(as_bytes(value)).decode("utf-8")
