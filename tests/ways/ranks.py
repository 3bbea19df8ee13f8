"""What two ranks do, started by torchrun: `ranks.py FOLDER`. Each scenario leaves a trial and what each rank knows."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from fanin.capture import Watch
from ways.nets import loss_of, net, observe, sgd

STEPS = 3

Facts = dict[str, Any]


class Traffic(TorchDispatchMode):
    """Counts the operations between ranks that anybody asks for in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and let it run."""
        self.count += "c10d" in func.namespace and "wait" not in func.name()
        return func(*args, **(kwargs or {}))


def whole(tensor: Tensor | None) -> Tensor:
    """All of it, on every rank; this communicates."""
    assert tensor is not None
    found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach().clone()


def numbers(tensor: Tensor) -> list[Any]:
    listed: list[Any] = tensor.tolist()
    return listed


def trained(model: nn.Module, steps: int = STEPS, seeds: Callable[[int], int] = lambda step: step) -> Facts:
    """Train, and say what there was to see: parameters at the start, gradients of step 0, losses, traffic."""
    optimizer, losses = sgd(model), []
    facts: Facts = {"parameters": {n: numbers(whole(p)) for n, p in model.named_parameters()}}
    traffic = Traffic()
    for step in range(steps):
        with traffic:
            optimizer.zero_grad()
            loss = loss_of(model, seeds(step))
            loss.backward()
        if step == 0:
            facts["gradients"] = {n: numbers(whole(p.grad)) for n, p in model.named_parameters()}
            facts["collectives"] = traffic.count
        optimizer.step()
        losses.append(loss.item())
    return facts | {"losses": losses, "after": {n: numbers(whole(p)) for n, p in model.named_parameters()}}


def twice(
    build: Callable[[], nn.Module], folder: Path, each: Callable[[int], int] = lambda step: step
) -> Facts:
    """The same training without and with a watch."""
    plain = trained(build(), seeds=each)
    model = build()
    with observe(model, trial=folder / "trial", steps=STEPS) as seen:
        watched = trained(model, seeds=each)
    return {"plain": plain, "watched": watched, "fault": repr(seen.watching.fault)}


def own_batches(step: int) -> int:
    """Each rank has examples of its own."""
    return 10 * step + dist.get_rank()


def replicas(folder: Path) -> Facts:
    """DistributedDataParallel, which makes all ranks equal to the first."""
    return twice(lambda: DistributedDataParallel(net(dist.get_rank())), folder, own_batches)


def replicas_of_an_inner_model(folder: Path) -> Facts:
    """The watch was given what is inside of the wrapper."""
    inner = net(0)
    outer = DistributedDataParallel(inner)
    with observe(inner, trial=folder / "trial", steps=STEPS):
        return trained(outer)


def drawn_anew(folder: Path) -> Facts:
    """Each rank draws a layer after the wrapper has made them equal."""
    model = DistributedDataParallel(net(0))
    torch.manual_seed(dist.get_rank())
    nn.init.kaiming_normal_(model.module.fc2.weight)
    with observe(model, trial=folder / "trial", steps=STEPS):
        return trained(model)


def sharded_model() -> nn.Module:
    """fully_shard, by layer and as a whole."""
    model = net(0)
    fully_shard(model.fc1)
    fully_shard(model.fc2)
    return fully_shard(model)


def sharded(folder: Path) -> Facts:
    """FSDP2."""
    return twice(sharded_model, folder, own_batches)


def sharded_later(folder: Path) -> Facts:
    """The watch began before the model was sharded."""
    model = net(0)
    seen: Watch = observe(model, trial=folder / "trial", steps=STEPS, on_error="warn")
    fully_shard(model.fc1)
    fully_shard(model)
    facts = trained(model)
    seen.close()
    return facts | {"fault": repr(seen.watching.fault)}


def split_model() -> nn.Module:
    """Tensor parallel: the first layer by rows of its weight, the second by columns."""
    model = net(0)
    model.relu.inplace = False  # which tensor parallelism refuses
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})


def split(folder: Path) -> Facts:
    """Tensor parallel."""
    return twice(split_model, folder)


SCENARIOS = (replicas, replicas_of_an_inner_model, drawn_anew, sharded, sharded_later, split)


PR_SET_PDEATHSIG = 1


def die_with_the_launcher() -> None:
    """Leave no process behind, however the test ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(folder: Path) -> None:
    """Run every scenario; one that raises does so on all ranks, and says how."""
    die_with_the_launcher()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for scenario in SCENARIOS:
        place = folder / scenario.__name__
        place.mkdir(exist_ok=True)
        try:
            facts = scenario(place)
        except Exception:  # noqa: BLE001
            facts = {"raised": traceback.format_exc()}
        (place / f"rank{os.environ['RANK']}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
