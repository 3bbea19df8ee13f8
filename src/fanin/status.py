"""What a follower says of a trial, in the words of SageMaker Debugger: a small JSON file for other systems to poll.

    {"schema_version": "1", "status": "IssuesFound", "verdict": "poor", "ended": "decided", "why": "...", "steps": 1,
     "trial": "runs/exp1", "rules": [], "findings": [{"code": "FAN102", "layer": "fc1", ...}], "actions": [], ...}

`fanin/status.schema.json` in the package describes it. It appears whole, and a verdict in it stays: no follower that
is still looking, or was stopped, writes over it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from fanin.beside import LARGEST, STATUS, Beside
from fanin.errors import UsageError
from fanin.finding import Diagnosis, Finding, Verdict
from fanin.stores.parquet.directory import Directory

SCHEMA_VERSION = "1"
"""Grows when a field changes its meaning or goes; a new field leaves it."""

MOST_FINDINGS = 100
"""Findings in the file, which is to stay small. The report has all of them."""


class Status(StrEnum):
    """The original's words."""

    IN_PROGRESS = "InProgress"
    NO_ISSUES_FOUND = "NoIssuesFound"
    ISSUES_FOUND = "IssuesFound"
    ERROR = "Error"

    @property
    def is_verdict(self) -> bool:
        """Whether it says how the trial is."""
        return self in (Status.NO_ISSUES_FOUND, Status.ISSUES_FOUND)


class Ended(StrEnum):
    """Why a follower looks no longer."""

    NOT = ""
    DECIDED = "decided"
    TRIAL_ENDED = "trial ended"
    WRITER_DEAD = "writer dead"
    TIMED_OUT = "timed out"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of an action.

    Attributes:
        action: Its name.
        outcome: `done`, `failed`, or `before`: an earlier or another follower has done it.
        detail: In words; holds no secret.
    """

    action: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a follower makes of a trial at one moment.

    Attributes:
        trial: Its address.
        status: In the original's words.
        verdict: Ours; None before anything was judged.
        ended: Why the follower looks no longer; empty while it does.
        why: In a sentence.
        steps: Training steps seen.
        findings: What makes it poor.
        rules: Codes of the rules that were asked; empty for all.
        actions: What was done about it.
    """

    trial: str
    status: Status = Status.IN_PROGRESS
    verdict: Verdict | None = None
    ended: Ended = Ended.NOT
    why: str = ""
    steps: int = 0
    findings: tuple[Finding, ...] = ()
    rules: tuple[str, ...] = ()
    actions: tuple[Done, ...] = ()

    def with_actions(self, actions: Sequence[Done]) -> Standing:
        """The same with what was done about it."""
        return replace(self, actions=tuple(actions))


def status_of(diagnosis: Diagnosis | None, ended: Ended) -> Status:
    """The word for a verdict. The original has none for undecided: at the end that is an error, and no silent pass.
    Nor is one what a dead writer has left: the steps that were to come might have shown more."""
    verdict = diagnosis.verdict if diagnosis else None
    if verdict is Verdict.POOR:
        return Status.ISSUES_FOUND
    if ended is Ended.NOT:
        return Status.IN_PROGRESS
    over = ended in (Ended.DECIDED, Ended.TRIAL_ENDED)
    return Status.NO_ISSUES_FOUND if over and verdict is Verdict.HEALTHY else Status.ERROR


def as_json(standing: Standing) -> dict[str, Any]:
    """The object that is written, and given to commands and webhooks."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": standing.status.value,
        "verdict": standing.verdict.value if standing.verdict else None,
        "ended": standing.ended.value or None,
        "why": standing.why,
        "trial": standing.trial,
        "steps": standing.steps,
        "rules": list(standing.rules),
        "findings": [_finding(found) for found in standing.findings[:MOST_FINDINGS]],
        "actions": [
            {"action": done.action, "outcome": done.outcome, "detail": done.detail}
            for done in standing.actions
        ],
        "updated": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "follower": {"host": socket.gethostname(), "pid": os.getpid()},
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "code": found.code,
        "name": found.name,
        "layer": found.layer,
        "step": found.step,
        "evidence": found.evidence,
        "cause": found.cause.value if found.cause else None,
        "source": str(found.source) if found.source else None,
    }


def _fitting(standing: Standing) -> bytes:
    """As bytes, with as many findings as there is room for."""
    while True:
        text = json.dumps(as_json(standing), indent=2, allow_nan=False).encode()
        if len(text) < LARGEST or not standing.findings:
            return text
        standing = replace(
            standing, findings=standing.findings[: len(standing.findings[:MOST_FINDINGS]) // 2]
        )


@dataclass(frozen=True, slots=True)
class StatusFile:
    """Where the status is kept: beside the trial, or in a file of the user's choice.

    Attributes:
        beside, name: The place, and the file in it.
        needs_trial: Whether nothing is kept there before there is a trial: its writer wants an empty place, and a
            directory with nothing but a status in it is no trial.
    """

    beside: Beside
    name: str
    needs_trial: bool = False

    @classmethod
    def of_trial(cls, uri: str) -> StatusFile:
        """Beside the trial."""
        return cls(Beside.at(uri), STATUS, needs_trial=True)

    @classmethod
    def at(cls, path: str) -> StatusFile:
        """In a file, whose directory is there.

        Raises:
            UsageError: It is not.
        """
        folder = Path(path).absolute().parent
        if not folder.is_dir() or Path(path).is_dir():
            raise UsageError(
                "the status cannot be written there",
                where=f"--status {path}",
                got=f"{folder} is no directory" if not folder.is_dir() else "a directory",
                expected="a file in a directory that exists",
                next_step="create the directory, or name another file",
            )
        return cls(Beside(Directory.at(str(folder))), Path(path).name)

    def write(self, standing: Standing) -> bool:
        """Put it there, unless it is too early, or a verdict stands there already and this is none; whether it was
        written.

        Raises:
            OSError: The place cannot be written.
        """
        unborn = standing.verdict is None and standing.ended is not Ended.BROKEN
        if not self.beside.exists or (self.needs_trial and unborn):
            return False
        if not standing.status.is_verdict and self._holds_verdict(standing):
            return False
        self.beside.write(self.name, _fitting(standing))
        return True

    def _holds_verdict(self, standing: Standing) -> bool:
        try:
            said = json.loads(self.beside.read(self.name) or b"{}")
            return said.get("trial") == standing.trial and Status(said.get("status")).is_verdict
        except (ValueError, AttributeError, RecursionError):
            return False
