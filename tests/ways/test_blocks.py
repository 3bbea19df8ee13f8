"""Blocks of a tensor on several ranks merge to the whole, however it is split; scaled summaries are those of scaled
values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanin.adapters.torch.sharding import Place
from fanin.summary import TensorSummary, summarize
from fanin.trial import ModelSpec, Observation, Role, Step, Trial

SHAPE = (7, 5, 3)
SPLITS = {
    "by units": [(slice(0, 4), slice(None)), (slice(4, 7), slice(None))],
    "by units, one rank without any": [(slice(0, 7), slice(None)), (slice(7, 7), slice(None))],
    "by inputs": [(slice(None), slice(0, 3)), (slice(None), slice(3, 5))],
    "by both": [(u, i) for u in (slice(0, 4), slice(4, 7)) for i in (slice(0, 2), slice(2, 5))],
    "over five ranks": [(slice(k, k + 2), slice(None)) for k in range(0, 7, 2)],
}


def blocks(values: np.ndarray, split: str, unit_axis: int) -> list[Observation]:
    """What each rank would record."""
    found = []
    for worker, where in enumerate(SPLITS[split]):
        block = values[where]
        offset = tuple(range(size)[one].start for one, size in zip(where, values.shape, strict=False))
        place = Place(values.shape, (*offset, 0))
        start = place.position(block.shape, unit_axis)
        assert start is not None
        summary = summarize(block, unit_axis=unit_axis, histogram=True, offset=start)
        whole = place.widened(summary, unit_axis)
        found.append(
            Observation("fc", Role.WEIGHT, "w", whole, values.shape, worker=worker, offset=place.offset)
        )
    return found


def trial(seen: list[Observation]) -> Trial:
    return Trial(ModelSpec("Net", "torch"), (Step(0, observations=tuple(seen), losses={0: 1.0}),))


def require_equal(found: TensorSummary, wanted: TensorSummary) -> None:
    for name in ("count", "nan", "inf", "zeros", "minimum", "maximum"):
        assert getattr(found, name) == getattr(wanted, name)
    assert found.mean == pytest.approx(wanted.mean)
    assert found.m2 == pytest.approx(wanted.m2)
    assert found.quantile(0.3) == wanted.quantile(0.3)
    assert found.units is not None
    assert wanted.units is not None
    for name in ("count", "mean", "m2", "minimum", "maximum", "projection"):
        np.testing.assert_allclose(getattr(found.units, name), getattr(wanted.units, name), atol=1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_blocks_merge_to_the_whole(split: str) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE)
    (seen,) = {id(o): o for o in trial(blocks(values, split, 0)).of_worker(0).steps[0].observations}.values()
    require_equal(seen.summary, summarize(values, unit_axis=0, histogram=True))
    assert seen.offset is None


def test_blocks_by_inputs_merge_where_the_units_are_the_second_axis() -> None:
    values = np.random.default_rng(0).normal(size=SHAPE)
    seen = trial(blocks(values, "by units", 1)).joined().steps[0].observations[0]
    require_equal(seen.summary, summarize(values, unit_axis=1, histogram=True))


def test_a_block_that_is_not_one_stretch_of_its_units_has_no_position() -> None:
    assert Place((4, 6, 8), (0, 0, 4)).position((4, 6, 4), 0) is None
    assert Place((4, 6, 8), (0, 0, 4)).position((4, 6, 4), 2) == 0


def test_replicas_of_a_block_count_once() -> None:
    values = np.random.default_rng(0).normal(size=SHAPE)
    seen = blocks(values, "by units", 0)
    again = [
        Observation(o.layer, o.role, o.tensor, o.summary, o.shape, worker=9, offset=o.offset) for o in seen
    ]
    joined = trial(seen + again).joined().steps[0].observations
    assert {o.summary.count for o in joined} == {values.size}


def test_a_tensor_of_which_a_rank_is_missing_is_not_judged_by_its_rest() -> None:
    values = np.random.default_rng(0).normal(size=SHAPE)
    own = Observation("fc", Role.BIAS, "b", summarize(values[0, 0]), (3,), worker=0)
    seen = [own, *blocks(values, "by units", 0)[:1]]
    assert [o.tensor for o in trial(seen).joined().steps[0].observations] == ["b"]


def test_of_replicas_that_differ_each_rank_keeps_its_own() -> None:
    drawn = [np.random.default_rng(seed).normal(size=(3, 4)) for seed in range(2)]
    seen = [
        Observation("fc", Role.WEIGHT, "w", summarize(values), (3, 4), worker=rank, offset=(0, 0))
        for rank, values in enumerate(drawn)
    ]
    for rank, values in enumerate(drawn):
        (own,) = trial(seen).of_worker(rank).steps[0].observations
        assert own.summary.maximum == values.max()


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40),
    exponent=st.integers(-12, 12),
)
def test_a_summary_times_a_power_of_two_is_that_of_the_values_times_it(
    values: list[float], exponent: int
) -> None:
    x = np.asarray([v if abs(v) > 1e-20 else 0.0 for v in values])
    factor = 2.0**exponent
    found = summarize(x, histogram=True).scaled(factor)
    wanted = summarize(x * factor, histogram=True)
    assert (found.count, found.zeros) == (wanted.count, wanted.zeros)
    assert (found.minimum, found.maximum) == (wanted.minimum, wanted.maximum)
    assert found.m2 == pytest.approx(wanted.m2, rel=1e-9, abs=1e-30)
    for p in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert found.quantile(p) == wanted.quantile(p)


def test_a_factor_that_is_no_power_of_two_moves_quantiles_within_a_bin() -> None:
    x = np.random.default_rng(0).normal(size=10_000)
    found, wanted = summarize(x, histogram=True).scaled(1 / 1000), summarize(x / 1000, histogram=True)
    for p in (0.05, 0.5, 0.95):
        near = max(abs(wanted.quantile(p).low), abs(wanted.quantile(p).high))
        assert (
            abs(found.quantile(p).middle - wanted.quantile(p).middle) <= near / 32
        )  # five bits of a mantissa
