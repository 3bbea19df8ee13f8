"""The stretch without normalization, its decades, its noise, and who is blamed."""

from __future__ import annotations

from dataclasses import replace
from math import inf, log10, sqrt

import numpy as np
import pytest

from fanin.finding import Scope, Severity
from fanin.propagation import blamed, stretch
from fanin.rules.growing_signal import GrowingSignal
from fanin.rules.shrinking_signal import ShrinkingSignal
from fanin.scheme import HE_NORMAL, LECUN_NORMAL
from fanin.synthetic import mlp, normal, scaled
from fanin.trial import Kind, Trial

DEEP = (64,) * 12 + (10,)
DEFAULT = scaled(LECUN_NORMAL, 1 / sqrt(3))


def with_norm_before_head(trial: Trial) -> Trial:
    """The same trial, whose last hidden layer is said to be a normalization."""
    *rest, last, head = trial.spec.layers
    norm = replace(last, kind=Kind.NORM)
    return replace(trial, spec=replace(trial.spec, layers=(*rest, norm, head)))


def test_excess_is_the_decades_between_what_is_drawn_and_what_the_activation_needs() -> None:
    path = stretch(mlp(DEEP, DEFAULT))
    assert path is not None
    expected = log10((1 / 3) / 2)  # PyTorch's default behind ReLU
    assert [link.excess for link in path.links[1:]] == pytest.approx([expected] * 10, abs=0.1)
    assert path.links[0].excess == pytest.approx(log10(1 / 3), abs=0.1)  # the input needs no gain


def test_what_the_weights_explain_is_what_the_signal_does() -> None:
    """Measured decades agree with the sum of excesses within the noise of the draw."""
    for init in (DEFAULT, "he_normal", scaled(HE_NORMAL, 2.0)):
        path = stretch(mlp(DEEP, init))
        assert path is not None
        assert abs(path.decades - path.excess) < path.noise + 1


def test_the_noise_covers_the_spread_over_draws() -> None:
    """Three standard deviations (Hanin and Nica): of 60 sound draws at most one lies outside."""
    paths = [stretch(mlp((16,) * 12 + (10,), seed=seed)) for seed in range(60)]
    centre = np.median([p.decades for p in paths if p])
    assert sum(abs(p.decades - centre) > p.noise for p in paths if p) <= 1


def test_a_normalization_before_the_head_leaves_nothing_to_judge() -> None:
    poor = mlp(DEEP, DEFAULT)
    assert list(ShrinkingSignal().check(poor))
    assert stretch(with_norm_before_head(poor)) is None
    assert not list(ShrinkingSignal().check(with_norm_before_head(poor)))


def test_a_slope_is_a_fault_of_every_layer() -> None:
    (finding,) = ShrinkingSignal().check(mlp(DEEP, DEFAULT))
    assert (finding.scope, finding.severity) == (Scope.EVERYWHERE, Severity.FAULT)
    assert finding.layers == tuple(f"blocks.{i}.fc" for i in range(11))


def under(optimizer: str, trial: Trial) -> Trial:
    """The trial as if this had trained it."""
    return replace(trial, about={"optimizer": optimizer})


@pytest.mark.parametrize(("std", "optimizer"), [(1e-6, ""), (1e-6, "AdamW lr=0.001"), (1e-4, "SGD lr=0.1")])
def test_one_layer_that_is_too_small_is_a_note_that_names_it(std: float, optimizer: str) -> None:
    small = under(optimizer, mlp(DEEP, overrides={"blocks.4.fc.weight": normal(std)}))
    (finding,) = ShrinkingSignal().check(small)
    assert (finding.layer, finding.scope, finding.severity) == ("blocks.4.fc", Scope.LAYER, Severity.NOTE)


def with_small(*blocks: int) -> Trial:
    return mlp(DEEP, overrides={f"blocks.{i}.fc.weight": normal(1e-3) for i in blocks})


def test_many_layers_that_are_too_small_are_faults() -> None:
    findings = list(ShrinkingSignal().check(with_small(1, 3, 5, 7, 9)))
    assert [f.layer for f in findings] == [f"blocks.{i}.fc" for i in (1, 3, 5, 7, 9)]
    assert {f.severity for f in findings} == {Severity.FAULT}


@pytest.mark.parametrize(
    ("optimizer", "severity"),
    [("", Severity.NOTE), ("Adam lr=0.001", Severity.NOTE), ("SGD lr=0.1", Severity.FAULT)],
)
def test_three_of_them_are_faults_where_no_optimizer_makes_up_for_them(
    optimizer: str, severity: Severity
) -> None:
    findings = list(ShrinkingSignal().check(under(optimizer, with_small(2, 5, 8))))
    assert [f.layer for f in findings] == ["blocks.2.fc", "blocks.5.fc", "blocks.8.fc"]
    assert {f.severity for f in findings} == {severity}


def test_a_slope_of_six_decades_is_a_fault_under_plain_gradient_descent_alone() -> None:
    eight = mlp((128,) * 9 + (10,), DEFAULT)
    (finding,) = ShrinkingSignal().check(under("SGD lr=0.1", eight))
    assert (finding.scope, finding.severity) == (Scope.EVERYWHERE, Severity.FAULT)
    assert not list(ShrinkingSignal().check(under("Adam lr=0.001", eight)))
    assert not list(ShrinkingSignal().check(eight))


def test_one_layer_that_is_far_too_large_is_a_fault() -> None:
    spoiled = {"blocks.4.fc.weight": scaled(HE_NORMAL, 1e5)}
    (finding,) = GrowingSignal().check(mlp(DEEP, overrides=spoiled))
    assert (finding.layer, finding.severity) == ("blocks.4.fc", Severity.FAULT)


def test_growth_by_design_is_said_to_be_missing_evidence() -> None:
    """Thirty sound residual blocks without normalization: no layer stands out."""
    (missing,) = GrowingSignal().check(mlp((64,) * 30 + (10,), residual=True))
    assert missing.blocks
    assert "does not explain" in missing.what


def test_zeros_are_left_to_another_rule() -> None:
    assert not list(ShrinkingSignal().check(mlp(DEEP, overrides={"blocks.4.fc.weight": "zeros"})))


def test_a_signal_lost_for_another_reason_is_said_to_be_missing_evidence() -> None:
    """Biases of -30 kill every unit: the weights are sound, so there is no guess."""
    dead = {f"blocks.{i}.fc.bias": (lambda rng, shape: np.full(shape, -30.0)) for i in (3,)}
    (missing,) = ShrinkingSignal().check(mlp(DEEP, overrides=dead))
    assert missing.blocks
    assert "does not explain" in missing.what


def test_the_verdict_does_not_depend_on_the_scale_of_inputs_or_the_width() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(128, 64)), rng.integers(0, 10, 128)
    for factor in (1e-3, 1.0, 1e4):
        assert not list(ShrinkingSignal().check(mlp(DEEP, batch=(factor * x, y))))
        assert list(ShrinkingSignal().check(mlp(DEEP, DEFAULT, batch=(factor * x, y))))
    for width in (16, 256):
        widths = (64, *(width,) * 11, 10)
        assert not list(ShrinkingSignal().check(mlp(widths)))
        assert list(ShrinkingSignal().check(mlp(widths, DEFAULT)))


def test_a_signal_that_is_gone_has_lost_infinitely_many_decades() -> None:
    path = stretch(mlp(DEEP, "zeros"))
    assert path is not None
    assert path.decades == -inf
    assert blamed(path, sign=-1)
