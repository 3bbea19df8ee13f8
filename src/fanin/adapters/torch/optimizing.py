"""Steps of optimizers, whichever takes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fanin.adapters.torch.audience import Audience


class Listener(Protocol):
    """Who is told of an optimizer's steps; one that raises never ends."""

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        """It is about to step."""

    def optimizer_ended(self, optimizer: Optimizer) -> None:
        """It has stepped."""


def trains(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether it updates any of the parameters."""
    mine = {id(parameter) for parameter in parameters}
    return any(id(p) in mine for group in optimizer.param_groups for p in group["params"])


def _begins(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    global _is_told
    _is_told = True
    try:
        for listener in audience:
            listener.optimizer_begins(optimizer)
    except BaseException:  # somebody stops the training, and torch goes through no more hooks
        if not audience:
            _take_away()
        raise
    finally:
        _is_told = False


def _ended(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    global _is_told
    _is_told = True
    try:
        for listener in audience:
            listener.optimizer_ended(optimizer)
    finally:
        _is_told = False
        if not audience and next(reversed(torch_optimizer._global_optimizer_post_hooks.values())) is _ended:
            _take_away()


def _come() -> None:
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_begins))
        _handles.append(register_optimizer_step_post_hook(_ended))


def _go() -> None:
    """Torch goes through its hooks one by one, and the dictionary must not shrink meanwhile, unless its last one is
    running. Where others follow ours, it stays until it is the last, or the next watch needs it, and does nothing."""
    if not _is_told:
        _take_away()


def _take_away() -> None:
    while _handles:
        _handles.pop().remove()


_is_told = False
_handles: list[Any] = []
audience: Audience[Listener] = Audience(_come, _go)
"""Who is told. Who comes, or goes by a word, does so in the thread that trains: torch goes through the hooks of a step
without a lock."""
