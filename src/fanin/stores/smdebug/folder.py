"""The files of a trial, read and never written; nothing outside it, and no more of a file than was asked for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from os.path import exists, isfile, realpath
from typing import Any

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from fanin.errors import StoreError, TrialFormatError
from fanin.stores.place import filesystem_at, named, reaching, shown

READ_WHOLE = 32 * 2**20
"""Bytes up to which an event file is read in one go rather than record by record: a request to an object store costs
as much as some megabytes of it."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A trial's directory, or the prefix of its objects.

    Attributes:
        uri: Its address, for messages.
    """

    uri: str
    filesystem: FileSystem
    path: str

    @classmethod
    def at(cls, uri: str, filesystem: FileSystem | None = None) -> Folder:
        """The folder at an address.

        Raises:
            UsageError: The address cannot be read.
        """
        if filesystem is not None:
            return cls(uri, filesystem, uri)
        return cls(shown(uri), *filesystem_at(uri))

    def where(self, name: str) -> str:
        """A file's address, for messages."""
        return f"{self.uri.rstrip('/')}/{name if name.isprintable() else repr(name)}"

    def files(self, name: str) -> list[FileInfo]:
        """What is in a subdirectory, by name; nothing where there is none."""
        selector = FileSelector(f"{self.path}/{name}", allow_not_found=True)
        with self.reaching():
            return named(self.filesystem.get_file_info(selector))

    def kinds(self, *names: str) -> list[FileType]:
        """NotFound, File or Directory, for each name."""
        with self.reaching():
            found = self.filesystem.get_file_info([f"{self.path}/{name}" for name in names])
        return [info.type for info in found]

    def read(self, name: str, limit: int) -> bytes:
        """A whole file of at most `limit` bytes.

        Raises:
            TrialFormatError: It is missing, larger, or outside the trial.
        """
        with self.opened(name) as file:
            if file.size > limit:
                raise self.damaged(name, f"{file.size} bytes", f"at most {limit}")
            return file.read(0, file.size)

    @contextmanager
    def opened(self, name: str) -> Iterator[OpenFile]:
        """A file to read pieces of.

        Raises:
            TrialFormatError: It is missing, or outside the trial.
        """
        path = self._inside(name)
        try:
            with self.reaching(), self.filesystem.open_input_file(path) as file:
                yield OpenFile(file, file.size())
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise self.damaged(name, "no such file", "the file that the trial's index names") from None

    def damaged(self, name: str, got: str, expected: str, at: int | None = None) -> TrialFormatError:
        """The error of a file that is not what it should be."""
        return TrialFormatError(
            "a file of this SageMaker Debugger trial is damaged",
            where=self.where(name) + (f", at byte {at}" if at is not None else ""),
            got=" ".join(got.split()),
            expected=expected,
            next_step="copy it again; without the index files of its step and of later ones the rest can be read",
        )

    def reaching(self) -> AbstractContextManager[None]:
        """Turns a fault of the file system into an error that says what to do.

        Raises:
            StoreError: It cannot be reached.
        """
        return reaching(self.uri, "read", "check the path and its permissions")

    def _inside(self, name: str) -> str:
        """The path of a file in the trial. Names come from its index files, which may be anybody's."""
        clean = posixpath.normpath(name)
        if not name or "\0" in name or "\\" in name or clean.startswith(("/", "..")) or ":" in clean[:2]:
            raise self._outside(repr(name[:200]))
        path = f"{self.path}/{clean}"
        if isinstance(self.filesystem, LocalFileSystem):
            target, root = realpath(path), realpath(self.path)
            if not target.startswith(root.rstrip("/\\") + ("\\" if "\\" in root else "/")):
                raise self._outside(target)
            if exists(target) and not isfile(target):  # to read from a pipe could wait for ever
                raise self.damaged(name, "something that is no file", "a file")
        return path

    def _outside(self, got: str) -> TrialFormatError:
        return TrialFormatError(
            "a file of this SageMaker Debugger trial lies outside it",
            where=self.uri,
            got=got,
            expected="a path within the trial, as smdebug writes it",
            next_step="copy the trial with the files themselves (cp -L), if you trust where it came from",
        )


class OpenFile:
    """A file of known size. A small one is read whole at the first of several pieces."""

    def __init__(self, file: Any, size: int) -> None:
        self.size = size
        self._file = file
        self._whole: bytes | None = None

    def read(self, start: int, length: int, *, whole: bool = False) -> bytes:
        """A piece; shorter where the file ends. With `whole`, more pieces are to come.

        Raises:
            OSError: The file system fails.
        """
        length = max(0, min(length, self.size - start))
        if not whole or self.size > READ_WHOLE:
            piece: bytes = self._file.read_at(length, start) if length else b""
            return piece
        if self._whole is None:
            self._whole = self._file.read_at(self.size, 0)
        return self._whole[start : start + length]
