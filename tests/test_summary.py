"""TensorSummary: a summary of pieces is the summary of the whole, and every quantile lies in its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from math import isnan, sqrt

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fanin.summary import (
    MANTISSA_BITS,
    Floats,
    Histogram,
    Interval,
    TensorSummary,
    UnitSummary,
    projection_weights,
    summarize,
)

U = 2.0**-53
"""Unit roundoff of float64, in which all moments are kept."""

TINY = 2.0**-1074
"""Smallest float64: what a result below the normal range may be off by, once per operation."""

# ── tolerances ──────────────────────────────────────────────────────────────────────────────────────────────
#
# The inputs (float16, float32, float64) are exact in float64, so all error is that of float64 arithmetic over
# n values of magnitude at most A, in k pieces that are merged.
#
# Mean. A sum of n terms is off by at most n u Σ|x| <= n² u A, whatever its order (Higham 2002, eq. 4.4);
# divided by n, a piece's mean is off by n u A. A merge forms δ = x̄_B - x̄_A and adds a part of it: the errors
# of both are averaged, and four roundings of at most 2 u A come on top, k times. Together, generously
#
#     ε = 4 (n + 2 k) u A
#
# M2. Σ(x - x̂)² with x̂ off by ε is M2 + n ε²; each of its n terms and additions is rounded: (n + 3) u M2.
# A merge adds δ² w, where w = n_A n_B / n <= n / 4 and δ is off by 2 ε: a change of 4 w |δ| ε + 4 w ε². Since
# w δ² <= M2, w |δ| = √w √(w δ²) <= √(n M2) / 2. Over the merges of a tree the terms w δ² add up to at most M2,
# so by Cauchy and Schwarz the changes add up to at most 2 √(k n M2) ε + k n ε². Together
#
#     4 (n + k) u M2 + 2 √(k n M2) ε + (k + 1) n ε²
#
# which is small beside M2 until the offset nears 1 / (u n) standard deviations: the conditioning of a variance.
# Squares may fall below the normal range: TINY for each operation.


def mean_tolerance(x: Floats, pieces: int) -> float:
    """ε above."""
    return 4 * (x.size + 2 * pieces) * (U * float(np.abs(x).max(initial=0.0)) + TINY)


def m2_tolerance(x: Floats, pieces: int, m2: float) -> float:
    """The bound for M2 above."""
    n, error = x.size, mean_tolerance(x, pieces)
    relative = 4 * (n + pieces) * U * m2
    return (
        relative + 2 * sqrt(pieces * n * m2) * error + (pieces + 1) * n * error**2 + 8 * (n + pieces) * TINY
    )


def exact_moments(x: Floats) -> tuple[float, float]:
    """Mean and M2 in rational numbers, rounded once."""
    values = [Fraction(float(value)) for value in x.ravel()]
    mean = sum(values, Fraction(0)) / max(len(values), 1)
    return float(mean), float(sum(((value - mean) ** 2 for value in values), Fraction(0)))


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pieces:
    """An array along one axis in pieces, and an order in which to merge them."""

    whole: Floats
    cuts: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def parts(self) -> list[tuple[int, Floats]]:
        """(position, piece), in the order of merging."""
        starts = (0, *self.cuts)
        split = np.split(self.whole, self.cuts, axis=-1)
        return [(starts[i], split[i]) for i in self.order]


def values_of(width: int, largest: float | None = None) -> st.SearchStrategy[float]:
    """Floats that this dtype can hold: denormals and signed zeros among them, NaN and infinities too."""
    special = st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf])
    bound = largest if width == 64 else None
    low = None if bound is None else -bound
    finite = st.floats(low, bound, width=width, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    return finite | special


def offset_data(draw: st.DrawFn, size: int) -> Floats:
    """A mean far above the spread: the case that E[x²] - E[x]² gets wrong."""
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(size)
    return draw(st.sampled_from([1e6, -1e6, 1e3])) + draw(st.sampled_from([1e-2, 1e-6, 1.0])) * noise


@st.composite
def tensors(draw: st.DrawFn, largest: float | None = 1e100) -> Floats:
    """One-dimensional arrays of float16, float32 or float64: any values, offset noise, constants; or none."""
    size, width = draw(st.integers(0, 60)), draw(st.sampled_from([16, 32, 64]))
    dtype = np.dtype(f"f{width // 8}")
    kind = draw(st.sampled_from(["any", "offset", "constant"]))
    if kind == "any":
        return draw(arrays.arrays(dtype, size, elements=values_of(width, largest)))
    if kind == "constant":
        return np.full(size, draw(values_of(width, largest)), dtype)
    return offset_data(draw, size).astype(np.float32 if width == 16 else dtype)  # float16 ends at 65504


@st.composite
def matrices(draw: st.DrawFn) -> Floats:
    """[units, samples] arrays of float16, float32 or float64."""
    shape = draw(st.integers(1, 5)), draw(st.integers(0, 30))
    width = draw(st.sampled_from([16, 32, 64]))
    return draw(arrays.arrays(np.dtype(f"f{width // 8}"), shape, elements=values_of(width, 1e100)))


@st.composite
def in_pieces(draw: st.DrawFn, whole: st.SearchStrategy[Floats]) -> Pieces:
    """An array in up to six pieces, some of them empty, in any order."""
    x = draw(whole)
    cuts = tuple(sorted(draw(st.lists(st.integers(0, x.shape[-1]), max_size=5))))
    return Pieces(x, cuts, tuple(draw(st.permutations(range(len(cuts) + 1)))))


def merged(parts: Sequence[TensorSummary]) -> TensorSummary:
    """All merged, as a tree: the halves first."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return merged(parts[:middle]).merge(merged(parts[middle:]))


