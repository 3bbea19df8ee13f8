"""One process of those that share a model: what each of them sees, written for `test_sharded.py` to read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fanin
from fanin.errors import UsageError

CLASSES, BATCH, DEPTH = 4, 64, 8
WIDTHS = {"fsdp": 15, "tensor_parallel": 16}  # odd where torch allows shards of different size

loss_fn = nn.functional.cross_entropy


class Net(nn.Module):
    """Deep and plain; drawn so small that nothing arrives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(DEPTH)])
        self.head = nn.Linear(width, CLASSES)
        for block in self.blocks:
            nn.init.normal_(block.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = torch.relu(block(x))
        logits: Tensor = self.head(x)
        return logits


def fsdp() -> nn.Module:
    """Every block by itself, and the rest."""
    model = Net(WIDTHS["fsdp"])
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel() -> nn.Module:
    """Pairs of blocks, split by their outputs and then by their inputs."""
    model = Net(WIDTHS["tensor_parallel"])
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    styles = (ColwiseParallel(), RowwiseParallel())
    parallelize_module(model, mesh, {f"blocks.{i}": styles[i % 2] for i in range(2)})
    return model


def batch(seed: int, width: int) -> tuple[Tensor, Tensor]:
    """Inputs and classes."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return torch.randn(BATCH, width, generator=generator), targets


def local(model: nn.Module) -> list[list[float]]:
    """What this process holds of each parameter."""
    held = (p.to_local() if hasattr(p, "placements") else p for p in model.parameters())
    return [p.detach().flatten().tolist() for p in held]


def state(model: nn.Module) -> list[Any]:
    """What sharding and hooks make of a model."""
    return [
        (str(type(m)), sorted(map(str, vars(m))), [len(v) for v in vars(m).values() if isinstance(v, dict)])
        for m in model.modules()
    ]


def values(model: nn.Module) -> list[list[float]]:
    """All parameters, whole."""
    full = (p.full_tensor() if hasattr(p, "placements") else p for p in model.parameters())
    return [p.detach().flatten().tolist() for p in full]


def seen(build: Any, rank: int) -> dict[str, Any]:
    """Check, repair and undo one sharded model, and initialize another; each process has a batch of its own."""
    model, own = build(), batch(rank, WIDTHS[build.__name__])
    before, around, random = local(model), state(model), torch.get_rng_state().tolist()
    checked = fanin.check(model, own, loss_fn, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    found: dict[str, Any] = {
        "verdict": str(checked.verdict),
        "layer": checked.findings[0].layer,
        "untouched": local(model) == before
        and state(model) == around
        and torch.get_rng_state().tolist() == random,
    }
    made = fanin.repair(model, own, loss_fn, apply=True, budget=120)
    found |= {
        "applied": made.applied,
        "repaired": values(model),
        "safety": str(made.repair and made.repair.safety),
    }
    found["after"] = str(fanin.check(model, own, loss_fn).verdict)
    loss_fn(model(own[0]), own[1]).backward()
    made.undo()
    found["undone"] = local(model) == before
    fresh = build()
    fanin.initialize(fresh, own, loss_fn)
    found["initialized"] = values(fresh)
    try:
        fanin.repair(fresh, own, loss_fn, budget="10s")
    except UsageError as error:
        found["timed"] = str(error)
    return found


def main() -> None:
    """Everything, as this process sees it."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    found = {build.__name__: seen(build, rank) for build in (fsdp, tensor_parallel)}
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
