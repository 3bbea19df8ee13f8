"""The loss, found without asking: the tensor on which backward is called.

`Tensor.backward`, GradScaler, Lightning and Accelerate all end in `torch.autograd.backward`. While somebody listens,
a function in its place tells them which tensor it was called on; torch has no official door for this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Listener = Callable[[Tensor | None], None]
"""Told the root when backward begins, and None when it has ended."""

_listeners: list[Listener] = []
_original: Callable[..., Any] = torch.autograd.backward


def listen(listener: Listener) -> None:
    """Tell this listener of every backward pass."""
    if not _listeners and torch.autograd.backward is _original:
        torch.autograd.backward = _announced  # type: ignore[assignment]
    _listeners.append(listener)


def unlisten(listener: Listener) -> None:
    """Stop telling it; with the last one torch's own function comes back, unless somebody else replaced it since."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners and torch.autograd.backward is _announced:
        torch.autograd.backward = _original


@wraps(_original)
def _announced(tensors: Tensor | Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
    root = tensors if isinstance(tensors, Tensor) else next(iter(tensors), None)
    _tell(root)
    try:
        return _original(tensors, *args, **kwargs)
    finally:
        _tell(None)


def _tell(root: Tensor | None) -> None:
    for listener in tuple(_listeners):
        listener(root)