def finite(x: Floats) -> Floats:
    """The finite values, in float64."""
    wide = np.asarray(x, np.float64)
    return wide[np.isfinite(wide)]


def quantile_data() -> st.SearchStrategy[Floats]:
    """Tensors with at least one finite value."""
    return tensors().filter(lambda x: finite(x).size > 0)


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(in_pieces(tensors()))
def test_counts_extremes_and_histograms_of_pieces_merge_exactly(data: Pieces) -> None:
    whole = summarize(data.whole, histogram=True)
    both = merged([summarize(part, histogram=True) for _, part in data.parts])
    for field in ("count", "nan", "inf", "zeros", "minimum", "maximum"):
        assert getattr(both, field) == getattr(whole, field), field
    assert both.histogram is not None
    assert whole.histogram is not None
    assert np.array_equal(both.histogram.bins, whole.histogram.bins)
    assert np.array_equal(both.histogram.counts, whole.histogram.counts)


@given(in_pieces(tensors()))
def test_moments_of_pieces_merge_to_the_exact_ones(data: Pieces) -> None:
    x, pieces = finite(data.whole), len(data.parts)
    mean, m2 = exact_moments(x)
    both = merged([summarize(part) for _, part in data.parts])
    assert abs(both.mean - mean) <= mean_tolerance(x, pieces)
    assert abs(both.m2 - m2) <= m2_tolerance(x, pieces, m2)


@given(tensors())
def test_merging_with_an_empty_summary_changes_nothing(x: Floats) -> None:
    empty, full = summarize(np.empty(0)), summarize(x)
    for both in (empty.merge(full), full.merge(empty)):
        assert astuple(both) == astuple(full)


def test_the_variance_survives_an_offset_of_a_hundred_million_standard_deviations() -> None:
    """1e6 ± 1e-2: the tolerance is a thousandth of M2, where E[x²] - E[x]² keeps no digit."""
    x = 1e6 + 1e-2 * np.random.default_rng(0).standard_normal(1000)
    mean, m2 = exact_moments(x)
    both = merged([summarize(part) for part in np.split(x, 10)])
    assert m2_tolerance(x, 10, m2) < 1e-3 * m2
    assert abs(both.m2 - m2) <= m2_tolerance(x, 10, m2)
    assert abs(both.mean - mean) <= mean_tolerance(x, 10)


@given(tensors())
def test_counts_account_for_every_value(x: Floats) -> None:
    seen = summarize(x, histogram=True)
    assert seen.count + seen.nan + seen.inf == x.size
    assert seen.non_finite == x.size - finite(x).size
    assert seen.zeros == np.count_nonzero(finite(x) == 0)
    assert seen.histogram is not None
    assert seen.histogram.counts.sum() == seen.count


@given(arrays.arrays(np.float64, st.integers(1, 20), elements=st.floats(width=64)))
@example(np.array([1e300, 1.0]))
@example(np.array([1.7e308, 1.7e308]))
def test_no_float64_is_too_large_to_be_summarized(x: Floats) -> None:
    """Memory that was never written holds such values: a warning of NumPy's would be an error here."""
    seen = summarize(x, histogram=True, unit_axis=0)
    both = seen.merge(summarize(-x, histogram=True, unit_axis=0))
    assert both.count == 2 * seen.count == 2 * finite(x).size
    assert not any(isnan(value) for value in (seen.mean, seen.m2, both.mean, both.m2))


