"""Small files beside the parts of a trial: what those who write it and those who follow it say to one another.

    _beat-w00000         worker 0 is alive; written anew every second while it captures, gone once it is done
    _stop.json           somebody asks the run that it names to stop
    _status.json         what a follower makes of the trial by now
    _done-<hash>.json    an action was begun, by whoever made this file first

Names begin with an underscore: readers of a directory of Parquet files (Arrow, Spark, pandas) pass those over.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileInfo, FileSelector, FileType, LocalFileSystem

from fanin.stores.parquet.directory import Directory
from fanin.stores.place import named

BEAT = re.compile(r"_beat-w(\d{5,})")
STOP, STATUS = "_stop.json", "_status.json"
OURS = re.compile(r"_beat-w\d{5,}|_stop\.json|_status\.json|_done-[0-9a-f]{16}(-[0-9a-f]{8})?\.json")
"""Everything that lies beside the parts."""

LARGEST = 2**16
"""Bytes of such a file; a longer one is not ours: a status leaves findings out that do not fit."""


def beat_name(worker: int) -> str:
    """The file that says that a worker is alive.

    >>> beat_name(3)
    '_beat-w00003'
    """
    return f"_beat-w{worker:05d}"


PATIENCE_S, LOOK_S = 15.0, 0.1
"""Seconds for which a claim waits until others that were made at once are taken back, and from one look to the next. A
request to a store that hangs takes 12 s (see `stores/place.py`); who has not taken its claim back by then never
will."""


@dataclass(frozen=True, slots=True)
class Beside:
    """The place beside a trial's parts. Methods raise OSError as the file system does."""

    directory: Directory

    @classmethod
    def at(cls, uri: str) -> Beside:
        """That of the trial at an address.

        Raises:
            UsageError: The address cannot be read.
        """
        return cls(Directory.at(uri))

    @property
    def exists(self) -> bool:
        """Whether there is a directory; nobody but a writer makes it."""
        return self.directory.kind is FileType.Directory

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        found = self.directory.filesystem.get_file_info(f"{self.directory.path}/{name}")
        return found.type is FileType.File

    def read(self, name: str) -> bytes | None:
        """The first LARGEST bytes of a file; None where it is not there."""
        try:
            with self.directory.filesystem.open_input_stream(f"{self.directory.path}/{name}") as file:
                data: bytes = file.read(LARGEST)
                return data
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Make a file appear, whole, in place of the one that was there."""
        self.directory.publish(name, data)

    def claim(self, name: str, data: bytes) -> bool:
        """Make `<name>.json` appear unless it is there; whether it was not, which of those who claim at once at most
        one is told."""
        if isinstance(self.directory.filesystem, LocalFileSystem):
            return self._claim_locally(f"{name}.json", data)
        return self._claim_remotely(name, data)

    def is_claimed(self, name: str) -> bool:
        """Whether anybody has made it appear."""
        if isinstance(self.directory.filesystem, LocalFileSystem):
            return self.has(f"{name}.json")
        return bool(self._claims(name))

    def _claim_locally(self, name: str, data: bytes) -> bool:
        """Whole, under a name of its own, which then becomes the one that is claimed, unless that is taken."""
        temporary = f"{self.directory.path}/.{name}-{secrets.token_hex(4)}.tmp"
        try:
            Path(temporary).write_bytes(data)
            return _is_linked(temporary, f"{self.directory.path}/{name}")
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _claim_remotely(self, name: str, data: bytes) -> bool:
        """Object stores have no exclusive name that every one of them keeps, but their listings show what was put
        before them (S3's since December 2020). So each claim has a name of its own, and who then finds no other has
        won: whoever looks later finds it. It says so by filling the file, which is empty until then."""
        if self._claims(name):
            return False
        mine = f"{name}-{secrets.token_hex(4)}.json"
        is_won = False
        try:
            self.write(mine, b"")
            is_won = self._is_alone(name, mine)
        finally:
            # It is won or lost whether or not that can be said.
            with suppress(OSError):
                self.write(mine, data) if is_won else self.remove(mine)
        return is_won

    def _is_alone(self, name: str, mine: str) -> bool:
        """Of those that were made at once the first by name waits until the others have gone; unless one of them was
        alone before."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            others = [info for info in self._claims(name) if info.base_name != mine]
            if not others:
                return True
            if any(info.size or info.base_name < mine for info in others):
                return False
            time.sleep(LOOK_S)
        return False

    def _claims(self, name: str) -> list[FileInfo]:
        """Those that were made, and not taken back."""
        return [info for info in self.files() if info.base_name.startswith(f"{name}-")]

    def remove(self, name: str) -> None:
        """Take a file away."""
        self.directory.remove(name)

    def files(self) -> list[FileInfo]:
        """All files at and under the place, ours among them; none where there is no directory."""
        selector = FileSelector(self.directory.path, allow_not_found=True, recursive=True)
        found = named(self.directory.filesystem.get_file_info(selector))
        return [info for info in found if info.type is FileType.File]


def _is_linked(temporary: str, path: str) -> bool:
    """Whether the new name was free: what a hard link finds out in one step, or, where a file system has none (FAT),
    the making of the file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True
