"""Have the parameters been updated? Seen from outside, whoever updates them and by whatever means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fanin.adapters.torch.sharding import local


class Snapshot:
    """Parameters at one moment, as little of them as tells an update from none.

    A version counter sees every in-place write but those through `parameter.data`. For these one corner of each
    parameter is kept, where asked for.
    """

    def __init__(self, parameters: Sequence[Tensor], *, corners: bool) -> None:
        self._parameters = tuple(parameters)
        self._versions = self._count()
        self._corners = [_corner(p) for p in parameters] if corners else []

    def is_outdated(self) -> bool:
        """Whether any of the parameters has been written to since."""
        if self._versions != self._count():
            return True
        now = zip(self._corners, self._parameters, strict=False)
        return any(not torch.equal(before, _corner(p)) for before, p in now)

    def _count(self) -> int:
        return sum(p._version for p in self._parameters)


def _corner(parameter: Tensor) -> Tensor:
    """The last value: of an embedding the first row is often padding."""
    plain = local(parameter).detach()
    return (plain[(-1,) * plain.ndim] if plain.numel() else plain).clone()


def gradients_are_fresh(parameters: Sequence[Tensor]) -> bool:
    """Whether all gradients have been reset. The smallest comes first and mostly decides, so that it costs nothing."""
    held = [local(p.grad) for p in parameters if p.grad is not None]
    return not any(bool(_values(gradient).count_nonzero()) for gradient in sorted(held, key=Tensor.numel))


def _values(gradient: Tensor) -> Tensor:
    return gradient._values() if gradient.is_sparse else gradient
