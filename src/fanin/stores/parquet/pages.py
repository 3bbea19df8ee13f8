"""What decoding a part would take, counted from the heads of its pages before anything is decoded.

Three claims make much of little: a chunk or page that is compressed, runs of one value (levels of lists, and values
that stand in a dictionary, take some bytes for a billion), and dictionaries themselves. Each page's head says how many
values and bytes come of it, and Arrow makes no more than that, so the sum of the heads bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.parquet as pq

from fanin.stores.parquet.footer import Column, columns, structures, trusted
from fanin.stores.parquet.table import ARRAYS, TEXTS
from fanin.stores.parquet.thrift import (
    BINARY,
    I32,
    I64,
    LIST,
    SET,
    STRUCT,
    Field,
    Reader,
    Structure,
    items,
    optional,
    wanted,
)

DATA, DICTIONARY = 0, 2
"""Kinds of pages that we write. Those of version 2, which Arrow writes only when asked, claim more lengths."""

PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8
"""Encodings that we write: a value takes its bytes in the page or is one of a dictionary. Those of differences make
megabytes of a byte (DELTA_BYTE_ARRAY: as the value before, and some more)."""

CODECS = (0, 1, 6)
"""None; snappy, by which Arrow compresses unless told otherwise; zstd, by which we do."""

AS_OBJECT, AS_ARRAY, AS_TEXT = 96, 32, 10
"""Bytes that decoding takes at its peak for a value that becomes an object of Python's (with its share of a row), for
one that stays in an array, and for a byte of text. Measured with pyarrow 26.0.1: 107 of a row of which the half is
null, 30, and 9 for a text with a character beyond 16 bits; `tests/stores/test_parquet_hostile.py` compares."""

FREE, RATIO, LARGEST_TABLE = 2**29, 1000, 2**32
"""Bytes that decoding a part may take: FREE, and RATIO for each byte of the file, and LARGEST_TABLE at the most.

