"""How a writer's parts get to their place, and where they stay when it does not take them.

A local disk is asked once: what it refuses it will refuse again. An object store is asked again, with pauses that grow,
for as long as there is hope and nobody waits. After that this part and all later ones are kept in a directory on this
machine, under the names that they have there, so that copying them completes the trial. Nothing that was handed over is
lost as long as either of the two takes it; what is neither here nor there is said.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
import threading
import time
from typing import final

from fanin.errors import StoreError
from fanin.stores.parquet.directory import Directory
from fanin.stores.place import advice, in_a_line, may_pass

TRY_FOR = 300.0
"""Seconds for which a part is offered to an object store. S3's own advice for 503 SlowDown is to try again with growing
pauses; a restart of a self-hosted one, or of the network, takes minutes."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 16.0
"""Seconds between two offers, doubled each time."""

SPILL = "FANIN_SPILL"
"""Variable of the environment: where to keep what a store did not take, instead of the folder for temporary files."""


class NotTakenError(OSError):
    """Neither the place nor this machine's disk takes a part."""


@final
class Delivery:
    """One writer's way to its place; `deliver` is called by one thread, the rest by any.

    Attributes:
        is_far: Whether the place is not a local disk, and so may be slow, or gone for a while.
        uri: The place, for messages.
    """

    def __init__(self, directory: Directory, uri: str) -> None:
        self.is_far = not directory.is_local
        self.uri = uri
        self._directory = directory
        self._lock = threading.RLock()  # as the writer's: a signal handler may flush
        self._held: tuple[str, bytes] | None = None
        self._hopeless: Exception | None = None
        self._spill = ""
        self._hurried = threading.Event()
        self._is_told = False

    def stop_mark(self, worker: int) -> str | None:
        """As of the directory."""
        return self._directory.stop_mark(worker)

    def deliver(self, name: str, data: bytes) -> None:
        """Have a part stay, there or here; as long as it takes.

        Raises:
            OSError: It stays nowhere.
        """
        if not self.is_far:
            self._directory.publish(name, data)
            return
        part = (name, data)
        with self._lock:
            self._held = part
        fault = self._hopeless or self._refusal(name, data)
        with self._lock:
            if self._held is not part:
                return  # it was given up meanwhile
            self._held = None
            if fault is not None:
                self._keep_here(part, fault)
            elif self._hopeless is None:
                self._hurried.clear()

    def withdraw(self, name: str) -> None:
        """Take a part away that nobody needs.

        Raises:
            OSError: The place cannot be reached.
        """
        self._directory.remove(name)

    def hurry(self) -> None:
        """Let no part wait for a better moment any more."""
        self._hurried.set()

    def give_up(self, fault: Exception) -> str:
        """The process ends: what is on its way is kept here, even if it still arrives, and named; so is all that comes
        later.

        Raises:
            OSError: It stays nowhere.
        """
        self.hurry()
        with self._lock:
            part, self._held = self._held, None
            self._hopeless = self._hopeless or fault
            if part is not None:
                self._keep_here(part, fault)
            return part[0] if part else ""

    def loss(self) -> StoreError | None:
        """That parts did not get to their place, once; None while they do, or once it was said."""
        with self._lock:
            if self._is_told or not self._spill:
                return None
            self._is_told = True
            return StoreError(
                "the trial could not be written to its end; the rest is kept on this machine",
                where=self.uri,
                got=in_a_line(self._hopeless) if self._hopeless else "",
                expected=f"a place that answers within {TRY_FOR:g} s, and before the process ends",
                next_step=f"{self._advice()}copy the files of {self._spill} to {self.uri}, which completes the trial",
            )

    def _advice(self) -> str:
        found = advice(self._hopeless, self.uri) if self._hopeless else ""
        return f"{found}; then " if found else ""

    def _refusal(self, name: str, data: bytes) -> OSError | None:
        """Offer a part until it is taken; the last refusal where it is not."""
        until, pause = time.monotonic() + TRY_FOR, FIRST_PAUSE
        while True:
            try:
                self._directory.publish(name, data)
            except OSError as error:
                over = time.monotonic() + pause > until
                if over or self._hurried.is_set() or not may_pass(error):
                    return error
            else:
                return None
            # Not all ranks at the same moment, or they would be throttled together again.
            self._hurried.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _keep_here(self, part: tuple[str, bytes], fault: Exception) -> None:
        self._hopeless = self._hopeless or fault
        try:
            if not self._spill:
                self._spill = _new_spill(self.uri)
            Directory.at(self._spill).publish(*part)
        except OSError as error:
            raise NotTakenError(
                f"{in_a_line(fault)}; and to keep it on this machine, {in_a_line(error)}"
            ) from error


def _new_spill(uri: str) -> str:
    """A directory of this process's own, which says where its files belong."""
    last = re.sub(r"[^\w.-]+", "_", uri.rstrip("/").rpartition("/")[2])
    made = tempfile.mkdtemp(prefix=f"fanin-{last[:40]}-", dir=os.environ.get(SPILL) or None)
    # Hidden, so that no reader of Parquet files stumbles over it.
    with open(os.path.join(made, ".belongs-to"), "w", encoding="utf-8") as file:
        file.write(f"{uri}\n")
    return made
