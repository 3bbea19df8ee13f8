"""Summaries of torch tensors are those of the NumPy reference, whatever the dtype, shape and values."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import Tensor

from fanin import onepass
from fanin import summary as reference
from fanin.adapters.torch import statistics
from fanin.adapters.torch.quick import EXACT_IN_FLOAT32, SPREAD_SHARE, quick
from fanin.adapters.torch.statistics import PIECE, measure, read, summarize
from fanin.summary import MOMENT_LIMIT, TensorSummary

U = 2.0**-53
"""Unit roundoff of float64, in which both sides keep all moments."""

TINY = 2.0**-1074
"""Smallest float64: what a result below the normal range may be off by, once per operation."""

QUICK = 4 * 64 * 2.0**-24
"""Relative rounding of the short way for float32, as derived below."""

EXACT_SIZE = 2**14
"""Up to which the short way counts every value in its histogram; the general way always does."""

ONCE_BLOCK, ONCE_RUN = 2048, 256
"""Values that the library in C adds up at a time, and how often it rounds meanwhile: 2048 / 16 and the 16 sums."""

WEIGHT = 1.5
"""Largest weight of a projection."""

# ── tolerances ──────────────────────────────────────────────────────────────────────────────────────────────
#
# Every dtype of the table below is exact in float64, so what differs is the order of float64 additions, on both
# sides. A sum of n terms of magnitude at most A is off by n u Σ|x| <= n² u A (Higham 2002, eq. 4.4), the mean by
# n u A; merging k pieces adds some roundings of A each. Twice that for two sides, generously
#
#     ε = 8 (n + k) u A
#
# M2 around a mean that is off by ε is M2 + n ε²; each of its terms is rounded, (n + k) u M2; the terms of a merge
# change by 2 √(k n M2) ε at most (see tests/test_summary.py). A projection is a sum of n terms of at most 1.5 A.
#
# The short way for float32 adds up in float32, over pieces of 2^17, in 32 lanes or more of 2^12 terms. Roundings of
# either sign grow with the root of their number, 64 u: four times that, of Σ|x| / n and of Σx². M2 is Σx² less the
# square of the mean as long as it is a tenth of that, so of a unit's M2 it may be ten times as much.
#
# The library in C adds up d = x - x(1) in float64. Σd² is at most 2 Σx² + 2 n x(1)² <= 2 (1 + n) Σx², twice for the
# square of Σd that is taken from it, and is rounded once for every block and 256 times within one.


def bounded(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(x[np.isfinite(x)], -MOMENT_LIMIT, MOMENT_LIMIT)


def mean_tolerance(x: NDArray[np.float64]) -> float:
    """ε above."""
    n, pieces = x.size, 1 + x.size // PIECE
    return 8 * (n + pieces) * (U * float(np.abs(x).max(initial=0.0)) + TINY)


def m2_tolerance(x: NDArray[np.float64], m2: float) -> float:
    """The bound for M2 above."""
    n, pieces, error = x.size, 1 + x.size // PIECE, mean_tolerance(x)
    spread = 2 * sqrt(pieces * n) * sqrt(m2) * error + (pieces + 1) * n * error**2
    return 8 * (n + pieces) * U * m2 + spread + 8 * (n + pieces) * TINY


def require_same(
    found: TensorSummary,
    expected: TensorSummary,
    values: NDArray[np.float64],
    axis: int | None,
    rounding: float = 0.0,
) -> None:
    """Counts, extremes and histograms to the bit, moments within their rounding and that of the short way."""
    exact = ("count", "nan", "inf", "zeros", "minimum", "maximum")
    assert {f: getattr(found, f) for f in exact} == {f: getattr(expected, f) for f in exact}
    x = bounded(values)
    size, square = (
        (float(np.abs(x).sum() / max(x.size, 1)), float(np.square(x).sum())) if rounding else (0.0, 0.0)
    )
    mean, m2 = mean_tolerance(x) + rounding * size, m2_tolerance(x, expected.m2) + rounding * square
    assert found.mean == pytest.approx(expected.mean, rel=0, abs=mean)
    assert found.m2 == pytest.approx(expected.m2, rel=0, abs=m2)
    assert (found.histogram is None) == (expected.histogram is None)
    if rounding and x.size > EXACT_SIZE:
        require_quantiles(found, x)
    elif found.histogram and expected.histogram:
        np.testing.assert_array_equal(found.histogram.bins, expected.histogram.bins)
        np.testing.assert_array_equal(found.histogram.counts, expected.histogram.counts)
    assert (found.units is None) == (expected.units is None)
    if axis is not None:
        require_same_units(found, expected, np.moveaxis(values, axis, 0), rounding)


def require_quantiles(found: TensorSummary, x: NDArray[np.float64]) -> None:
    """The short way may look at a sample of a large tensor: its intervals must contain the true quantiles still."""
    assert found.histogram is not None
    for p in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0):
        assert float(np.quantile(x, p)) in found.quantile(p)
    assert found.histogram.counts.sum() == pytest.approx(found.count, rel=1e-3)


def require_same_units(
    found: TensorSummary, expected: TensorSummary, rows: NDArray[np.float64], rounding: float
) -> None:
    assert found.units is not None
    assert expected.units is not None
    for field in ("count", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(found.units, field), getattr(expected.units, field))
    for unit, row in enumerate(rows):
        x = bounded(row)
        size = float(np.abs(x).mean()) if x.size else 0.0
        mean = mean_tolerance(x) + rounding * size
        assert found.units.mean[unit] == pytest.approx(expected.units.mean[unit], rel=0, abs=mean)
        m2 = expected.units.m2[unit]
        error = m2_tolerance(x, m2) + rounding * min(m2 / SPREAD_SHARE, float(np.square(x).sum()) + TINY)
        assert found.units.m2[unit] == pytest.approx(m2, rel=0, abs=error)
        along = WEIGHT * max(row.size, 1) * mean
        assert found.units.projection[unit] == pytest.approx(
            expected.units.projection[unit], rel=0, abs=along
        )


def wide(tensor: Tensor) -> NDArray[np.float64]:
    """The values in float64, which holds all of them."""
    return np.asarray(tensor.detach().to_dense().to(torch.float64).resolve_neg().numpy())


def axes(tensor: Tensor) -> list[int | None]:
    return [None, *range(-tensor.ndim, tensor.ndim)]


def require_reference(tensor: Tensor, offset: int = 0) -> None:
    """For every unit axis, with and without histogram."""
    values = wide(tensor)
    for axis in axes(tensor):
        for histogram in (True, False):
            found = summarize(tensor, histogram=histogram, unit_axis=axis, offset=offset)
            expected = reference.summarize(values, histogram=histogram, unit_axis=axis, offset=offset)
            require_same(found, expected, values, axis, rounding_of(tensor))


def rounding_of(tensor: Tensor) -> float:
    """Of the short way, where it may have been taken."""
    quickly = statistics.quick is quick and tensor.dtype in EXACT_IN_FLOAT32 and tensor.numel() > 0
    if quickly and onepass.is_here():
        n = tensor.numel()
        return 4 * (1 + n) * (n / ONCE_BLOCK + ONCE_RUN) * U
    return QUICK if quickly else 0.0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


WAYS = ["cpu", "short", "once", "accelerator"]
"""The ways to compute: in pieces, the short one for plain float32, the library in C, and the one that never waits for
the device."""


def take(way: str, patch: pytest.MonkeyPatch) -> None:
    if way == "once" and not onepass.is_here():
        pytest.skip("the library in C is not built")
    if way == "short":
        patch.setattr(onepass, "is_here", lambda: False)
    elif way != "once":
        patch.setattr(statistics, "quick", lambda *call: None)
    if way == "accelerator":
        patch.setattr(statistics, "on_cpu", lambda tensor: False)


@pytest.fixture(params=WAYS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to compute."""
    take(request.param, monkeypatch)
    return str(request.param)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHAPES: dict[str, Callable[[], Tensor]] = {
    "0-d": lambda: normal(),
    "empty": lambda: normal(0),
    "no units": lambda: normal(0, 3),
    "units without values": lambda: normal(3, 0),
    "one value": lambda: normal(1, 1),
    "1-d": lambda: normal(7),
    "2-d": lambda: normal(5, 6),
    "4-d": lambda: normal(3, 2, 4, 5),
    "strided": lambda: normal(8, 9)[::2, 1::3],
    "transposed": lambda: normal(4, 6).t(),
    "permuted": lambda: normal(2, 3, 4).permute(2, 0, 1),
    "expanded": lambda: normal(4, 1).expand(4, 5),
    "channels last": lambda: normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "a row of a matrix": lambda: normal(4, 6)[2],
    "with gradient": lambda: normal(4, 6).requires_grad_(),
}

