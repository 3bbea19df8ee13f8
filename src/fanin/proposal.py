"""What `repair` hands back: a network, what is wrong with it, and what would cure it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fanin import reports
from fanin.change import Repair
from fanin.examine import Report
from fanin.finding import Verdict
from fanin.trial import Trial


@dataclass(slots=True)
class RepairReport:
    """A network, what is wrong with it, and what would cure it. `print(report)` shows all of it.

    Attributes:
        model: The model as given, or as the given function built it.
        report: What `check` says of it as it was.
        repair: The repair that is proposed; None where there is none.
        after: What `check` says of the repaired network; None without a repair.
        discarded: Repairs that were tried and did not win.
        applied: Whether the model now holds the repair.
    """

    model: Any
    report: Report
    repair: Repair | None = None
    after: Report | None = None
    discarded: tuple[Repair, ...] = ()
    applied: bool = False
    _undo: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def verdict(self) -> Verdict:
        """Of the network as given: healthy, poor or undecided."""
        return self.report.verdict

    @property
    def code(self) -> str:
        """Plain initialization code that repairs a model called `model`; empty where nothing is proposed."""
        return self.repair.code if self.repair is not None else ""

    def undo(self) -> None:
        """Give the model the values back that it had, bit for bit; nothing where nothing was applied."""
        if self._undo is not None and self.applied:
            self._undo()
            self.applied = False

    def render(
        self, form: str = "terminal", *, diff: bool = False, width: int = 80, color: bool = False
    ) -> str:
        """The report as text, in a format of `fanin.reports`; with the change of files where `diff` asks for it."""
        return reports.render_repair(
            form,
            self.report.trial,
            self.report.diagnosis,
            self.repair,
            self.discarded,
            applied=self.applied,
            after=self._after,
            diff=diff,
            width=width,
            color=color,
        )

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page that opens from anywhere; needs the extra `html`.

        Raises:
            UsageError: The extra is not installed.
        """
        Path(path).write_text(self.render("html"), encoding="utf-8")

    @property
    def _after(self) -> Trial | None:
        return self.after.trial if self.after is not None else None

    def __str__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        from fanin.reports import notebook

        trial, diagnosis = self.report.trial, self.report.diagnosis
        return notebook.of_repair(trial, diagnosis, self.repair, self.discarded, self.applied, self._after)
