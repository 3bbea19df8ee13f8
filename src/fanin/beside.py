"""Small files beside the parts of a trial: what those who write it and those who follow it say to one another.

    _beat-w00000         worker 0 is alive; written anew every second while it captures, gone once it is done
    _stop.json           somebody asks the training to stop
    _status.json         what a follower makes of the trial by now
    _done-<hash>.json    an action was begun, by whoever made this file first

Names begin with an underscore: readers of a directory of Parquet files (Arrow, Spark, pandas) pass those over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyarrow.fs import FileInfo, FileSelector, FileType

from fanin.stores.parquet.directory import Directory

BEAT = re.compile(r"_beat-w(\d{5,})")
STOP, STATUS = "_stop.json", "_status.json"
OURS = re.compile(r"_beat-w\d{5,}|_stop\.json|_status\.json|_done-[0-9a-f]{16}\.json")
"""Everything that lies beside the parts."""

LARGEST = 2**16
"""Bytes of such a file; a longer one is not ours. A status with 500 findings has 40,000."""


def beat_name(worker: int) -> str:
    """The file that says that a worker is alive.

    >>> beat_name(3)
    '_beat-w00003'
    """
    return f"_beat-w{worker:05d}"


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
        """Make a file appear unless it is there; whether it was not, which one of those who claim at once is told."""
        try:
            self.directory.publish(name, data, exclusive=True)
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Take a file away."""
        self.directory.remove(name)

    def files(self) -> list[FileInfo]:
        """All files at and under the place, ours among them; none where there is no directory."""
        selector = FileSelector(self.directory.path, allow_not_found=True, recursive=True)
        found = self.directory.filesystem.get_file_info(selector)
        return [info for info in found if info.type is FileType.File]
