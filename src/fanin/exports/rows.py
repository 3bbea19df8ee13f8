"""A trial as a table: one row for each tensor at each step, and one for each loss."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

from fanin.summary import TensorSummary
from fanin.trial import Observation, Step, Trial

Cell = str | int | float

QUANTILES = (0.05, 0.5, 0.95)

COLUMNS = (
    "mode",
    "step",
    "worker",
    "layer",
    "role",
    "tensor",
    "shape",
    "dtype",
    "count",
    "nan",
    "inf",
    "zeros",
    "mean",
    "variance",
    "minimum",
    "maximum",
    *(f"p{round(100 * p)}_{end}" for p in QUANTILES for end in ("low", "high")),
)
"""Quantiles are known up to an interval, whose two ends have a column each; empty where none were kept."""


def rows(trial: Trial) -> Iterator[dict[str, Cell]]:
    """The table, in order of time."""
    for step in trial.steps:
        for worker, loss in step.losses.items():
            yield _row(step, worker, role="loss", tensor="loss", count=1, mean=loss)
        for seen in step.observations:
            yield _of(step, seen)


def _of(step: Step, seen: Observation) -> dict[str, Cell]:
    summary = seen.summary
    return _row(
        step,
        seen.worker,
        layer=seen.layer,
        role=seen.role.value,
        tensor=seen.tensor,
        shape="x".join(map(str, seen.shape)),
        dtype=seen.dtype,
        count=summary.count,
        nan=summary.nan,
        inf=summary.inf,
        zeros=summary.zeros,
        mean=summary.mean if summary.count else nan,
        variance=summary.variance,
        minimum=summary.minimum,
        maximum=summary.maximum,
        **_quantiles(summary),
    )


def _row(step: Step, worker: int, **known: Cell) -> dict[str, Cell]:
    found: dict[str, Cell] = {"mode": step.mode.value, "step": step.index, "worker": worker, **known}
    return {column: found.get(column, "") for column in COLUMNS}


def _quantiles(summary: TensorSummary) -> dict[str, float]:
    if summary.histogram is None or not summary.count:
        return {}
    known = {f"p{round(100 * p)}": summary.quantile(p) for p in QUANTILES}
    return {f"{name}_{end}": getattr(value, end) for name, value in known.items() for end in ("low", "high")}