nan, inf = float("nan"), float("inf")
VALUES: dict[str, Callable[[], Tensor]] = {
    "NaN": lambda: torch.tensor([[1.0, nan, 3.0], [nan, nan, nan]]),
    "infinities": lambda: torch.tensor([[1.0, inf, -2.0], [-inf, inf, inf]]),
    "nothing finite": lambda: torch.tensor([nan, inf, -inf]),
    "zeros": lambda: torch.tensor([[0.0, -0.0, 1.0], [0.0, 0.0, 0.0]]),
    "denormals": lambda: torch.tensor([1e-45, -1e-45, 3e-39, 0.0, 1e-38]),
    "denormals of float64": lambda: torch.tensor([5e-324, -5e-324, 1e-310, 0.0], dtype=torch.float64),
    "constant": lambda: torch.full((5, 8), 0.1),
    "offset": lambda: 1e6 + normal(16, 64).double(),
    "offset in float32": lambda: 1e4 + normal(16, 64),
    "far offset": lambda: 1e12 + 1e-3 * normal(4, 1000).double(),
    "edges of bins": lambda: torch.tensor(
        [1.0, -1.0, 1.03125, 2.0, 0.5, np.nextafter(1.0, 0.0)], dtype=torch.float64
    ),
    "extremes of float32": lambda: torch.tensor([3.4028235e38, -3.4028235e38, 1.0]),
    "beyond float32": lambda: torch.tensor([1e39, -1e300, 1.0, 3.5e38], dtype=torch.float64),
    "largest float64": lambda: torch.tensor(
        [1.7976931348623157e308, -1.7976931348623157e308], dtype=torch.float64
    ),
    "all of it": lambda: torch.tensor([[1e300, nan, -inf], [0.0, 1e-320, 2.0]], dtype=torch.float64),
    "one-hot rows": lambda: torch.eye(9),
}


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_dtype_gives_the_reference(dtype: torch.dtype, path: str) -> None:
    require_reference((8 * normal(6, 11)).to(dtype))


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_the_reference(name: str, path: str) -> None:
    require_reference(SHAPES[name]())


