"""What was measured on a device, on its way to memory that Python can read, without waiting for the device.

All of one device leaves in one copy: its bytes are laid side by side there, and copied to pinned memory behind the work
that is queued already. Torch's caching allocators hand out the same two buffers step by step, so that nothing is
allocated after the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Transfer:
    """Tensors under way.

    Args:
        tensors: Contiguous, of any dtypes that NumPy has and on any devices; they are kept until their values are here.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = {id(tensor): tensor for tensor in tensors}
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensor in self._tensors.values():
            by_device.setdefault(tensor.device, []).append(tensor)
        self._shipments = [_Shipment(device, there) for device, there in by_device.items()]
        self._values: dict[int, np.ndarray] = {}

    @property
    def is_here(self) -> bool:
        """Whether `of` need not wait."""
        return all(shipment.is_here for shipment in self._shipments)

    def of(self, tensor: Tensor) -> np.ndarray:
        """The values of one of the tensors as they were when it left, flat; waits for them."""
        if not self._values:
            self._values = {key: values for s in self._shipments for key, values in s.unpacked()}
        return self._values[id(tensor)]


class _Shipment:
    """What comes from one device."""

    def __init__(self, device: torch.device, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._event: Any = None
        there = torch.cat([_bytes(tensor) for tensor in tensors])
        if device.type != "cuda":
            self._bytes = there.cpu()
            return
        self._bytes = torch.empty(there.shape, dtype=torch.uint8, pin_memory=True)
        with torch.cuda.device(device):
            self._bytes.copy_(there, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def is_here(self) -> bool:
        return self._event is None or bool(self._event.query())

    def unpacked(self) -> Iterable[tuple[int, np.ndarray]]:
        """(id, values) of each tensor."""
        if self._event is not None:
            self._event.synchronize()
        arrived, start = self._bytes.numpy(), 0
        for tensor in self._tensors:
            end = start + tensor.numel() * tensor.element_size()
            kind = torch.empty(0, dtype=tensor.dtype).numpy().dtype
            yield id(tensor), np.frombuffer(arrived[start:end].tobytes(), kind)
            start = end


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)
