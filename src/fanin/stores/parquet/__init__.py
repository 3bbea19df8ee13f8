"""ParquetStore: a trial as a directory of Parquet files, one per worker and flush.

    runs/exp1/part-w00000-000000.parquet    worker 0 begins: no rows; claims the place, so that no two runs mix
    runs/exp1/part-w00000-000001.parquet    what worker 0 had appended when its thread got to it
    runs/exp1/part-w00001-000000.parquet    worker 1 of the same run

    runs/exp1/.stopped-w00000               while worker 0 writes; not empty once SIGTERM has ended it (see `stopping`)

A part appears whole or not at all, so a trial can be read while it is written, and after a crash up to the break.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import pyarrow as pa
from pyarrow.fs import FileSystem, FileType

from fanin.errors import StoreError, TrialExistsError, TrialFormatError, TrialNotFoundError, UsageError
from fanin.stores.assembly import Record, assemble
from fanin.stores.base import Store, Writer
from fanin.stores.parquet.directory import Directory, part_name
from fanin.stores.parquet.part import Part, decode, encode
from fanin.stores.parquet.writing import ParquetWriter
from fanin.trial import Trial

DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What decoding a damaged part can raise."""

RUN = ("run_id", "world_size")
"""Keys of `about` in which the workers of one run agree."""

A_TRIAL = f"a directory that holds {part_name(0, 0)} and so on"


