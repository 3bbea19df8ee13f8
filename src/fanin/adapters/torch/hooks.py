"""Hooks that can be taken away, copied and pickled with the model that carries them, without harm to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Hook:
    """A callable to hang on a module or tensor.

    A copy of the model (EMA, `torch.save(model)`) is another model: in place of the hook it carries a function of the
    standard library that does nothing, so that it can be loaded where fanin is not installed. The compiler sees no
    more of the hook than that it does nothing.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if torch.compiler.is_compiling() else self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (nullcontext(), "__exit__")  # takes whatever it is given, and returns None


class Handles:
    """Everything that was hung somewhere, to be taken away together."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._handles)

    def add(self, handle: Any) -> None:
        """Keep a handle that has `remove()`."""
        self._handles.append(handle)

    def remove(self) -> None:
        """Take everything away; idempotent."""
        while self._handles:
            self._handles.pop().remove()


def is_ours_alone(parameter: nn.Parameter) -> bool:
    """Whether nobody is seen who might write to its gradient before the backward pass is over: no other hook, and no
    other process to average it with. Hooks on autograd's own nodes cannot be seen."""
    hooks = len(parameter._post_accumulate_grad_hooks or ()) + len(parameter._backward_hooks or ())
    return hooks == 1 and type(parameter.grad) is Tensor and not _is_averaged()


def _is_averaged() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
