"""A glance at a trial that grows: whether anything in it is new, and whether whoever writes it is alive.

One listing, and no file is opened, so that looking ten times a second costs a disk next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pyarrow.fs import FileInfo

from fanin.beside import BEAT, Beside
from fanin.stores.parquet.directory import PART

BEATING_S = 20.0
"""Seconds without a new beat after which a training is dead: 20 beats. A process that is stopped, or a disk that hangs,
for less is only slow."""

IDLE_S = 600.0
"""The same where nobody beats (trials of SageMaker Debugger, of an older fanin): without a new file. Its default saves
every 500 steps, which take minutes."""

FOREIGN = {"collections", "index"}
"""Folders of a trial of SageMaker Debugger, in which each file is in a folder by its number."""

File = tuple[str, int, int]
"""Path, size, time of the last change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What a listing shows.

    Attributes:
        files: Of the trial itself.
        beats: The workers' beats.
        now: At least so late it was, by the clock that dates the files, in seconds since 1970: when anything here was
            written last, by whomever. 0 for nothing.
    """

    files: frozenset[File]
    beats: frozenset[File]
    now: float = 0.0

    @property
    def holds_trial(self) -> bool:
        """Whether anybody has begun a trial here, we or SageMaker Debugger; a directory may be there for others."""
        paths = (path.split("/") for path, _, _ in self.files)
        return any(PART.fullmatch(path[-1]) or FOREIGN & {*path[-3:-1]} for path in paths)

    @property
    def newest(self) -> float:
        """When the newest file was written, in seconds since 1970; 0 for none."""
        return max((changed for _, _, changed in self.files), default=0) / 1e9


def glance(beside: Beside) -> Glance:
    """Look.

    Raises:
        OSError: The place cannot be reached.
    """
    found = beside.files()
    mine = [info for info in found if info.base_name.startswith("_")]
    rest = (info for info in found if info not in mine and not info.base_name.endswith(".tmp"))
    beats = (info for info in mine if BEAT.fullmatch(info.base_name))
    now = max((info.mtime_ns or 0 for info in found), default=0) / 1e9
    return Glance(frozenset(map(_file, rest)), frozenset(map(_file, beats)), now)


def _file(info: FileInfo) -> File:
    return info.path, info.size or 0, info.mtime_ns or 0


class Liveness:
    """Tells a slow writer from a dead one.

    Our clock may be minutes from that of the disk or the store, so that no file has an age by it. A beat is a file that
    changes, and how long ago that was is told by our own clock, as we look on. So it is with all other files where
    nobody beats; for the time before our first look the files themselves are asked: what others, or we, have written
    beside the trial since (a follower writes its status at once) is dated by the same clock.
    """

    def __init__(self, dead_after: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._dead_after = dead_after
        self._clock = clock
        self._changed: dict[str, tuple[File, float]] = {}
        self._files: frozenset[File] | None = None
        self._since = 0.0
        self._has_grown = False

    def is_dead(self, seen: Glance) -> bool:
        """Whether nothing more is to be expected of any writer whose part is not over; one that is done takes its
        beat away, so of those that are left the last to fall silent keeps the trial from ever being whole."""
        now = self._clock()
        before, self._changed = self._changed, {}
        for beat in seen.beats:
            known = before.get(beat[0])
            self._changed[beat[0]] = known if known and known[0] == beat else (beat, now)
        idle = self._idle(seen, now)
        if self._changed:
            silent = now - min(since for _, since in self._changed.values())
            return silent > (self._dead_after or BEATING_S)
        return idle > (self._dead_after or IDLE_S)

    def _idle(self, seen: Glance, now: float) -> float:
        """Seconds for which, at least, no file of the trial has changed."""
        if seen.files != self._files:
            self._has_grown = self._files is not None
            self._files, self._since = seen.files, now
        looked_on = now - self._since
        return looked_on if self._has_grown else max(looked_on, seen.now - seen.newest)
