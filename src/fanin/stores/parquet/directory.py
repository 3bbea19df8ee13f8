"""The directory of a trial: numbered parts per worker, each written whole and never changed.

Knows names and bytes, not what is in them. Everything goes through pyarrow's file systems, so that object stores
can share the code; what only a local disk needs and offers (rename, exclusive link, fsync, symlinks) is at the end.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from fanin.errors import TrialFormatError
from fanin.stores.place import filesystem_at

PART = re.compile(r"part-w(\d{5,})-(\d{6,})\.parquet")


def part_name(worker: int, number: int) -> str:
    """The file of a worker's part, both counted from 0.

    >>> part_name(3, 41)
    'part-w00003-000041.parquet'
    """
    return f"part-w{worker:05d}-{number:06d}.parquet"


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory on some file system. Methods raise OSError as the file system does."""

    filesystem: FileSystem
    path: str

    @classmethod
    def at(cls, uri: str, filesystem: FileSystem | None = None) -> Directory:
        """The directory at an address: a path (on `filesystem`, when given), or SCHEME://....

        Raises:
            UsageError: The address cannot be read.
        """
        if filesystem is not None:
            return cls(filesystem, uri)
        return cls(*filesystem_at(uri))

    @property
    def kind(self) -> FileType:
        """NotFound, File or Directory."""
        return self.filesystem.get_file_info(self.path).type

    def entries(self) -> list[FileInfo]:
        """Everything there but hidden files: those are parts that are not finished, or were never."""
        selector = FileSelector(self.path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted((i for i in found if not i.base_name.startswith(".")), key=lambda info: info.base_name)

    def last_parts(self) -> dict[int, int]:
        """The highest number of part by worker, ascending. A part below may be missing from a listing that is taken
        while it is renamed, so ask for it by name."""
        last: dict[int, int] = {}
        for info in self.entries():
            match = PART.fullmatch(info.base_name)
            if match is None or info.type is not FileType.File:
                continue
            worker, number = int(match[1]), int(match[2])
            if info.base_name == part_name(worker, number):
                last[worker] = max(number, last.get(worker, 0))
        return dict(sorted(last.items()))

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            TrialFormatError: It is a link that leads out of the directory.
        """
        if self._is_local:
            _require_inside(self.path, name)
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            data: bytes = file.read()
        return data

    def publish(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Make a file appear, whole.

        Raises:
            FileExistsError: It is there already, and `exclusive`.
        """
        path = f"{self.path}/{name}"
        if self._is_local:
            _publish_locally(self.path, name, data, exclusive)
            return
        if exclusive and self.filesystem.get_file_info(path).type is not FileType.NotFound:
            raise FileExistsError(f"there is a {path} already")
        # Object stores put a file at once, when the stream closes.
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def create(self) -> None:
        """Make the directory, and those above it."""
        self.filesystem.create_dir(self.path, recursive=True)

    def stop_mark(self, worker: int) -> str | None:
        """The file that says that SIGTERM has ended this worker; None where the disk is not ours."""
        return f"{self.path}/.stopped-w{worker:05d}" if self._is_local else None

    def was_stopped(self, worker: int) -> bool:
        """Whether that file says so."""
        mark = self.stop_mark(worker)
        return mark is not None and os.path.isfile(mark) and os.path.getsize(mark) > 0

    def remove(self, name: str) -> None:
        """Take a file away."""
        self.filesystem.delete_file(f"{self.path}/{name}")

    @property
    def _is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)


def _publish_locally(directory: str, name: str, data: bytes, exclusive: bool) -> None:
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
