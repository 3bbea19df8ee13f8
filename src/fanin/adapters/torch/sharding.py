"""Tensors of which each rank holds a block (`DTensor`): what is here, and where in the whole it lies.

Nothing here communicates: arithmetic on a DTensor may gather it, arithmetic on the block never does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from fanin.errors import UsageError
from fanin.summary import Floats, TensorSummary, UnitSummary


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a tensor that ranks share the block lies that one of them holds.

    Attributes:
        shape: Of the whole.
        offset: Index in the whole of the block's first value; None where the tensor is this rank's own, or a term of a
            sum that was not taken yet.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...] | None = None

    def position(self, block: tuple[int, ...], axis: int) -> int | None:
        """Where the values of each unit begin among those of the unit in the whole; None where they are not one
        stretch of them, because an axis other than the first is split."""
        if self.offset is None:
            return 0
        others = [i for i in range(len(self.shape)) if i != axis % len(self.shape)]
        if any(block[i] != self.shape[i] for i in others[1:]):
            return None
        return self.offset[others[0]] * prod(self.shape[i] for i in others[1:]) if others else 0

    def widened(self, summary: TensorSummary, axis: int | None) -> TensorSummary:
        """The block's summary with a place for every unit of the whole, empty for those that are elsewhere: so the
        summaries of all blocks merge to that of the whole, whichever axis is split."""
        units = summary.units
        if units is None or axis is None or self.offset is None or len(units.mean) == self.shape[axis]:
            return summary
        return replace(summary, units=_placed(units, self.offset[axis], self.shape[axis]))


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of it; an ordinary tensor as it is."""
    here: Any = tensor._local_tensor if _is_distributed(tensor) else tensor  # type: ignore[attr-defined]
    module = sys.modules.get("torch.distributed._functional_collectives")
    waiting = module is not None and isinstance(here, module.AsyncCollectiveTensor)
    found: Tensor = here.wait() if waiting else here  # for values that are on their way already
    return found


def place_of(tensor: Tensor) -> Place:
    """Where that lies in the whole."""
    return Place(tuple(tensor.shape), _offset(tensor) if _is_distributed(tensor) else None)


def is_gathered(known: Tensor, now: Tensor) -> bool:
    """Whether a whole tensor stands for a moment where one was of which this rank holds a block."""
    return _is_distributed(known) and not _is_distributed(now)


def require_sharded_before(model: nn.Module) -> None:
    """Refuse a model whose parameters `fully_shard` has replaced since the watch began: in each pass it would gather
    them before our hooks run, and so hide the blocks.

    Raises:
        UsageError: It has.
    """
    if any(kind.__name__ == "FSDPModule" for module in model.modules() for kind in type(module).__mro__):
        raise UsageError(
            "the model has been sharded since the watch began",
            got=f"{type(model).__name__} with fully_shard applied after fanin.watch",
            expected="a model that is sharded already",
            next_step="call fanin.watch after fully_shard, before the first training step",
        )


def is_replicated(model: nn.Module) -> bool:
    """Whether DistributedDataParallel is running this model, so that every rank must hold the same parameters."""
    outer = nn.parallel.DistributedDataParallel._active_ddp_module
    return outer is not None and outer.module is model and not outer.parameters_to_ignore


def _is_distributed(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # whoever has a DTensor has imported it
    return module is not None and isinstance(tensor, module.DTensor)


def _offset(tensor: Any) -> tuple[int, ...] | None:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(placement.is_partial() for placement in tensor.placements):
        return None
    where = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)[1]
    return tuple(int(start) for start in where)


def _placed(units: UnitSummary, first: int, of: int) -> UnitSummary:
    def spread(values: Any, empty: float) -> Any:
        wide = np.full(of, empty, values.dtype)
        wide[first : first + len(values)] = values
        return wide

    low: Floats = spread(units.minimum, np.inf)
    high: Floats = spread(units.maximum, -np.inf)
    count, *sums = (spread(v, 0) for v in (units.count, units.mean, units.m2, units.projection))
    return UnitSummary(count, sums[0], sums[1], low, high, sums[2])
