"""A part of a trial: what one worker wrote at once, as a Parquet file.

Numbers of tensors are in the table; the model and the run are JSON in the file's key-value metadata:

    fanin.format   version of the format
    fanin.about    the run, in every part
    fanin.spec     the model, in parts where it is new or has changed
    fanin.end      in the last part of a worker that closed its writer
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fanin.errors import TrialFormatError
from fanin.stores.parquet.footer import entries, footer_of
from fanin.stores.parquet.pages import RATIO, bounded
from fanin.stores.parquet.plain import restore
from fanin.stores.parquet.table import SCHEMA, TEXTS, from_table, to_table
from fanin.trial import ModelSpec, Step

FORMAT = 1
"""Version of the format. Newer ones are refused, so it changes only when an old fanin would misread a part."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker wrote at once.

    Attributes:
        steps: In order.
        spec: The model, where it is new or has changed.
        about: The run; the same in all parts of a worker.
        end: Whether the worker closed its writer with this part.
        excess: Bytes of memory that decoding it took, at the most, beyond what every file of its size may; for one
            that was decoded.
    """

    steps: tuple[Step, ...] = ()
    spec: ModelSpec | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    end: bool = False
    excess: int = field(default=0, compare=False)


def encode(part: Part) -> bytes:
    """The part as a Parquet file."""
    sink = pa.BufferOutputStream()
    # Without Arrow's own copy of the schema, which would hold all our metadata once more in base64.
    options = {"compression": "zstd", "store_schema": False, "write_page_checksum": True}
    with pq.ParquetWriter(sink, SCHEMA, **options) as writer:
        writer.write_table(to_table(part.steps))
        writer.add_key_value_metadata(_metadata(part))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _metadata(part: Part) -> dict[str, str]:
    entries = {"fanin.format": str(FORMAT), "fanin.about": json.dumps(dict(part.about))}
    if part.spec is not None:
        entries["fanin.spec"] = json.dumps(asdict(part.spec))
    if part.end:
        entries["fanin.end"] = "closed"
    return entries


_known: ContextVar[dict[bytes, Part] | None] = ContextVar("_known", default=None)


@contextmanager
def decoded_once(known: dict[bytes, Part]) -> Iterator[None]:
    """While open, what was decoded into `known` before is not decoded again. Who follows a trial loads it at each new
    part, and of a network of 300 layers a step takes 0.2 s to decode."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def decode(data: bytes, where: str) -> Part:
    """The part in a Parquet file.

    Args:
        data: The whole file.
        where: Its path, for messages.

    Raises:
        TrialFormatError: It is not a part of a trial, or one of a newer fanin.
        pa.ArrowException, OSError, ValueError, TypeError, KeyError, RecursionError: It is damaged.
    """
    known = _known.get()
    if known is None:
        return _decoded(data, where)
    key = sha256(data).digest()
    if key not in known:
        known[key] = _decoded(data, where)
    return known[key]


def _decoded(data: bytes, where: str) -> Part:
    footer, before = footer_of(data)
    metadata = entries(footer)
    _require_format(metadata, where)
    trusted, takes = bounded(data, footer, before)
    spec = metadata.get("fanin.spec")
    return Part(
        steps=tuple(from_table(_table(data, trusted))),
        spec=None if spec is None else restore(ModelSpec, json.loads(spec)),
        about=_about(json.loads(metadata["fanin.about"])),
        end="fanin.end" in metadata,
        excess=max(0, takes - RATIO * len(data)),
    )


def _table(data: bytes, metadata: pq.FileMetaData) -> pa.Table:
    options = {"read_dictionary": TEXTS, "page_checksum_verification": True}
    return pq.ParquetFile(pa.BufferReader(data), metadata=metadata, **options).read(use_threads=False)


def _require_format(metadata: Mapping[str, bytes], where: str) -> None:
    if "fanin.format" not in metadata:
        raise TrialFormatError(
            "this Parquet file is not part of a trial",
            where=where,
            got="no `fanin.format` in its metadata",
            expected=f"a file that fanin wrote, format {FORMAT}",
            next_step="give the directory of a trial, and keep other files out of it",
        )
    version = int(metadata["fanin.format"])
    if version > FORMAT:
        raise TrialFormatError(
            "this trial was written by a newer fanin",
            where=where,
            got=f"format {version}",
            expected=f"format {FORMAT}",
            next_step="upgrade fanin: pip install --upgrade fanin",
        )
    if version < 1:
        raise ValueError(f"there is no format {version}")


def _about(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"expected names and texts, got {value!r:.60}")
    return value
