"""A trial of SageMaker Debugger on its medium: what is there by now, and the values when they are asked for.

    collections/000000000/<worker>_collections.json
    events/<step>/<step>_<worker>.tfevents
    index/<step // 1000>/<step>_<worker>.json       appears after its event file, so that both are whole
    training_job_end.ts                             empty; the job has ended

A step is complete once all workers wrote it, or a later step is complete, or the job has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

from numpy.typing import NDArray
from pyarrow.fs import FileInfo, FileSystem, FileType

from fanin.errors import TrialFormatError, TrialNotFoundError
from fanin.stores.smdebug import collection, index, records
from fanin.stores.smdebug.collection import Collections
from fanin.stores.smdebug.folder import Folder, OpenFile
from fanin.stores.smdebug.index import INDEX_FILE, LARGEST_JSON, Location, Saved

END_MARKER = "training_job_end.ts"
COLLECTIONS_FILE = "_collections.json"
HEAD = 4096
"""Bytes of the first event file that tell a run from others: the time in it is among the first 21, and the rest is
values; a page of a disk, and one request to an object store."""

AN_SMDEBUG_TRIAL = "a directory with collections/, index/ and events/, as smdebug writes it"


class Archive:
    """What one trial holds, as of the last `refresh`.

    Attributes:
        saved: Step, counted over all modes -> worker -> what it saved.
        collections: What was to be saved; None until a worker has written it.
        workers: Names of the workers, sorted.
        names_train: Whether any step is one of training by name, so that those without a mode are something else.
        ended: Whether the end of the job is marked.
        newest: When the newest file was written, in seconds since 1970; 0 where that is not known.
    """

    def __init__(self, uri: str, filesystem: FileSystem | None = None) -> None:
        self.folder = Folder.at(uri, filesystem)
        self.saved: dict[int, dict[str, Saved]] = {}
        self.collections: Collections | None = None
        self.workers: list[str] = []
        self.names_train = False
        self.ended = False
        self.newest = 0.0
        self._seen: set[str] = set()

    # ── what is there ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def exists(self) -> bool:
        """Whether this looks like a trial of smdebug's."""
        kinds = self.folder.kinds("collections", "index", "events", "claim.smd")
        here = [kind is not FileType.NotFound for kind in kinds]
        return here[0] or here[3] or (here[1] and here[2])

    def refresh(self) -> None:
        """Look again for new steps.

        Raises:
            TrialFormatError: A file of it is damaged.
            StoreError: It cannot be reached.
        """
        # The marker first: what was written before it is then seen below.
        ended = self.folder.kinds(END_MARKER)[0] is FileType.File
        self._refresh_collections(ended)
        for part in self.folder.files("index"):
            if part.type is FileType.Directory:
                self._refresh_part(f"index/{part.base_name}", ended)
        self.ended = ended

    def _refresh_collections(self, ended: bool) -> None:
        for part in self.folder.files("collections"):
            for info in self._new(f"collections/{part.base_name}", ended):
                if not info.base_name.endswith(COLLECTIONS_FILE):
                    continue
                name = f"collections/{part.base_name}/{info.base_name}"
                found = self._parsed(name, collection.parse)
                self.collections = self.collections.merge(found) if self.collections else found
                self._know(worker_name(info.base_name.removesuffix(COLLECTIONS_FILE)))
                self._seen.add(name)

    def _refresh_part(self, part: str, ended: bool) -> None:
        for info in self._new(part, ended):
            match = INDEX_FILE.fullmatch(info.base_name)
            if match is None:
                continue
            name = f"{part}/{info.base_name}"
            step, worker = int(match[1]), worker_name(match[2])
            found = self._parsed(name, lambda text, s=step, w=worker: index.parse(text, s, w))
            self.saved.setdefault(step, {})[worker] = found
            self.names_train |= found.mode == "TRAIN"
            self._know(worker)
            self._seen.add(name)

    def _new(self, part: str, ended: bool) -> Iterator[FileInfo]:
        for info in self.folder.files(part):
            # smdebug renames what it has written whole; what copies a trial while it grows makes empty files first.
            awaited = info.size == 0 and not ended
            if info.type is FileType.File and not awaited and f"{part}/{info.base_name}" not in self._seen:
                self.newest = max(self.newest, (info.mtime_ns or 0) / 1e9)
                yield info

    def _parsed(self, name: str, parse: Any) -> Any:
        text = self.folder.read(name, LARGEST_JSON)
        try:
            return parse(text)
        except ValueError as error:
            raise self.folder.damaged(name, str(error), "what smdebug writes") from error

    def _know(self, worker: str) -> None:
        if worker not in self.workers:
            self.workers = sorted([*self.workers, worker])

    @property
    def files(self) -> int:
        """How many index and collections files were read."""
        return len(self._seen)

    @property
    def expected_workers(self) -> int:
        """How many workers write each step."""
        return max(self.collections.workers if self.collections else 1, 1)

    @property
    def steps(self) -> list[int]:
        """Every step that any worker has written, in order."""
        return sorted(self.saved)

    @property
    def last_complete(self) -> int:
        """The last step that all workers wrote, or that any wrote before the job ended; -1 for none."""
        whole = [s for s, by in self.saved.items() if self.ended or len(by) >= self.expected_workers]
        return max(whole, default=-1)

    @property
    def identity(self) -> str:
        """What tells this run from every other: the beginning of its first event file, which holds the time to the
        microsecond; empty where there is none, or it is damaged.

        Of the first step that is whole, since workers may come in any order; of the first, where none is whole yet.

        Raises:
            StoreError: It cannot be reached.
        """
        name = self._first_events()
        try:
            with self.folder.opened(name) as file:
                return sha256(file.read(0, HEAD)).hexdigest()[:16] if name else ""
        except TrialFormatError:
            return ""  # whoever asks for its values is told why

    def _first_events(self) -> str:
        """The event file that began first; empty for none."""
        holding = [by for _, by in sorted(self.saved.items()) if any(saved.tensors for saved in by.values())]
        whole = [by for by in holding if len(by) >= self.expected_workers]
        for by_worker in whole or holding:
            worker = min(worker for worker, saved in by_worker.items() if saved.tensors)
            return next(iter(by_worker[worker].tensors.values())).file
        return ""

    @property
    def idle_for(self) -> float:
        """Seconds since the newest file was written."""
        return max(0.0, time.time() - self.newest)

    def require_steps(self) -> None:
        """Refuse a place without a readable step.

        Raises:
            TrialNotFoundError: There is nothing.
            TrialFormatError: It is no trial of smdebug's.
            StoreError: It cannot be reached.
        """
        if self.saved:
            return
        if not self.exists:
            raise TrialNotFoundError(
                "there is no SageMaker Debugger trial at this address",
                where=self.folder.uri,
                got="neither collections/ nor index/",
                expected=AN_SMDEBUG_TRIAL,
                next_step="check the address: the trial is what smdebug calls out_dir",
            )
        raise TrialNotFoundError(
            "this SageMaker Debugger trial holds no step",
            where=self.folder.uri,
            got="no finished index file" + (", and the mark of its end" if self.ended else ""),
            expected="index/000000000/000000000000_worker_0.json and so on",
            next_step="wait until a step was saved; a step is readable once the next one starts",
        )

    # ── values ──────────────────────────────────────────────────────────────────────────────────────────────

    def value(self, location: Location, name: str) -> NDArray[Any]:
        """One tensor.

        Raises:
            TrialFormatError: Its record is damaged; the message names file and byte.
            StoreError: It cannot be reached.
        """
        with self.folder.opened(location.file) as file:
            return self._value(file, location, name, whole=False)

    def values(self, wanted: Iterable[tuple[str, Location]]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Several tensors of one step and worker, one at a time, in the order of the file.

        Raises:
            TrialFormatError: A record is damaged; the message names file and byte.
            StoreError: It cannot be reached.
        """
        asked = sorted(wanted, key=lambda one: one[1].start)
        for name in dict.fromkeys(location.file for _, location in asked):
            with self.folder.opened(name) as file:
                for tensor, location in asked:
                    if location.file == name:
                        yield tensor, self._value(file, location, tensor, whole=True)

    def _value(self, file: OpenFile, location: Location, name: str, *, whole: bool) -> NDArray[Any]:
        record = file.read(location.start, location.length, whole=whole)
        try:
            if len(record) < location.length:
                raise ValueError(f"the file ends after {file.size} bytes")
            return records.tensor(record, name, location.step)
        except (ValueError, OverflowError) as error:
            raise self._damaged(location, name, error) from error

    def _damaged(self, location: Location, name: str, error: Exception) -> TrialFormatError:
        expected = f"the record of {name[:200]!r}, {location.length} bytes"
        return self.folder.damaged(location.file, str(error), expected, location.start)


def worker_name(text: str) -> str:
    """A worker by its part of a file's name; devices of TensorFlow come with their slashes and colons replaced.

    >>> worker_name("worker_0"), worker_name("_job-worker_replica-0_task-1_device-GPU-0")
    ('worker_0', '/job:worker/replica:0/task:1/device:GPU:0')
    """
    return text.replace("_", "/").replace("-", ":") if text.startswith("_") else text
