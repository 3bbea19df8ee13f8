"""What a follower says of a trial, in the words of SageMaker Debugger: a small JSON file for other systems to poll.

    {"schema_version": "1", "status": "IssuesFound", "verdict": "poor", "ended": "decided", "why": "...", "steps": 1,
     "trial": "runs/exp1", "run": "8d3f0c2a9be14f76", "rules": [], "findings": [{"code": "FAN102", ...}], "actions": [],
     "follower": {"host": "a", "pid": 7}, ...}

`fanin/status.schema.json` in the package describes it. It appears whole, and a verdict in it stays as long as it is
about the same run: followers that are still looking, were stopped, found it better, or looked at less leave it, and
`rules` and `follower` say whose it is. Another run at the same address starts afresh.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

PATIENCE_S = 1.0
"""How long one follower waits for another to have written the status, which takes a moment: one that was stopped in the
midst of it must not stop others."""

MOST_FINDINGS = 100
"""Findings in the file, which is to stay small. The report has all of them."""


class Status(StrEnum):
    """The original's words."""

    IN_PROGRESS = "InProgress"
    NO_ISSUES_FOUND = "NoIssuesFound"
    ISSUES_FOUND = "IssuesFound"
    ERROR = "Error"

    @property
    def weight(self) -> int:
        """The worse a verdict, the more; 0 for none."""
        return {Status.NO_ISSUES_FOUND: 1, Status.ISSUES_FOUND: 2}.get(self, 0)


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
        run: The identity of the run; empty as long as nothing of it was read.
        is_awaited: Whether there is no trial yet, so that whatever was said of this address is about an earlier run.
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
    run: str = ""
    is_awaited: bool = False

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
        "run": standing.run or None,
        "steps": standing.steps,
        "rules": list(standing.rules),
        "findings": [_finding(found) for found in standing.findings[:MOST_FINDINGS]],
        "actions": [
            {"action": done.action, "outcome": done.outcome, "detail": done.detail}
            for done in standing.actions
        ],
        "updated": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "follower": _ourselves(),
    }


def _ourselves() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


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
class Kept:
    """What a status file says that is there already.

    Attributes:
        status, trial, run, steps, rules: As in `Standing`.
        follower: Whose it is.
    """

    status: Status
    trial: str
    run: str
    steps: int
    rules: frozenset[str]
    follower: dict[str, Any]

    @classmethod
    def parsed(cls, text: bytes) -> Kept:
        """What a file's bytes say.

        Raises:
            ValueError, TypeError, AttributeError, OverflowError, RecursionError: They are no status.
        """
        said = json.loads(text)
        return cls(
            status=Status(said.get("status")),
            trial=str(said.get("trial")),
            run=str(said.get("run") or ""),
            steps=int(said.get("steps", 0)),
            rules=frozenset(map(str, said.get("rules", ()))),
            follower=dict(said.get("follower", {})),
        )

    def stays(self, new: Standing) -> bool:
        """Whether it is a verdict on the same run that the new one must not weaken."""
        if not self._is_of_run(new) or not self.status.weight:
            return False
        if self.status.weight != new.status.weight:
            return self.status.weight > new.status.weight
        return self.follower != _ourselves() and self._saw_more(new)

    def _is_of_run(self, new: Standing) -> bool:
        if new.run:
            return self.run == new.run
        return self.trial == new.trial and not new.is_awaited

    def _saw_more(self, new: Standing) -> bool:
        """Or something else: then the first one stays."""
        asked_all = not new.rules or (self.rules and self.rules <= set(new.rules))
        return self.steps > new.steps or not asked_all

    def __str__(self) -> str:
        rules = ", ".join(sorted(self.rules)) or "all rules"
        return f"{self.status} by {self.follower.get('host')}:{self.follower.get('pid')}, {rules}"


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
        """Put it there, unless it is too early, or a verdict that it would weaken is there; whether it was written.

        Raises:
            OSError: The place cannot be written.
        """
        unborn = standing.verdict is None and standing.ended is not Ended.BROKEN
        if not self.beside.exists or (self.needs_trial and unborn):
            return False
        with _alone(self.beside.directory):
            kept = self.kept()
            if kept is not None and kept.stays(standing):
                return False
            self.beside.write(self.name, _fitting(standing))
        return True

    def kept(self) -> Kept | None:
        """What is there; None for nothing, or for what is no status.

        Raises:
            OSError: The place cannot be read.
        """
        try:
            return Kept.parsed(self.beside.read(self.name) or b"")
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None


@contextmanager
def _alone(directory: Directory) -> Iterator[None]:
    """As the only one on this machine who looks at a status and writes it, or of two verdicts that come at once the
    better one could be written over the worse. Object stores and some network disks have no such lock: there the two
    would have to come within one request."""
    folder = _locked(directory.path) if directory.is_local else None
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)  # which gives the lock back, as the end of the process would


def _locked(path: str) -> int | None:
    """The directory's own lock, which leaves no file; None where there is none, or not in time."""
    try:
        import fcntl

        folder = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.005)
                continue
        except OSError:
            pass
        return folder
