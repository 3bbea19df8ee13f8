"""Pulse: a watched training says that it is alive, and hears whether somebody asks it to stop.

Both happen in a thread of its own, so that training never waits for a disk or a network. It beats while steps are
captured, which tells a slow training from a dead one, and listens for some time longer, since a verdict comes after
the steps that it is about.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from fanin.beside import STOP, Beside, beat_name

log = logging.getLogger("fanin")

EVERY_S = 1.0
"""Seconds from one beat to the next: a request is heard within two, and an object store is asked 60 times a minute."""

LISTEN_S = 600.0
"""Seconds for which a training listens once its steps are captured. A follower reads and judges 10 steps of 1,000
layers in 8 s (`benchmarks/judging.py`); a training of days need not ask an object store all the while."""

LAST_S = 1.0
"""How long the end of a training waits for this thread."""


@dataclass(frozen=True, slots=True)
class Request:
    """That somebody asks the training to stop.

    Attributes:
        why: The verdict in a line.
        by: Who asks.
    """

    why: str
    by: str = ""


class Pulse:
    """One worker's pulse, from construction until `close`.

    Attributes:
        request: What was heard; None for nothing.
    """

    def __init__(self, uri: str, worker: int, heard: Callable[[Request], None]) -> None:
        self.request: Request | None = None
        self._uri = uri
        self._worker = worker
        self._heard: Callable[[Request], None] | None = heard
        self._process = os.getpid()
        self._captured_at: float | None = None
        self._beating = True
        # A garbage collection may call us anywhere, also in this thread while it waits; of all that the standard
        # library has to wake a thread, only the put of this queue may be called within itself.
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._live, name=f"fanin-pulse-w{worker}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def captured(self) -> None:
        """No more steps come: beat no longer, and listen a while. Takes no lock, as `leave`."""
        if self._captured_at is None:
            self._captured_at = time.monotonic()
            self._calls.put(None)

    def leave(self) -> None:
        """The training is over; returns at once and takes no lock, since it is called where a model is freed."""
        if os.getpid() == self._process:
            atexit.unregister(self.close)
            self._closed, self._heard = True, None
            self._calls.put(None)

    def close(self) -> None:
        """The same, and wait a moment until the thread has gone; idempotent."""
        self.leave()
        if os.getpid() == self._process and threading.current_thread() is not self._thread:
            self._thread.join(LAST_S)

    def _live(self) -> None:
        try:
            self._beat_and_listen()
        except Exception as fault:  # whatever it is, training goes on
            log.warning("fanin no longer hears whether this training is asked to stop", exc_info=fault)

    def _beat_and_listen(self) -> None:
        beside = Beside.at(self._uri)  # here, since it may ask a network
        while not self._is_over():
            with suppress(OSError):  # a full or hanging disk: the parts say so, and training goes on
                self._beat(beside)
            with suppress(OSError):
                self._listen(beside)
            with suppress(Empty):
                self._calls.get(timeout=EVERY_S)
        if self.request is None:
            self._heard = None  # which keeps what is hung up in the training to stop it
        if self._beating:
            with suppress(OSError):
                beside.remove(beat_name(self._worker))

    def _is_over(self) -> bool:
        listened = self._captured_at is not None and time.monotonic() - self._captured_at > LISTEN_S
        return self._closed or listened or self.request is not None

    def _beat(self, beside: Beside) -> None:
        if self._captured_at is None:
            said = {"host": socket.gethostname(), "pid": os.getpid(), "at": round(time.time(), 3)}
            beside.write(beat_name(self._worker), json.dumps(said).encode())
        elif self._beating:
            beside.remove(beat_name(self._worker))
            self._beating = False

    def _listen(self, beside: Beside) -> None:
        if not beside.has(STOP) or not self._is_of_this_run(beside):
            return
        request = parsed(beside.read(STOP))
        heard = self._heard
        if self._closed or heard is None:  # while it was read: what runs now is no longer this training
            return
        self.request = request
        heard(request)

    def _is_of_this_run(self, beside: Beside) -> bool:
        """Whether what lies there is younger than the first part of this run: an earlier one may have left its own."""
        ages = {info.base_name: info.mtime_ns or 0 for info in beside.files()}
        first = f"part-w{self._worker:05d}-000000"
        return ages.get(STOP, 0) >= max(
            (age for name, age in ages.items() if name.startswith(first)), default=0
        )


def parsed(text: bytes | None) -> Request:
    """A request as it lies beside the trial; anything there is one, whatever it says.

    >>> parsed(b'{"why": "FAN102", "by": "follow on a:1"}')
    Request(why='FAN102', by='follow on a:1')
    """
    try:
        said = json.loads(text or b"{}")
        return Request(str(said.get("why", ""))[:500], str(said.get("by", ""))[:200])
    except (ValueError, AttributeError, RecursionError):
        return Request("")
