"""The directory of a trial: numbered parts per worker, each written whole and never changed.

Knows names and bytes, not what is in them. Everything goes through pyarrow's file systems, so that object stores
share the code. What differs is how a place is claimed and how a file appears:

A local disk has names that only one can take (a hard link) and renames: of two who begin as one worker exactly one gets
part 0, and a part appears whole, after it has reached the disk.

An object store, by pyarrow, has neither. A file appears whole there as well, since it is put by one request, or, a
large one, put under a hidden name and copied. Nobody overwrites what another has put, whatever a listing says or lacks,
since the parts of a writer bear its claim: a random word in their names. Who claims a place puts part 0 and looks
afterwards: whoever finds another's beside it withdraws. Where listings show what was put before them, as those of S3 do
since December 2020, the later of two sees the earlier, so at most one goes on; it may be none. Where listings lag both
may go on, nothing is lost, and whoever reads the trial is told of both.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from fanin.errors import TrialFormatError
from fanin.stores.place import ATTEMPTS, filesystem_at, is_object_store, named

LARGEST = 4 * 2**30
"""Bytes of a part. 10 steps of a model with 10,000 layers, written as one part, take a tenth of it."""

ONE_PIECE = 2**23
"""Bytes from which a file may go to an object store in more than one request: Arrow sends pieces of 10 MiB."""

PART = re.compile(r"part-w(\d{5,})-(\d{6,})(?:-([0-9a-f]{8}))?\.parquet")


def part_name(worker: int, number: int, claim: str = "") -> str:
    """The file of a worker's part, both counted from 0; with its writer's claim, where it is not on a local disk.

    >>> part_name(3, 41), part_name(3, 41, "1a2b3c4d")
    ('part-w00003-000041.parquet', 'part-w00003-000041-1a2b3c4d.parquet')
    """
    return f"part-w{worker:05d}-{number:06d}{'-' if claim else ''}{claim}.parquet"


def part_of(name: str) -> tuple[int, int, str] | None:
    """Worker, number and claim of a part; None for a name that no writer gives.

    >>> part_of("part-w00003-000041.parquet"), part_of("part-w00003-0000041.parquet")
    ((3, 41, ''), None)
    """
    match = PART.fullmatch(name)
    if match is None:
        return None
    found = int(match[1]), int(match[2]), match[3] or ""
    return found if name == part_name(*found) else None


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """The parts of one writer.

    Attributes:
        worker: Its rank.
        claim: The word in their names; empty on a local disk.
        last: The highest number seen. A part below may be missing from a listing that is taken while it is renamed, so
            ask for it by name.
    """

    worker: int
    claim: str = ""
    last: int = 0

    def name(self, number: int) -> str:
        """The file of a part."""
        return part_name(self.worker, number, self.claim)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory on some file system. Methods raise OSError as the file system does."""

    filesystem: FileSystem
    path: str

    @classmethod
    def at(cls, uri: str, filesystem: FileSystem | None = None, attempts: int = ATTEMPTS) -> Directory:
        """The directory at an address: a path (on `filesystem`, when given), or SCHEME://...; `attempts` as there.

        Raises:
            UsageError: The address cannot be read.
        """
        if filesystem is not None:
            return cls(filesystem, uri)
        return cls(*filesystem_at(uri, attempts))

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine, or one that acts like it."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def kind(self) -> FileType:
        """NotFound, File or Directory."""
        return self.filesystem.get_file_info(self.path).type

    def entries(self, *, hidden: bool = False) -> list[FileInfo]:
        """Everything there but hidden files: those are parts that are not finished, or were never."""
        selector = FileSelector(self.path, allow_not_found=True)
        found = named(self.filesystem.get_file_info(selector))
        return [info for info in found if hidden or not info.base_name.startswith(".")]

    def series(self) -> list[Series]:
        """Whose parts are there, by worker."""
        last: dict[tuple[int, str], int] = {}
        for info in self.entries():
            if info.type is FileType.File and (part := part_of(info.base_name)):
                worker, number, claim = part
                last[worker, claim] = max(number, last.get((worker, claim), 0))
        return sorted(Series(*who, number) for who, number in last.items())

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            TrialFormatError: It is a link that leads out of the directory, no file, or larger than a part can be.
        """
        if self.is_local:
            _require_inside(self.path, name)
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            if file.size() > LARGEST:
                raise _no_part(f"{self.path}/{name}", f"{file.size()} bytes", f"at most {LARGEST}")
            data: bytes = file.read()
        return data

    def claim(self, worker: int, data: bytes) -> Series:
        """Make a worker's part 0 appear, unless it has one.

        Raises:
            FileExistsError: It has.
        """
        if self.is_local:
            _publish_locally(self.path, part_name(worker, 0), data, exclusive=True)
            return Series(worker)
        ours = Series(worker, secrets.token_hex(4))
        try:
            self.publish(ours.name(0), data)
            others = [one for one in self.series() if one.worker == worker and one.claim != ours.claim]
            if others:
                raise FileExistsError(f"there is a {self.path}/{others[0].name(0)} already")
        except OSError:
            with suppress(OSError):
                self.remove(ours.name(0))
            raise
        return ours

    def publish(self, name: str, data: bytes) -> None:
        """Make a file appear, whole."""
        if self.is_local:
            _publish_locally(self.path, name, data)
            return
        # A large file goes up in pieces, and Arrow, however a stream ends, puts those it has got: under another name.
        path = f"{self.path}/{name}"
        put = path if len(data) < ONE_PIECE else f"{self.path}/.{name}.{secrets.token_hex(4)}.tmp"
        try:
            self._put(put, data)
            if put != path:
                self.filesystem.move(put, path)
        except OSError:
            if put != path:
                with suppress(OSError):
                    self.filesystem.delete_file(put)
            raise

    def _put(self, path: str, data: bytes) -> None:
        # Not `with`, which after a fault would close the stream, and so put what it has got of a small file too.
        stream = self.filesystem.open_output_stream(path)
        stream.write(data)
        stream.close()

    def create(self) -> None:
        """Make the directory, and those above it, where there are such."""
        if not is_object_store(self.filesystem):
            self.filesystem.create_dir(self.path, recursive=True)

    def stop_mark(self, worker: int) -> str | None:
        """The file that says that SIGTERM has ended this worker; None where the disk is not ours."""
        return f"{self.path}/.stopped-w{worker:05d}" if self.is_local else None

    def was_stopped(self, worker: int) -> bool:
        """Whether that file says so."""
        mark = self.stop_mark(worker)
        return mark is not None and os.path.isfile(mark) and os.path.getsize(mark) > 0

    def remove_if_empty(self) -> None:
        """Take the directory away where nothing is in it: of an object store the mark of an empty one, which Arrow puts
        there for the last file of it. What stands above stays; of two runs that meet here neither may be beginning."""
        if self.is_local:
            if not os.path.islink(self.path) and not os.listdir(self.path):
                os.rmdir(self.path)
        elif not self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True)):
            self.filesystem.delete_dir(self.path)

    def remove(self, name: str) -> None:
        """Take a file away."""
        self.filesystem.delete_file(f"{self.path}/{name}")


def _publish_locally(directory: str, name: str, data: bytes, exclusive: bool = False) -> None:
    # Hidden, and not *.parquet: other readers of the directory pass it over as ours does.
    temporary = f"{directory}/.{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name with nothing in it
        (_link if exclusive else os.replace)(temporary, f"{directory}/{name}")
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _link(temporary: str, path: str) -> None:
    """Rename, unless the new name is taken: what a hard link does in one step."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # FAT and some network file systems have no hard links. Taking the name first is as exclusive; only a crash
        # between the two lines leaves an empty part.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


def _require_inside(directory: str, name: str) -> None:
    target = os.path.realpath(f"{directory}/{name}")
    if os.path.dirname(target) != os.path.realpath(directory):
        raise TrialFormatError(
            "a part of this trial is a link that leads out of it",
            where=f"{directory}/{name}",
            got=target,
            expected="a file",
            next_step="copy the trial with the files themselves (cp -L), if you trust where it came from",
        )
    if os.path.exists(target) and not os.path.isfile(target):  # to read from a pipe could wait for ever
        raise _no_part(f"{directory}/{name}", "something that is no file", "a file")


def _no_part(where: str, got: str, expected: str) -> TrialFormatError:
    return TrialFormatError(
        "this is no part of a trial, whatever its name says",
        where=where,
        got=got,
        expected=expected,
        next_step="remove it and the later parts of this worker to read what came before",
    )