# ── what is derived ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_derived_statistics_of_a_small_example() -> None:
    seen = summarize([[1.0, -2.0], [0.0, 5.0]])
    assert (seen.mean, seen.variance, seen.std) == (1.0, 6.5, sqrt(6.5))
    assert (seen.second_moment, seen.rms, seen.largest) == (7.5, sqrt(7.5), 5.0)
    assert not seen.is_constant


def test_nothing_has_no_variance_and_no_size() -> None:
    empty = summarize([])
    assert isnan(empty.variance)
    assert isnan(empty.rms)
    assert empty.largest == 0
    assert not empty.is_constant


@given(quantile_data())
def test_a_tensor_is_constant_where_all_its_finite_values_are_equal(x: Floats) -> None:
    assert summarize(x).is_constant == (len(set(finite(x).tolist())) == 1)


@given(quantile_data())
def test_the_largest_magnitude_is_that_of_the_finite_values(x: Floats) -> None:
    assert summarize(x).largest == np.abs(finite(x)).max()


# ── quantiles ───────────────────────────────────────────────────────────────────────────────────────────────


@given(in_pieces(quantile_data()), st.floats(0, 1))
@example(Pieces(np.array([-0.0, 0.0]), (), (0,)), 0.5)
@example(Pieces(np.array([-1e-60, 1e-60, 1e60]), (), (0,)), 0.0)
@example(Pieces(np.array([1 - 2.0**-53, 1.0]), (1,), (1, 0)), 0.3)
def test_the_interval_contains_the_quantile(data: Pieces, p: float) -> None:
    interval = merged([summarize(part, histogram=True) for _, part in data.parts]).quantile(p)
    assert float(np.quantile(finite(data.whole), p, method="linear")) in interval


@given(quantile_data())
def test_the_outermost_quantiles_end_at_the_extremes(x: Floats) -> None:
    seen = summarize(x, histogram=True)
    assert seen.quantile(0).low == seen.minimum
    assert seen.quantile(1).high == seen.maximum


@given(quantile_data(), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_do_not_decrease(x: Floats, p: float, q: float) -> None:
    low, high = (summarize(x, histogram=True).quantile(r) for r in sorted((p, q)))
    assert low.low <= high.low
    assert low.high <= high.high


@given(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(2.0**-126, 2.0**127, width=32)),
    st.integers(0, 59),
    st.sampled_from([1.0, -1.0]),
)
def test_the_interval_of_an_order_statistic_is_a_bin_wide(x: Floats, rank: int, sign: float) -> None:
    """Edges are 2^-5 apart, relative to the lower; both are widened by the rounding of float64 to float32,
    2^-23 of themselves (and by one denormal, which is less than that beside a normal number)."""
    assume(rank < len(x))
    p = rank / max(len(x) - 1, 1)
    assume(p * (len(x) - 1) == rank)  # so that the quantile is one value, not a blend of two
    interval = summarize(sign * x, histogram=True).quantile(p)
    near, far = sorted((abs(interval.low), abs(interval.high)))
    assert far - near <= (2.0**-MANTISSA_BITS + 2.0**-20) * near


@pytest.mark.parametrize("p", [-0.01, 1.01, float("nan")])
def test_a_quantile_outside_zero_and_one_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"a quantile needs p between 0 and 1, got "):
        summarize([1.0], histogram=True).quantile(p)


def test_a_quantile_without_a_histogram_is_refused() -> None:
    with pytest.raises(ValueError, match="taken without a histogram; ask for one"):
        summarize([1.0]).quantile(0.5)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_a_quantile_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no finite value to take a quantile of"):
        summarize(values, histogram=True).quantile(0.5)


@given(quantile_data())
def test_bins_ascend_with_the_values_they_hold(x: Floats) -> None:
    histogram = summarize(x, histogram=True).histogram
    assert isinstance(histogram, Histogram)
    low, high = histogram.edges()
    assert (np.diff(histogram.bins) > 0).all()
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) >= 0).all()
    assert (low <= high).all()


def test_the_difference_of_two_intervals_contains_all_differences() -> None:
    difference = Interval(1.0, 2.0) - Interval(0.25, 0.5)
    assert difference == Interval(0.5, 1.75)
    assert difference.middle == 1.125
    assert str(difference) == "0.5..1.75"


