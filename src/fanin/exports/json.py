"""A trial as JSON: what is known of the run and the model, and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite

from fanin.exports.rows import Cell, rows
from fanin.trial import Trial


def export(trial: Trial) -> Mapping[str, bytes]:
    """One file. Values that JSON has no number for (NaN and the infinities) are text."""
    content = {
        "uri": trial.uri,
        "complete": trial.complete,
        "about": dict(trial.about),
        "spec": asdict(trial.spec),
        "rows": [{key: _plain(cell) for key, cell in row.items() if cell != ""} for row in rows(trial)],
    }
    return {"trial.json": json.dumps(content, indent=1, allow_nan=False).encode("utf-8")}


def _plain(cell: Cell) -> Cell:
    return str(cell) if isinstance(cell, float) and not isfinite(cell) else cell
