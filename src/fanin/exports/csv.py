"""A trial as comma-separated values (RFC 4180), for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from fanin.exports.rows import COLUMNS, rows
from fanin.trial import Trial


def export(trial: Trial) -> Mapping[str, bytes]:
    """One file. Numbers are written in full, so that reading them gives the same ones."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows(trial))
    return {"trial.csv": text.getvalue().encode("utf-8")}
