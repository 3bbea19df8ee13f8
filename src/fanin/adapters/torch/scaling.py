"""The loss scale, found without asking.

A gradient scaler multiplies the loss, and with it every gradient, so that float16 can hold them. While somebody
listens, what a scaler hands out is marked in autograd's graph with the scale; a backward pass that begins there, or
not far behind, is known to be scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from fanin.adapters.torch.describe import tensors_in
from fanin.adapters.torch.sharding import local

MARK = "fanin.loss_scale"
"""Key in the metadata of a node of the graph, which autograd keeps for whoever wants to note something there."""

REACH = 8
"""Nodes behind the root that are looked at: `scaler.scale(loss).mean() / accumulated` has two."""

_theirs: dict[type[GradScaler], Callable[..., Any]] = {}
_faults: list[Exception] = []


def mark_scaled_losses() -> None:
    """Have every kind of scaler that is known by now mark what it scales; idempotent."""
    for kind in _kinds(GradScaler):
        if "scale" in vars(kind) and kind not in _theirs:
            _theirs[kind] = vars(kind)["scale"]
            kind.scale = _marking(_theirs[kind])  # type: ignore[method-assign]


def leave_losses_unmarked() -> None:
    """Put their functions back, where nobody has replaced ours since."""
    for kind, theirs in _theirs.items():
        if getattr(vars(kind)["scale"], "__wrapped__", None) is theirs:
            kind.scale = theirs  # type: ignore[method-assign]
    _theirs.clear()
    _faults.clear()


def scale_of(root: Tensor) -> Tensor | None:
    """By how much a loss has been multiplied, a scalar on its device; None where no scaler has."""
    if _faults:
        raise _faults[0]
    node: Any = root.grad_fn  # torch's stubs take its `metadata` for a method
    for _ in range(REACH):
        if node is None:
            return None
        if MARK in node.metadata:
            found: Tensor = node.metadata[MARK]
            return found
        node = next((behind for behind, _ in node.next_functions if behind is not None), None)
    return None


def _kinds(kind: type[GradScaler]) -> Iterator[type[GradScaler]]:
    yield kind
    for other in kind.__subclasses__():
        yield from _kinds(other)


def _marking(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def scale(self: GradScaler, outputs: Any) -> Any:
        scaled = theirs(self, outputs)
        now = getattr(self, "_scale", None)
        try:
            if isinstance(now, Tensor) and scaled is not outputs:
                _mark(scaled, now.detach().clone())  # a copy: the scaler writes to its own
        except Exception as fault:  # noqa: BLE001  # training goes on, and whoever asks for the scale is told
            _faults.append(fault)
        return scaled

    return scale


def _mark(scaled: Any, scale: Tensor) -> None:
    for tensor in tensors_in(scaled):
        node: Any = tensor.grad_fn
        if node is not None:
            node.metadata[MARK] = scale.to(tensor.device, non_blocking=True)


def kept(loss: Tensor | None, scale: Tensor | None) -> Tensor | float | None:
    """A loss as it is now, whatever is written to it later, without its scale; nan for what is no scalar."""
    if loss is None:
        return None
    return _unscaled(local(loss).detach().clone(), scale) if loss.numel() == 1 else nan


def _unscaled(loss: Tensor, scale: Tensor | None) -> Tensor:
    """A loss as it was before it was scaled; on its device, without waiting for it."""
    if scale is None:
        return loss
    return (loss if loss.dtype is torch.float64 else loss.float()) / scale
