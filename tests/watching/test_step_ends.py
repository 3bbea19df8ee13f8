"""When a step ends, in whatever way the parameters are updated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fanin.trial import Role
from ways.nets import losses, observe, of, sgd

from .loops import (
    CLASSES,
    Net,
    accumulation,
    loss_of,
    net,
    train,
)

Loop = Callable[[nn.Module, int], None]


def accumulation_after_a_write(model: nn.Module, steps: int) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0)
    accumulation(model, steps)


def accumulation_by_hand(model: nn.Module, steps: int) -> None:
    for step in range(steps):
        for micro in range(3):
            (loss_of(model, 3 * step + micro) / 3).backward()
        for p in model.parameters():
            assert p.grad is not None
            p.data -= 0.1 * p.grad
            p.grad = None


def zero_grad_between(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model)
    for step in range(steps):
        loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def zero_grad_to_zero(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, step).backward()
        optimizer.step()


def zero_grad_never(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model, 1e-3)
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()


def by_hand(write: Callable[[nn.Parameter], None], reset: str) -> Loop:
    def loop(model: nn.Module, steps: int) -> None:
        for step in range(steps):
            loss = loss_of(model, step)
            if reset == "between":
                model.zero_grad()
            loss.backward()
            for p in model.parameters():
                write(p)
            if reset == "after":
                model.zero_grad(set_to_none=False)

    return loop


def through_data(p: nn.Parameter) -> None:
    assert p.grad is not None
    p.data -= 0.1 * p.grad


def under_no_grad(p: nn.Parameter) -> None:
    assert p.grad is not None
    with torch.no_grad():
        p -= 0.1 * p.grad


def new_data(p: nn.Parameter) -> None:
    assert p.grad is not None
    p.data = p.data - 0.1 * p.grad


def two_optimizers(model: nn.Module, steps: int) -> None:
    assert isinstance(model, Net)
    first, second = sgd(model.fc1), torch.optim.Adam(model.fc2.parameters())
    for step in range(steps):
        first.zero_grad()
        second.zero_grad()
        loss_of(model, step).backward()
        first.step()
        second.step()


def skipped_by_a_scaler(model: nn.Module, steps: int) -> None:
    for step in range(steps):
        model.zero_grad()
        loss_of(model, step).backward()


def clipped(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def closure(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model)
    for step in range(steps):

        def again(step: int = step) -> float:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss.item()

        optimizer.step(again)


LOOPS: dict[str, Loop] = {
    "gradient accumulation": accumulation,
    "gradient accumulation after in-place writes": accumulation_after_a_write,
    "gradient accumulation by hand": accumulation_by_hand,
    "zero_grad between forward and backward": zero_grad_between,
    "zero_grad to zero": zero_grad_to_zero,
    "zero_grad never": zero_grad_never,
    "p.data -=, reset after": by_hand(through_data, "after"),
    "p.data -=, reset between": by_hand(through_data, "between"),
    "p.data -=, never reset": by_hand(through_data, "never"),
    "p -= under no_grad, reset between": by_hand(under_no_grad, "between"),
    "p.data = new, reset between": by_hand(new_data, "between"),
    "two optimizers": two_optimizers,
    "a step that the scaler skips": skipped_by_a_scaler,
    "gradient clipping": clipped,
    "a closure": closure,
}


@pytest.mark.parametrize("name", LOOPS)
def test_each_update_ends_a_step(name: str) -> None:
    model = net()
    with observe(model, steps=20) as seen:
        LOOPS[name](model, 4)
    assert [step.index for step in seen.trial.steps] == [0, 1, 2, 3]
    for step in seen.trial.steps:
        assert set(of(step, Role.WEIGHT_GRAD)) == {"gradient/fc1.weight", "gradient/fc2.weight"}


def test_accumulated_gradients_are_seen_whole() -> None:
    model = net()
    with observe(model, steps=1) as seen:
        for micro in range(3):
            loss_of(model, micro).backward()
    gradient = model.fc2.weight.grad
    assert gradient is not None
    (step,) = seen.trial.steps
    assert of(step, Role.WEIGHT_GRAD)["gradient/fc2.weight"].maximum == float(gradient.max())


def test_a_dead_layer_with_zero_gradients_does_not_end_a_step() -> None:
    model = net()
    with torch.no_grad():
        model.fc1.bias.fill_(-100.0)  # every ReLU is dead: all gradients of fc1 are zero
        model.fc2 = nn.Linear(8, CLASSES)
    with observe(model) as seen:
        accumulation(model, 2)
    assert len(seen.trial.steps) == 2


def test_an_optimizer_of_another_model_ends_nothing() -> None:
    model, other = net(), net(1)
    foreign = sgd(other)
    with observe(model) as seen:
        for micro in range(3):
            loss_of(model, micro).backward()
            foreign.step()
    assert len(seen.trial.steps) == 1


def test_two_models_in_one_loop_are_two_trials() -> None:
    a, b = net(0), net(1)
    with observe(a) as seen_a, observe(b, steps=2) as seen_b:
        for step in range(3):
            train(a, 1, first=step)
            train(b, 1, first=10 + step)
    assert len(seen_a.trial.steps) == 3
    assert len(seen_b.trial.steps) == 2
    assert losses(seen_a)[0] != losses(seen_b)[0]


def test_two_watchers_of_one_model_see_the_same() -> None:
    model = net()
    with observe(model) as first, observe(model, steps=2) as second:
        expected = train(model, 3)
    assert losses(first) == pytest.approx(expected)
    assert losses(second) == losses(first)[:2]
    for a, b in zip(first.trial.steps, second.trial.steps, strict=False):
        assert [o.tensor for o in a.observations] == [o.tensor for o in b.observations]
