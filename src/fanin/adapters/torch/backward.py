"""The loss, found without asking: the tensor on which backward is called.

`Tensor.backward`, GradScaler, Lightning and Accelerate all end in `torch.autograd.backward`. While somebody listens,
a function in its place tells them which tensor it was called on; torch has no official door for this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

from fanin.adapters.torch.audience import Audience
from fanin.adapters.torch.scaling import leave_losses_unmarked, mark_scaled_losses


class Listener(Protocol):
    """Who is told of backward passes; they may nest (activation checkpointing)."""

    def backward_begins(self, root: Tensor | None) -> None:
        """Backward is called on this tensor, the first of several; None where it is not a tensor."""

    def backward_ends(self) -> None:
        """It has returned, or raised."""


_ours: Callable[..., Any] | None = None
_theirs: Callable[..., Any] | None = None


def _come() -> None:
    global _ours, _theirs
    mark_scaled_losses()
    if _ours is not None and torch.autograd.backward is _ours:
        return  # the last listener was forgotten, and no backward pass has come since
    _theirs = torch.autograd.backward
    _ours = torch.autograd.backward = _announced(_theirs)


def _go() -> None:
    """The function that was there before comes back, unless somebody else has replaced ours since: then ours stays
    beneath theirs and tells nobody."""
    leave_losses_unmarked()
    if torch.autograd.backward is _ours and _theirs is not None:
        torch.autograd.backward = _theirs


audience: Audience[Listener] = Audience(_come, _go)
"""Who is told."""


def _announced(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def backward(tensors: Tensor | Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        told = tuple(audience)
        if not told:
            _go()  # the last one was forgotten; where ours lies beneath somebody's, it stays
        roots = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        root = roots[0] if roots and isinstance(roots[0], Tensor) else None
        with ExitStack() as ends:
            for listener in told:
                ends.callback(listener.backward_ends)  # before it begins: that may be interrupted half-way
                listener.backward_begins(root)
            return theirs(roots, *args, **kwargs)

    return backward
