"""Where a sample stands in for all values of a large tensor, its intervals contain the true quantiles all the same:
whatever the distribution, and however the values are laid out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fanin.adapters.torch.quick import LOOKED_AT, coprime_stride
from fanin.adapters.torch.statistics import summarize
from fanin.summary import Histogram

Floats = NDArray[np.float64]

ROWS, COLUMNS = 384, 500
"""192,000 values, of which one of 11 or so is looked at."""

N = ROWS * COLUMNS

LEVELS = (0.0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999, 1.0)

Draw = Callable[[np.random.Generator], Floats]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda r: r.standard_normal(N),
    "uniform": lambda r: r.random(N),
    "exponential": lambda r: r.exponential(size=N),
    "Laplace": lambda r: r.laplace(size=N),
    "log normal over 20 decades": lambda r: np.exp(6 * r.standard_normal(N)),
    "Student, 2 degrees": lambda r: r.standard_t(2, N),
    "Cauchy": lambda r: np.clip(r.standard_cauchy(N), -1e12, 1e12),
    "Pareto, no mean": lambda r: np.minimum(r.pareto(0.8, N), 1e12),
    "far from zero": lambda r: 1000 + r.standard_normal(N),
    "two far apart": lambda r: np.where(r.random(N) < 0.5, 1e-6, 1e3) * r.standard_normal(N),
    "two, one of them rare": lambda r: np.where(r.random(N) < 0.002, 50.0, 0.0) + r.standard_normal(N),
    "half zeros": lambda r: np.maximum(r.standard_normal(N), 0.0),
    "nearly all zeros": lambda r: np.where(r.random(N) < 0.01, r.standard_normal(N), 0.0),
    "constant": lambda r: np.full(N, 0.1),
    "zeros": lambda r: np.zeros(N),
    "three values": lambda r: r.choice([-1.0, 0.0, 2.0], N),
    "integers": lambda r: r.poisson(3.0, N).astype(np.float64),
    "signs": lambda r: r.choice([-1.0, 1.0], N),
    "subnormal": lambda r: 1e-40 * r.standard_normal(N),
    "subnormal and one": lambda r: np.where(np.arange(N) == 7, 1.0, 1e-41 * r.standard_normal(N)),
    "an outlier": lambda r: np.where(np.arange(N) == 7, 1e9, r.standard_normal(N)),
}

Layout = Callable[[Floats], Floats]

LAYOUTS: dict[str, Layout] = {
    "as drawn": lambda x: x,
    "ascending": np.sort,
    "descending": lambda x: np.sort(x)[::-1],
    "columns of their own": lambda x: np.sort(x).reshape(COLUMNS, ROWS).T.ravel(),
    "rows of their own": lambda x: (
        np.random.default_rng(1).permutation(np.sort(x).reshape(ROWS, COLUMNS)).ravel()
    ),
    "large and small in turns": lambda x: np.stack(
        [np.sort(x)[: N // 2], np.sort(x)[N // 2 :]], axis=1
    ).ravel(),
}


def intervals_contain_the_truth(tensor: Tensor) -> bool:
    """At every level, as a whole and with statistics by unit."""
    truth = np.quantile(tensor.double().numpy(), LEVELS)
    for axis in (None, 0, -1):
        found = summarize(tensor, histogram=True, unit_axis=axis)
        for level, value in zip(LEVELS, truth, strict=True):
            interval = found.quantile(level)
            if float(value) not in interval:
                pytest.fail(f"the {level}-quantile {value} is not in {interval.low} .. {interval.high}")
    return found.histogram is not None and found.histogram.rank_variance > 0


def laid_out(distribution: str, layout: str) -> Tensor:
    values = LAYOUTS[layout](DISTRIBUTIONS[distribution](np.random.default_rng(0)))
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(ROWS, COLUMNS)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_intervals_of_every_distribution_contain_the_quantiles(distribution: str) -> None:
    for layout in LAYOUTS:
        intervals_contain_the_truth(laid_out(distribution, layout).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_intervals_of_every_dtype_contain_the_quantiles(dtype: torch.dtype, layout: str) -> None:
    for distribution in ("normal", "half zeros", "two, one of them rare", "integers"):
        intervals_contain_the_truth(laid_out(distribution, layout).to(dtype))


def test_what_is_tested_here_is_a_sample() -> None:
    assert intervals_contain_the_truth(laid_out("normal", "as drawn").float())
    assert coprime_stride(N, LOOKED_AT) > 1


def test_the_interval_of_a_sample_is_not_much_wider_than_a_bin() -> None:
    found = summarize(laid_out("normal", "as drawn").float(), histogram=True)
    for level in (0.05, 0.95):
        interval = found.quantile(level)
        assert interval.high - interval.low < 0.15 * abs(interval.middle)


def test_an_interval_that_takes_the_sample_for_all_would_be_noticed() -> None:
    missed = 0
    for seed in range(20):
        tensor = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, N) * 2.0 - 1.0)
        counts = summarize(tensor.float(), histogram=True).histogram
        assert counts is not None
        below = float((tensor < 0).double().mean())
        exact, sampled = Histogram(counts.bins, counts.counts), counts
        share = counts.counts[0] / counts.counts.sum()
        missed += not _holds(exact, share, below)
        assert _holds(sampled, share, below)
    assert missed > 10


def _holds(histogram: Histogram, share: float, truth: float) -> bool:
    """Whether the rank of the truth lies within what the histogram allows for the share that it has counted."""
    last = float(histogram.counts.sum()) - 1
    low, high = histogram.ranks(share)
    return low <= truth * last <= high


@pytest.mark.parametrize("n", [LOOKED_AT, 2 * LOOKED_AT, 3 * LOOKED_AT + 1, 10**6, 2**20, 2**31 + 2**20])
def test_a_stride_meets_every_row_and_column_alike(n: int) -> None:
    stride = coprime_stride(n, LOOKED_AT)
    assert np.gcd(stride, n) == 1
    assert n // stride >= LOOKED_AT // 2
