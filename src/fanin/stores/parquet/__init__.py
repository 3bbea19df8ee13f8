"""ParquetStore: a trial as a directory of Parquet files, one per worker and flush, on a disk or in an object store.

    runs/exp1/part-w00000-000000.parquet    worker 0 begins: no rows; claims the place, so that no two runs mix
    runs/exp1/part-w00000-000001.parquet    what worker 0 had appended when its thread got to it
    runs/exp1/part-w00001-000000.parquet    worker 1 of the same run

    runs/exp1/.stopped-w00000               while worker 0 writes; not empty once SIGTERM has ended it (see `stopping`)

In an object store the names end in a word that is the writer's own, as part-w00000-000001-1a2b3c4d.parquet (see
`directory`), and nothing marks SIGTERM: such a trial is one that was broken off.

A part appears whole or not at all, so a trial can be read while it is written, and after a crash up to the break.

A run is known by the identity that its lowest worker has drawn (`Trial.identity`). A worker that finds others here
takes over theirs; those that begin at the same moment draw one each, and the lowest one's counts. So nobody waits for
anybody. What a run is called can change only while its workers begin: where they train together, before it has a step.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import final

import pyarrow as pa
from pyarrow.fs import FileSystem, FileType

from fanin.errors import StoreError, TrialExistsError, TrialFormatError, TrialNotFoundError, UsageError
from fanin.stores.assembly import Record, assemble
from fanin.stores.base import Store, Writer
from fanin.stores.parquet.delivery import Delivery
from fanin.stores.parquet.directory import Directory, Series, part_name
from fanin.stores.parquet.pages import LARGEST_TABLE, RATIO
from fanin.stores.parquet.part import Part, decode, encode
from fanin.stores.parquet.writing import ParquetWriter
from fanin.stores.place import in_a_line, lacks_bucket, reaching, shown
from fanin.trial import IDENTITY, Trial, identity_of

DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What decoding a damaged part can raise."""

RUN = ("run_id", "world_size")
"""Keys of `about` in which the workers of one run agree."""

LOOKS = 3
"""How often a trial is listed where parts vanish while it is read: of a writer that withdraws, since another had begun
at once, or of somebody who removes the trial. Each of those vanishes once."""

A_TRIAL = f"a directory that holds {part_name(0, 0)} and so on"


