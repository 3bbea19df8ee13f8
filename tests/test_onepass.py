"""The library in C: what no other way to summarize meets, and what happens without it.

That its numbers are those of the reference is tested in adapters/test_torch_statistics.py, beside the other ways.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fanin import onepass
from fanin.adapters.torch import quick, statistics
from fanin.summary import TensorSummary, projection_weights, summarize


@pytest.fixture(autouse=True)
def _library() -> Iterator[None]:
    """It is built where there is a compiler, as on every machine that runs these tests for us."""
    if not onepass.is_here():
        pytest.skip("the library in C is not built")
    yield
    onepass._library.cache_clear()


def whole(x: NDArray[np.generic], dtype: str, stride: int = 1) -> TensorSummary | None:
    return onepass.whole(x.ctypes.data, dtype, x.size, stride)


def same(found: TensorSummary | None, values: NDArray[np.float64]) -> bool:
    """Counts and extremes to the bit, moments within rounding."""
    expected = summarize(values, histogram=True)
    assert found is not None
    assert (found.count, found.zeros) == (expected.count, expected.zeros)
    assert (found.minimum, found.maximum) == (expected.minimum, expected.maximum)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12, abs=1e-12 * expected.rms)
    assert found.m2 == pytest.approx(expected.m2, rel=1e-9)
    if found.histogram is not None and expected.histogram is not None:
        np.testing.assert_array_equal(found.histogram.bins, expected.histogram.bins)
        np.testing.assert_array_equal(found.histogram.counts, expected.histogram.counts)
    return True


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_value_of_a_narrow_dtype_is_read_as_it_is(dtype: str) -> None:
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    values = patterns.view(getattr(torch, dtype))
    finite = values[values.isfinite()]
    one_by_one = [whole(finite[i : i + 1].view(torch.int16).numpy(), dtype, 0) for i in range(len(finite))]
    assert [one.minimum for one in one_by_one if one is not None] == finite.double().tolist()
    assert same(whole(finite.view(torch.int16).numpy(), dtype), finite.double().numpy())
    assert whole(values.view(torch.int16).numpy(), dtype) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 5, 16, 2047, 2048, 4999])
def test_what_is_not_finite_is_refused_wherever_it_is_and_leaves_nothing_behind(
    value: float, where: int
) -> None:
    x = np.ones(5000, np.float32)
    x[where] = value
    assert whole(x, "float32") is None
    assert onepass.by_units(x.ctypes.data, "float32", (1, 50, 100), None) is None
    assert onepass.by_units(x.ctypes.data, "float32", (100, 50, 1), None) is None
    clean = np.linspace(-1, 1, 999, dtype=np.float32)
    assert same(whole(clean, "float32"), clean.astype(np.float64)), "bins of the one before were counted"


@pytest.mark.parametrize("count", [1, 15, 16, 17, 2047, 2048, 2049, 4096, 5001])
@pytest.mark.parametrize("stride", [1, 3, 2047, 2049, 7000])
def test_every_stride_th_value_is_counted_once(count: int, stride: int) -> None:
    x = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    found = whole(x, "float32", stride)
    expected = summarize(x[::stride].astype(np.float64), histogram=True).histogram
    assert found is not None
    assert found.histogram is not None
    assert expected is not None
    np.testing.assert_array_equal(found.histogram.bins, expected.bins)
    np.testing.assert_array_equal(found.histogram.counts, expected.counts * stride)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 100, 7),
        (5, 300, 1),
        (2, 3, 127),
        (2, 3, 128),
        (2, 3, 255),
        (2, 3, 256),
        (2, 3, 257),
        (1, 4, 5000),
        (700, 2, 3),
        (1, 1, 1),
    ],
)
def test_units_are_those_of_the_reference_however_they_lie(shape: tuple[int, int, int], dtype: str) -> None:
    """Side by side or one after the other, in more than one strip or block."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype)) + 3
    tensor[0, 0, 0] = 0
    before, _, after = shape
    found = onepass.by_units(tensor.data_ptr(), dtype, shape, projection_weights(before * after, 5))
    expected = summarize(tensor.double().numpy(), unit_axis=1, offset=5)
    assert found is not None
    assert expected.units is not None
    units, zeros = found
    assert zeros == expected.zeros
    for field in ("count", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(units, field), getattr(expected.units, field))
    for field in ("mean", "m2", "projection"):
        np.testing.assert_allclose(getattr(units, field), getattr(expected.units, field), rtol=1e-10)