@pytest.mark.parametrize("name", VALUES)
def test_every_value_gives_the_reference(name: str, path: str) -> None:
    require_reference(VALUES[name]())


@pytest.mark.parametrize("dtype", FLOATS[:4], ids=str)
def test_what_is_not_finite_is_so_in_every_dtype(dtype: torch.dtype, path: str) -> None:
    require_reference(torch.tensor([[nan, 1.0], [inf, -inf], [0.0, 2.0]], dtype=dtype))


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1])
def test_sizes_around_a_piece_give_the_reference(size: int, path: str) -> None:
    for tensor in (normal(size), 1e6 + normal(size).double()):
        values = wide(tensor)
        found = summarize(tensor, histogram=True)
        expected = reference.summarize(values, histogram=True)
        require_same(found, expected, values, None, rounding_of(tensor))


@pytest.mark.parametrize(
    "shape",
    [(3, PIECE // 2), (2, PIECE), (2, PIECE + 1), (PIECE + 1, 1), (1, PIECE + 1), (700, 500)],
    ids=str,
)
def test_units_around_a_piece_give_the_reference(shape: tuple[int, int], path: str) -> None:
    tensor = normal(*shape)
    tensor[0, 0], tensor[-1, -1] = nan, inf
    found = summarize(tensor, unit_axis=0)
    expected = reference.summarize(wide(tensor), unit_axis=0)
    assert found.units is not None
    assert expected.units is not None
    assert (found.count, found.nan, found.inf) == (expected.count, 1, 1)
    for field in ("count", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(found.units, field), getattr(expected.units, field))
    error = 16 * shape[1] * U * found.largest
    np.testing.assert_allclose(found.units.mean, expected.units.mean, rtol=0, atol=error)
    np.testing.assert_allclose(
        found.units.m2, expected.units.m2, rtol=16 * shape[1] * U, atol=shape[1] * error**2
    )
    np.testing.assert_allclose(
        found.units.projection, expected.units.projection, rtol=0, atol=2 * shape[1] * error
    )


@pytest.mark.parametrize("offset", [1, 1000, 123_456])
def test_a_piece_of_a_tensor_gives_the_reference(offset: int, path: str) -> None:
    require_reference(normal(3, 50), offset)


def test_pieces_merge_into_the_whole(path: str) -> None:
    whole = normal(4, 100)
    left, right = summarize(whole[:, :37], unit_axis=0), summarize(whole[:, 37:], unit_axis=0, offset=37)
    rounding = rounding_of(whole)
    require_same(left.merge(right), reference.summarize(wide(whole), unit_axis=0), wide(whole), 0, rounding)


@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_gradients_are_read_as_dense_ones(coalesced: bool, path: str) -> None:
    embedding = torch.nn.Embedding(50, 4, sparse=True)
    embedding(torch.tensor([1, 2, 2, 49])).square().sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    require_reference(gradient.coalesce() if coalesced else gradient)


def test_views_that_are_conjugate_or_negative_are_read_as_they_are(path: str) -> None:
    negative = torch.view_as_complex(normal(5, 2)).conj().imag
    assert negative.is_neg()
    require_reference(negative)


def test_complex_values_count_as_two_real_ones(path: str) -> None:
    tensor = torch.view_as_complex(normal(3, 4, 2))
    found = summarize(tensor, histogram=True)
    values = wide(torch.view_as_real(tensor))
    require_same(found, reference.summarize(values, histogram=True), values, None, QUICK)


def test_the_tensor_stays_as_it_is(path: str) -> None:
    tensor = torch.tensor([[1.0, nan, -inf], [0.0, 1e30, 2.0]], requires_grad=True)
    before, version = tensor.detach().numpy().tobytes(), tensor._version
    summarize(tensor, histogram=True, unit_axis=1)
    assert tensor.detach().numpy().tobytes() == before
    assert tensor._version == version
    assert tensor.grad is None


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_many_read_at_once_are_each_as_read_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(way, monkeypatch)
    tensors = [*(make() for make in SHAPES.values()), *(make() for make in VALUES.values())]
    how = [
        {"histogram": i % 2 == 0, "unit_axis": 0 if t.ndim and i % 3 else None} for i, t in enumerate(tensors)
    ]
    together = read([measure(t, **h) for t, h in zip(tensors, how, strict=True)])  # type: ignore[arg-type]
    for tensor, options, found in zip(tensors, how, together, strict=True):
        alone = summarize(tensor, **options)  # type: ignore[arg-type]
        assert repr(found) == repr(alone)


def test_reading_nothing_gives_nothing() -> None:
    assert read([]) == []


def test_both_ways_to_compute_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = normal(40, 300)
    here = summarize(tensor, histogram=True, unit_axis=0)
    monkeypatch.setattr(statistics, "on_cpu", lambda tensor: False)
    there = summarize(tensor, histogram=True, unit_axis=0)
    require_same(there, here, wide(tensor), 0)


def test_an_axis_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(IndexError):
        summarize(normal(2, 3), unit_axis=2)


@settings(max_examples=60, deadline=None)
@given(
    x=st.sampled_from([16, 32, 64]).flatmap(
        lambda width: arrays.arrays(
            np.dtype(f"f{width // 8}"),
            arrays.array_shapes(min_dims=1, max_dims=3, max_side=6),
            elements=st.floats(width=width) | st.sampled_from([0.0, -0.0, nan, inf, -inf]),  # type: ignore[arg-type]
        )
    ),
    way=st.sampled_from(WAYS),
)
def test_any_values_give_the_reference(x: NDArray[np.float64], way: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        take(way, patch)
        require_reference(torch.from_numpy(x))
