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

BITS = {I16: 16, I32: 32, I64: 64}

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
        self._data, self._end = data, len(data)
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
            # A flag is in its type; as an item of a list it is a byte.
            found[number] = Field(kind, kind == TRUE if kind <= FALSE else self._value(kind, depth))
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in BITS:
            return self._number(BITS[kind])
        if kind == BINARY:
            return self._take(self._varint())
        if kind == STRUCT:
            return self.structure(depth + 1)
        if kind in (LIST, SET):
            return self._items(depth + 1)
        if kind in (TRUE, FALSE, BYTE):
            return self._byte()
        if kind == DOUBLE:
            return self._take(8)
        raise ValueError(f"a field of type {kind}")  # maps among them, which Parquet does not use

    def _items(self, depth: int) -> tuple[int, list[Any]]:
        if depth > DEEPEST:
            raise ValueError(f"lists are more than {DEEPEST} deep")
        head = self._byte()
        kind, count = head & 15, head >> 4
        if count == 15:
            count = self._varint()
        if count > self._end - self.at:  # each takes a byte at least
            raise ValueError(f"a list claims {count} items where {self._end - self.at} bytes are left")
        return kind, [self._value(kind, depth) for _ in range(count)]

    def _number(self, bits: int) -> int:
        raw = self._varint()
        number = raw >> 1 ^ -(raw & 1)
        if number >> bits - 1 not in (0, -1):
            raise ValueError(f"{number} where a number of {bits} bits belongs")
        return number

    def _varint(self) -> int:
        value = self._byte()
        if value < 0x80:  # most of them; a small part has 3,000 numbers
            return value
        value &= 0x7F
        for i in range(1, LONGEST_VARINT):
            byte = self._byte()
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value
        raise ValueError("a number does not end")

    def _byte(self) -> int:
        at = self.at
        if at >= self._end:
            raise ValueError("it breaks off")
        self.at = at + 1
        return self._data[at]

    def _take(self, count: int) -> bytes:
        if count > self._end - self.at:
            raise ValueError(f"{count} bytes are claimed where {self._end - self.at} are left")
        self.at += count
        return bytes(self._data[self.at - count : self.at])


def written(structure: Structure) -> bytes:
    """A structure as bytes, which `Reader` reads back as the same."""
    return b"".join(_pieces(structure))


def _pieces(structure: Structure) -> Iterator[bytes]:
    before = 0
    for number, (kind, value) in sorted(structure.items()):
        step, before = number - before, number
        yield bytes([step << 4 | kind]) if step < 16 else bytes([kind]) + _varint(number << 1)
        if kind > FALSE:
            yield _item(kind, value)
    yield b"\0"


def _item(kind: int, value: Any) -> bytes:
    if kind in BITS:
        return _varint(value << 1 if value >= 0 else ~(value << 1))
    if kind in (TRUE, FALSE, BYTE):
        return bytes([value])
    if kind == DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == STRUCT:
        return written(value)
    items, values = value
    return bytes([0xF0 | items]) + _varint(len(values)) + b"".join(_item(items, each) for each in values)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
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
