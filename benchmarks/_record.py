"""What every benchmark notes beside its figures, and how it keeps them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fanin

RESULTS = Path(__file__).parent / "results"
SOURCE = Path(fanin.__file__).parent


def circumstances(*packages: str) -> dict[str, Any]:
    """Command, date, versions, machine and load, to be taken before measuring."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("fanin", *packages)},
        "fanin_source": fingerprint(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fingerprint() -> str:
    """Of the code of the fanin that is imported, committed or not."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.c")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def quartiles(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles, and how many they are of."""
    kept = sorted(values)
    low, middle, high = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else kept * 3
    return {"median": middle, "q25": low, "q75": high, "n": len(kept)}


def told(spread: dict[str, float], digits: int = 2) -> str:
    """Quartiles as `1.20 (1.15-1.28)`."""
    return "{median:.{d}f} ({q25:.{d}f}-{q75:.{d}f})".format(**spread, d=digits)


def keep(name: str, record: dict[str, Any]) -> Path:
    """Write a record as JSON to results/."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns side by side."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    )
