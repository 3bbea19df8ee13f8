"""What a part says of itself, read and checked before Arrow is asked to decode anything.

A Parquet file is a claim: of how many values, where, how long. Arrow believes it, and asked for a chunk that a damaged
footer describes it crashed (26.0.1). So the footer is read here, and Arrow gets one of our own making: our columns, as
we write them, at places that were looked at (see `pages`), and nothing else that stood there.

Numbers of fields: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fanin.stores.parquet.table import OFFSET, SCHEMA
from fanin.stores.parquet.thrift import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    Field,
    Reader,
    Structure,
    items,
    optional,
    wanted,
    written,
)

MAGIC = b"PAR1"

TAIL = 4 + len(MAGIC)
"""Bytes after the footer: its length and the mark of the format."""

NEEDED = set(SCHEMA.names) - set(OFFSET.names)
"""Columns that every part has."""


@dataclass(frozen=True, slots=True)
class Column:
    """One of our columns.

    Attributes:
        name: Its name.
        elements: Of the schema, from its own down to that of its values.
        leaf: Which of the file's columns it is, counted as row groups count them.
    """

    name: str
    elements: tuple[Structure, ...]
    leaf: int = 0

    @property
    def shape(self) -> list[tuple[Any, ...]]:
        """What must be the same for Arrow to read it alike: type, repetition, name and number of children."""
        return [tuple(each[i].value if i in each else None for i in (1, 3, 4, 5)) for each in self.elements]

    @property
    def is_list(self) -> bool:
        """Whether a row may have any number of values."""
        return len(self.elements) > 1

    @property
    def kind(self) -> int:
        """Parquet's type of its values."""
        found: int = wanted(self.elements[-1], 1, I32)
        return found

    @property
    def path(self) -> list[bytes]:
        """Names down to that of its values."""
        return [wanted(each, 4, BINARY) for each in self.elements]


def footer_of(data: bytes) -> tuple[Structure, memoryview]:
    """The footer of a Parquet file, and what stands before it.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    if len(data) < len(MAGIC) + TAIL:
        raise ValueError(f"its size is {len(data)} bytes, less than that of any Parquet file")
    if data[: len(MAGIC)] != MAGIC or data[-len(MAGIC) :] != MAGIC:
        raise ValueError("it lacks the magic bytes of Parquet at one of its ends")
    length, view = int.from_bytes(data[-TAIL : -len(MAGIC)], "little"), memoryview(data)
    start = len(data) - TAIL - length
    if start < len(MAGIC):
        raise ValueError(f"its footer claims {length} of its {len(data)} bytes")
    return Reader(view[:-TAIL], start).structure(), view[:start]


def entries(footer: Structure) -> dict[str, bytes]:
    """Its key-value metadata.

    Raises:
        ValueError: It is damaged.
    """
    return {
        wanted(each, 1, BINARY).decode(): optional(each, 2, BINARY, b"") for each in items(footer, 5, STRUCT)
    }


def columns(footer: Structure) -> list[Column]:
    """Our columns in it. Others are passed over.

    Raises:
        ValueError: One lacks, or is not as fanin writes it.
    """
    known = _ours()
    present = [each for each in _all(items(footer, 2, STRUCT)) if each.name in known]
    found = {each.name: each for each in present}
    for each in present:
        if found[each.name] is not each:
            raise ValueError(f"it has two columns of the name {each.name!r}")
    if lacking := sorted(NEEDED - set(found)):
        raise ValueError(f"it lacks the column {lacking[0]!r}")
    for name, column in found.items():
        if column.shape != known[name].shape:
            raise ValueError(f"its column {name!r} is not of the type that fanin writes")
    # In our order, and with our words for what Arrow is to make of them.
    return [Column(name, ours.elements, found[name].leaf) for name, ours in known.items() if name in found]


@cache
def _ours() -> dict[str, Column]:
    """What Arrow makes of our schema."""
    sink = pa.BufferOutputStream()
    pq.write_table(SCHEMA.empty_table(), sink, store_schema=False)
    footer, _ = footer_of(sink.getvalue().to_pybytes())
    return {each.name: each for each in _all(items(footer, 2, STRUCT))}


def _all(elements: list[Structure]) -> list[Column]:
    """The columns of a schema, which stands there as a tree, each node before its children."""
    found: list[Column] = []
    at, leaf = 1, 0
    while at < len(elements):
        end, open_ends = at, 1
        while open_ends:
            if end == len(elements):
                raise ValueError("its schema breaks off")
            open_ends += _children(elements[end]) - 1
            end += 1
        found.append(Column(wanted(elements[at], 4, BINARY).decode(), tuple(elements[at:end]), leaf))
        leaf += sum(1 for each in elements[at:end] if not _children(each))
        at = end
    return found


def _children(element: Structure) -> int:
    found: int = optional(element, 5, I32, 0)
    if found < 0:
        raise ValueError(f"an element of its schema has {found} children")
    return found


def trusted(found: Iterable[Column], groups: list[Structure]) -> pq.FileMetaData:
    """A footer of our making.

    Args:
        found: The columns.
        groups: Row groups, with a chunk for each of these.
    """
    schema = [_root(found), *(element for each in found for element in each.elements)]
    rows = sum(wanted(group, 3, I64) for group in groups)
    fields = {1: Field(I32, 2), 2: structures(schema), 3: Field(I64, rows), 4: structures(groups)}
    footer = written(fields)
    return pq.read_metadata(pa.BufferReader(MAGIC + footer + len(footer).to_bytes(4, "little") + MAGIC))


def _root(found: Iterable[Column]) -> Structure:
    return {4: Field(BINARY, b"schema"), 5: Field(I32, sum(1 for _ in found))}


def structures(found: list[Structure]) -> Field:
    """A field that is a list of them."""
    return Field(LIST, (STRUCT, found))