# ── units ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(in_pieces(matrices()))
def test_units_merge_along_the_sample_axis(data: Pieces) -> None:
    """Each unit is held to the tolerances of its own values; its projection Σ r x, with r < 3/2, to that of a
    sum: n u Σ|r x| <= 2 n² u A, once for the pieces and once for the whole."""
    whole = summarize(data.whole, unit_axis=0).units
    both = merged([summarize(part, unit_axis=0, offset=at) for at, part in data.parts]).units
    assert isinstance(whole, UnitSummary)
    assert isinstance(both, UnitSummary)
    for field in ("count", "minimum", "maximum"):
        assert np.array_equal(getattr(both, field), getattr(whole, field)), field
    for unit, row in enumerate(np.asarray(data.whole)):
        x, pieces = finite(row), len(data.parts)
        mean, m2 = exact_moments(x)
        allowed = mean_tolerance(x, pieces)
        assert abs(both.mean[unit] - mean) <= allowed
        assert abs(both.m2[unit] - m2) <= m2_tolerance(x, pieces, m2)
        assert abs(both.projection[unit] - whole.projection[unit]) <= 2 * row.size * allowed


def test_units_of_any_axis_are_those_of_the_axis_moved_to_the_front() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    units = summarize(x, unit_axis=-2).units
    assert units is not None
    assert np.allclose(units.mean, x.mean(axis=(0, 2)))
    assert np.allclose(units.variance, x.var(axis=(0, 2)))


def test_the_variance_over_the_batch_is_what_depends_on_the_input() -> None:
    """Two constant units differ from one another, and yet carry nothing."""
    assert summarize([[1.0, 1.0], [5.0, 5.0]], unit_axis=0).unit_variance == 0
    assert summarize([[0.0, 2.0], [5.0, 7.0]], unit_axis=0).unit_variance == 1
    assert isnan(summarize([1.0]).unit_variance)


def test_a_unit_without_values_has_no_variance() -> None:
    units = summarize([[np.nan, np.nan], [0.0, 2.0]], unit_axis=0).units
    assert units is not None
    assert isnan(units.variance[0])
    assert units.variance[1] == 1


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (0, 0)])
def test_a_tensor_without_units_or_without_samples_is_summarized(shape: tuple[int, ...]) -> None:
    """An expert that no token reached, or a layer that was pruned away."""
    units = summarize(np.empty(shape), unit_axis=0).units
    assert units is not None
    assert units.count.tolist() == [0] * shape[0]
    assert units.distinct() == min(1, shape[0])


def distinct(x: Floats) -> int:
    """How many rows are told apart."""
    units = summarize(x, unit_axis=0).units
    assert units is not None
    return units.distinct()


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([1e-8, 1.0, 1e6]))
def test_rows_that_are_copies_count_once(rows: int, copies: int, seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    x = np.repeat(scale * generator.standard_normal((rows, 64)), copies, axis=0)
    assert distinct(generator.permutation(x)) == rows


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_a_constant_matrix_has_one_distinct_row(value: float) -> None:
    assert distinct(np.full((32, 64), value)) == 1


@pytest.mark.parametrize("n", [2, 4, 64, 256, 512, 1024])
def test_rows_of_an_identity_matrix_are_distinct(n: int) -> None:
    """They have everything in common but the position of their one."""
    assert distinct(np.eye(n)) == n


@pytest.mark.parametrize("n", [16, 256, 1024])
def test_permuted_rows_are_distinct(n: int) -> None:
    generator = np.random.default_rng(0)
    row = generator.standard_normal(n)
    assert distinct(np.stack([generator.permutation(row) for _ in range(32)])) == 32


def test_the_projection_weights_of_a_piece_are_a_piece_of_the_weights() -> None:
    weights = projection_weights(100)
    assert np.array_equal(projection_weights(40, offset=60), weights[60:])
    assert ((weights >= 0.5) & (weights < 1.5)).all()


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["histogram", "units"])
def test_merging_with_a_summary_that_kept_less_is_refused(field: str) -> None:
    full = summarize([[1.0]], histogram=True, unit_axis=0)
    less = replace(full, histogram=None) if field == "histogram" else replace(full, units=None)
    for one, other in ((full, less), (less, full)):
        with pytest.raises(
            ValueError, match=f"cannot merge a summary that has {field} with one that has none"
        ):
            one.merge(other)


def test_merging_different_numbers_of_units_is_refused() -> None:
    two, three = (summarize(np.ones((units, 4)), unit_axis=0) for units in (2, 3))
    with pytest.raises(ValueError, match="cannot merge 2 units with 3"):
        two.merge(three)


@pytest.mark.parametrize("axis", [2, -3])
def test_a_unit_axis_that_does_not_exist_is_refused(axis: int) -> None:
    with pytest.raises(ValueError, match=rf"unit_axis {axis} does not exist in shape \[2, 3\]"):
        summarize(np.ones((2, 3)), unit_axis=axis)
