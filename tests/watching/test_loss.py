"""The loss is found without being told."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from typing import Any

import pytest
import torch
from torch import Tensor

from fanin.trial import Role
from ways.nets import losses, observe, of, sgd

from .loops import (
    ORIGINAL_BACKWARD,
    batch,
    loss_of,
    net,
    train,
)

BACKWARDS: dict[str, tuple[Callable[[Tensor], None], float]] = {
    "loss.backward()": (lambda loss: loss.backward(), 1.0),
    "loss.sum().backward()": (lambda loss: loss.sum().backward(), 1.0),
    "a scaled loss": (lambda loss: (loss * 8).backward(), 8.0),
    "torch.autograd.backward(loss)": (lambda loss: torch.autograd.backward(loss), 1.0),
    "torch.autograd.backward([loss])": (lambda loss: torch.autograd.backward([loss]), 1.0),
    "a generator of losses": (lambda loss: torch.autograd.backward(one for one in [loss]), 1.0),  # type: ignore[arg-type]
    "with a gradient": (lambda loss: loss.backward(torch.tensor(2.0)), 1.0),
    "retain_graph": (lambda loss: loss.backward(retain_graph=True), 1.0),
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_the_loss_is_what_backward_is_called_on(name: str) -> None:
    backward, factor = BACKWARDS[name]
    model = net()
    with observe(model, steps=1) as seen:
        loss = loss_of(model)
        backward(loss)
    assert losses(seen) == pytest.approx([factor * loss.item()])


def test_a_loss_that_is_changed_after_backward_was_another() -> None:
    model = net()
    with observe(model, steps=1) as seen:
        loss = loss_of(model)
        before = loss.item()
        loss.backward()
        loss.detach().mul_(100.0)
    assert losses(seen) == [before]


@pytest.mark.parametrize("when", ["before backward", "after backward"])
@pytest.mark.parametrize("value", [7.0, torch.tensor(7.0)])
def test_a_stated_loss_overrides_what_was_found(when: str, value: Any) -> None:
    model = net()
    with observe(model, steps=1) as seen:
        loss = loss_of(model) * 1024
        if when == "before backward":
            seen.loss(value)
        loss.backward()
        if when == "after backward":
            seen.loss(value)
    assert losses(seen) == [7.0]


def test_a_loss_that_is_no_scalar_is_not_a_number() -> None:
    model = net()
    with observe(model, steps=1) as seen:
        out = model(batch()[0])
        out.backward(torch.ones_like(out))
    assert isnan(losses(seen)[0])


def test_a_loss_that_is_not_a_number_does_not_stop_the_capture() -> None:
    model = net()
    with observe(model) as seen:
        optimizer = sgd(model)
        for step in range(3):
            optimizer.zero_grad()
            (loss_of(model, step) * (float("nan") if step else 1.0)).backward()
            optimizer.step()
    assert [isnan(loss) for loss in losses(seen)] == [False, True, True]
    assert of(seen.trial.steps[2], Role.WEIGHT)["fc1.weight"].nan > 0


def test_a_function_that_somebody_put_in_place_of_backward_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def theirs(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        ORIGINAL_BACKWARD(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", theirs)
    model = net()
    with observe(model, steps=2) as seen:
        expected = train(model, 1)
        ours = torch.autograd.backward

        def theirs_on_top(*args: Any, **kwargs: Any) -> None:
            ours(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, "backward", theirs_on_top)
        expected += train(model, 1)
    assert torch.autograd.backward is theirs_on_top
    with observe(model, steps=1) as again:
        expected += train(model, 1)
    assert losses(seen) + losses(again) == pytest.approx(expected)
    assert len(calls) == 3
