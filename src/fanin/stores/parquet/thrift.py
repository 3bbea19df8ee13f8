"""Thrift's compact protocol, in which Parquet writes its footer and the headers of its pages: there and back.

Read by hand because nobody else may be asked about a file that is not trusted: Arrow makes room for as many entries as
a list claims (a footer of 20 bytes costs it half a gigabyte), and what it has read it does not check before it decodes.
Here every length is compared with the bytes that are left, a field appears once, and what is not understood is refused.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
"""Types as they stand in the bytes."""

BITS = {BYTE: 8, I16: 16, I32: 32, I64: 64}

DEEPEST = 16
"""Structures in one another. Parquet's own are five deep (a chunk's statistics of geography)."""

LONGEST_VARINT = 10
"""Bytes of a 64-bit number, seven bits each."""


class Field(NamedTuple):
    """A value and its type; that of a list is (type of its items, items)."""

    kind: int
    value: Any


Structure = dict[int, Field]
"""Fields by number."""


class Reader:
    """Reads structures one after another.

    Attributes:
        at: Where the next one begins.
    """

    def __init__(self, data: memoryview, at: int = 0) -> None:
        self._data = data
        self.at = at

    def structure(self, depth: int = 0) -> Structure:
        """The structure that begins here.

        Raises:
            ValueError: It breaks off, or is none.
        """
        if depth > DEEPEST:
            raise ValueError(f"structures are more than {DEEPEST} deep")
        found: Structure = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._number(16)
            if number in found or not 0 < number < 2**15:
                raise ValueError(f"field {number} where another number belongs")
            found[number] = Field(kind, self._value(kind, depth, kind == TRUE))
        return found

    def _value(self, kind: int, depth: int, flag: bool | None = None) -> Any:
        if kind in (TRUE, FALSE):  # as a field it is in its type, as an item in a byte
            return flag if flag is not None else self._byte()
        if kind == BYTE:
            return self._byte()
        if kind in BITS:
            return self._number(BITS[kind])
        if kind == DOUBLE:
            return bytes(self._take(8))
        if kind == BINARY:
            return bytes(self._take(self._varint()))
        if kind == STRUCT:
            return self.structure(depth + 1)
        if kind in (LIST, SET):
            return self._items(depth + 1)
        raise ValueError(f"a field of type {kind}")  # maps among them, which Parquet does not use

    def _items(self, depth: int) -> tuple[int, list[Any]]:
        if depth > DEEPEST:
            raise ValueError(f"lists are more than {DEEPEST} deep")
        head = self._byte()
        kind, count = head & 15, head >> 4
        if count == 15:
            count = self._varint()
        if count > len(self._data) - self.at:  # each takes a byte at least
            raise ValueError(f"a list claims {count} items where {len(self._data) - self.at} bytes are left")
        return kind, [self._value(kind, depth) for _ in range(count)]

    def _number(self, bits: int) -> int:
        raw = self._varint()
        number = raw >> 1 ^ -(raw & 1)
        if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            raise ValueError(f"{number} where a number of {bits} bits belongs")
        return number

    def _varint(self) -> int:
        value = 0
        for i in range(LONGEST_VARINT):
            byte = self._byte()
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value
        raise ValueError("a number does not end")

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self.at:
            raise ValueError(f"{count} bytes are claimed where {len(self._data) - self.at} are left")
        self.at += count
        return self._data[self.at - count : self.at]


def written(structure: Structure) -> bytes:
    """A structure as bytes, which `Reader` reads back as the same."""
    return b"".join(_pieces(structure))


def _pieces(structure: Structure) -> Iterator[bytes]:
    for number, (kind, value) in structure.items():
        yield bytes([kind]) + _varint(number << 1)
        if kind not in (TRUE, FALSE):
            yield _item(kind, value)
    yield b"\0"


def _item(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE, BYTE):
        return bytes([value])
    if kind in BITS:
        return _varint(value << 1 if value >= 0 else ~(value << 1))
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return _varint(len(value)) + value
    if kind == STRUCT:
        return written(value)
    items, values = value
    return bytes([0xF0 | items]) + _varint(len(values)) + b"".join(_item(items, each) for each in values)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def wanted(structure: Structure, number: int, kind: int) -> Any:
    """The value of a field that must be there.

    Raises:
        ValueError: It is not, or is of another type.
    """
    if number not in structure:
        raise ValueError(f"field {number} is not there")
    return optional(structure, number, kind, None)


def optional(structure: Structure, number: int, kind: int, default: Any) -> Any:
    """The value of a field, or what stands for it where it is not there.

    Raises:
        ValueError: It is of another type.
    """
    found = structure.get(number)
    if found is None:
        return default
    if found.kind != kind:
        raise ValueError(f"field {number} is of type {found.kind}, not {kind}")
    return found.value


def items(structure: Structure, number: int, kind: int) -> list[Any]:
    """The items of a list, all of one type; none where it is not there.

    Raises:
        ValueError: It is no list, or one of others.
    """
    found, values = optional(structure, number, LIST, (kind, []))
    if values and found != kind:
        raise ValueError(f"field {number} is a list of type {found}, not {kind}")
    return list(values)
