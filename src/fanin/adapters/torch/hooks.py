"""Hooks that can be taken away, copied and pickled with the model that carries them, without harm to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hook:
    """A callable to hang on a module or tensor.

    A copy of the model (EMA, `torch.save(model)`) is another model: the hook that it carries does nothing.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs) if self._call else None

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class Handles:
    """Everything that was hung somewhere, to be taken away together."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def add(self, handle: Any) -> None:
        """Keep a handle that has `remove()`."""
        self._handles.append(handle)

    def remove(self) -> None:
        """Take everything away; idempotent."""
        while self._handles:
            self._handles.pop().remove()
