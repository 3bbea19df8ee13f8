"""Who is told of what happens everywhere in torch: listeners that may go at any time, also by being forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar
from weakref import ref

L = TypeVar("L")


class Audience(Generic[L]):
    """Listeners, each held weakly: nothing that lives as long as the process may keep a model from being freed.

    Args:
        first_comes: What is to be done before the first is told anything.
        last_goes: What is to be done once there is none.
    """

    def __init__(self, first_comes: Callable[[], None], last_goes: Callable[[], None]) -> None:
        self._first_comes = first_comes
        self._last_goes = last_goes
        self._listeners: list[ref[L]] = []

    def __iter__(self) -> Iterator[L]:
        """Those that are here now; who comes or goes meanwhile changes nothing."""
        return iter([listener for known in self._listeners if (listener := known()) is not None])

    def __len__(self) -> int:
        return len(self._listeners)

    def add(self, listener: L) -> None:
        """From now on it is told."""
        if not self._listeners:
            self._first_comes()
        self._listeners.append(ref(listener, self._forget))

    def remove(self, listener: L) -> None:
        """From now on it is not; idempotent."""
        for known in [known for known in self._listeners if known() is listener]:
            self._forget(known)

    def _forget(self, known: ref[L]) -> None:
        self._listeners.remove(known)
        if not self._listeners:
            self._last_goes()
