"""Steps as a table: one row per observation, one per loss.

The columns are what users of DuckDB, pandas or Spark see; `variance` and `rms` are there for them and never read back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fanin.summary import Histogram, TensorSummary, UnitSummary
from fanin.trial import Mode, Observation, Role, Step

LOSS = "loss"
"""Role of a row that holds a loss."""

STEP = "step"
"""Role of the one row of a step in which nothing was seen: that it ran is knowledge too."""

Row = dict[str, Any]

KEYS = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("mode", pa.string()),
        pa.field("worker", pa.int64()),
        pa.field("layer", pa.string()),
        pa.field("role", pa.string()),
        pa.field("tensor", pa.string()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("dtype", pa.string()),
        pa.field("value", pa.float64()),
    ]
)
"""What a row is about; `value` is that of a loss."""

STATES = pa.schema(
    [
        *(pa.field(name, pa.int64()) for name in ("count", "nan", "inf", "zeros")),
        *(pa.field(name, pa.float64()) for name in ("mean", "m2", "minimum", "maximum")),
    ]
)
"""The scalar fields of TensorSummary, by their names there."""

DERIVED = pa.schema([pa.field(name, pa.float64()) for name in ("variance", "rms")])
"""For other readers."""

RANK_VARIANCE = pa.schema([pa.field("histogram_rank_variance", pa.float64())])
"""How far a histogram of a sample may be off; null without a histogram."""

OFFSET = pa.schema([pa.field("offset", pa.list_(pa.int64()))])
"""Where a rank's block of a shared tensor begins; null where the tensor is its own. Trials of version 0.1.0 lack it."""

HISTOGRAM = pa.schema([pa.field(f"histogram_{name}", pa.list_(pa.int64())) for name in ("bins", "counts")])
UNITS = pa.schema(
    [
        pa.field("unit_count", pa.list_(pa.int64())),
        *(
            pa.field(f"unit_{name}", pa.list_(pa.float64()))
            for name in ("mean", "m2", "minimum", "maximum", "projection")
        ),
    ]
)
"""Arrays, null where they were not asked for. Here and above, prefix + field of UnitSummary or Histogram."""

SCHEMA = pa.schema([*KEYS, *STATES, *DERIVED, *RANK_VARIANCE, *HISTOGRAM, *UNITS, *OFFSET])

TEXTS = [field.name for field in SCHEMA if field.type == pa.string()]
"""Read as dictionaries: each word is there once, however many rows name it."""

ARRAYS = [*HISTOGRAM.names, *UNITS.names]
"""Whose values stay in arrays; all others become Python's objects."""


def to_table(steps: Iterable[Step]) -> pa.Table:
    """The rows of some steps, in their order."""
    return pa.Table.from_pylist(list(_rows(steps)), schema=SCHEMA)


def _rows(steps: Iterable[Step]) -> Iterator[Row]:
    for step in steps:
        key = {"step": step.index, "mode": step.mode.value}
        for seen in step.observations:
            yield key | _observation_row(seen)
        for worker, loss in step.losses.items():
            yield key | {"role": LOSS, "worker": worker, "value": loss}
        if not step.observations and not step.losses:
            yield key | {"role": STEP}


def _observation_row(seen: Observation) -> Row:
    summary = seen.summary
    variance = summary.m2 / summary.count if summary.count else math.nan
    return {
        "worker": seen.worker,
        "layer": seen.layer,
        "role": seen.role.value,
        "tensor": seen.tensor,
        "shape": list(seen.shape),
        "dtype": seen.dtype,
        **{name: getattr(summary, name) for name in STATES.names},
        "variance": variance,
        # Not summary.rms: the square of a mean of 10^200 is an error in Python, and must not end the recording.
        "rms": math.hypot(math.sqrt(max(variance, 0.0)), summary.mean),
        "offset": None if seen.offset is None else list(seen.offset),
        "histogram_rank_variance": summary.histogram.rank_variance if summary.histogram else None,
        **_arrays(summary.histogram, HISTOGRAM, "histogram_"),
        **_arrays(summary.units, UNITS, "unit_"),
    }


def _arrays(record: Histogram | UnitSummary | None, columns: pa.Schema, prefix: str) -> Row:
    if record is None:
        return {}
    return {
        column.name: np.asarray(
            getattr(record, column.name.removeprefix(prefix)), column.type.value_type.to_pandas_dtype()
        )
        for column in columns
    }


def from_table(table: pa.Table) -> Iterator[Step]:
    """The steps in a table of our columns, in which texts are dictionaries.

    Raises:
        pa.ArrowException, KeyError, TypeError, ValueError: It is not a table of steps.
    """
    table.validate(full=True)  # indices that leave their dictionary or list, and texts that are none
    if "offset" not in table.column_names:
        table = table.append_column(OFFSET.field(0), pa.nulls(len(table), OFFSET.field(0).type))
    known = [*KEYS.names, *STATES.names, *RANK_VARIANCE.names, *OFFSET.names]
    rows: list[Row] = table.select([name for name in known if name not in TEXTS]).to_pylist()
    for name in TEXTS:
        _add(rows, name, _column_texts(table.column(name)))
    for name in ARRAYS:
        _add(rows, name, _column_arrays(table.column(name)))
    for (index, mode), group in groupby(rows, key=itemgetter("step", "mode")):
        yield _step(int(index), Mode(mode), list(group))


def _add(rows: list[Row], name: str, values: Iterable[Any]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _column_texts(column: pa.ChunkedArray) -> Iterator[str | None]:
    """The same object for each row that names a word."""
    for chunk in column.chunks:
        words = chunk.dictionary.to_pylist()
        for index in chunk.indices.to_pylist():
            yield None if index is None else words[index]


def _column_arrays(column: pa.ChunkedArray) -> Iterator[NDArray[Any] | None]:
    lists = column.combine_chunks()
    if lists.values.null_count:
        raise ValueError("an array lacks a value")
    values = lists.values.to_numpy(zero_copy_only=False)
    offsets = lists.offsets.to_numpy()
    for i, valid in enumerate(lists.is_valid().to_pylist()):
        yield values[offsets[i] : offsets[i + 1]] if valid else None


def _step(index: int, mode: Mode, rows: list[Row]) -> Step:
    seen = tuple(_observation(row) for row in rows if row["role"] not in (LOSS, STEP))
    losses = {int(row["worker"]): float(row["value"]) for row in rows if row["role"] == LOSS}
    return Step(index, mode, seen, losses)


def _observation(row: Row) -> Observation:
    states = {column.name: row[column.name] for column in STATES}
    if None in states.values():
        raise ValueError(f"{row['tensor']!r} lacks a part of its summary")
    return Observation(
        layer=row["layer"],
        role=Role(row["role"]),
        tensor=row["tensor"],
        summary=TensorSummary(
            **states,
            histogram=_from_arrays(Histogram, row, HISTOGRAM.names, row["histogram_rank_variance"] or 0.0),
            units=_from_arrays(UnitSummary, row, UNITS.names),
        ),
        shape=tuple(row["shape"]),
        dtype=row["dtype"],
        worker=row["worker"],
        offset=None if row["offset"] is None else tuple(row["offset"]),
    )


def _from_arrays(record: type[Any], row: Row, columns: list[str], *more: float) -> Any:
    arrays = [row[name] for name in columns]
    if all(array is None for array in arrays):
        return None
    if any(array is None or len(array) != len(arrays[0]) for array in arrays):
        raise ValueError(f"{row['tensor']!r} has {record.__name__} columns of different lengths")
    return record(*arrays, *more)
