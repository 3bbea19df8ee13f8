"""What is recorded of a gradient is what arrived, whatever becomes of it, of its pass or of other watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_torch_waiting import STEPS, Taken, gradients, let_go  # noqa: F401  # a fixture
from torch import Tensor, nn

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.outgoing import Outgoing
from fanin.adapters.torch.watching import TorchWatching
from fanin.judgement import load_rules, needs


def arrived(
    write: Callable[[nn.Parameter, int], None], steps: int = STEPS
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """What was seen of each step's gradients, and what they were when they arrived; `write(parameter, step)` is called
    when a module's backward is over, amid the whole."""
    taken = Taken(steps)
    names = {p: f"gradient/{n}" for n, p in taken.model.named_parameters()}
    truth: list[dict[str, float]] = [{} for _ in range(steps)]
    for parameter, name in names.items():
        if name.endswith("weight"):

            def note(p: nn.Parameter, name: str = name) -> None:
                assert p.grad is not None
                truth[len(done)][name] = float(p.grad.square().mean().sqrt())

            # Before ours, which is there already; ours is the one that counts as alone, so it hangs on the node.
            node = parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
            node.register_hook(lambda *_, p=parameter, note=note: note(p))
            kept.append(node)
    done: list[int] = []

    def hook(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.grad is not None:
                write(parameter, len(done))

    for module in taken.model[1:]:  # the first one's input needs no gradient, of which torch warns
        module.register_full_backward_hook(hook)
    for _ in range(steps):
        taken.step()
        done.append(1)
    taken.watching.detach()
    return [gradients(step) for step in taken.steps], truth


kept: list[Any] = []
"""Nodes of autograd, which live no longer than somebody keeps them."""


def through_data(parameter: nn.Parameter, step: int) -> None:
    if parameter.grad is not None:
        parameter.grad.data.mul_(1e-3)


def through_numpy(parameter: nn.Parameter, step: int) -> None:
    if parameter.grad is not None:
        parameter.grad.numpy()[...] *= 1e-3


def taken_away(parameter: nn.Parameter, step: int) -> None:
    parameter.grad = None


@pytest.mark.parametrize("write", [through_data, through_numpy, taken_away])
def test_what_is_written_where_no_version_tells_is_not_taken_for_the_gradient(
    write: Callable[[nn.Parameter, int], None],
) -> None:
    seen, truth = arrived(write)
    assert [s.keys() for s in seen] == [t.keys() for t in truth]
    for found, true in zip(seen, truth, strict=True):
        assert found == pytest.approx(true, rel=1e-6)


def failing(taken: Taken, at: int) -> None:
    """The backward pass of one step raises when the first layer's turn comes; the step is taken all the same."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            if len(taken.steps) == at:
                raise ZeroDivisionError
            return gradient

    taken.model[0].register_forward_hook(lambda module, args, output: Fails.apply(output))


def test_gradients_of_a_backward_pass_that_raises_are_those_that_arrived() -> None:
    taken = Taken()
    failing(taken, at=4)
    for step in range(STEPS):
        if step != 4:
            taken.step()
            continue
        with pytest.raises(ZeroDivisionError):
            taken.step()
        taken.optimizer.step()
    taken.watching.detach()
    found = [sorted(gradients(step)) for step in taken.steps]
    assert found[4] == ["gradient/2.weight", "gradient/3.weight"]
    assert {tuple(names) for i, names in enumerate(found) if i != 4} == {
        ("gradient/0.weight", "gradient/2.weight", "gradient/3.weight")
    }


def test_a_backward_pass_that_begins_and_never_ends_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken()
    for _ in range(3):
        taken.step()
    offers, interrupts = Outgoing.offer, [KeyboardInterrupt()]

    def interrupted(self: Outgoing) -> None:
        if interrupts:
            raise interrupts.pop()
        offers(self)

    monkeypatch.setattr(Outgoing, "offer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        taken.step()
    for _ in range(STEPS - 3):
        taken.step()
    taken.watching.detach()
    assert [len(gradients(step)) for step in taken.steps] == [3] * STEPS
    assert taken.watching._sight._arrived == []


def test_a_watch_that_raises_when_a_pass_ends_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = Taken(), Taken()
    other.model, other.optimizer = first.model, first.optimizer
    second = TorchWatching(
        first.model,
        WatchPlan(needs(load_rules()), STEPS, lambda step, _: other.steps.append(step), "raise", 0, 16),
    )
    first.watching._sight.backward_ended = lambda: (_ for _ in ()).throw(ZeroDivisionError)  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        first.step()
    first.optimizer.step()
    for _ in range(STEPS - 1):
        first.step()
    second.detach()
    assert {len(gradients(step)) for step in other.steps} == {3}


def test_an_optimizer_that_steps_amid_the_last_backward_pass_loses_none_that_arrived() -> None:
    taken = Taken()
    x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))

    def steps(module: nn.Module, *_: Any) -> None:
        taken.optimizer.step()

    handle = taken.model[2].register_full_backward_hook(steps)
    for _ in range(STEPS):
        taken.optimizer.zero_grad()
        nn.functional.cross_entropy(taken.model(x), y).backward()
    handle.remove()
    taken.watching.detach()
    assert [len(gradients(step)) for step in taken.steps[:-1]] == [3] * (STEPS - 1)
    assert "gradient/3.weight" in gradients(taken.steps[-1])