@final
class ParquetStore(Store):
    """A trial in a directory.

    Args:
        uri: The directory, as a path or as `file://...`.
        filesystem: Where that path is, when it is not on a local disk.

    Raises:
        UsageError: The address cannot be read.
    """

    def __init__(self, uri: str | os.PathLike[str], filesystem: FileSystem | None = None) -> None:
        self.uri = os.fspath(uri)
        self._directory = Directory.at(self.uri, filesystem)

    def begin(self, worker: int = 0, about: Mapping[str, str] | None = None) -> Writer:
        """Start writing as one worker; its first part is there when this returns.

        Args:
            worker: Its rank.
            about: What to keep of the run. `run_id` and `world_size` are taken from the launcher's environment
                (torchrun, or MASTER_ADDR and MASTER_PORT) unless given; workers of one trial must agree in them.

        Raises:
            UsageError: The worker is not a rank.
            TrialExistsError: This worker, or another run, has written here already.
            StoreError: The directory cannot be written.
        """
        if type(worker) is not int or worker < 0:
            raise UsageError(
                "a worker is a rank",
                got=repr(worker),
                expected="0, 1, 2, ...",
                next_step="pass the rank of this process, e.g. int(os.environ['RANK'])",
            )
        known = with_run({str(key): str(value) for key, value in (about or {}).items()})
        with self._reaching("written", "choose a directory that can be written"):
            self._claim(worker, known)
        return ParquetWriter(self.uri, self._directory, worker, known)

    def _claim(self, worker: int, about: Mapping[str, str]) -> None:
        if self._directory.kind is FileType.File:
            raise self._is_a_file()
        if worker in self._directory.last_parts():
            raise self._exists(f"parts of worker {worker}")
        self._require_same_run(worker, about)
        self._directory.create()
        try:
            self._directory.publish(part_name(worker, 0), encode(Part(about=about)), exclusive=True)
        except FileExistsError:
            raise self._exists(f"parts of worker {worker}") from None
        try:
            # Once more: two runs that began at once may both have found it empty. Now one of them sees the other.
            self._require_same_run(worker, about)
        except StoreError:
            self._directory.remove(part_name(worker, 0))
            raise

    def _require_same_run(self, worker: int, about: Mapping[str, str]) -> None:
        for other in self._directory.last_parts():
            if other == worker:
                continue
            theirs = self._read(other, 0).about
            if "run_id" not in about or any(about.get(key) != theirs.get(key) for key in RUN):
                raise self._exists(f"worker {other} of {_run(theirs)}; this is {_run(about)}")

    def load(self) -> Trial:
        """Read what is there: the steps of all workers, up to the break if a writer died.

        Raises:
            TrialNotFoundError: There is nothing.
            TrialFormatError: It is not a trial that this version can read.
            StoreError: The directory cannot be read.
        """
        with self._reaching("read", "check the path and its permissions"):
            if self._directory.kind is FileType.File:
                raise self._is_a_file()
            last = self._directory.last_parts()
            if not last:
                raise self._nothing()
            return assemble([self._record(worker, number) for worker, number in last.items()], self.uri)

    def _record(self, worker: int, last: int) -> Record:
        parts = [self._read(worker, number) for number in range(last + 1)]
        specs = [part.spec for part in parts if part.spec is not None]
        return Record(
            worker=worker,
            steps=tuple(step for part in parts for step in part.steps),
            spec=specs[-1] if specs else None,
            about=parts[0].about,
            ended=parts[-1].end or self._directory.was_stopped(worker),
        )

    def _read(self, worker: int, number: int) -> Part:
        name = part_name(worker, number)
        where = f"{self.uri}/{name}"
        rest = f"the later parts of worker {worker} to read what came before"
        try:
            return decode(self._directory.read(name), where)
        except FileNotFoundError:
            raise TrialFormatError(
                "a part of this trial is missing",
                where=where,
                got=f"later parts of worker {worker} without it",
                expected="parts numbered without a gap",
                next_step=f"copy the trial again, or delete {rest}",
            ) from None
        except DAMAGE as error:
            raise TrialFormatError(
                "a part of this trial is damaged",
                where=where,
                got=_one_line(error),
                expected="a whole file, as fanin wrote it",
                next_step=f"copy it again, or delete it and {rest}",
            ) from error

    def _nothing(self) -> StoreError:
        if self._directory.kind is FileType.NotFound:
            return TrialNotFoundError(
                "there is no trial at this address",
                where=self.uri,
                got="nothing of that name",
                expected=A_TRIAL,
                next_step="check the path; a trial appears as soon as a watch begins",
            )
        names = [info.base_name for info in self._directory.entries()]
        if not names:
            return TrialNotFoundError(
                "there is no trial at this address",
                where=self.uri,
                got="an empty directory",
                expected=A_TRIAL,
                next_step="check the path; a trial appears as soon as a watch begins",
            )
        return TrialFormatError(
            "this directory is not a trial",
            where=self.uri,
            got=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
            expected=A_TRIAL,
            next_step="give the directory that holds the parts, not one above or below it",
        )

    def _is_a_file(self) -> StoreError:
        return TrialFormatError(
            "a trial is a directory, and this is a file",
            where=self.uri,
            got="a file",
            expected=A_TRIAL,
            next_step=f"give a directory, e.g. {os.path.dirname(self.uri) or '.'}",
        )

    def _exists(self, got: str) -> StoreError:
        return TrialExistsError(
            "there is a trial here already",
            where=self.uri,
            got=got,
            expected="a new directory, or other workers of the same run",
            next_step=f"choose another directory, e.g. {self.uri.rstrip('/')}-2, or remove it; "
            "workers of one run share a launcher (torchrun) or about={'run_id': ...}",
        )

    @contextmanager
    def _reaching(self, done: str, next_step: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the trial cannot be {done}", where=self.uri, got=_one_line(error), next_step=next_step
            ) from error


def with_run(about: Mapping[str, str]) -> dict[str, str]:
    """`about` with what the launcher's environment says of the run, where it does not say so itself."""
    rendezvous = os.environ.get("TORCHELASTIC_RUN_ID", "")
    master = ":".join(filter(None, (os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))))
    # "none" is what torchrun calls every run that was not given an id.
    run_id = "/".join(part for part in (rendezvous, master) if part not in ("", "none"))
    found = {"run_id": run_id, "world_size": os.environ.get("WORLD_SIZE", "")}
    return {key: value for key, value in found.items() if value} | dict(about)


def _run(about: Mapping[str, str]) -> str:
    size = f" of {about['world_size']} workers" if "world_size" in about else ""
    return f"run {about['run_id']}{size}" if "run_id" in about else "a run without an id"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
