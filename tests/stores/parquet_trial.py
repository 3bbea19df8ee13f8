"""Trials of Parquet files for tests: processes that write them, ways to spoil them, what loading says then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fanin
from fanin.errors import (
    FaninError,
    TrialFormatError,
)
from fanin.stores.parquet import ParquetStore

CHILDREN = Path(__file__).with_name("children.py")


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(fanin.__file__).parents[1])}


PARTS = ["part-w00000-000000.parquet", "part-w00000-000001.parquet", "part-w00000-000002.parquet"]


def child(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process that writes (see children.py)."""
    command = [sys.executable, str(CHILDREN), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=ENVIRONMENT | environment, **pipes, text=True)


def require_success(process: subprocess.Popen[str]) -> None:
    """Wait for it, and show what it said if it failed."""
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said


def load_error(place: Path, kind: type[FaninError] = TrialFormatError) -> FaninError:
    """What loading says; exactly this kind, not one below it."""
    with pytest.raises(kind) as caught:
        ParquetStore(place).load()
    assert type(caught.value) is kind
    assert caught.value.next_step
    assert str(place) in caught.value.where
    return caught.value


def rewrite(
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    spec: Callable[[dict[str, Any]], Any] | None = None,
    more_columns: Mapping[str, Any] | None = None,
    drop: str = "",
) -> None:
    """Write a part again, changed."""
    table, entries = pq.read_table(path), dict(pq.read_metadata(path).metadata or {})
    entries |= {key.encode(): value.encode() for key, value in (metadata or {}).items()}
    if spec is not None:
        entries[b"fanin.spec"] = json.dumps(spec(json.loads(entries[b"fanin.spec"]))).encode()
    for name, value in (more_columns or {}).items():
        table = table.append_column(name, pa.array([value] * len(table)))
    if drop:
        table = table.drop_columns([drop])
    pq.write_table(table.replace_schema_metadata(entries), path)
