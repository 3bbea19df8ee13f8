"""What a race says, from its losses alone."""

from __future__ import annotations

import math

import pytest

from fanin.race import (
    CLEAR,
    EARLIEST,
    LEAST,
    LEVEL,
    MOVED,
    POOR,
    Heat,
    Outcome,
    Race,
    RaceOptions,
    race_passes,
)

NOISE = (0.01, -0.01, 0.02, -0.02, 0.0)


def curve(end: float, steps: int = 60, noise: float = 1.0) -> tuple[float, ...]:
    """From 1 down to a level, which is reached before the last quarter."""
    return tuple(max(end, 1 - (1 - end) * i / (steps * 0.7)) + noise * NOISE[i % 5] for i in range(steps))


def race(given: float, reference: float, *, steps: int = 60, noise: float = 1.0) -> Race:
    return Race((Heat(1e-3, curve(given, steps, noise), curve(reference, steps, noise)),), uninformed=1.0)


def test_progress_is_what_the_loss_is_below_the_uninformed_one() -> None:
    seen = race(0.75, 0.5)
    assert seen.given == pytest.approx(0.25, abs=0.01)
    assert seen.reference == pytest.approx(0.5, abs=0.01)
    assert seen.ratio == pytest.approx(0.5, abs=0.02)
    assert seen.difference[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("given", "reference", "outcome"),
    [
        (1.0, 0.4, Outcome.POOR),
        (0.5, 0.4, Outcome.HEALTHY),
        (0.3, 0.4, Outcome.HEALTHY),
        (0.999, 0.999, Outcome.UNDECIDED),
        (0.4, 1.0, Outcome.HEALTHY),
    ],
)
def test_the_ratio_decides(given: float, reference: float, outcome: Outcome) -> None:
    assert race(given, reference).outcome is outcome


def test_the_error_of_the_comparison_leaves_it_open() -> None:
    shaky = tuple(0.9 + (0.3 if i % 2 else -0.3) for i in range(60))
    seen = Race((Heat(1e-3, shaky, curve(0.7)),), uninformed=1.0)
    assert seen.ratio < POOR
    assert seen.outcome is Outcome.UNDECIDED


def test_each_twin_counts_at_the_learning_rate_that_suits_it() -> None:
    good, bad = curve(0.4), curve(1.0)
    seen = Race((Heat(1e-3, good, bad), Heat(1e-2, bad, good)), uninformed=1.0)
    assert seen.given == seen.reference
    assert seen.outcome is Outcome.HEALTHY


def test_what_is_not_finite_is_no_progress() -> None:
    seen = Race((Heat(1e-3, (1.0, *[math.nan] * 59), curve(0.4)),), uninformed=1.0)
    assert seen.given == 0.0
    assert seen.outcome is Outcome.POOR


def test_one_spike_does_not_hide_a_difference() -> None:
    losses = (*curve(1.0)[:-1], 1e6)
    assert Race((Heat(1e-3, losses, curve(0.3)),), uninformed=1.0).outcome is Outcome.POOR


def test_without_an_uninformed_loss_the_lower_first_loss_serves() -> None:
    seen = Race((Heat(1e-3, (9.0, *[2.0] * 59), (2.0, *[1.0] * 59)),))
    assert seen.baseline == 2.0
    assert (seen.given, seen.reference) == (0.0, 0.5)


def test_a_negative_baseline_is_no_obstacle() -> None:
    seen = Race((Heat(1e-3, (-1.0,) * 60, (-1.5,) * 60),), uninformed=-1.0)
    assert (seen.given, seen.reference) == (0.0, 0.5)


def test_it_ends_early_where_more_would_show_nothing_new() -> None:
    assert race(0.3, 0.3).caught_up
    assert not race(0.45, 0.3).caught_up
    assert not race(0.3, 0.3, steps=EARLIEST - 1).caught_up
    assert not race(0.8, 0.8).caught_up  # level, and neither has learned enough to compare


def test_who_is_far_behind_at_the_usual_length_gets_time_to_catch_up() -> None:
    assert race(0.3, 0.3).is_clear
    assert race(0.45, 0.3).is_clear
    assert not race(0.7, 0.3).is_clear
    assert not race(1.0, 0.3).is_clear
    assert not race(0.999, 0.999).is_clear


def test_where_the_redraw_learns_next_to_nothing_no_weights_are_to_blame() -> None:
    assert race(1.0, 0.9).outcome is Outcome.UNDECIDED
    assert race(1.0, 0.8).outcome is Outcome.POOR


def test_of_the_redraws_only_those_count_that_went_all_the_way() -> None:
    early = Heat(1e-3, curve(1.0, 240), curve(0.2, 60))
    seen = Race((early, Heat(1e-2, curve(1.0, 240), curve(0.5, 240))), uninformed=1.0)
    assert seen.reference == pytest.approx(0.5, abs=0.02)


def test_nothing_raced_is_undecided() -> None:
    assert Race(()).outcome is Outcome.UNDECIDED
    assert math.isnan(Race(()).ratio)
    assert Race((Heat(1e-3, (), ()),)).outcome is Outcome.UNDECIDED


def test_it_survives_json() -> None:
    seen = race(0.7, 0.4)
    assert Race.from_json(seen.to_json()) == seen
    assert math.isnan(Race.from_json(Race(seen.heats).to_json()).uninformed)
    for text in ("[]", "{}", '{"heats": [{}]}', "nonsense"):
        with pytest.raises(ValueError, match=r"not a race|Expecting"):
            Race.from_json(text)


def test_its_cost_is_known_beforehand() -> None:
    assert race_passes((1e-3, 1e-2), 60) == 241
    assert RaceOptions(learning_rates=(1e-3,), steps=10).passes == 21


def test_thresholds_leave_room() -> None:
    assert 0 < MOVED < LEAST < POOR < CLEAR < LEVEL < 1
