"""Who is told of what happens everywhere in torch: listeners that may go at any time, also by being forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar
from weakref import ref

L = TypeVar("L")


class Audience(Generic[L]):
    """Listeners, each held weakly: nothing that lives as long as the process may keep a model from being freed.

    Nothing happens at the moment at which one is forgotten: that may be a garbage collection in any thread, while torch
    goes through the very hooks that would be taken away. Who tells the audience and finds nobody there takes itself
    away.

    Args:
        first_comes: What is to be done before the first is told anything.
        last_goes: What is to be done once the last has been removed.
    """

    def __init__(self, first_comes: Callable[[], None], last_goes: Callable[[], None]) -> None:
        self._first_comes = first_comes
        self._last_goes = last_goes
        self._listeners: tuple[ref[L], ...] = ()  # replaced, never changed: threads may go through it

    def __iter__(self) -> Iterator[L]:
        """Those that are here now; who comes or goes meanwhile changes nothing."""
        return iter([listener for known in self._listeners if (listener := known()) is not None])

    def __len__(self) -> int:
        return sum(known() is not None for known in self._listeners)

    def add(self, listener: L) -> None:
        """From now on it is told."""
        if not self:
            self._first_comes()
        self._listeners = (*self._others(listener), ref(listener))

    def remove(self, listener: L) -> None:
        """From now on it is not; idempotent."""
        was_there = any(known() is listener for known in self._listeners)
        self._listeners = self._others(listener)
        if was_there and not self:
            self._last_goes()

    def _others(self, listener: L) -> tuple[ref[L], ...]:
        """But those that were forgotten."""
        return tuple(known for known in self._listeners if known() not in (None, listener))
