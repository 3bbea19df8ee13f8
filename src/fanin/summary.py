r"""TensorSummary: what one pass over a tensor keeps of it.

Moments follow Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing
sample variances", eq. 2.1. For two sets A and B with counts n, means x̄ and M2 = Σ(x - x̄)²:

    δ = x̄_B - x̄_A        n = n_A + n_B
    x̄ = x̄_A + δ n_B / n        M2 = M2_A + M2_B + δ² n_A n_B / n

Counts, extremes and histograms merge exactly; moments merge up to the rounding of float64.

Quantiles come from a histogram of float bits. The 14 upper bits of a float32 (sign, 8 of exponent, 5 of
mantissa) name a bin whose edges differ by at most 1/32 of their value. A histogram of bits is a histogram of
log magnitude: it needs no range in advance, so two of them add up whatever the data were. Every quantile is an
interval that contains the true one. Where only m of n values were looked at, each counting for n/m, the rank of a
quantile p is uncertain by √(p (1 - p) Σ n²/m), the sum over the tensors merged (the variance of a binomial; by
Jensen's inequality it holds for parts of different distributions too); four such standard deviations are allowed for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isinf
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MANTISSA_BITS = 5
"""Mantissa bits in a bin's name. 5 gives edges 3 % apart, and bins enough (16384) to count 10^6 values in the
first-level cache; with 3 bits (12 %) the documented gradient range, p95 - p5, was off by up to 6 % on Gaussians."""

BIN_SHIFT = 23 - MANTISSA_BITS
"""Bits of a float32 that a bin's name drops (float32 has 23 bits of mantissa)."""

BINS_PER_SIGN = 1 << (31 - BIN_SHIFT)
"""Bins for the values of one sign."""

FIRST_NON_FINITE_BIN = 0xFF << MANTISSA_BITS
"""Bins from here up hold infinities and NaN (exponent bits all ones)."""

SAME_UNIT = 1e-5
"""Two units whose fingerprints agree to this fraction of the largest value count as identical: above the rounding
of a float32 sum over 10^4 inputs (about 1e-6), far below what two random draws can have in common."""


SAMPLING_SIGMAS = 4.0
"""Standard deviations that a sampled rank may be off: exceeded once in 16,000 (two-sided normal)."""

MOMENT_LIMIT = 1e140
"""Larger magnitudes enter the moments as this one, so that sums of their squares stay within float64; extremes keep
them as they are. Only float64 tensors can hold such values."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed interval [low, high] that contains the true value."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The estimate: halfway, or the one finite end."""
        return (self.low + self.high) / 2 if self.low != self.high else self.low

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.low - other.high, self.high - other.low)

    def __str__(self) -> str:
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        if isinf(self.low) != isinf(self.high):
            return f"at least {low}" if isinf(self.high) else f"at most {high}"
        return low if low == high else f"{low}..{high}"


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of finite values by the upper bits of their float32.

    Attributes:
        bins: [k] names of the occupied bins, ascending; ascending bins hold ascending values.
        counts: [k] how many values each holds.
        rank_variance: Σ n²/m over the tensors merged of whose n values only m were looked at; 0 when all were.
    """

    bins: Ints
    counts: Ints
    rank_variance: float = 0.0

    @classmethod
    def of_counts(cls, counts: Ints, stride: int = 1) -> Histogram:
        """From dense counts [2 * BINS_PER_SIGN], indexed by the raw upper bits (sign bit on top); with a stride of
        s only every s-th value was counted."""
        # Of a mask, since most bins are empty: numbers take five times as long.
        occupied = np.flatnonzero(counts != 0)
        occupied = occupied[occupied % BINS_PER_SIGN < FIRST_NON_FINITE_BIN]
        negatives = int(np.searchsorted(occupied, BINS_PER_SIGN))
        positive, negative = occupied[:negatives], occupied[negatives:][::-1]
        # Of negative values those with larger bits are the smaller ones.
        looked_at = counts[np.concatenate([negative, positive])].astype(np.int64)
        variance = float(looked_at.sum()) * stride**2 if stride > 1 else 0.0
        bins = np.concatenate([BINS_PER_SIGN - 1 - negative, positive])
        return cls(bins, looked_at * stride, variance)

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets."""
        bins, where = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, other.counts]))
        return Histogram(bins, counts, self.rank_variance + other.rank_variance)

    def scaled(self, factor: float) -> Histogram:
        """The histogram of the values times a positive factor: exact for a power of two, within a bin for others."""
        magnitude = np.where(self.bins < 0, -1 - self.bins, self.bins)
        near, far = ((magnitude + i << BIN_SHIFT).astype(np.uint32).view(np.float32) for i in (0, 1))
        middle = (near.astype(np.float64) + far) / 2 * factor
        within = np.minimum(middle, np.finfo(np.float32).max).astype(np.float32)
        moved = np.where(magnitude == 0, 0, within.view(np.uint32) >> BIN_SHIFT).astype(np.int64)
        empty = Histogram(self.bins[:0], self.counts[:0], self.rank_variance)
        return Histogram(np.where(self.bins < 0, -1 - moved, moved), self.counts).merge(empty)

    def ranks(self, p: float) -> tuple[float, float]:
        """The order statistics, from 0, between which the p-quantile lies."""
        last = float(self.counts.sum()) - 1
        error = SAMPLING_SIGMAS * float(np.sqrt(self.rank_variance * p * (1 - p)))
        return max(np.floor(p * last - error), 0.0), min(np.ceil(p * last + error), last)

    def edges(self) -> tuple[Floats, Floats]:
        """Lower and upper edge of each occupied bin, [k] each, widened by the rounding of float64 to float32."""
        magnitude = np.where(self.bins < 0, -1 - self.bins, self.bins)
        near = (magnitude << BIN_SHIFT).astype(np.uint32).view(np.float32).astype(np.float64)
        far = ((magnitude + 1) << BIN_SHIFT).astype(np.uint32).view(np.float32).astype(np.float64)
        far = far * (1 + 2.0**-23) + 2.0**-149
        near = np.maximum(near * (1 - 2.0**-23) - 2.0**-149, -(2.0**-149))
        negative = self.bins < 0
        return np.where(negative, -far, near), np.where(negative, -near, far)