@pytest.mark.parametrize("layout", ["whole", "rows", "columns"])
def test_a_first_value_that_is_far_out_cancels_nothing(layout: str) -> None:
    """Sums run around the first value, here 10^9 times as far out as the others are spread."""
    x = 1 + 1e-3 * np.random.default_rng(0).standard_normal((4096, 2))
    x[0] = 1e6
    single = np.ascontiguousarray(x if layout == "columns" else x.T, np.float32)
    values = single.astype(np.float64) if layout == "columns" else single.astype(np.float64).T
    if layout == "whole":
        found = whole(single, "float32", 0)
        assert found is not None
        assert found.m2 == pytest.approx(summarize(values).m2, rel=1e-9)
        return
    shape = (4096, 2, 1) if layout == "columns" else (1, 2, 4096)
    found_units = onepass.by_units(single.ctypes.data, "float32", shape, None)
    assert found_units is not None
    exact = [np.square(column - column.mean()).sum() for column in values.T]
    np.testing.assert_allclose(found_units[0].m2, exact, rtol=1e-9)


def test_positions_beyond_32_bits_are_read() -> None:
    """Pages that nobody has written to take no memory."""
    x = np.zeros(2**31 + 5, np.uint16)
    x[-1] = 0x3F80  # 1.0 in bfloat16
    found = whole(x, "bfloat16", 2**20)
    assert found is not None
    assert (found.count, found.zeros, found.maximum) == (2**31 + 5, 2**31 + 4, 1.0)
    assert found.m2 == pytest.approx(1.0)


def test_threads_do_not_mix_their_numbers() -> None:
    mixed: list[int] = []

    def look(k: int) -> None:
        x = np.full(20_000, k, np.float32)
        for _ in range(200):
            found = whole(x, "float32")
            if found is None or found.histogram is None or (found.mean, len(found.histogram.bins)) != (k, 1):
                mixed.append(k)

    threads = [threading.Thread(target=look, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == []


FREED = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t(),
    "a view of its end": lambda x: x[3:, 2:],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("view", FREED)
@pytest.mark.parametrize("axis", [None, 0])
def test_memory_that_has_been_freed_is_not_read(view: str, dtype: torch.dtype, axis: int | None) -> None:
    x = torch.randn(400, 500).to(dtype)
    seen = FREED[view](x)
    x.untyped_storage().resize_(100)
    with pytest.raises(ValueError, match="freed"):
        statistics.summarize(seen, histogram=True, unit_axis=axis)


def test_tensors_that_never_had_memory_are_not_read() -> None:
    for tensor in (torch._efficientzerotensor((4, 5)), torch._to_functional_tensor(torch.randn(4, 5))):
        with pytest.raises(ValueError, match="freed"):
            statistics.summarize(tensor)


def test_an_address_that_is_no_multiple_of_the_width_is_left_to_others() -> None:
    memory = bytearray(1) + bytearray(np.arange(8, dtype=np.float32).tobytes())
    x = torch.frombuffer(memory, dtype=torch.float32, offset=1, count=8)
    found = quick.quick(x, False, None, 0)
    assert found is not None
    assert found.maximum == 7


def test_subnormal_halves_are_read_where_the_processor_flushes_subnormals() -> None:
    x = torch.tensor([6e-8, -3e-7, 0.0, 6e-5], dtype=torch.float16)
    assert torch.set_flush_denormal(True)
    try:
        found = whole(x.view(torch.int16).numpy(), "float16", 0)
    finally:
        torch.set_flush_denormal(False)
    assert found is not None
    assert (found.zeros, found.minimum) == (1, x.double().min())


@pytest.mark.parametrize("what", ["missing", "no library", "older source"])
def test_without_it_the_same_is_seen(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(64, 32)
    with_it = quick.quick(tensor, True, 0, 0)
    library, source = tmp_path / "_onepass.so", tmp_path / "onepass.c"
    if what == "no library":
        library.write_bytes(b"\x7fELF, but no more of it")
    if what == "older source":
        source.write_text("int fanin_version(void) { return 2; }")
        monkeypatch.setattr(onepass, "SOURCE", source)
    else:
        monkeypatch.setattr(onepass, "LIBRARY", library)
    onepass._library.cache_clear()
    assert not onepass.is_here()
    without = quick.quick(tensor, True, 0, 0)
    assert with_it is not None
    assert without is not None
    assert without.m2 == pytest.approx(with_it.m2, rel=1e-4)
    assert without.histogram is not None
    assert with_it.histogram is not None
    np.testing.assert_array_equal(without.histogram.bins, with_it.histogram.bins)