A network of zeros is all repetition: PART_TENSORS of it, each with a histogram and 64 units, are a file of 9.5 kB and
take 145 MB. So a file of kilobytes may take FREE, what one step of 3,500 such layers needs, and no more (at its worst
450 MB were measured). Of a network that is alive a part takes 86 times its size, or 391 (four values each)."""


@dataclass(slots=True)
class Account:
    """What decoding would take.

    Attributes:
        memory_left, file_left: Bytes of each. No two chunks share a byte of the file, or few would count as many.
        memory: Bytes taken.
    """

    memory_left: int
    file_left: int
    memory: int = 0

    def take(self, memory: int = 0, file: int = 0) -> None:
        """Raises ValueError where it is more than is left."""
        self.memory += memory
        self.memory_left -= memory
        self.file_left -= file
        if self.memory_left < 0:
            raise ValueError(
                f"its columns would take {self.memory} bytes of memory or more, which is too much for it"
            )
        if self.file_left < 0:
            raise ValueError("its columns claim more bytes than it has")


def bounded(data: bytes, footer: Structure, before: memoryview) -> tuple[pq.FileMetaData, int]:
    """A footer that Arrow may be given for a part, and how much memory decoding takes then.

    Args:
        data: The whole file.
        footer, before: As `footer_of` found them.

    Raises:
        ValueError: It is damaged, or not as fanin writes it, or would take more.
    """
    found = columns(footer)
    most = min(LARGEST_TABLE, FREE + RATIO * len(data))
    account = Account(most, len(before))
    # Of a group without rows Arrow writes chunks without pages, at places where none are.
    groups = [group for group in items(footer, 4, STRUCT) if wanted(group, 3, I64)]
    return trusted(found, [_group(group, found, before, account) for group in groups]), account.memory


def _group(group: Structure, found: list[Column], before: memoryview, account: Account) -> Structure:
    rows, chunks = wanted(group, 3, I64), items(group, 1, STRUCT)
    if len(chunks) <= max(column.leaf for column in found):
        raise ValueError(f"a group of its rows has {len(chunks)} columns")
    checked = [_chunk(chunks[column.leaf], column, rows, before, account) for column in found]
    size = sum(wanted(chunk[3].value, 6, I64) for chunk in checked)
    return {1: structures(checked), 2: Field(I64, size), 3: Field(I64, rows)}


def _chunk(chunk: Structure, column: Column, rows: int, before: memoryview, account: Account) -> Structure:
    about = wanted(chunk, 3, STRUCT)
    if 1 in chunk or 8 in chunk:
        raise ValueError(f"the values of {column.name!r} are in another file, or encrypted")
    if wanted(about, 1, I32) != column.kind or wanted(about, 4, I32) not in CODECS:
        raise ValueError(f"the values of {column.name!r} are not as fanin writes them")
    data, dictionary = wanted(about, 9, I64), optional(about, 11, I64, 0)
    start, size = dictionary if 0 < dictionary < data else data, wanted(about, 7, I64)
    if not 0 < start <= start + size <= len(before):
        raise ValueError(f"the values of {column.name!r} are said to be at {start}, of {size} bytes")
    account.take(file=size)
    values, unpacked = _pages(before[: start + size], start, column, account)
    if values != wanted(about, 5, I64) or not _fits(values, rows, column):
        raise ValueError(f"{column.name!r} has {values} values in {rows} rows")
    return _trusted_chunk(column, about, values, unpacked, (start, data))


def _fits(values: int, rows: int, column: Column) -> bool:
    """A row without a value counts as one."""
    return 0 < rows <= values if column.is_list else 0 < rows == values


def _trusted_chunk(
    column: Column, about: Structure, values: int, unpacked: int, at: tuple[int, int]
) -> Structure:
    start, data = at
    encodings = [PLAIN, RLE, RLE_DICTIONARY]
    found: Structure = {
        1: Field(I32, column.kind),
        2: Field(LIST, (I32, encodings)),
        3: Field(LIST, (BINARY, column.path)),
        4: about[4],
        5: Field(I64, values),
        6: Field(I64, unpacked),
        7: about[7],
        9: Field(I64, data),
    }
    if start < data:
        found[11] = Field(I64, start)
    return {2: Field(I64, start), 3: Field(STRUCT, found)}


def _pages(chunk: memoryview, at: int, column: Column, account: Account) -> tuple[int, int]:
    """How many values the pages of a chunk hold, and how many bytes they are when unpacked."""
    values = unpacked = 0
    first = True
    while at < len(chunk):
        reader = Reader(chunk, at)
        page = _Page.of(reader.structure(), first)
        at = reader.at + page.size
        if at > len(chunk):
            raise ValueError(f"a page of {column.name!r} claims {page.size} bytes")
        account.take(_memory(column, page))
        values += 0 if page.is_dictionary else page.values
        unpacked += page.unpacked
        first = False
    return values, unpacked


def _memory(column: Column, page: _Page) -> int:
    if column.name in TEXTS:
        return page.values * AS_OBJECT + page.unpacked * AS_TEXT
    return page.values * (AS_ARRAY if column.name in ARRAYS else AS_OBJECT) + page.unpacked


@dataclass(frozen=True, slots=True)
class _Page:
    """What the head of a page says.

    Attributes:
        values: How many come of it.
        size, unpacked: Bytes in the file, and in memory.
        is_dictionary: Whether they are what others are told by.
    """

    values: int
    size: int
    unpacked: int
    is_dictionary: bool

    @classmethod
    def of(cls, head: Structure, first: bool) -> _Page:
        """Raises ValueError where it is not of a kind that we write."""
        kind, unpacked, size = (wanted(head, number, I32) for number in (1, 2, 3))
        is_dictionary = kind == DICTIONARY and first
        if not (is_dictionary or kind == DATA):
            raise ValueError(f"it has a page of kind {kind} where fanin writes none")
        about: Structure = wanted(head, 7 if is_dictionary else 5, STRUCT)
        _require_flat(head)
        _require_known(about, is_dictionary)
        values = wanted(about, 1, I32)
        if min(values, size, unpacked) < 0:
            raise ValueError("a page claims less than nothing")
        # Arrow unpacks what is not packed by its size in the file.
        return cls(values, size, max(size, unpacked), is_dictionary)


def _require_known(about: Structure, is_dictionary: bool) -> None:
    known = (PLAIN, PLAIN_DICTIONARY) if is_dictionary else (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY)
    levels = () if is_dictionary else (wanted(about, 3, I32), wanted(about, 4, I32))
    if wanted(about, 2, I32) not in known or any(each != RLE for each in levels):
        raise ValueError("a page is encoded in a way in which fanin encodes none")


def _require_flat(head: Structure) -> None:
    """Arrow reads this head once more, and takes items of a list for what they should be, not for what they say."""
    for field in head.values():
        if field.kind in (LIST, SET):
            raise ValueError("the head of a page holds a list")
        if field.kind == STRUCT:
            _require_flat(field.value)
