"""Whether there is memory behind a tensor: who reads it by its address must know."""

from __future__ import annotations

import torch
from torch import Tensor

_ORDINARY = Tensor.__torch_dispatch__
"""Of tensors that hold their values themselves, rather than as a subclass sees fit."""


def has_memory(tensor: Tensor) -> bool:
    """Whether all values lie in memory that is still there. `fully_shard` and pipelines resize storages to nothing;
    tensors of zeros that autograd makes, and those of `functionalize`, never had any."""
    if tensor.layout is not torch.strided or type(tensor).__torch_dispatch__ is not _ORDINARY:
        return True  # held in another way
    if tensor._is_zerotensor() or torch._is_functional_tensor(tensor):
        return False
    if tensor.device.type not in ("cpu", "cuda") or not tensor.numel():
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((n - 1) * by for n, by in steps)
    return tensor.untyped_storage().nbytes() >= (last + 1) * tensor.element_size()
