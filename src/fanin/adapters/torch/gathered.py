"""Models whose parameters are spread over processes (FSDP2's `fully_shard`, tensor parallelism): each process looks at
a whole twin of its own, and takes its shard of what was decided there.

A twin costs the memory of the whole model, and one gathering of it: all processes of the mesh must call together, as
for a state dict. Passes on it need no communication, and it runs in the precision of its parameters, whatever the
policy of the sharding says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.adapters.torch.describe import uncompiled
from fanin.adapters.torch.sharding import is_distributed, local
from fanin.adapters.torch.twins import mapped
from fanin.errors import UsageError

OF_TORCH = "torch.distributed"
"""Where hooks and classes come from that sharding puts on a model."""

STATE = "__composable_api_state_key"
"""Beginning of the attributes in which `torch.distributed` keeps what it did to a module."""

HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds parts of the model's parameters only."""
    return any(map(is_distributed, model.parameters())) or any(map(_is_wrapped, model.modules()))


def whole(model: nn.Module, optimizer: Any = None) -> tuple[nn.Module, Any]:
    """A model that this process holds whole, with an optimizer for it: a twin of a sharded one, any other as it is.

    Raises:
        UsageError: The model cannot be copied.
    """
    plain = uncompiled(model)
    if not is_sharded(plain):
        return model, optimizer
    twin = _twin(plain)
    return twin, mapped(optimizer, plain, twin) if isinstance(optimizer, Optimizer) else optimizer


def _twin(model: nn.Module) -> nn.Module:
    _reshard(model)
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if is_distributed(tensor):
            memo[id(tensor)] = _gathered(tensor)
    for module in model.modules():
        for value in vars(module).values():
            if type(value).__module__.startswith(OF_TORCH):  # a mesh or a group that the model itself uses
                memo[id(value)] = value
    try:
        with _unwrapped(model):
            twin: nn.Module = deepcopy(model, memo)
            return twin
    except Exception as error:
        raise UsageError(
            "the sharded model cannot be copied, and it is looked at in a whole copy",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            expected="a model of which copy.deepcopy makes another, before it is sharded",
            next_step="call it before the model is sharded; with the same seed every process draws the same values",
        ) from error


def _gathered(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(full.clone(), requires_grad=tensor.requires_grad)
    return full.clone()


def _reshard(model: nn.Module) -> None:
    """FSDP leaves the outermost parameters gathered after a forward pass without a backward one."""
    for module in model.modules():
        if _is_wrapped(module) and hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def _is_wrapped(module: nn.Module) -> bool:
    """Whether its class was put around its own one by `fully_shard` or its like."""
    bases = type(module).__bases__
    return len(bases) == 2 and bases[0].__module__.startswith(OF_TORCH)


@contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """For a moment without the classes, the state and the hooks of sharding, which no copy can take along."""
    taken = [(module, type(module), dict(vars(module))) for module in model.modules()]
    try:
        for module, kind, attributes in taken:
            if _is_wrapped(module):
                module.__class__ = kind.__bases__[1]
            for name in [name for name in attributes if name.startswith(STATE)]:
                del vars(module)[name]
            for name in HOOKS:
                vars(module)[name] = _without_ours(attributes.get(name))
        yield
    finally:
        for module, kind, attributes in taken:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)


def _without_ours(hooks: Any) -> Any:
    """The hooks that are not of sharding, in a dict of the same class."""
    kept = type(hooks)()
    kept.update({key: hook for key, hook in hooks.items() if not _is_of_torch(hook)})
    return kept


def _is_of_torch(hook: Callable[..., Any]) -> bool:
    inner = getattr(hook, "hook", hook)  # state dict hooks are wrapped
    return str(getattr(inner, "__module__", "")).startswith(OF_TORCH)


def put(tensor: Tensor, values: Tensor) -> None:
    """Write a whole tensor's values into one that may be a shard of such: each process takes its own part."""
    with torch.no_grad():
        if is_distributed(tensor):
            local(tensor).copy_(_part_of(tensor, values))
        else:
            tensor.copy_(values)


def kept(tensor: Tensor) -> Callable[[], None]:
    """What puts a tensor's values of now back, bit for bit; of a shard those that are here."""
    before = local(tensor.detach()).clone()

    def restore() -> None:
        with torch.no_grad():
            local(tensor.detach()).copy_(before)  # asked anew: the model may have been moved or cast since

    return restore


def _part_of(tensor: Any, values: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    whole = values.to(device=tensor.device, dtype=tensor.dtype)
    # No source rank: every process has computed the same whole, and nothing is sent.
    spread = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
    part: Tensor = spread.to_local()
    return part


def shared(model: nn.Module, found: Sequence[Any]) -> Sequence[Any]:
    """The batches that the first process of the mesh has, in all of them, so that all decide alike."""
    import torch.distributed as dist

    mesh: Any = next(p.device_mesh for p in model.parameters() if is_distributed(p))  # type: ignore[attr-defined]
    box = [found]
    for axis in reversed(range(mesh.ndim)):  # along the last axis to the first of each row, and so on
        group = mesh.get_group(axis)
        dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    return box[0]
