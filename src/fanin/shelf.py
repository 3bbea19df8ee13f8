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
from fanin.stores.parquet.directory import Directory, part_of
from fanin.stores.place import below, reaching, shown
from fanin.stores.smdebug import is_smdebug
from fanin.stores.smdebug.archive import Archive
from fanin.trial import Trial

STOPPED = re.compile(r"\.stopped-w\d{5,}")
"""The mark that SIGTERM leaves, see `stores/parquet/stopping.py`."""

UNFINISHED = re.compile(r"\.(.+?)[.-](?:\d+-)?[0-9a-f]{8}\.tmp")
"""A file before it has its name, which is in it: of a part or of what lies beside them, see `Directory.publish` and
`Beside.claim`."""

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
    yield from _trials(root, DEEPEST)


def _opened(address: str) -> Kept:
    try:
        return Kept(shown(address), open_store(address).load())
    except FaninError as error:
        return Kept(shown(address), error=error)


def _trials(address: str, depth: int) -> Iterator[Kept]:
    """One that cannot be looked at does not keep others from being listed."""
    try:
        with reaching(address, "listed", "check its name and its permissions"):
            holds = is_trial(address)
            names = [] if holds or not depth else _folders(address)
    except FaninError as error:
        if not isinstance(error.__cause__, PermissionError):  # others' folders, as `lost+found`
            yield Kept(shown(address), error=error)
        return
    if holds:
        yield _opened(address)
    for name in names:
        yield from _below(address, name, depth)


def _below(address: str, name: str, depth: int) -> Iterator[Kept]:
    try:
        folder = below(address, name)
    except FaninError as error:
        yield Kept(f"{shown(address).rstrip('/')}/{name}", error=error)
        return
    yield from _trials(folder, depth - 1)


def _folders(address: str) -> list[str]:
    """The directories in one, by name; hidden ones and links are not looked at."""
    directory = Directory.at(address)
    if directory.is_local:
        return _local_folders(directory.path)
    return [info.base_name for info in directory.entries() if info.type is FileType.Directory]


def _local_folders(path: str) -> list[str]:
    """Those among them whose names are no text, too: somebody will miss what is in them."""
    with os.scandir(path) as found:
        return sorted(
            each.name
            for each in found
            if each.is_dir(follow_symlinks=False) and not each.name.startswith(".")
        )


def is_trial(address: str) -> bool:
    """Whether a directory holds a trial, ours or smdebug's.

    Raises:
        OSError, StoreError: It cannot be reached.
    """
    if any(part_of(info.base_name) for info in Directory.at(address).entries()):
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
    """Remove a trial of ours, and its directory where nothing else is in it; how many files.

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
        directory.remove_if_empty()
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
    parts = sorted((name for name in listed if part_of(name)), reverse=True)
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
    """The files in it; directories are nobody's parts."""
    if directory.kind is not FileType.Directory:
        return []
    found = directory.entries(hidden=True)
    return [info.base_name for info in found if info.type is FileType.File]


def _is_left_over(name: str) -> bool:
    """What a writer that was killed left of a part, and what lies beside the parts: the mark of one that was stopped
    would say of the next trial here that it is complete."""
    unfinished = UNFINISHED.fullmatch(name)
    if unfinished:
        return bool(part_of(unfinished[1]) or OURS.fullmatch(unfinished[1]))
    return any(known.fullmatch(name) for known in (OURS, STOPPED))
