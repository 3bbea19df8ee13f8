"""Models that are spread over processes: each looks at a whole twin, and takes its shard of what was decided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fanin
from sharded_worker import WIDTHS, Net, batch, loss_fn, values

HERE = Path(__file__).parent
PROCESSES = 2

pytestmark = pytest.mark.timeout(300)  # two processes import torch, on a machine that may be busy

Found = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process saw, by the way of sharding."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={PROCESSES}", str(HERE / "sharded_worker.py"), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


WAYS = pytest.mark.parametrize("way", ["fsdp", "tensor_parallel"])


@WAYS
def test_every_process_finds_the_fault_and_leaves_its_shard_alone(found: Found, way: str) -> None:
    for of_rank in found:
        seen = of_rank[way]
        assert (seen["verdict"], seen["layer"]) == ("poor", "blocks.0")
        assert seen["untouched"]


@WAYS
def test_each_process_draws_its_shard_of_one_whole(found: Found, way: str) -> None:
    whole = Net(WIDTHS[way])
    fanin.repair(whole, batch(0, WIDTHS[way]), loss_fn, apply=True, budget=120)
    for of_rank in found:
        seen = of_rank[way]
        assert (seen["applied"], seen["safety"], seen["after"]) == (True, "safe", "healthy")
        assert seen["repaired"] == values(whole)


@WAYS
def test_undo_gives_each_shard_back(found: Found, way: str) -> None:
    assert all(of_rank[way]["undone"] for of_rank in found)


@WAYS
def test_a_sharded_model_is_initialized_like_a_whole_one(found: Found, way: str) -> None:
    model = Net(WIDTHS[way])
    fanin.initialize(model, batch(0, WIDTHS[way]), loss_fn)
    assert all(of_rank[way]["initialized"] == values(model) for of_rank in found)


@WAYS
def test_processes_that_must_agree_take_no_time_for_a_budget(found: Found, way: str) -> None:
    assert all("whose clocks differ" in of_rank[way]["timed"] for of_rank in found)


def test_a_model_in_one_process_is_no_twin() -> None:
    from fanin.adapters.torch.sharded import whole

    model = Net(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert whole(model, optimizer) == (model, optimizer)
