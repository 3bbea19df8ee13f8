"""Attention that starts on single positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Scope, Severity
from fanin.rules.attention_saturation import AttentionSaturation, entropies
from fanin.synthetic import mlp, seen
from fanin.trial import RECHECK, Kind, LayerSpec, Mode, Role, Step, Trial


def trial(*means: float) -> Trial:
    """Layers whose entropies have these means."""
    paths = [f"blocks.{i}.attn" for i in range(len(means))]
    layers = [LayerSpec(path, Kind.OTHER, "Attention", calls=1) for path in paths]
    spread = np.linspace(0.5, 1.5, 24).reshape(2, 3, 4)
    return seen(
        layers,
        {(p, Role.ATTENTION_ENTROPY): mean * spread for p, mean in zip(paths, means, strict=True)},
    )


def then(first: Trial, *means: float, mode: Mode = Mode.TRAIN) -> Trial:
    later = replace(trial(*means).steps[0], index=RECHECK if mode is Mode.TRAIN else 0, mode=mode)
    return replace(first, steps=(*first.steps, later))


def judged(trial: Trial) -> list[Finding]:
    return [said for said in AttentionSaturation().check(trial) if isinstance(said, Finding)]


@pytest.mark.parametrize("mean", [0.31, 0.43, 0.68, 0.99])
def test_healthy_entropies_pass(mean: float) -> None:
    assert judged(trial(mean)) == []


@pytest.mark.parametrize("mean", [0.2, 0.05, 0])
def test_one_sharp_layer_among_others_is_suspect(mean: float) -> None:
    (finding,) = judged(trial(0.7, mean, 0.7))
    assert (finding.layer, finding.severity) == ("blocks.1.attn", Severity.SUSPECT)
    assert (finding.cause, finding.scope) == (Cause.ATTENTION_SATURATED, Scope.LAYER)
    assert finding.measured.middle == pytest.approx(mean)


def test_what_most_layers_have_is_one_finding() -> None:
    (finding,) = judged(trial(0.05, 0.7, 0.2))
    assert finding.scope is Scope.EVERYWHERE
    assert finding.layers == ("blocks.0.attn", "blocks.2.attn")
    assert finding.severity is Severity.SUSPECT


@pytest.mark.parametrize(("others", "severity"), [(0.25, Severity.SUSPECT), (0.1, Severity.FAULT)])
def test_the_mean_over_all_layers_makes_it_a_fault(others: float, severity: Severity) -> None:
    (finding,) = judged(trial(0.12, others, others))
    assert finding.severity is severity


def test_what_training_cures_is_no_symptom() -> None:
    assert judged(then(trial(0.05), 0.5)) == []
    (finding,) = judged(then(trial(0.05), 0.25))
    assert finding.severity is Severity.SUSPECT
    assert finding.step == 0
    assert judged(then(trial(0.05), 0.15))[0].severity is Severity.FAULT


@pytest.mark.parametrize(("reference", "found"), [(0.43, 0), (0.6, 1)])
def test_what_the_reference_shows_too_is_the_architecture(reference: float, found: int) -> None:
    assert len(judged(then(trial(0.05), reference, mode=Mode.REFERENCE))) == found


def test_calls_of_one_module_count_together() -> None:
    first = trial(0.05).steps[0]
    again = replace(
        first.observations[0], tensor="again", summary=trial(0.95).steps[0].observations[0].summary
    )
    assert entropies(Step(0, observations=(*first.observations, again)))["blocks.0.attn"] == pytest.approx(
        0.5
    )


def test_networks_without_attention_pass() -> None:
    assert judged(mlp()) == []
    assert judged(trial(float("nan"))) == []
