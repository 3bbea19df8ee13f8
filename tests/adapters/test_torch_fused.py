"""The kernel for CUDA agrees with the NumPy reference, under Triton's interpreter and on CPU tensors.

Runs where Triton is installed: `.ci/run` has an environment of its own for it, since it is 285 MB and of no use without
a GPU. That the kernel compiles for a GPU is shown too; not that it runs on one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_torch_statistics import SHAPES, VALUES, normal, require_same, wide
from test_torch_waiting import STEPS, Taken, let_go, same  # noqa: F401  # a fixture
from torch import Tensor

from fanin import summary as reference
from fanin.adapters.torch import statistics
from fanin.adapters.torch.statistics import Measurement, measure, measure_all, read
from fanin.trial import Role

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernel is defined
triton = pytest.importorskip("triton")

from fanin.adapters.torch import fused  # noqa: E402


@pytest.fixture(autouse=True)
def _on_the_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors take the way of CUDA ones."""
    monkeypatch.setattr(statistics, "_has_kernel", lambda values: True)
    statistics._fused.cache_clear()
    yield
    statistics._fused.cache_clear()


def require_reference(tensor: Tensor, measurement: Measurement) -> None:
    (found,) = read([measurement])
    expected = reference.summarize(wide(tensor), histogram=measurement.counts is not None)
    require_same(found, expected, wide(tensor), None)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each launch looked at."""
    seen: list[int] = []
    launch = fused._launch

    def counting(tensors: list[Tensor], *rest: Any) -> Any:
        seen.append(len(tensors))
        return launch(tensors, *rest)

    monkeypatch.setattr(fused, "_launch", counting)
    return seen


@pytest.mark.parametrize("dtype", fused.KINDS, ids=str)
def test_every_dtype_of_the_kernel_gives_the_reference(dtype: torch.dtype, launches: list[int]) -> None:
    tensor = (8 * normal(60, 110)).to(dtype)
    require_reference(tensor, measure(tensor, histogram=True))
    assert launches == [1]


@pytest.mark.parametrize("name", [name for name in VALUES if VALUES[name]().dtype is torch.float32])
def test_every_value_gives_the_reference(name: str, launches: list[int]) -> None:
    tensor = VALUES[name]()
    require_reference(tensor, measure(tensor, histogram=True))
    assert launches == [1]


@pytest.mark.parametrize("size", [1, fused.BLOCK - 1, fused.BLOCK, fused.BLOCK + 1, fused.CHUNK + 1])
def test_sizes_around_blocks_and_chunks_give_the_reference(size: int) -> None:
    tensor = 3 + normal(size)
    require_reference(tensor, measure(tensor, histogram=True))


def test_many_tensors_are_one_launch_for_each_dtype(launches: list[int]) -> None:
    tensors = [
        normal(2 * fused.CHUNK + 5),
        normal(7),
        normal(300).bfloat16(),
        normal(12, 5),
        normal(9).half(),
    ]
    for tensor, measurement in zip(tensors, measure_all(tensors, histogram=True), strict=True):
        require_reference(tensor, measurement)
    assert sorted(launches) == [1, 1, 3]


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_kernel_does_not_take_goes_the_general_way(name: str, launches: list[int]) -> None:
    tensor = SHAPES[name]()
    require_reference(tensor, measure(tensor, histogram=True))
    assert len(launches) == fused.takes(tensor.detach())


def test_the_histogram_of_a_large_tensor_is_a_sample_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LOOKED_AT", 2**10)
    tensor = normal(2**13 + 1)
    (found,) = read([measure(tensor, histogram=True)])
    assert found.histogram is not None
    assert found.histogram.rank_variance > 0
    assert found.histogram.counts.sum() == pytest.approx(found.count, rel=0.01)
    for p in (0.05, 0.5, 0.95):
        assert float(np.quantile(wide(tensor), p)) in found.quantile(p)


def test_without_triton_the_general_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(statistics, "import_module", missing)
    tensor = normal(100)
    require_reference(tensor, measure(tensor, histogram=True))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fanin.adapters.torch import fused
types = {"table": "*i64", "state": "*fp64", "counts": "*i32"}
fixed = {"block": fused.BLOCK, "shift": fused.BIN_SHIFT, "bins": fused.BINS}
for kind in fused.KINDS.values():
    names = {**types, **dict.fromkeys(["kind", *fixed], "constexpr")}
    source = ASTSource(fn=fused._look, signature=names, constexprs={"kind": kind, **fixed})
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm
"""


def test_the_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_watched_training_is_seen_as_without_the_kernel_in_few_launches(
    launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = Taken().all()
    monkeypatch.setattr(statistics, "on_cpu", lambda tensor: False)
    taken = Taken()
    taken.step()
    taken.step()
    launches.clear()
    taken.step()
    roles = Counter(o.role for o in without[2].observations)
    parameters = roles[Role.WEIGHT] + roles[Role.BIAS]
    assert sorted(launches) == sorted(
        n for n in (parameters, roles[Role.WEIGHT_GRAD], *[1] * roles[Role.ACTIVATION_INPUT]) if n
    )
    for _ in range(STEPS - 3):
        taken.step()
    assert same(taken.steps, without)


def test_a_gradient_that_somebody_clips_in_a_hook_is_looked_at_at_once(
    launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "on_cpu", lambda tensor: False)
    taken = Taken()

    def clip(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.zero_()

    for parameter in taken.model.parameters():
        parameter.register_post_accumulate_grad_hook(clip)
    for _ in range(STEPS):
        taken.step()
    gradients = [o for step in taken.steps for o in step.observations if o.role is Role.WEIGHT_GRAD]
    assert gradients
    assert all(o.summary.rms > 0 for o in gradients)
