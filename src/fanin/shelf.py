"""Trials that are kept: which there are under a directory, whether they are whole, and how they go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pyarrow.fs import FileType

from fanin.beside import OURS
from fanin.errors import FaninError, UsageError
from fanin.stores import open_store
from fanin.stores.parquet.directory import PART, Directory
from fanin.stores.place import below, reaching, shown
from fanin.stores.smdebug import is_smdebug
from fanin.stores.smdebug.archive import Archive
from fanin.trial import Trial

STOPPED = re.compile(r"\.stopped-w\d{5,}")
"""The mark that SIGTERM leaves, see `stores/parquet/stopping.py`."""

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
    """The trials at and under a directory, or a prefix in an object store, by path; what is within a trial is not
    looked at.

    Raises:
        UsageError: There is no such directory.
        StoreError: It cannot be reached.
    """
    root = os.fspath(place)
    with reaching(root, "listed", "check the path and its permissions"):
        directory = Directory.at(root)
        kind = directory.kind
    if kind is not FileType.Directory:
        raise UsageError(
            "trials are listed under a directory",
            where=shown(root),
            got="a file" if kind is FileType.File else "nothing of that name",
            expected="a directory, e.g. runs or s3://bucket/runs",
            next_step="name the directory that holds the trials",
        )
    with reaching(root, "listed", "check the permissions of the directories there"):
        for address in _trials(root, DEEPEST):
            yield _opened(address)


def _opened(address: str) -> Kept:
    try:
        return Kept(shown(address), open_store(address).load())
    except FaninError as error:
        return Kept(shown(address), error=error)


def _trials(address: str, depth: int) -> Iterator[str]:
    if is_trial(address):
        yield address
        return
    for folder in _folders(address) if depth else ():
        try:
            yield from _trials(folder, depth - 1)
        except PermissionError:
            continue


def _folders(address: str) -> list[str]:
    """The directories in one, by name; hidden ones and links are not looked at."""
    directory = Directory.at(address)
    names = [info.base_name for info in directory.entries() if info.type is FileType.Directory]
    linked = os.path.islink if directory.is_local else lambda path: False
    return [below(address, name) for name in names if not linked(os.path.join(directory.path, name))]


def is_trial(address: str) -> bool:
    """Whether a directory holds a trial, ours or smdebug's.

    Raises:
        OSError, StoreError: It cannot be reached.
    """
    if any(PART.fullmatch(info.base_name) for info in Directory.at(address).entries()):
        return True
    return is_smdebug(address)


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
    """Remove a trial of ours, and its directory on a local disk where nothing else is in it; how many files.

    Raises:
        UsageError: It is none, or somebody else's.
        StoreError: It cannot be reached.
    """
    names, directory = removable(uri), Directory.at(os.fspath(uri))
    with reaching(
        os.fspath(uri), "removed", "check the permissions, and remove the rest by `fanin trial rm`"
    ):
        for name in names:
            directory.remove(name)
        if directory.is_local and not os.path.islink(directory.path) and not os.listdir(directory.path):
            os.rmdir(directory.path)
    return len(names)


def removable(uri: str | os.PathLike[str]) -> list[str]:
    """The files of a trial of ours, in the order in which they can go.

    Raises:
        UsageError: It is none, or somebody else's.
        StoreError: It cannot be reached.
    """
    address = os.fspath(uri)
    with reaching(address, "read", "check the path and its permissions"):
        listed = _listed(Directory.at(address))
    parts = sorted((name for name in listed if PART.fullmatch(name)), reverse=True)
    if not parts:
        raise UsageError(
            "this is not a trial that fanin wrote, so fanin does not remove it",
            where=shown(address),
            expected="a directory that holds part-w00000-000000.parquet and so on",
            next_step="remove it by other means, if it should go",
        )
    # The first part claims the place, so it goes last: after an interruption the rest is still known as a trial.
    return [*(name for name in listed if _is_left_over(name)), *parts]


def _listed(directory: Directory) -> list[str]:
    if directory.kind is not FileType.Directory:
        return []
    return [info.base_name for info in directory.entries(hidden=True)]


def _is_left_over(name: str) -> bool:
    """What a writer that was killed left of a part, and what lies beside the parts: the mark of one that was stopped
    would say of the next trial here that it is complete."""
    unfinished = name.startswith((".part-w", "._")) and name.endswith(".tmp")
    return unfinished or any(known.fullmatch(name) for known in (OURS, STOPPED))