@dataclass(frozen=True, slots=True, eq=False)
class UnitSummary:
    """Statistics of each unit (row of a weight, channel of an activation) over everything else.

    Attributes:
        count: [units] finite values.
        mean, m2: [units] mean and sum of squared deviations from it.
        minimum, maximum: [units] extremes; +inf and -inf where a unit has no finite value.
        projection: [units] Σ r(i) x(i) over positions i, with r(i) = 1/2 + frac(i φ): a fingerprint that
            depends on the position of each value, so that a permuted row differs from the row.
    """

    count: Ints
    mean: Floats
    m2: Floats
    minimum: Floats
    maximum: Floats
    projection: Floats

    def merge(self, other: UnitSummary) -> UnitSummary:
        """The summary of both sets, unit by unit."""
        mean, m2 = merge_moments(self.count, self.mean, self.m2, other.count, other.mean, other.m2)
        return UnitSummary(
            self.count + other.count,
            mean,
            m2,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.projection + other.projection,
        )

    def scaled(self, factor: float) -> UnitSummary:
        """The summary of the values times a positive factor."""
        fields = (self.mean, self.m2 * factor, self.minimum, self.maximum, self.projection)
        return UnitSummary(self.count, *(field * factor for field in fields))

    @property
    def variance(self) -> Floats:
        """[units] variance of each unit over samples and positions; nan where it has no value."""
        none = np.full(len(self.m2), np.nan)
        variance: Floats = np.divide(self.m2, self.count, out=none, where=self.count > 0)
        return variance

    def distinct(self) -> int:
        """How many units differ from one another: identical ones share all four fingerprints."""
        scale = np.abs([self.minimum, self.maximum])
        grid = SAME_UNIT * np.max(scale, initial=0.0, where=np.isfinite(scale))
        if grid == 0:
            return min(1, len(self.mean))
        # The projection is compared as a direction: a long row with one entry (an identity) has a small mean but
        # a direction of its own.
        norm = np.sqrt(self.m2 + self.count * self.mean**2)
        direction = np.divide(self.projection, norm, out=np.zeros_like(norm), where=norm > 0)
        prints = [self.minimum / grid, self.maximum / grid, self.mean / grid, direction / SAME_UNIT]
        rounded = np.stack([np.round(np.nan_to_num(p, posinf=0, neginf=0)) for p in prints])
        return int(np.unique(rounded, axis=1).shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class TensorSummary:
    """Statistics of one tensor from one pass; `a.merge(b)` is the summary of both, in any order.

    Attributes:
        count: Finite values.
        nan, inf: Values that are not numbers, and infinite ones of either sign.
        zeros: Values equal to zero.
        mean, m2: Mean of the finite values, and Σ(x - mean)², both float64.
        minimum, maximum: Extremes of the finite values; +inf and -inf when there are none.
        histogram: Counts by log magnitude, where quantiles were asked for.
        units: The same per unit, where asked for.

    >>> a, b = summarize([1.0, 2.0]), summarize([3.0, 6.0])
    >>> both = a.merge(b)
    >>> both.count, both.mean, both.variance
    (4, 3.0, 3.5)
    """

    count: int
    nan: int
    inf: int
    zeros: int
    mean: float
    m2: float
    minimum: float
    maximum: float
    histogram: Histogram | None = None
    units: UnitSummary | None = None

    def merge(self, other: TensorSummary) -> TensorSummary:
        """The summary of both sets of values (Chan et al. 1979, eq. 2.1).

        Raises:
            ValueError: One of them has a histogram or units and the other has not, or the units differ in number.
        """
        self._require_alike(other)
        mean, m2 = merge_moments(self.count, self.mean, self.m2, other.count, other.mean, other.m2)
        return TensorSummary(
            count=self.count + other.count,
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
            zeros=self.zeros + other.zeros,
            mean=float(mean),
            m2=float(m2),
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            histogram=self.histogram.merge(other.histogram) if self.histogram and other.histogram else None,
            units=self.units.merge(other.units) if self.units and other.units else None,
        )

    def scaled(self, factor: float) -> TensorSummary:
        """The summary of the values times a positive factor; quantiles then are exact to a bin, and for a power of two
        as they were."""
        return replace(
            self,
            mean=self.mean * factor,
            m2=self.m2 * factor**2,
            minimum=self.minimum * factor,
            maximum=self.maximum * factor,
            histogram=self.histogram.scaled(factor) if self.histogram else None,
            units=self.units.scaled(factor) if self.units else None,
        )

    def _require_alike(self, other: TensorSummary) -> None:
        for field in ("histogram", "units"):
            if (getattr(self, field) is None) != (getattr(other, field) is None):
                raise ValueError(f"cannot merge a summary that has {field} with one that has none")
        if self.units and other.units and len(self.units.mean) != len(other.units.mean):
            raise ValueError(f"cannot merge {len(self.units.mean)} units with {len(other.units.mean)}")

    @property
    def non_finite(self) -> int:
        """How many values are NaN or infinite."""
        return self.nan + self.inf

    @property
    def variance(self) -> float:
        """Population variance M2 / n of the finite values; nan when there are none."""
        return self.m2 / self.count if self.count else float("nan")

    @property
    def std(self) -> float:
        """Square root of the variance."""
        return float(np.sqrt(self.variance))

    @property
    def rms(self) -> float:
        """√(variance + mean²), the root of the mean square of the finite values."""
        return float(np.sqrt(self.second_moment))

    @property
    def second_moment(self) -> float:
        """Mean square E[x²] of the finite values; nan when there are none."""
        return self.variance + self.mean * self.mean  # a product overflows to inf, a power would raise

    @property
    def largest(self) -> float:
        """Largest magnitude among the finite values; 0 when there are none."""
        return max(self.maximum, -self.minimum, 0.0) if self.count else 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all finite values are the same one."""
        return self.count > 0 and self.minimum == self.maximum

    @property
    def is_zero(self) -> bool:
        """Whether there are values and every one of them is zero."""
        return 0 < self.count == self.zeros and not self.non_finite

    @property
    def unit_variance(self) -> float:
        """The part of the signal that depends on the input, as the mean over units of the variance over the batch."""
        if self.units is None:
            return float("nan")
        total = int(self.units.count.sum())
        return float(self.units.m2.sum()) / total if total else float("nan")

    def quantile(self, p: float) -> Interval:
        """An interval that contains the p-quantile of the finite values, by linear interpolation between order
        statistics (Hyndman and Fan 1996, type 7) or any definition between the same two.

        Args:
            p: Between 0 and 1.

        Raises:
            ValueError: p is out of range, the summary has no histogram, or there is no finite value.
        """
        if not 0 <= p <= 1:
            raise ValueError(f"a quantile needs p between 0 and 1, got {p}")
        if self.histogram is None:
            raise ValueError("this summary was taken without a histogram; ask for one")
        if not self.count:
            raise ValueError("there is no finite value to take a quantile of")
        lowest, highest = self.histogram.ranks(p)
        cumulative = np.cumsum(self.histogram.counts)
        first = int(np.searchsorted(cumulative, lowest, side="right"))
        last = int(np.searchsorted(cumulative, highest, side="right"))
        low, high = self.histogram.edges()
        below = self.minimum if lowest == 0 else max(float(low[first]), self.minimum)
        above = self.maximum if highest == cumulative[-1] - 1 else float(high[min(last, len(high) - 1)])
        return Interval(below, min(above, self.maximum))


def merge_moments(n_a: Any, mean_a: Any, m2_a: Any, n_b: Any, mean_b: Any, m2_b: Any) -> Any:
    """Mean and M2 of two sets together (Chan et al. 1979, eq. 2.1); scalars or arrays of equal shape."""
    n = np.maximum(np.asarray(n_a) + n_b, 1)
    delta = np.asarray(mean_b, np.float64) - mean_a
    share_b = np.asarray(n_b, np.float64) / n
    # With one side empty the other comes back to the bit: δ·1 + mean would round.
    mean = np.where(
        np.asarray(n_a) == 0, mean_b, np.where(np.asarray(n_b) == 0, mean_a, mean_a + delta * share_b)
    )
    m2 = m2_a + np.asarray(m2_b) + delta**2 * (np.asarray(n_a, np.float64) * share_b)
    return mean, np.where(np.asarray(n_a) == 0, m2_b, np.where(np.asarray(n_b) == 0, m2_a, m2))


@lru_cache(maxsize=64)
def projection_weights(length: int, offset: int = 0) -> Floats:
    """[length] r(i) = 1/2 + frac(i φ) for i from `offset` on, φ the golden ratio: equidistributed, never repeating
    (Weyl 1916), the same in every framework and for every piece of a tensor."""
    golden = (np.sqrt(5.0) - 1) / 2
    return np.asarray(0.5 + np.modf((np.arange(length) + offset + 1) * golden)[0])


def summarize(
    values: ArrayLike, *, histogram: bool = False, unit_axis: int | None = None, offset: int = 0
) -> TensorSummary:
    """The reference: the summary of an array, in NumPy and float64. Adapters must agree with it.

    Args:
        values: Numbers of any shape and real dtype.
        histogram: Keep counts by log magnitude, for quantiles.
        unit_axis: Keep statistics per index of this axis too.
        offset: Position of the first value of each unit in the whole tensor, when this is a piece of it.

    Raises:
        ValueError: unit_axis does not exist.
    """
    x = np.asarray(values)
    if unit_axis is not None and not -x.ndim <= unit_axis < x.ndim:
        raise ValueError(f"unit_axis {unit_axis} does not exist in shape {list(x.shape)}")
    wide = x.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    bounded = np.clip(finite, -MOMENT_LIMIT, MOMENT_LIMIT)
    mean = float(bounded.mean()) if finite.size else 0.0
    return TensorSummary(
        count=finite.size,
        nan=int(np.isnan(wide).sum()),
        inf=int(np.isinf(wide).sum()),
        zeros=int((wide == 0).sum()),
        mean=mean,
        m2=float(np.square(bounded - mean).sum()),
        minimum=float(finite.min(initial=np.inf)),
        maximum=float(finite.max(initial=-np.inf)),
        histogram=_histogram(finite) if histogram else None,
        units=None if unit_axis is None else _units(np.moveaxis(wide, unit_axis, 0), offset),
    )


def _histogram(finite: Floats) -> Histogram:
    limit = np.finfo(np.float32).max
    bits = np.clip(finite, -limit, limit).astype(np.float32).view(np.uint32) >> BIN_SHIFT
    return Histogram.of_counts(np.bincount(bits, minlength=2 * BINS_PER_SIGN))


def _units(x: Floats, offset: int) -> UnitSummary:
    rows = x.reshape(len(x), int(np.prod(x.shape[1:])))
    finite = np.isfinite(rows)
    kept = np.clip(np.where(finite, rows, 0.0), -MOMENT_LIMIT, MOMENT_LIMIT)
    count = finite.sum(axis=1)
    mean = kept.sum(axis=1) / np.maximum(count, 1)
    return UnitSummary(
        count=count.astype(np.int64),
        mean=mean,
        m2=np.square(np.where(finite, kept - mean[:, None], 0.0)).sum(axis=1),
        minimum=np.where(finite, rows, np.inf).min(axis=1, initial=np.inf),
        maximum=np.where(finite, rows, -np.inf).max(axis=1, initial=-np.inf),
        projection=kept @ projection_weights(rows.shape[1], offset),
    )
