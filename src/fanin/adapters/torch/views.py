"""Which axes of which weight a tensor shows: chosen, transposed, split or cast, values keep the axes they lie along.

Views are told by their strides, copies by the function that made them. A reshape that merges axes shows none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Key = tuple[str, str]
"""Path of the module that owns a weight, and the weight's name in it."""

KEEPING = frozenset(
    {
        Tensor.contiguous,
        Tensor.clone,
        torch.clone,
        Tensor.detach,
        Tensor.to,
        Tensor.type,
        Tensor.type_as,
        Tensor.float,
        Tensor.double,
        Tensor.half,
        Tensor.bfloat16,
    }
)
"""Functions whose result has the axes of their first argument, and its values up to rounding."""

CHOOSING = frozenset({Tensor.__getitem__})
"""Functions that choose along the first axis, where they are given a tensor of indices."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A weight, and for each axis of a tensor the weight's axis it lies along: None where it has a single index, is
    repeated, or runs over chosen ones."""

    key: Key
    axes: tuple[int | None, ...]


class Views:
    """What the tensors of one pass show of given weights."""

    def __init__(self, weights: Mapping[Key, Tensor]) -> None:
        self._known: Any = WeakIdKeyDictionary()
        for key, weight in weights.items():
            self.add(key, weight)

    def add(self, key: Key, weight: Tensor) -> None:
        """A tensor that is a weight, whole."""
        self._known[weight] = Shown(key, tuple(range(weight.ndim)))

    def shown(self, tensor: Tensor) -> Shown | None:
        """What a tensor shows; None where that is no weight, or cannot be told."""
        found: Shown | None = self._known.get(tensor)
        if found is not None or not _is_plain(tensor) or tensor._base is None:
            return found
        whole: Shown | None = self._known.get(tensor._base)
        along = _along(tensor._base, tensor) if whole is not None else None
        if whole is None or along is None:
            return None
        return Shown(whole.key, tuple(None if axis is None else whole.axes[axis] for axis in along))

    def owner(self, tensor: Tensor) -> Key | None:
        """The weight whose values a tensor holds, even where its axes cannot be told."""
        whole = self._known.get(tensor)
        if whole is None and _is_plain(tensor) and tensor._base is not None:
            whole = self._known.get(tensor._base)
        return whole.key if whole is not None else None

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], output: Any) -> None:
        """A function has returned: a copy of a weight shows what the weight does."""
        if func not in KEEPING and func not in CHOOSING:
            return
        source = args[0] if args else None
        if not isinstance(source, Tensor) or not isinstance(output, Tensor) or self._known.get(output):
            return
        found = self.shown(source)
        if found is None or self.shown(output) is not None:
            return
        axes = found.axes if func in KEEPING else _chosen(found.axes, args[1] if len(args) > 1 else None)
        if axes is not None and len(axes) == output.ndim:
            self._known[output] = Shown(found.key, axes)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has strides of its own."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout is torch.strided and not tensor.is_nested and not wrapped


def _along(base: Tensor, view: Tensor) -> tuple[int | None, ...] | None:
    """For each axis of a view the axis of its base along which it steps; None where one steps across several."""
    if view.dtype is not base.dtype:
        return None
    found: list[int | None] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if size <= 1 or stride == 0:
            found.append(None)
            continue
        axes = [axis for axis in range(base.ndim) if _steps_within(base, axis, size, stride)]
        if len(axes) != 1:
            return None
        found.append(axes[0])
    return tuple(found)


def _steps_within(base: Tensor, axis: int, size: int, stride: int) -> bool:
    length, step = base.shape[axis], base.stride(axis)
    return length > 1 and step > 0 and stride % step == 0 and (size - 1) * stride < length * step


def _chosen(axes: tuple[int | None, ...], index: Any) -> tuple[int | None, ...] | None:
    """The axes after `weight[index]` with a tensor of indices, or a mask, for the first of them."""
    first, *rest = index if isinstance(index, tuple) else (index,)
    if not isinstance(first, Tensor) or any(
        one != slice(None) for one in rest if not isinstance(one, Tensor)
    ):
        return None
    if any(isinstance(one, Tensor) for one in rest) or (first.dtype is torch.bool and first.ndim != 1):
        return None
    return (*(None for _ in range(first.ndim)), *axes[1:])
