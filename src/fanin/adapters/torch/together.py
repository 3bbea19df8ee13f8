"""Small looks, one after the other rather than in the midst of a pass."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")

TOGETHER = 2**18
"""Values of activations that may wait for one another: 1 MiB in float32. Larger ones fill the cache by themselves."""


class Together(Generic[T]):
    """Tensors that wait to be looked at one after the other: a look between two matrix products, which have emptied
    the cache, takes three times as long. None waits in the first pass, which shows whether anybody writes to them
    meanwhile, nor from then on where somebody does.

    Attributes:
        waits: Whether those that are added need not be looked at now.
    """

    def __init__(self) -> None:
        self.waits = False
        self._is_new = True
        self._values = 0
        self._held: list[tuple[T, Tensor, int]] = []

    def add(self, what: T, tensor: Tensor) -> bool:
        """Hold a tensor until the pass is over.

        Returns:
            Whether that is the time to look at it; otherwise it is now.
        """
        if tensor.is_inference():  # of which nobody can tell when it is written to
            return False
        self._held.append((what, tensor, tensor._version))
        self._values += tensor.numel()
        return self.waits

    def has_room_for(self, tensor: Tensor) -> bool:
        """For an activation, which would otherwise be freed."""
        return self._values + tensor.numel() <= TOGETHER

    def over(self) -> tuple[list[tuple[T, Tensor]], list[T]]:
        """The pass is over.

        Returns:
            Those that have waited, and what of them is lost, because somebody has written to it.
        """
        held = self._held
        whole = [(what, tensor) for what, tensor, version in held if tensor._version == version]
        lost = [what for what, tensor, version in held if tensor._version != version]
        waited, self.waits = self.waits, not lost and (self.waits or (self._is_new and bool(held)))
        self._is_new = self._is_new and not held
        self.failed()
        return (whole, lost) if waited else ([], [])

    def failed(self) -> None:
        """The pass has raised, or is forgotten: let go of all."""
        self._held, self._values = [], 0
