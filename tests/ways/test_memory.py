"""How much memory a watch takes at most: the formula of docs/ways.md, on tensors large enough to show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fanin
from fanin.adapters.torch import statistics
from fanin.adapters.torch.sharding import Place
from fanin.stores.parquet.part import Part, decode, encode
from fanin.summary import TensorSummary, projection_weights
from fanin.summary import summarize as reference
from fanin.trial import Observation, Role, Step

TESTS = Path(__file__).parents[1]
MIB = 2**20
SLACK = 16 * MIB
"""What NumPy and torch set up when they are first used, and what the allocator keeps."""


def most(values: int, width: int, units: int, per_unit: bool) -> int:
    """docs/ways.md: n b + 34 max(p, n / u) bytes while a tensor is looked at, and 48 u that stay; without units only
    the pieces, p = 2^18 values on a CPU."""
    piece = 2**18
    if not per_unit:
        return 34 * piece
    return values * width + 34 * max(piece, values // units) + 48 * units


def measured(script: str) -> list[int]:
    """What a process prints, one number a line."""
    paths = [str(TESTS), str(TESTS.parent / "src")]
    head = f"""
import resource, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
"""
    done = subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


LARGE = 2**24
"""Values: 64 MiB of float32."""

LOOKS = [
    ("float32", None),
    ("float32", 0),
    ("float32", 1),
    ("bfloat16", None),
    ("bfloat16", 0),
    ("float16", 1),
]


def test_looking_at_a_large_tensor_takes_no_more_than_the_formula_says() -> None:
    """In one process, the smallest need first, since a peak never falls."""
    looks = sorted(
        LOOKS, key=lambda look: most(LARGE, getattr(torch, look[0]).itemsize, 4096, look[1] is not None)
    )
    script = f"""
from fanin.adapters.torch.statistics import summarize
from fanin.stores.parquet.part import encode
kinds = {{d: torch.randn(4096, 4096).to(getattr(torch, d)) for d in ("float32", "bfloat16", "float16")}}
for dtype, axis in {looks!r}:
    summarize(kinds[dtype][:64, :64].contiguous(), histogram=True, unit_axis=axis)
for dtype, axis in {looks!r}:
    before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    open("/proc/self/clear_refs", "w").write("5")
    summarize(kinds[dtype], histogram=True, unit_axis=axis)
    high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(high.split()[1]) * 1024 - before)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux resets the peak of a process")
    for (dtype, axis), extra in zip(looks, measured(script), strict=True):
        width = getattr(torch, dtype).itemsize
        assert extra < most(LARGE, width, 4096, axis is not None) + SLACK, (dtype, axis, extra / MIB)


def test_watching_a_model_of_one_large_layer_takes_no_more_than_the_formula_says() -> None:
    script = """
from fanin.capture import watch
import fanin.stores.parquet.part
model = torch.nn.Linear(4096, 4096)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def train():
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(8, 4096)).square().mean().backward()
        optimizer.step()
train()
small = torch.nn.Linear(64, 64)
with watch(small):
    small(torch.ones(8, 64)).square().mean().backward()
before = peak()
with watch(model, steps=3, on_error="raise") as seen:
    train()
assert len(seen.trial.steps) == 3
print(peak() - before)
"""
    (extra,) = measured(script)
    kept = 3 * 8 * 48 * 4096  # three steps of at most eight tensors by units
    assert extra < most(LARGE, 4, 4096, True) + kept + SLACK, extra / MIB


# ── huge tensors ────────────────────────────────────────────────────────────────────────────────────────────

HUGE = 2**31 + 11
"""More than a 32-bit index can tell."""


def test_positions_beyond_2_to_the_31_are_told_apart() -> None:
    far, near = projection_weights(8, HUGE), projection_weights(8, HUGE - 2**32)
    golden = (np.sqrt(5.0) - 1) / 2
    exact = [0.5 + (i + HUGE + 1) * golden % 1 for i in range(8)]
    np.testing.assert_allclose(far, exact, atol=1e-6)  # float64 holds 2^31 φ to 2e-7
    assert not np.allclose(far, near)
    assert Place((4, 8, HUGE), (0, 3, 0)).position((4, 2, HUGE), 0) == 3 * HUGE


def test_pieces_of_a_tensor_are_summarized_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arithmetic at a size that fits: hundreds of pieces, and halves that begin far into their units."""
    monkeypatch.setattr(statistics, "PIECE", 7)
    values = torch.randn(3, 401, dtype=torch.float64)
    for axis in (None, 0, 1):
        found = statistics.summarize(values, unit_axis=axis, histogram=True, offset=HUGE)
        expected = reference(values.numpy(), unit_axis=axis, histogram=True, offset=HUGE)
        assert (found.count, found.minimum, found.maximum) == (1203, expected.minimum, expected.maximum)
        assert found.m2 == pytest.approx(expected.m2)
        if found.units is not None and expected.units is not None:
            np.testing.assert_allclose(found.units.projection, expected.units.projection)


def test_an_accelerators_pieces_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their way, taken here on a CPU: no look at the values, and pieces."""
    monkeypatch.setattr(statistics, "WIDE_PIECE", 64)
    monkeypatch.setattr(statistics, "on_cpu", lambda tensor: False)
    values = torch.randn(5, 100)
    (found,) = statistics.read([statistics.measure(values, histogram=True)])
    expected = reference(values.numpy(), histogram=True)
    assert found.m2 == pytest.approx(expected.m2)
    assert found.quantile(0.5).low <= expected.quantile(0.5).high
    assert found.histogram is not None
    assert found.histogram.counts.sum() == 500


def test_counts_beyond_2_to_the_31_add_up_and_are_stored() -> None:
    half = TensorSummary(HUGE, 0, 0, HUGE - 5, 0.5, float(HUGE), -1.0, 1.0)
    whole = half.merge(half)
    assert (whole.count, whole.zeros) == (2 * HUGE, 2 * HUGE - 10)
    shape = (HUGE, 2)
    step = Step(
        0, observations=(Observation("fc", Role.WEIGHT, "fc.weight", whole, shape, offset=(HUGE - 1, 0)),)
    )
    kept: Any = decode(encode(Part((step,))), "memory").steps[0].observations[0]
    assert (kept.summary.count, kept.shape, kept.offset) == (2 * HUGE, shape, (HUGE - 1, 0))


class Frees(torch.nn.Module):
    """Frees what its activation took, as pipelines do: by its storage, or by what stands in its place."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second, self.way = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3), way
        self.took: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.first(x)
        taken = made.t() if self.way == "a view" else made
        self.took.append(float(taken.detach().square().mean().sqrt()))
        out = torch.relu(taken)
        if self.way == "in place of it":
            taken.data = torch.empty(0)
        else:
            taken.untyped_storage().resize_(0)
        return self.second(out.t() if self.way == "a view" else out)


@pytest.mark.parametrize("way", ["itself", "a view", "in place of it"])
def test_what_a_network_frees_is_seen_as_it_was(way: str) -> None:
    model = Frees(way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fanin.watch(model, steps=6, on_error="raise") as watched:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(16, 6)).square().mean().backward()
            optimizer.step()
    seen = [
        o.summary.rms for s in watched.trial.steps for o in s.observations if o.role is Role.ACTIVATION_INPUT
    ]
    assert seen == pytest.approx(model.took, rel=1e-6)
