"""What is done about a poor verdict. One file each; a failing one is reported and does not keep the others from it.

Each is done at most once for a run and a finding, however many followers there are, however often they are restarted,
and by whatever address they know the trial: before it acts, a follower notes so beside the trial and beside `--status
FILE`, and it acts only if nobody has noted it before at any place that it can write. So

- of followers that can write beside the trial, or that share a FILE, one acts;
- one that may not write beside the trial (it is read only, or its disk is full) acts on its note beside FILE alone, if
  there is none beside the trial; without a FILE it does not act;
- where it stays unknown whether a note was made (the network failed amid it) nothing is done;
- a follower that was killed between note and deed leaves it undone.

Only two followers of which one may not write beside the trial, and which share no FILE, can both act: when they look
at the same moment, or when the one that may not write was first, whose note the other cannot see.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from fanin.actions.base import Action, Notice
from fanin.beside import Beside
from fanin.errors import ActionError, FaninError, escape
from fanin.finding import Finding
from fanin.status import Done, Standing, as_json
from fanin.stores.place import REFUSED

CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR}
"""Faults of a local disk after which nothing was written, for sure: any other may have come after the deed."""


def take(actions: Iterable[Action], standing: Standing, claims: Sequence[Beside]) -> Iterator[Done]:
    """Do what has not been done yet about each finding.

    Args:
        actions: What is to be done.
        standing: A poor one.
        claims: Where it is noted that something was done: beside the trial, then beside the status file. All
            followers name them in the same order.
    """
    for action in actions:
        yield from _taken(action, standing, claims)


def _taken(action: Action, standing: Standing, claims: Sequence[Beside]) -> Iterator[Done]:
    ours: list[Finding] = []
    fault: Exception | None = None
    for finding in standing.findings:
        try:
            if _claim(action, standing, finding, claims):
                ours.append(finding)
        except Exception as error:  # noqa: BLE001  # what is claimed already must still be acted upon
            fault = error
    if ours:
        yield _done(action, replace(standing, findings=tuple(ours)))
    if fault is not None:
        yield _failed(action, fault)
    elif not ours:
        yield Done(action.name, "before", "an earlier or another follower has done it")


def _done(action: Action, standing: Standing) -> Done:
    try:
        return Done(action.name, "done", action.do(notice_of(standing)))
    except Exception as error:  # noqa: BLE001  # whatever is wrong with one action, the others are for something too
        return _failed(action, error)


def _failed(action: Action, error: Exception) -> Done:
    # The text of an error that is not ours may hold an address with a secret.
    text = " ".join(str(error).split()) if isinstance(error, FaninError) else type(error).__name__
    return Done(action.name, "failed", text)


def _claim(action: Action, standing: Standing, finding: Finding, claims: Sequence[Beside]) -> bool:
    """Whether it is ours to act: nobody has claimed it at any place that we can write, and there is one."""
    name, data = _note(action, standing, finding)
    closed: list[Beside] = []
    fault: OSError | None = None
    for place in claims:
        try:
            # What we have put there ourselves: two addresses may lead to one place.
            if not place.claim(name, data) and place.read(f"{name}.json") != data:
                return False
        except OSError as error:
            fault = error
            if not _is_closed(error):
                raise _unnoted(error) from error
            closed.append(place)
    if len(closed) == len(claims):
        raise _unnoted(fault) from fault
    return not any(place.is_claimed(name) for place in closed)


def _note(action: Action, standing: Standing, finding: Finding) -> tuple[str, bytes]:
    """The name of a claim, in which its secrets are hashed, and what it says."""
    what: tuple[str, ...] = (action.name, action.target, standing.run)
    if not action.is_once:
        what = (*what, finding.code, finding.layer, finding.tensor)
    said = {
        "action": action.name,
        "run": standing.run,
        "finding": f"{finding.code} {finding.layer}".strip(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": f"{socket.gethostname()}:{os.getpid()}",
        "claim": secrets.token_hex(8),
    }
    return f"_done-{sha256(json.dumps(what).encode()).hexdigest()[:16]}", json.dumps(said).encode()


def _is_closed(error: OSError) -> bool:
    """Whether a place does not let us write, so that surely nothing was."""
    return error.errno in CLOSED or bool(REFUSED.search(str(error)))


def _unnoted(error: OSError | None) -> ActionError:
    return ActionError(
        "nothing was done, since it cannot be noted that it was",
        got=" ".join(f"{type(error).__name__}: {error}".split())[:300],
        expected="a trial in a directory that can be written, or --status FILE",
        next_step="pass --status FILE: what was done is then noted beside it",
    )


def notice_of(standing: Standing) -> Notice:
    """What an action is given."""
    said: dict[str, Any] = as_json(standing)
    del said["actions"]
    first = standing.findings[0] if standing.findings else None
    title = f"{standing.trial}: poor initialization" + (f", {first.code} {first.name}" if first else "")
    lines = [
        standing.why,
        *(f"{f.code} {f.name} at {f.layer or 'the model'}: {f.evidence}" for f in standing.findings),
    ]
    text = "\n".join(map(escape, lines))
    return Notice(
        standing.trial, standing.run, escape(title), text, json.dumps(said, indent=2, allow_nan=False)
    )
