"""Whether there is memory behind a tensor: who reads it by its address must know."""

from __future__ import annotations

import torch
from torch import Tensor

_ORDINARY = Tensor.__torch_dispatch__
"""Of tensors that hold their values themselves, rather than as a subclass sees fit."""


class FreedError(ValueError):
    """A tensor's memory is gone: `fully_shard` and pipelines resize storages to nothing; tensors of zeros that autograd
    makes, and those of `functionalize`, never had any."""


def require_memory(tensor: Tensor) -> None:
    """Refuse to read what is not there.

    Raises:
        FreedError: Not all values lie in memory that is still there.
    """
    if not has_memory(tensor):
        raise FreedError(f"the memory of a tensor of shape {list(tensor.shape)} has been freed")


def has_memory(tensor: Tensor) -> bool:
    """Whether all values lie in memory that is still there."""
    if type(tensor).__torch_dispatch__ is not _ORDINARY or tensor.layout is not torch.strided:
        return True  # held in another way
    if not tensor.data_ptr():
        return not tensor.numel()
    if tensor.is_contiguous():
        span = tensor.numel()
    else:
        span = 1 + sum((n - 1) * by for n, by in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + span) * tensor.element_size()
