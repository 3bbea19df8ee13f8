"""Trials that are kept: which there are under a directory, whether they are whole, and how they go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fanin.beside import OURS
from fanin.errors import FaninError, UsageError
from fanin.stores import open_store
from fanin.stores.parquet.directory import PART
from fanin.stores.smdebug import is_smdebug
from fanin.stores.smdebug.archive import Archive
from fanin.trial import Trial

DEEPEST = 6
"""Directories down to which trials are looked for: enough for `runs/project/experiment/date/rank`."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A trial under a directory.

    Attributes:
        uri: Where.
        trial: What it holds; None where it cannot be read.
        error: Why it cannot.
    """

    uri: str
    trial: Trial | None = None
    error: FaninError | None = None


def kept(place: str | os.PathLike[str]) -> Iterator[Kept]:
    """The trials at and under a local directory, by path; what is within a trial is not looked at.

    Raises:
        UsageError: There is no such directory.
    """
    root = Path(place)
    if not root.is_dir():
        raise UsageError(
            "trials are listed under a local directory",
            where=str(place),
            got="a file" if root.exists() else "nothing of that name",
            expected="a directory, e.g. runs",
            next_step="name the directory that holds the trials",
        )
    for path in _trials(root, DEEPEST):
        try:
            yield Kept(str(path), open_store(path).load())
        except FaninError as error:
            yield Kept(str(path), error=error)


def _trials(path: Path, depth: int) -> Iterator[Path]:
    if is_trial(path):
        yield path
        return
    if depth == 0:
        return
    inside = sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != ".")
    for folder in inside:
        try:
            yield from _trials(folder, depth - 1)
        except PermissionError:
            continue


def is_trial(path: Path) -> bool:
    """Whether a directory holds a trial, ours or smdebug's."""
    if any(PART.fullmatch(name) for name in os.listdir(path)):
        return True
    return is_smdebug(str(path))


def verify(uri: str | os.PathLike[str]) -> str:
    """Read everything that a trial holds, also what no rule looks at; what was read, in words.

    Raises:
        StoreError: Something of it is missing or damaged; the message names the file.
        UsageError: This is no address of a trial.
    """
    trial = open_store(uri).load()
    state = "closed" if trial.complete else "not closed: still running, or broken off"
    what = f"{len(trial.steps)} steps of {len(trial.workers) or 1} workers"
    if not trial.is_foreign:
        return f"{what}; {state}"
    return f"{what}, {_every_record(os.fspath(uri))} records; {state}"


def _every_record(uri: str) -> int:
    archive = Archive(uri)
    archive.refresh()
    return sum(
        sum(1 for _ in archive.values(saved.tensors.items()))
        for by_worker in archive.saved.values()
        for saved in by_worker.values()
    )


def remove(uri: str | os.PathLike[str]) -> int:
    """Remove a trial of ours from a local disk, and its directory where nothing else is in it; how many files.

    Raises:
        UsageError: It is none, or somebody else's.
    """
    path, names = Path(uri), removable(uri)
    for name in names:
        (path / name).unlink()
    if not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
    return len(names)


def removable(uri: str | os.PathLike[str]) -> list[str]:
    """The files of a trial of ours on a local disk, in the order in which they can go.

    Raises:
        UsageError: It is none, or somebody else's.
    """
    path = Path(uri)
    parts = sorted((name for name in _listed(path) if PART.fullmatch(name)), reverse=True)
    if not parts:
        raise UsageError(
            "this is not a trial that fanin wrote, so fanin does not remove it",
            where=str(uri),
            expected="a local directory that holds part-w00000-000000.parquet and so on",
            next_step="remove it by other means, if it should go",
        )
    # The first part claims the place, so it goes last: after an interruption the rest is still known as a trial.
    return [*(name for name in _listed(path) if _is_left_over(name)), *parts]


def _listed(path: Path) -> list[str]:
    return os.listdir(path) if path.is_dir() else []


def _is_left_over(name: str) -> bool:
    """What a writer that was killed left of a part, and what lies beside the parts."""
    return (name.startswith((".part-w", "._")) and name.endswith(".tmp")) or OURS.fullmatch(name) is not None
