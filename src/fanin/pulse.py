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
from fanin.errors import StoreError, escape

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
        run: The identity of the run that is meant; one that names none is meant for nobody, since nobody knows
            how long it has been there.
    """

    why: str
    by: str = ""
    run: str = ""


class Pulse:
    """One worker's pulse, from construction until `close`.

    Args:
        uri: Of its trial.
        worker: Its rank.
        is_of: Whether a run, by its identity, is the one that this worker writes.
        heard: Called once with a request that is meant for it.

    Attributes:
        request: What was heard; None for nothing.
    """

    def __init__(
        self, uri: str, worker: int, is_of: Callable[[str], bool], heard: Callable[[Request], None]
    ) -> None:
        self.request: Request | None = None
        self._uri = uri
        self._worker = worker
        self._is_of = is_of
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
            with suppress(OSError, StoreError):
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
        if not beside.has(STOP):
            return
        request = parsed(beside.read(STOP))
        if not request.run or not self._is_of(request.run):
            return
        heard = self._heard
        if self._closed or heard is None:  # while it was read: what runs now is no longer this training
            return
        self.request = request
        heard(request)


def parsed(text: bytes | None) -> Request:
    """A request as it lies beside the trial, where anybody may have put it: it is printed, so it is escaped.

    >>> parsed(b'{"why": "FAN102", "by": "follow on a:1", "run": "8d3f0c2a9be14f76"}')
    Request(why='FAN102', by='follow on a:1', run='8d3f0c2a9be14f76')
    """
    try:
        said = json.loads(text or b"{}")
        why, by, run = (escape(str(said.get(name, ""))) for name in ("why", "by", "run"))
        return Request(why[:500], by[:200], run)
    except (ValueError, AttributeError, RecursionError):
        return Request("")
