"""What is done about a poor verdict. One file each; a failing one is reported and does not keep the others from it.

Each is done at most once for a trial and a finding, however many followers there are and however often they are
restarted: whoever makes the claim's file first does it. One that was killed between claim and deed leaves it undone.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from fanin.actions.base import Action, Notice
from fanin.beside import Beside
from fanin.errors import ActionError, FaninError
from fanin.finding import Finding
from fanin.status import Done, Standing, as_json


def take(actions: Iterable[Action], standing: Standing, claims: Sequence[Beside]) -> Iterator[Done]:
    """Do what has not been done yet about each finding.

    Args:
        actions: What is to be done.
        standing: A poor one.
        claims: Where it is noted that something was done: beside the trial, or else the first other place that can
            be written.
    """
    for action in actions:
        yield _taken(action, standing, claims)


def _taken(action: Action, standing: Standing, claims: Sequence[Beside]) -> Done:
    try:
        ours = [f for f in standing.findings if _claim(action, standing, f, claims)]
        if not ours:
            return Done(action.name, "before", "an earlier or another follower has done it")
        return Done(action.name, "done", action.do(notice_of(replace(standing, findings=tuple(ours)))))
    except FaninError as error:
        return Done(action.name, "failed", " ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001  # whatever is wrong with one action, the others are for something too
        return Done(action.name, "failed", type(error).__name__)  # its text may hold an address with a secret


def _claim(action: Action, standing: Standing, finding: Finding, claims: Sequence[Beside]) -> bool:
    # The path rather than the address, which may be relative, and may hold a secret.
    what: tuple[str, ...] = (action.name, action.target, claims[0].directory.path)
    if not action.is_once:
        what = (*what, finding.code, finding.layer, finding.tensor)
    said = {
        "action": action.name,
        "finding": f"{finding.code} {finding.layer}".strip(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": f"{socket.gethostname()}:{os.getpid()}",
    }
    name = f"_done-{sha256(json.dumps(what).encode()).hexdigest()[:16]}"
    fault = ""
    for place in claims:
        try:
            return place.claim(name, json.dumps(said).encode())
        except OSError as error:
            fault = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise ActionError(
        "nothing was done, since it cannot be noted that it was",
        got=fault,
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
    return Notice(standing.trial, title, "\n".join(lines), json.dumps(said, indent=2, allow_nan=False))
