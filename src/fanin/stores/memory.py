"""MemoryStore: a trial that lives as long as the process that watches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import final

from fanin.errors import StoreError, TrialExistsError, TrialNotFoundError
from fanin.stores.assembly import Record, assemble, restated
from fanin.stores.base import Store, Writer
from fanin.trial import ModelSpec, Step, Trial, identity_of


@final
class MemoryStore(Store):
    """A trial in memory; several threads may write it as several workers."""

    def __init__(self) -> None:
        self.uri = "memory"
        self._lock = threading.Lock()
        self._writers: dict[int, _MemoryWriter] = {}

    def begin(self, worker: int = 0, about: Mapping[str, str] | None = None) -> Writer:
        """Start writing as one worker.

        Raises:
            TrialExistsError: This worker has begun already.
        """
        with self._lock:
            if worker in self._writers:
                raise TrialExistsError(
                    "there is a trial here already",
                    where=self.uri,
                    got=f"steps of worker {worker}",
                    expected="each worker to begin once",
                    next_step="use a new MemoryStore",
                )
            record = Record(worker, about=dict(about or {}))
            self._writers[worker] = _MemoryWriter(record, lambda: self._forget(worker))
            return self._writers[worker]

    def _forget(self, worker: int) -> None:
        with self._lock:
            self._writers.pop(worker, None)

    def load(self) -> Trial:
        """What was appended so far.

        Raises:
            TrialNotFoundError: No worker has begun.
        """
        with self._lock:
            writers = list(self._writers.values())
        if not writers:
            raise TrialNotFoundError("nothing was written to memory", next_step="begin a trial first")
        return assemble([writer.record for writer in writers], self.uri)


@final
class _MemoryWriter(Writer):
    def __init__(self, record: Record, forget: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._forget = forget
        self._record = record
        self._steps: list[Step] = []

    @property
    def record(self) -> Record:
        with self._lock:
            return replace(self._record, steps=tuple(self._steps))

    def describe(self, spec: ModelSpec) -> None:
        with self._lock:
            self._require_open()
            self._record = replace(self._record, spec=restated(self._record.spec, spec))

    def append(self, step: Step) -> None:
        with self._lock:
            self._require_open()
            self._steps.append(step)

    def end(self, wait_s: float = 0.0) -> None:
        with self._lock:
            self._record = replace(self._record, ended=True)

    def is_of(self, identity: str) -> bool:
        return identity == identity_of(self._record.about)

    def leave(self) -> None:
        """Nobody can ask for it any more."""

    def flush(self) -> None:
        """Nothing to wait for: what is appended is readable."""

    def close(self) -> None:
        self.end()

    def withdraw(self) -> None:
        self.end()
        self._forget()

    def _require_open(self) -> None:
        if self._record.ended:
            raise StoreError("this writer is closed", where="memory", next_step="append before close()")
