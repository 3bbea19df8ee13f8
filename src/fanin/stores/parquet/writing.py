"""ParquetWriter: parts written by a thread of their own, so that training never waits for a disk or a network."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import final

from fanin.errors import StoreError
from fanin.stores.assembly import NOT_DESCRIBED, restated
from fanin.stores.base import Writer
from fanin.stores.parquet.delivery import Delivery
from fanin.stores.parquet.directory import Series
from fanin.stores.parquet.part import Part, encode
from fanin.stores.parquet.stopping import leave_unmarked, mark_when_stopped
from fanin.trial import ModelSpec, Step

PATIENCE_S = 10.0
"""How long flush() and close() wait for a part that does not get written. Parts are small: 10 steps of a model with
300 layers take 0.1 s on a local disk; where a network disk hangs, training must end all the same."""

REST = 0.5
"""Seconds from one part to the next, as long as nobody waits for it. Writing takes the interpreter from the training: a
part for each step of 15 ms cost half a step."""

WAITING = 100_000
"""Tensors that may wait for an object store: ten steps of a model with 1,000 layers and ten roles, or half a gigabyte
(measured: 4.7 kB for one with histogram and 64 units)."""

PART_TENSORS = 10_000
"""Tensors in a part, unless one step has more: one step of a model of 1,000 layers with ten roles. What waits longer is
several parts, so that none takes much memory to read, even where it is all zeros (see `pages.FREE`)."""


@final
class ParquetWriter(Writer):
    """One worker's hand on a trial in a directory, whose part 0 is there already.

    Steps wait in memory until the thread takes all of them into one part: the first at once, others after a rest, all
    when somebody flushes or closes. A part that a local disk refuses ends the recording: what comes after is dropped,
    and the next flush() or close() says so, once; so do they where the medium does not answer, and wait no longer.

    What an object store does not take is kept on this machine (see `delivery`), and the next flush() or close() says
    where. For one no more than WAITING tensors wait; steps beyond are dropped, and a note in the trial says which. A
    flush() that returns has its steps in the store, until one has said that the store does not take them.

    A forked child (a data loader's worker) has this object but not its thread; there, every method does nothing.
    """

    def __init__(
        self, series: Series, about: Mapping[str, str], delivery: Delivery, is_of: Callable[[str], bool]
    ) -> None:
        self._series = series
        self._is_of = is_of
        self._delivery = delivery
        self._about = about
        self._process = os.getpid()
        self._parts = 1
        self._spec: ModelSpec | None = None
        self._failure: Exception | None = None
        self._is_left = False
        # Wakes the thread. Its put may be called within itself, by a garbage collection that frees the watch.
        self._calls: SimpleQueue[None] = SimpleQueue()
        # All below is guarded by this. It is reentrant, so that a signal handler may flush.
        self._changed = threading.Condition()
        self._steps: list[Step] = []
        self._tensors = 0
        self._dropped: list[int] = []
        self._spec_is_new = False
        self._wanted = False
        self._hurried = False
        self._rested = 0.0
        self._in_hand: tuple[int, Part] | None = None
        self._closing = False
        self._over = False
        self._is_given_up = False
        self._mark = delivery.stop_mark(series.worker)
        if self._mark is not None:
            mark_when_stopped(self._mark)
        # A daemon, so that a trial that nobody closed cannot keep the interpreter from ending.
        self._thread = threading.Thread(target=self._write_parts, name=f"fanin-w{series.worker}", daemon=True)
        self._thread.start()

    def describe(self, spec: ModelSpec) -> None:
        """State what the model is; it is written with the next step, and only where it is new."""
        if self._is_forked:
            return
        with self._changed:
            self._require_open()
            known = restated(self._spec, spec)
            self._spec_is_new = self._spec_is_new or known != self._spec
            self._spec = known

    def append(self, step: Step) -> None:
        """Add a step; returns at once."""
        if self._is_forked:
            return
        with self._changed:
            self._require_open()
            if not self._over:
                self._take_in(step)
                self._wake()

    def _take_in(self, step: Step) -> None:
        if self._delivery.is_far and self._steps and self._tensors + len(step.observations) > WAITING:
            self._delivery.hurry()
            self._dropped.append(step.index)
            return
        self._steps.append(step)
        self._tensors += len(step.observations)

    def end(self, wait_s: float = 0.0) -> None:
        """Have the mark written that this worker is done, and wait for that a moment at most; not for a network."""
        if self._is_forked:
            return
        with self._changed:
            self._closing = self._hurried = True
            self._wake()
            self._changed.wait_for(lambda: self._over, 0.0 if self._delivery.is_far else wait_s)

    def is_of(self, identity: str) -> bool:
        """Whether that is the run which it writes.

        Raises:
            StoreError: The place does not answer.
        """
        return self._is_of(identity)

    def leave(self) -> None:
        """See Writer: the thread ends the trial when it comes to it."""
        if not self._is_forked:
            self._is_left = True
            self._calls.put(None)

    def flush(self) -> None:
        """Wait until everything appended is on the disk.

        Raises:
            StoreError: A part could not be written, or is not written in time, and nobody was told yet.
        """
        if self._is_forked:
            return
        with self._changed:
            self._hurried = self._has_news
            self._wake()
            self._wait_until(lambda: self._over or not (self._in_hand or self._has_news or self._closing))
            self._report()

    def close(self) -> None:
        """Write what waits and the mark that this worker is done; idempotent.

        Raises:
            StoreError: As flush.
        """
        if self._is_forked:
            return
        self.end()
        with self._changed:
            self._wait_until(lambda: self._over)
            is_over = self._over and not self._is_given_up
            if not self._over and self._delivery.is_far:
                self._leave_here()
        if is_over:  # it only has to return; a thread that still runs when the interpreter goes may abort it
            self._thread.join(PATIENCE_S)
        with self._changed:
            self._report()

    def withdraw(self) -> None:
        """Take part 0 away, so that others may begin here; for a writer that has appended nothing.

        Raises:
            OSError: The place cannot be reached.
        """
        if self._is_forked:
            return
        with self._changed:
            self._closing = self._over = True
            self._calls.put(None)
        if self._mark is not None:
            leave_unmarked(self._mark)
        self._delivery.withdraw(self._series.name(0))

    def _leave_here(self) -> None:
        """What the thread has in its hands, be it on its way or still being encoded, and what it will not come to: it
        may hang in a request. Should it go on after all, it keeps the same part under the same name once more."""
        unanswered, self._failure = self._failure or TimeoutError("the store did not answer"), None
        try:
            kept = self._delivery.give_up(unanswered)
            number, part = self._in_hand or (self._parts, self._taken())
            if kept != self._series.name(number):
                self._deliver(number, part)
            while not part.end:
                self._parts, part = number + 1, self._taken()
                number = self._parts
                self._deliver(number, part)
        except Exception as error:  # noqa: BLE001  told below
            self._failure = error
        self._over = True
        self._calls.put(None)

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """As long as parts get written."""
        parts = -1
        while self._failure is None and not done() and parts != self._parts:
            parts = self._parts
            self._changed.wait_for(done, PATIENCE_S)
        if self._failure is None and not done() and not self._is_given_up:
            self._is_given_up = True
            self._failure = TimeoutError(f"no part was written for {PATIENCE_S:g} s")

    @property
    def _is_forked(self) -> bool:
        # Asked before the lock, which another thread may have held at the moment of the fork.
        return os.getpid() != self._process

    @property
    def _has_news(self) -> bool:
        return bool(self._steps) or self._spec_is_new

    def _wake(self) -> None:
        self._wanted = self._has_news or self._closing
        self._calls.put(None)

    def _require_open(self) -> None:
        if self._closing:
            raise StoreError(
                "this writer is closed", where=self._delivery.uri, next_step="append before close()"
            )

    def _report(self) -> None:
        failure, self._failure = self._failure, None
        if failure is None and (loss := self._delivery.loss()) is not None:
            raise loss
        if failure is not None:
            raise StoreError(
                "the trial could not be written to its end",
                where=f"{self._delivery.uri}/{self._series.name(self._parts)}",
                got=f"{type(failure).__name__}: {failure}",
                expected="a directory that stays, with room and permission to write",
                next_step="make room or choose another directory; what was written before can still be judged",
            ) from failure

    def _write_parts(self) -> None:
        try:
            while (taken := self._take()) is not None:
                number, part = taken
                self._settle(self._write(number, part), part.end)
        except Exception as error:  # noqa: BLE001  nobody may wait for a thread that is gone
            self._settle(error, end=True)

    def _settle(self, failure: Exception | None, end: bool) -> None:
        if self._mark is not None and (end or failure is not None):
            leave_unmarked(self._mark)
        with self._changed:
            self._over = self._over or end or failure is not None
            if failure is not None:
                self._failure, self._steps = failure, []
            self._in_hand, self._parts = None, self._parts + (failure is None)
            self._rested = time.monotonic() + REST
            self._changed.notify_all()

    def _take(self) -> tuple[int, Part] | None:
        while not (self._wanted or self._is_left or self._over):
            self._calls.get()
        while not self._is_pressed and (rest := self._rested - time.monotonic()) > 0:
            with suppress(Empty):
                self._calls.get(timeout=rest)
        with self._changed:
            if self._over:
                return None
            self._closing = self._closing or self._is_left
            part = self._taken()
            # What was more than a part may hold waited as long as it.
            self._wanted = self._hurried = bool(self._steps)
            self._in_hand = (self._parts, part)
            return self._in_hand

    @property
    def _is_pressed(self) -> bool:
        return self._hurried or self._is_left or self._over

    def _taken(self) -> Part:
        """All that waits, as far as it fits into a part; under the lock."""
        if self._dropped:
            self._spec = _noted(self._spec, self._dropped)
            self._spec_is_new, self._dropped = True, []
        spec = self._spec if self._spec_is_new else None
        count = _fitting(self._steps)
        steps, self._steps = tuple(self._steps[:count]), self._steps[count:]
        self._tensors -= sum(len(step.observations) for step in steps)
        self._spec_is_new = False
        return Part(steps, spec, self._about, end=self._closing and not self._steps)

    def _write(self, number: int, part: Part) -> Exception | None:
        try:
            self._deliver(number, part)
        except Exception as error:  # noqa: BLE001  whatever it is: flush() tells it, a thread has nobody to tell
            return error
        return None

    def _deliver(self, number: int, part: Part) -> None:
        self._delivery.deliver(self._series.name(number), encode(part))


def _fitting(steps: list[Step]) -> int:
    """How many of the first steps are a part."""
    sizes = accumulate(len(step.observations) for step in steps)
    return max(1, sum(1 for size in sizes if size <= PART_TENSORS))


def _noted(spec: ModelSpec | None, dropped: list[int]) -> ModelSpec:
    """The model, with a note of the steps that are not in the trial."""
    spec = spec or NOT_DESCRIBED
    which = (
        f"step {dropped[0]}"
        if len(dropped) == 1
        else f"{len(dropped)} steps from {dropped[0]} to {dropped[-1]}"
    )
    note = f"Not kept: {which}, which came faster than the store took what was before."
    return replace(spec, notes=(*spec.notes, note))
