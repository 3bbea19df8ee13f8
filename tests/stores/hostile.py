"""Parts that are meant to harm: files of some kilobytes that claim gigabytes, and spoiled ones by the thousand.

    export PYTHONPATH=tests
    python -m stores.hostile fuzz 20000 1 FILE    spoil parts so often, from this seed, and say how it went
    python -m stores.hostile put FOLDER           write all that are made here
    python -m stores.hostile take FILE            decode one, and say what that took

In processes of their own, since a fault here may be the end of one, and a peak of memory is that of a process.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fanin.errors import TrialFormatError
from fanin.stores.parquet import DAMAGE
from fanin.stores.parquet.footer import MAGIC, TAIL, columns, footer_of
from fanin.stores.parquet.part import Part, _metadata, decode, encode
from fanin.stores.parquet.table import SCHEMA, to_table
from fanin.stores.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, Field, Structure, written
from fanin.trial import Step

from .samples import step

MANY = 2_000_000_000


def put(table: pa.Table, **options: Any) -> bytes:
    """A table as a part; in two groups of rows where it has some."""
    sink = pa.BufferOutputStream()
    known = {"compression": "zstd", "store_schema": False} | options
    with pq.ParquetWriter(sink, table.schema, **known) as writer:
        writer.write_table(table, row_group_size=max(1, len(table) // 2 + 1))
        writer.add_key_value_metadata(_metadata(Part()))
    return bytes(sink.getvalue().to_pybytes())


def rows(count: int, **columns: Any) -> pa.Table:
    """Rows in which all but some columns are null."""
    return pa.table({f.name: columns.get(f.name, pa.nulls(count, f.type)) for f in SCHEMA}, schema=SCHEMA)


def one_list(column: str, values: int) -> bytes:
    """One row of one list, of a number that Python keeps no object of."""
    numbers = pa.array(np.full(values, 2.0**40), SCHEMA.field(column).type.value_type)
    return put(rows(1, **{column: pa.ListArray.from_arrays([0, values], numbers)}))


def one_word(count: int, word: str) -> bytes:
    """Rows that all name the same word."""
    words = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([word]))
    return put(rows(count, layer=words.cast(pa.string())))


def footed(before: bytes, footer: bytes) -> bytes:
    """A file with another footer."""
    return before + footer + len(footer).to_bytes(4, "little") + MAGIC


def group_of(footer: Structure) -> Structure:
    """Its first group of rows."""
    found: Structure = footer[4].value[1][0]
    return found


def with_groups(data: bytes, count: int) -> bytes:
    """The same rows so often, from the same bytes."""
    footer, before = footer_of(data)
    groups = Field(LIST, (STRUCT, [group_of(footer)] * count))
    total = Field(I64, footer[3].value * count)
    return footed(bytes(before), written(footer | {3: total, 4: groups}))


def with_page(data: bytes, column: str, values: int, page: bytes, unpacked: int | None = None) -> bytes:
    """A part of which the only page of a column is this one."""
    footer, before = footer_of(data)
    packed = pa.compress(page, codec="zstd", asbytes=True)
    kinds = {1: Field(I32, values), 2: Field(I32, 0), 3: Field(I32, 3), 4: Field(I32, 3)}
    sizes = {1: Field(I32, 0), 2: Field(I32, unpacked or len(page)), 3: Field(I32, len(packed))}
    head = written(sizes | {5: Field(STRUCT, kinds)})
    leaf = next(each.leaf for each in columns(footer) if each.name == column)
    about: Structure = group_of(footer)[1].value[1][leaf][3].value
    about |= {5: Field(I64, values), 7: Field(I64, len(head) + len(packed)), 9: Field(I64, len(before))}
    about.pop(11, None)
    return footed(bytes(before) + head + packed, written(footer))


def runs(*counts: tuple[int, int]) -> bytes:
    """Levels, as runs of (how many, which), with their length."""
    found = b"".join(bytes(_varint(count << 1)) + bytes([level]) for count, level in counts)
    return len(found).to_bytes(4, "little") + found


def _varint(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number


def two_billion(column: str) -> bytes:
    """So many values in the list of one row; the file says so in thirty bytes."""
    return with_page(put(rows(1)), column, MANY, runs((1, 0), (MANY - 1, 1)) + runs((MANY, 2)))


def claims(length: int) -> bytes:
    """A footer that is the beginning of a list of so many groups of rows."""
    return b"\x15\x04\x39\xfc" + bytes(_varint(length))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "two billion values of an array": lambda: two_billion("histogram_bins"),
    "two billion values that become objects": lambda: two_billion("shape"),
    "rows that name one word": lambda: one_word(250_000, "x"),
    "a long word": lambda: one_word(1, "x" * 60_000_000),
    "rows": lambda: put(rows(300_000)),
    "the same rows again and again": lambda: with_groups(put(rows(5_000)), 30),
    "words told by the one before": lambda: put(
        rows(1000, layer=pa.array(["x" * 100_000 + str(i) for i in range(1000)])),
        use_dictionary=False,
        column_encoding={"layer": "DELTA_BYTE_ARRAY"},
    ),
    "a page that claims to be large": lambda: with_page(put(rows(1)), "mean", 1, bytes(99), 2**31 - 1),
    "a footer of very many groups": lambda: footed(MAGIC, claims(1_000_000)),
    "a footer of more groups than bytes could be": lambda: footed(MAGIC, claims(2**31 - 1)),
    "a footer of empty groups": lambda: footed(MAGIC, claims(4000) + bytes(4001)),
    "a deep footer": lambda: footed(MAGIC, b"\x1c" * 4000),
    "a number without an end": lambda: footed(MAGIC, b"\x15" + b"\xff" * 4000),
}
"""Files of some kilobytes. Those that Arrow cannot be made to write are made of what it wrote."""

ALLOWED: dict[str, Callable[[], bytes]] = {
    "a list of numbers": lambda: one_list("unit_mean", 4_000_000),
    "a list that becomes objects": lambda: one_list("shape", 1_500_000),
    "a word of wide letters": lambda: one_word(1, "x" * 12_000_000 + "\U0001f600"),
    "rows of nothing": lambda: put(rows(50_000)),
}
"""The same, of which decoding takes a quarter of what it may."""


# ── spoiling ────────────────────────────────────────────────────────────────────────────────────────────────


def bases(steps: tuple[Step, ...]) -> list[bytes]:
    """Parts to spoil: as fanin writes them, and so that a spoiled byte of a value is seen by who decodes it."""
    bare = {"compression": "none", "write_page_checksum": False}
    table = to_table(steps)
    return [
        encode(Part(steps, about={"a": "b"})),
        put(table, **bare),
        put(table, **bare, use_dictionary=False, write_statistics=False),
        put(table, **bare, data_page_size=64),
    ]


def spoiled(whole: bytes, chance: random.Random) -> bytes:
    """A part of which a stretch is cut out, repeated, zeroed or drawn anew; half the time in its footer."""
    footer = int.from_bytes(whole[-TAIL : -len(MAGIC)], "little") + TAIL
    start = chance.randrange(len(whole) - footer if chance.random() < 0.5 else 0, len(whole))
    end = min(len(whole), start + chance.choice([1, 1, 1, 4, 16, 200, len(whole)]))
    stretch = whole[start:end]
    others = [b"", 2 * stretch, bytes(len(stretch)), b"\xff" * len(stretch), chance.randbytes(len(stretch))]
    return whole[:start] + chance.choice(others) + whole[end:]


def misled(whole: bytes, chance: random.Random) -> bytes:
    """A part whose footer can be read, and says something else."""
    footer, before = footer_of(whole)
    for _ in range(chance.choice([1, 1, 2, 5])):
        _change(footer, chance)
    return footed(bytes(before), written(footer))


def _change(structure: Structure, chance: random.Random) -> None:
    """One field of a structure or of one within it."""
    if not structure:
        return None
    number = chance.choice(list(structure))
    kind, value = structure[number]
    if kind == STRUCT and value and chance.random() < 0.95:
        return _change(value, chance)
    if kind == LIST and value[0] == STRUCT and value[1] and chance.random() < 0.9:
        return _change(chance.choice(value[1]), chance)
    if kind == LIST:
        values = list(value[1])
        chance.shuffle(values)
        structure[number] = Field(kind, (value[0], chance.choice([values[1:], values * 2, values])))
    elif kind in (I32, I64):
        limit = 2 ** (31 if kind == I32 else 63)
        near = value + chance.choice([-1, 1, 8, -8])
        drawn = chance.choice([0, 1, -1, near, limit - 1, -limit, chance.randrange(256), 2 * value])
        structure[number] = Field(kind, max(-limit, min(limit - 1, drawn)))
    elif kind == BINARY:
        structure[number] = Field(kind, chance.choice([b"", value * 2, chance.randbytes(len(value))]))
    else:
        del structure[number]
    return None


def bitten(whole: bytes, chance: random.Random) -> bytes:
    """A part of which some bits before the footer are flipped: heads of pages, levels, values."""
    _, before = footer_of(whole)
    found = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 8])):
        found[chance.randrange(4, len(before))] ^= 1 << chance.randrange(8)
    return bytes(found)


WAYS = (spoiled, misled, bitten)


def fuzz(rounds: int, seed: int, steps: tuple[Step, ...], keep: Path | None = None) -> dict[str, float]:
    """Decode so many spoiled parts; how many were refused or read, the longest time, and the peak of memory.

    Args:
        rounds: How many.
        seed: Of the dice.
        steps: What the parts hold.
        keep: Where each is put before it is decoded, so that one that ends this process is known.
    """
    chance, parts = random.Random(seed), bases(steps)
    found: dict[str, float] = {"refused": 0, "read": 0, "longest_s": 0.0}
    before = _peak()
    for _ in range(rounds):
        data = chance.choice(WAYS)(chance.choice(parts), chance)
        if keep is not None:
            keep.write_bytes(data)
        began = time.perf_counter()
        try:
            decode(data, "here")
            found["read"] += 1
        except (TrialFormatError, *DAMAGE):
            found["refused"] += 1
        found["longest_s"] = max(found["longest_s"], round(time.perf_counter() - began, 3))
    return found | {"peak_mib": round((_peak() - before) / 2**20, 1)}


def _peak() -> int:
    """Bytes of memory at the highest, since this program began (Linux; `getrusage` includes who started it)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def take(data: bytes) -> dict[str, Any]:
    """Decode it, and say what that took."""
    decode(encode(Part()), "here")
    before = _peak()
    try:
        decode(data, "here")
        said = "read"
    except (TrialFormatError, *DAMAGE) as error:
        said = f"{type(error).__name__}: {error}"
    return {"bytes": len(data), "peak_mib": round((_peak() - before) / 2**20, 1), "said": said[:200]}


def main(verb: str, *arguments: str) -> None:
    """Do as the command line says."""
    if verb == "fuzz":
        rounds, seed, *keep = arguments
        steps = tuple(step(index) for index in range(3))
        print(json.dumps(fuzz(int(rounds), int(seed), steps, Path(keep[0]) if keep else None)))
    elif verb == "put":
        for name, make in (HOSTILE | ALLOWED).items():
            (Path(arguments[0]) / name.replace(" ", "_")).write_bytes(make())
    else:
        print(json.dumps(take(Path(arguments[0]).read_bytes())))


if __name__ == "__main__":
    main(*sys.argv[1:])