@final
class ParquetStore(Store):
    """A trial in a directory.

    Args:
        uri: The directory, as a path, as `file://...` or as `s3://...`.
        filesystem: Where that path is, when the address does not say so.

    Raises:
        UsageError: The address cannot be read.
    """

    def __init__(self, uri: str | os.PathLike[str], filesystem: FileSystem | None = None) -> None:
        address = os.fspath(uri)
        self.uri = shown(address)
        self._directory = Directory.at(address, filesystem)
        # `Delivery` tries again by itself, and must be able to stop.
        self._sending = partial(Directory.at, address, filesystem, attempts=1)

    def begin(self, worker: int = 0, about: Mapping[str, str] | None = None) -> Writer:
        """Start writing as one worker; its first part is there when this returns.

        Args:
            worker: Its rank.
            about: What to keep of the run. `run_id` and `world_size` are taken from the launcher's environment
                (torchrun, or MASTER_ADDR and MASTER_PORT) unless given; workers of one trial must agree in them.
                `identity` is drawn, since a launcher may call all its runs the same.

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
        said = with_run({str(key): str(value) for key, value in (about or {}).items()})
        with self._reaching("written", "choose a directory that can be written"):
            claimed, known = self._claim(worker, said)
        is_of = partial(self._is_of, claimed, known)
        return ParquetWriter(claimed, known, Delivery(self._sending(), self.uri), is_of)

    def _claim(self, worker: int, about: Mapping[str, str]) -> tuple[Series, Mapping[str, str]]:
        if self._directory.kind is FileType.File:
            raise self._is_a_file()
        if any(one.worker == worker for one in self._directory.series()):
            raise self._exists(f"parts of worker {worker}")
        others = self._require_same_run(worker, about)
        # From the system's own source of chance: that of the user's training is not ours to move on.
        about = {IDENTITY: identity_of(others[0]) if others else secrets.token_hex(8), **about}
        self._directory.create()
        try:
            claimed = self._directory.claim(worker, encode(Part(about=about)))
        except FileExistsError:
            raise self._exists(f"parts of worker {worker}") from None
        try:
            # Once more: two runs that began at once may both have found it empty. Now one of them sees the other.
            self._require_same_run(worker, about)
        except StoreError:
            self._directory.remove(claimed.name(0))
            raise
        return claimed, about

    def _require_same_run(self, worker: int, about: Mapping[str, str]) -> list[Mapping[str, str]]:
        """What the other workers know of the run, the lowest first."""
        others = []
        for other in self._directory.series():
            if other.worker == worker:
                continue
            try:
                theirs = self._read(other, 0).about
            except _VanishedError as gone:
                if other in self._directory.series():
                    raise self._missing(gone) from None
                continue  # it has withdrawn
            if not _is_one_run(about, theirs):
                raise self._exists(f"worker {other.worker} of {_run(theirs)}; this is {_run(about)}")
            others.append(theirs)
        return others

    def _is_of(self, ours: Series, about: Mapping[str, str], identity: str) -> bool:
        """Whether a worker's run is called so: by itself, or by the lowest worker, if both are still here."""
        if identity == identity_of(about):
            return True
        with self._reaching("read", "check the path and its permissions"):
            found = self._directory.series()
            if all((one.worker, one.claim) != (ours.worker, ours.claim) for one in found):
                return False
            first = self._read(found[0], 0).about
            return (
                identity == identity_of(first)
                and _is_one_run(about, first)
                and self._read(ours, 0).about == about
            )

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
            for _ in range(LOOKS):
                found = self._directory.series()
                if not found:
                    raise self._nothing()
                try:
                    return self._assembled(found)
                except _VanishedError as error:
                    gone = error
                if set(found) <= set(self._directory.series()):
                    break
            raise self._missing(gone)

    def _assembled(self, found: Iterable[Series]) -> Trial:
        workers = groupby(found, key=lambda one: one.worker)
        parts = groupby(self._parts([self._one_of(theirs) for _, theirs in workers]), key=itemgetter(0))
        return assemble(
            [self._record(series, [part for _, part in theirs]) for series, theirs in parts], self.uri
        )

    def _parts(self, written: Iterable[Series]) -> Iterator[tuple[Series, Part]]:
        excess = 0
        for series in written:
            for number in range(series.last + 1):
                part = self._read(series, number)
                excess += part.excess
                if excess > LARGEST_TABLE:
                    raise self._too_large(f"{self.uri}/{series.name(number)}")
                yield series, part

    def _one_of(self, series: Iterable[Series]) -> Series:
        """The writer of a worker. Others that got no further than to claim the place were killed before they could
        withdraw.

        Raises:
            TrialFormatError: There are several.
        """
        found = list(series)
        written = [one for one in found if one.last] or found[:1]
        if len(written) == 1:
            return written[0]
        raise TrialFormatError(
            "two runs wrote here as one worker",
            where=f"{self.uri}/{written[1].name(0)}",
            got=f"parts of worker {written[0].worker} by {' and by '.join(one.claim for one in written)}",
            expected="one run at an address; listings of this store lag, or one was copied over the other",
            next_step="move the parts of one of them to an address of their own; the word at the end of a name says "
            "whose it is",
        )

    def _record(self, series: Series, parts: Sequence[Part]) -> Record:
        specs = [part.spec for part in parts if part.spec is not None]
        return Record(
            worker=series.worker,
            steps=tuple(step for part in parts for step in part.steps),
            spec=specs[-1] if specs else None,
            about=parts[0].about,
            ended=parts[-1].end or self._directory.was_stopped(series.worker),
        )

    def _read(self, series: Series, number: int) -> Part:
        where = f"{self.uri}/{series.name(number)}"
        try:
            data = self._directory.read(series.name(number))
        except FileNotFoundError as error:
            raise _VanishedError(series, number) from error
        try:
            return decode(data, where)
        except DAMAGE as error:
            raise TrialFormatError(
                "a part of this trial is damaged",
                where=where,
                got=in_a_line(error),
                expected="a whole file, as fanin wrote it",
                next_step=f"copy it again, or delete it and {_rest(series)}",
            ) from error

    def _missing(self, gone: _VanishedError) -> StoreError:
        return TrialFormatError(
            "a part of this trial is missing",
            where=f"{self.uri}/{gone.series.name(gone.number)}",
            got=f"later parts of worker {gone.series.worker} without it",
            expected="parts numbered without a gap",
            next_step=f"copy the trial again, or delete {_rest(gone.series)}",
        )

    def _too_large(self, where: str) -> StoreError:
        return TrialFormatError(
            "this trial would take more memory than files of its size do",
            where=where,
            got=f"more than {LARGEST_TABLE} bytes up to this part, beyond {RATIO} times the size of each",
            expected="parts as fanin writes them",
            next_step="see who wrote them; remove this one and those that follow it to read what came before",
        )

    def _nothing(self) -> StoreError:
        if lacks_bucket(self._directory.filesystem, self._directory.path):
            return TrialNotFoundError(
                "there is no such bucket",
                where=self.uri,
                got=f"no bucket {self._directory.path.split('/')[0]!r} that could be seen",
                expected=A_TRIAL,
                next_step="check its name, the region (AWS_REGION) and the endpoint (AWS_ENDPOINT_URL)",
            )
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

    def _reaching(self, done: str, otherwise: str) -> AbstractContextManager[None]:
        return reaching(self.uri, done, otherwise)


class _VanishedError(FileNotFoundError):
    """A part that was listed, or that later ones imply, is not there."""

    def __init__(self, series: Series, number: int) -> None:
        super().__init__(series.name(number))
        self.series, self.number = series, number


def _rest(series: Series) -> str:
    return f"the later parts of worker {series.worker} to read what came before"


def with_run(about: Mapping[str, str]) -> dict[str, str]:
    """`about` with what the launcher's environment says of the run, where it does not say so itself."""
    rendezvous = os.environ.get("TORCHELASTIC_RUN_ID", "")
    master = ":".join(filter(None, (os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))))
    # "none" is what torchrun calls every run that was not given an id.
    run_id = "/".join(part for part in (rendezvous, master) if part not in ("", "none"))
    found = {"run_id": run_id, "world_size": os.environ.get("WORLD_SIZE", "")}
    return {key: value for key, value in found.items() if value} | dict(about)


def _is_one_run(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Whether two workers may write one trial."""
    return "run_id" in ours and all(ours.get(key) == theirs.get(key) for key in RUN)


def _run(about: Mapping[str, str]) -> str:
    size = f" of {about['world_size']} workers" if "world_size" in about else ""
    return f"run {about['run_id']}{size}" if "run_id" in about else "a run without an id"
