"""A trial answers by itself: which steps were looks, what the optimizer is like, what one rank saw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fanin.synthetic import mlp
from fanin.trial import RECHECK, Mode, Role, Trial

TRIAL = mlp((8, 8, 8, 4), steps=RECHECK + 2, reference=True)


@pytest.mark.parametrize(
    ("optimizer", "adapts"),
    [
        ("Adam", True),
        ("AdamW lr=0.001", True),
        ("RMSprop", True),
        ("SGD lr=0.1 momentum=0.9", False),
        ("SGD", False),
        ("LBFGS", False),
        ("MySGD lr=1", False),
        (None, True),
    ],
)
def test_plain_gradient_descent_does_not_adapt_and_the_unknown_may(
    optimizer: str | None, adapts: bool
) -> None:
    about = {} if optimizer is None else {"optimizer": optimizer}
    assert replace(TRIAL, about=about).adapts is adapts


def test_looks_are_the_start_and_the_recheck() -> None:
    assert [(step.mode, step.index) for step in TRIAL.looks(Role.INPUT)] == [
        (Mode.TRAIN, 0),
        (Mode.TRAIN, RECHECK),
    ]


def test_a_look_needs_an_observation_of_the_role() -> None:
    def blind(trial: Trial, index: int) -> Trial:
        steps = tuple(
            replace(s, observations=()) if s.mode is Mode.TRAIN and s.index == index else s
            for s in trial.steps
        )
        return replace(trial, steps=steps)

    assert [step.index for step in blind(TRIAL, RECHECK).looks(Role.INPUT)] == [0]
    assert [step.index for step in blind(TRIAL, 0).looks(Role.INPUT)] == [RECHECK]
    assert TRIAL.looks(Role.ATTENTION_ENTROPY) == ()
    assert [step.index for step in mlp(steps=2).looks(Role.INPUT)] == [0]


def test_the_reference_is_no_training_step() -> None:
    assert TRIAL.reference is TRIAL.steps[-1]
    assert [step.index for step in TRIAL.train_steps] == list(range(RECHECK + 2))
    assert TRIAL.start is TRIAL.steps[0]
    assert mlp().reference is None


def test_a_rank_sees_its_own_share_of_the_reference_too() -> None:
    shared = replace(
        TRIAL,
        steps=tuple(
            replace(s, observations=(*s.observations, replace(s.observations[0], worker=1)))
            for s in TRIAL.steps
        ),
    )
    assert shared.workers == (0, 1)
    mine = shared.of_worker(1)
    assert mine.reference is not None
    assert len(mine.reference.observations) == 1
    assert mine.reference.losses == {}
