"""The documented rule on the six good and bad networks, saved and read in the original's format."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanin import Verdict, judge
from fanin.finding import Finding
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.sagemaker import NoMoreData, create_trial, invoke_rule
from fanin.sagemaker import PoorWeightInitialization as InvokedRule
from fanin.trial import Role

from .smdebug_networks import write


@pytest.mark.parametrize(
    ("kind", "std", "ratio", "width"),
    [
        ("mlp", None, (1.0, 3.0), (0.02, 0.5)),
        ("cnn", None, (1.0, 8.0), (0.02, 0.5)),
        ("mlp", 1e-4, (1e24, 1e28), (1e-19, 1e-16)),
        ("cnn", 1e-4, (1e16, 1e20), (1e-16, 1e-13)),
        ("mlp", 1.0, (1e5, 1e7), (80, 8e3)),
        ("cnn", 1.0, (1e5, 1e7), (10, 2e3)),
    ],
)
def test_good_networks_pass_and_bad_ones_fire(
    kind: str, std: float | None, ratio: tuple[float, float], width: tuple[float, float], tmp_path: Path
) -> None:
    """Ratio and width at step 0 are those measured on other draws of the same networks, within an order or so."""
    rule = PoorWeightInitialization()
    report = judge(write(tmp_path, kind, std), rules=[rule])
    start = report.trial.start
    assert start is not None
    variances = [seen.summary.variance for seen in start.of(Role.ACTIVATION_INPUT).values()]
    widths = [
        s.quantile(0.95) - s.quantile(0.05) for s in (o.summary for o in start.of(Role.WEIGHT_GRAD).values())
    ]
    assert ratio[0] <= max(variances) / min(variances) <= ratio[1]
    assert width[0] <= min(interval.middle for interval in widths) <= width[1]
    assert report.verdict is (Verdict.HEALTHY if std is None else Verdict.POOR)
    fired = {name: said for name, said in rule.checks(report.trial).items() if isinstance(said, Finding)}
    assert fired.keys() >= {None: set(), 1e-4: {"variance", "gradients", "loss"}, 1.0: {"variance"}}[std]
    assert fired or report.findings == ()


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(
    ("kind", "std"), [("mlp", None), ("cnn", None), ("mlp", 1e-4), ("cnn", 1e-4), ("mlp", 1.0), ("cnn", 1.0)]
)
def test_at_step_0_every_draw_is_told_right(kind: str, std: float | None, seed: int, tmp_path: Path) -> None:
    """Later the learning rate has its say: it is too high for most draws of the good convolutional network."""
    trial = judge(write(tmp_path, kind, std, seed, steps=1)).trial
    said = PoorWeightInitialization(steps=1).checks(trial)
    fired = {name for name, found in said.items() if isinstance(found, Finding)}
    assert fired == {None: set(), 1e-4: {"variance", "gradients"}, 1.0: {"variance"}}[std]


def test_a_poor_network_is_named_by_layer_and_value(tmp_path: Path) -> None:
    report = judge(write(tmp_path, "mlp", 1e-4), rules=[PoorWeightInitialization()])
    variance, gradients, loss = report.findings
    assert (variance.tensor, variance.layer, variance.step) == ("blocks.4.relu_input_0", "blocks.4.relu", 0)
    assert "at blocks.4.relu_input_0 and" in variance.message
    assert gradients.tensor.startswith("gradient/MLP_blocks.")
    assert (loss.layer, loss.step) == ("", 9)


@pytest.mark.parametrize(("std", "steps"), [(None, []), (1e-4, list(range(10)))])
def test_invoked_step_by_step_it_says_the_same(std: float | None, steps: list[int], tmp_path: Path) -> None:
    rule = InvokedRule(create_trial(write(tmp_path, "mlp", std)), threshold="10.0", steps="10")
    with pytest.raises(NoMoreData):
        invoke_rule(rule)
    assert list(rule.report["Details"]) == steps
    assert rule.report["RuleTriggered"] == len(steps)
