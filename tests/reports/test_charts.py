"""What the charts show, as data; and that every chart is a valid spec."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf, log10, nan

import pytest

from fanin.errors import UsageError
from fanin.examine import judge
from fanin.finding import Diagnosis, Verdict
from fanin.race import Heat, Race
from fanin.reports.charts import CHARTS, available, chart, figures, svg
from fanin.reports.charts.blocks import block_of, labels
from fanin.reports.charts.data import HALF_BAND, LOWEST
from fanin.synthetic import mlp, normal
from fanin.trial import Mode
from reports.deep import deep
from reports.test_repair import REPAIR
from reports.trials import CASES, trial_of

UNJUDGED = Diagnosis(Verdict.UNDECIDED)


def test_a_band_lies_around_the_sound_re_draw() -> None:
    trial, diagnosis = deep(10)
    for point in figures(trial, diagnosis).points:
        assert point.sound is not None
        assert point.low == pytest.approx(point.sound / 10**0.5)
        assert point.high == pytest.approx(point.sound * 10**0.5)


def test_without_a_re_draw_theory_says_where_a_sound_draw_lies() -> None:
    sound, small = (mlp(widths=(256,) * 8 + (10,), init=init) for init in ("he_normal", "glorot_uniform"))
    for point in figures(sound, UNJUDGED).points:
        assert point.low is not None
        assert point.high is not None
        assert point.low < point.variance < point.high
    last = figures(small, UNJUDGED).points[-1]
    assert last.variance < last.low


def test_where_theory_tells_little_no_number_is_expected() -> None:
    shown = figures(mlp(widths=(16,) * 60 + (10,)), UNJUDGED)
    assert shown.points[2].sound is not None
    assert (shown.points[-1].sound, shown.points[-1].low is None) == (None, False)
    assert all(abs(cell.ratio) <= HALF_BAND for cell in shown.cells if cell.depth == 60)  # within the band


def test_what_lies_beyond_a_wide_band_is_off_by_the_distance_to_its_edge() -> None:
    overrides = {"blocks.58.fc.weight": normal(1e-8)}
    shown = figures(mlp(widths=(16,) * 60 + (10,), overrides=overrides), UNJUDGED)
    point = next(point for point in shown.points if point.layer == "blocks.58.fc")
    cell = next(cell for cell in shown.cells if cell.depth == point.depth)
    assert point.sound is None
    assert point.low is not None
    assert point.variance is not None
    beyond = log10(point.variance / point.low)
    assert beyond < -3
    assert point.off(point.variance) == pytest.approx(beyond)
    assert cell.ratio == pytest.approx(beyond - HALF_BAND)


def test_the_first_bad_layer_and_what_is_downstream_are_marked() -> None:
    points = figures(*deep(10)).points
    assert [point.mark for point in points] == ["in step"] * 5 + ["fault"] + ["downstream"] * 4
    assert [point.depth for point in points if point.first] == [6]


def test_what_a_log_axis_cannot_show_keeps_its_place_and_its_name() -> None:
    points = figures(trial_of([1.0, 0.0, inf, nan]), UNJUDGED).points
    assert [point.odd for point in points] == ["", "zero", "infinite", "NaN"]
    assert [point.at for point in points] == [1.0, 0.01, 10.0, 10.0]


def test_a_cell_is_the_decades_between_measured_and_expected() -> None:
    trial, diagnosis = deep(10, 3)
    found = {(cell.depth, cell.step): cell.ratio for cell in figures(trial, diagnosis).cells}
    assert found[1, 0] == pytest.approx(0, abs=0.1)
    assert found[6, 0] == pytest.approx(-2.7, abs=0.1)
    assert found[6, 2] == pytest.approx(-2.5, abs=0.1)
    assert (10, 0) in found
    assert (10, 1) not in found


def test_between_looks_the_share_that_varies_is_taken_to_stay() -> None:
    trial, diagnosis = deep(10, 2)
    whole = [replace(o, summary=replace(o.summary, units=None)) for o in trial.steps[1].observations]
    shown = figures(
        replace(
            trial, steps=(trial.steps[0], replace(trial.steps[1], observations=tuple(whole)), trial.steps[2])
        ),
        diagnosis,
    )
    as_before = {(c.depth, c.step): c.ratio for c in figures(trial, diagnosis).cells}
    for cell in shown.cells:
        assert cell.ratio == pytest.approx(as_before[cell.depth, cell.step], abs=1e-6)


def test_activation_inputs_stand_for_the_outputs_that_they_are() -> None:
    trial = mlp(steps=6)
    shown = figures(trial, UNJUDGED)
    hidden = {cell.step for cell in shown.cells if cell.depth == 1}
    assert hidden == set(range(6))


def test_a_dead_layer_is_the_lowest_of_decades() -> None:
    trial, diagnosis = deep(10, 1)
    dead = trial_of([0.0] * 10, paths=[layer.path for layer in trial.spec.layers]).steps[0]
    rows = figures(replace(trial, steps=(dead, trial.steps[1])), diagnosis).rows()["cells"]
    assert {row["ratio"] for row in rows} == {LOWEST}


def test_ranks_are_shown_where_there_are_several() -> None:
    assert figures(*deep(10, 1)).ranks == ()
    found = figures(*deep(10, 1, workers=(0, 1, 2))).ranks
    assert {point.rank for point in found} == {"0", "1", "2"}
    assert len(found) == 30


def test_of_a_race_the_curves_of_the_best_rates_are_shown() -> None:
    slow, fast = Heat(1e-4, (2.3,) * 4, (2.3,) * 4), Heat(1e-2, (2.3, 2.2, 2.1, 2.0), (2.3, 1.5, 1.0, 0.5))
    trial, diagnosis = deep(10, 1)
    shown = figures(replace(trial, race=Race((slow, fast), uninformed=2.4)), diagnosis)
    assert shown.uninformed == 2.4
    curves = {
        name: [loss.loss for loss in shown.losses if loss.curve == name]
        for name in ("as given", "sound re-draw")
    }
    assert curves == {"as given": list(fast.given), "sound re-draw": list(fast.reference)}


def test_a_repair_is_compared_layer_by_layer() -> None:
    trial, diagnosis = deep(10, 1)
    after = replace(trial, steps=(replace(trial.steps[1], mode=Mode.TRAIN),))
    shown = figures(trial, diagnosis, repair=REPAIR, after=after)
    both = {when: [c.variance for c in shown.compared if c.when == when] for when in ("as given", "repaired")}
    assert both["as given"][9] < 0.01 < 0.3 < both["repaired"][9]
    assert available(shown)[:2] == ("variance", "comparison")


@pytest.mark.parametrize("count", [10, 500])
def test_labels_below_an_axis_never_overlap(count: int) -> None:
    shown = figures(*deep(count, 1))
    ends = [
        (one.middle / count * 900 - 3.2 * len(one.text), one.middle / count * 900 + 3.2 * len(one.text))
        for one in shown.labels
        if one.text
    ]
    assert len(ends) >= 3
    assert all(right < left for (_, right), (left, _) in pairwise(ends))


def test_layers_are_grouped_by_block() -> None:
    paths = ["embed", "h.0.attn.q", "h.0.mlp.up", "h.1.attn.q", "h.1.mlp.up", "head"]
    found = labels([(path, block_of(path)) for path in paths])
    assert [(one.text, one.start, one.end) for one in found] == [
        ("embed", 0.5, 1.5), ("h.0", 1.5, 3.5), ("h.1", 3.5, 5.5), ("head", 5.5, 6.5),
    ]  # fmt: skip


@pytest.mark.parametrize("case", ["cliff", "broken", "foreign", "10", "judged"])
def test_every_chart_is_a_valid_spec_that_draws_itself(case: str) -> None:
    pytest.importorskip("altair", reason="needs the extra html")
    report = judge(mlp(steps=3)) if case == "judged" else None
    made = (
        (report.trial, report.diagnosis)
        if report
        else deep(int(case), 2, workers=(0, 1))
        if case.isdigit()
        else CASES[case]()
    )
    shown = figures(*made)
    for name in available(shown):
        spec = chart(name, shown).to_dict(validate=True)
        assert set(spec["datasets"]) >= {"layers", "labels", "cells", "losses"}
        assert svg(name, shown).startswith("<svg")


def test_an_unknown_chart_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        chart("pie", figures(*CASES["cliff"]()))
    assert caught.value.expected == f"one of {', '.join(CHARTS)}"
