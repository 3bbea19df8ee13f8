"""Two half batches: taken in one pass, merged to the whole, and the error bar of what a rule says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fanin
from fanin.cause import Cause
from fanin.diagnosis import diagnose
from fanin.finding import Diagnosis, Finding, Missing, Severity, Verdict
from fanin.judgement import run
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, summarize
from fanin.synthetic import mlp
from fanin.trial import Mode, Role, Step, Trial


class Large(Rule):
    """Fires where the head's outputs have a mean square above 1."""

    code: ClassVar[str] = "FAN199"
    name: ClassVar[str] = "large"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.OUTPUT)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        for seen in (trial.start or Step(0)).of(Role.OUTPUT).values():
            value = seen.summary.second_moment
            if seen.layer == "head" and value > 1:
                measured = Interval(value, value)
                yield Finding(
                    self.code,
                    self.name,
                    "head",
                    0,
                    measured,
                    Interval(0, 1),
                    "E[z^2]",
                    "large",
                    Cause.SIGNAL_EXPLODED,
                )

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from ()


def halved(first: float, second: float) -> Trial:
    """A sound network whose head puts out these values on the halves of the batch."""
    trial = mlp((16, 16, 4))
    assert trial.start is not None
    halves = tuple(summarize(np.full((8, 4), value), unit_axis=-1) for value in (first, second))
    seen = tuple(
        replace(o, summary=halves[0].merge(halves[1]), halves=halves)
        if (o.layer, o.role) == ("head", Role.OUTPUT)
        else o
        for o in trial.start.observations
    )
    return replace(trial, steps=(replace(trial.start, observations=seen), *trial.steps[1:]))


def judged(trial: Trial) -> Diagnosis:
    return diagnose(trial, run([Large()], trial))


def test_a_fault_in_both_halves_is_one_and_its_interval_covers_both() -> None:
    found = judged(halved(2.0, 3.0))
    assert found.verdict is Verdict.POOR
    assert found.origins[0].finding.measured == Interval(4.0, 9.0)


def test_a_fault_in_one_half_only_leaves_the_verdict_undecided_and_says_what_would_settle_it() -> None:
    found = judged(halved(2.0, 0.5))
    assert found.verdict is Verdict.UNDECIDED
    (doubt,) = (m for m in found.missing if m.code == "FAN904")
    assert "FAN199 at head" in doubt.what
    assert "larger batch" in doubt.settle
    assert [note.severity for note in found.notes] == [Severity.NOTE]


def test_one_value_that_is_not_a_number_is_a_fault_in_whichever_half_it_is() -> None:
    x = torch.randn(32, 6)
    x[3, 2] = torch.nan
    report = fanin.check(MODELS["linear"][0](), (x, torch.randint(4, (32,))), cross_entropy)
    assert report.trial.is_halved
    assert report.findings[0].cause is Cause.NON_FINITE_INPUT


def test_without_halves_the_whole_batch_decides() -> None:
    trial = halved(2.0, 0.5)
    assert trial.start is not None
    whole = tuple(replace(o, halves=()) for o in trial.start.observations)
    assert judged(replace(trial, steps=(replace(trial.start, observations=whole),))).verdict is Verdict.POOR


def test_half_of_a_trial_shows_that_half_and_leaves_the_rest() -> None:
    trial = halved(2.0, 0.5)
    assert trial.is_halved
    half = trial.half(1)
    assert not half.is_halved
    assert half.start is not None
    assert half.start.first(Role.OUTPUT)["head"].summary.mean == 0.5
    assert half.start.of(Role.WEIGHT_GRAD) == (trial.start or half.start).of(Role.WEIGHT_GRAD)


# -- as a check takes them

MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)), (6,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
        ),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("examples", [16, 15])
def test_the_halves_of_a_check_are_those_of_its_tensors_and_merge_to_the_whole(
    name: str, examples: int
) -> None:
    build, shape = MODELS[name]
    model, x, y = build(), torch.randn(examples, *shape), torch.randint(4, (examples,))
    trial = fanin.check(model, (x, y), cross_entropy).trial
    assert trial.start is not None
    given = trial.start.first(Role.INPUT)["0"]
    middle = examples // 2
    for half, values in zip(given.halves, (x[:middle], x[middle:]), strict=True):
        expected = summarize(
            values.numpy(), unit_axis=given.summary.units is not None and (1 if x.ndim > 2 else -1)
        )
        assert half.count == expected.count
        assert half.mean == pytest.approx(expected.mean, rel=1e-5, abs=1e-7)
        assert half.unit_variance == pytest.approx(expected.unit_variance, rel=1e-5)
    for seen in trial.start.observations:
        if seen.halves:
            assert seen.halves[0].count + seen.halves[1].count == seen.summary.count == np.prod(seen.shape)


@pytest.mark.parametrize("examples", [1, 2, 3])
def test_batches_too_small_for_a_variance_in_each_half_are_not_halved(examples: int) -> None:
    batch = torch.randn(examples, 6), torch.randint(4, (examples,))
    assert not fanin.check(MODELS["linear"][0](), batch, cross_entropy).trial.is_halved


def test_tensors_that_do_not_count_examples_alike_are_not_halved() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            return self.fc(nodes[edges[0]])

    batch = (torch.randn(10, 6), torch.randint(10, (2, 30))), torch.randint(4, (30,))
    assert not fanin.check(Graph(), batch, cross_entropy).trial.is_halved


def test_the_re_draw_is_looked_at_on_part_of_the_batch_and_its_loss_is_that_of_the_whole() -> None:
    x, y = torch.randn(64, 6), torch.randint(4, (64,))
    mean = fanin.check(MODELS["linear"][0](), (x, y), cross_entropy).trial
    total = fanin.check(
        MODELS["linear"][0](), (x, y), lambda o, t: cross_entropy(o, t, reduction="sum")
    ).trial
    assert mean.reference is not None
    assert total.reference is not None
    assert mean.reference.first(Role.INPUT)["0"].shape[0] == 16
    assert mean.reference.mode is Mode.REFERENCE
    assert total.reference.loss == pytest.approx(64 * mean.reference.loss, rel=1e-4)


def test_a_model_that_takes_whole_batches_only_is_compared_on_the_whole() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.view(64, 6))

    reference = fanin.check(
        Fixed(), (torch.randn(64, 6), torch.randint(4, (64,))), cross_entropy
    ).trial.reference
    assert reference is not None
    assert reference.first(Role.INPUT)["fc"].shape[0] == 64
