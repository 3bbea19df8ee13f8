"""Training is the same with and without a watch, also after an exception."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ways.nets import hooks_on, losses, observe

from .loops import (
    Net,
    batch,
    loss_of,
    net,
    require_nothing_global,
    train,
)


def trained(watched: bool) -> tuple[list[Tensor], Any]:
    random.seed(0)
    np.random.seed(0)
    model = net(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = observe(model, steps=10) if watched else None
    for step in range(15):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    if seen is not None:
        assert len(seen.trial.steps) == 10
        seen.close()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    return [p.detach().clone() for p in model.parameters()], state


def test_training_is_the_same_to_the_bit_with_and_without_watch() -> None:
    parameters, state = trained(watched=False)
    watched, watched_state = trained(watched=True)
    assert all(torch.equal(a, b) for a, b in zip(parameters, watched, strict=True))
    assert torch.equal(state[0], watched_state[0])
    assert state[1:] == watched_state[1:]


class Trouble(Net):
    """Raises in its second layer when told to."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or trouble."""
        hidden = torch.relu(self.fc1(x))
        if self.error is not None:
            raise self.error
        out: Tensor = self.fc2(hidden)
        return out


class BackwardTrouble(torch.autograd.Function):
    """Raises in backward."""

    error: BaseException = RuntimeError("in backward")

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Trouble."""
        raise BackwardTrouble.error


def trouble_in_forward(model: Trouble, error: BaseException) -> None:
    model.error = error
    try:
        loss_of(model)
    finally:
        model.error = None


def trouble_in_loss(model: Trouble, error: BaseException) -> None:
    model(batch()[0])
    raise error


def trouble_in_backward(model: Trouble, error: BaseException) -> None:
    BackwardTrouble.error = error
    BackwardTrouble.apply(loss_of(model)).backward()


def trouble_in_evaluation(model: Trouble, error: BaseException) -> None:
    try:
        trouble_in_forward(model.eval(), error)
    finally:
        model.train()


TROUBLES = [trouble_in_forward, trouble_in_loss, trouble_in_backward, trouble_in_evaluation]
ERRORS = [ValueError("no"), KeyboardInterrupt(), SystemExit()]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_after_an_exception_the_hooks_leave_with_the_context(
    trouble: Callable[[Trouble, BaseException], None], error: BaseException
) -> None:
    model = Trouble()
    with pytest.raises(type(error)), observe(model):  # noqa: PT012
        train(model, 1)
        trouble(model, error)
    assert hooks_on(model) == []
    require_nothing_global()


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_after_an_exception_that_was_caught_the_capture_goes_on(
    trouble: Callable[[Trouble, BaseException], None], error: BaseException
) -> None:
    model = Trouble()
    with observe(model) as seen:
        expected = train(model, 1)
        with pytest.raises(type(error)):
            trouble(model, error)
        expected += train(model, 2, first=1)
    assert losses(seen) == pytest.approx(expected)
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1]
