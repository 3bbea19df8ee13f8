"""Passes that are no steps of the training, in the midst of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn import functional as F

import fanin
from fanin.trial import Role
from stores.samples import plain as to_the_bit

from .nets import batch, hooks_on, loss_of, losses, net, observe, of, parameters_of, same, sgd, train


def detached(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def per_example_gradients(model: nn.Module) -> None:
    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, x[None]), y[None])

    x, y = batch()
    found = vmap(grad(loss), (None, 0, 0))(detached(model), x, y)
    assert found["fc1.weight"].shape == (16, 8, 6)


def a_directional_derivative(model: nn.Module) -> None:
    x, _ = batch()
    jvp(lambda x: functional_call(model, detached(model), (x,)), (x,), (torch.ones_like(x),))


def a_hessian(model: nn.Module) -> None:
    x, y = batch()
    others = detached(model)

    def loss(bias: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, others | {"fc2.bias": bias}, (x,)), y)

    assert hessian(loss)(others["fc2.bias"]).shape == (4, 4)


def other_parameters(model: nn.Module) -> None:
    """A pass of the same modules on parameters that are not the model's, and its backward pass."""
    fresh = {name: p.clone().requires_grad_() for name, p in detached(model).items()}
    functional_call(model, fresh, (batch()[0],)).sum().backward()
    assert fresh["fc1.weight"].grad is not None


def inference(model: nn.Module) -> None:
    with torch.inference_mode():
        model(batch()[0])


def evaluation(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(batch()[0])
    model.train()


PASSES: dict[str, Callable[[nn.Module], None]] = {
    "per-example gradients": per_example_gradients,
    "a directional derivative": a_directional_derivative,
    "a Hessian": a_hessian,
    "other parameters": other_parameters,
    "inference mode": inference,
    "evaluation": evaluation,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_in_between_is_no_step_and_is_not_disturbed(name: str) -> None:
    plain, model = net(), net()
    seen = observe(model, steps=4)
    expected = []
    for step in range(4):
        PASSES[name](plain)
        PASSES[name](model)
        expected += train(plain, 1, first=step)
        train(model, 1, first=step)
    assert losses(seen) == pytest.approx(expected)
    assert same(parameters_of(model), parameters_of(plain))
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1]
    assert set(of(seen.trial.steps[0], Role.OUTPUT)) == {"fc1_output_0", "fc2_output_0"}
    seen.close()
    assert seen.watching.fault is None


def test_what_is_recorded_into_a_graph_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = net(), net()
    seen = observe(model, steps=3)
    expected = train(plain, 1) + train(plain, 1, first=1)
    train(model, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        train(model, 1, first=1)
    train(model, 1, first=2)
    expected += train(plain, 1, first=2)
    seen.close()
    assert same(parameters_of(model), parameters_of(plain))
    assert losses(seen) == pytest.approx([expected[0], expected[2]])


@pytest.mark.parametrize("when", ["before the pass", "before backward", "before the step"])
@pytest.mark.parametrize("steps", [False, True], ids=["one pass", "five steps"])
def test_a_check_amid_a_watched_training_is_no_part_of_it(when: str, steps: bool) -> None:
    def trained(model: nn.Module, checked: bool) -> list[float]:
        optimizer, found = sgd(model), []

        def check(now: str) -> None:
            if checked and now == when:
                fanin.check(model, batch(9), F.cross_entropy, optimizer=optimizer if steps else None)

        for step in range(5):
            optimizer.zero_grad()
            check("before the pass")
            loss = loss_of(model, step)
            check("before backward")
            loss.backward()
            check("before the step")
            optimizer.step()
            found.append(loss.item())
        return found

    plain, model = net(), net()
    with observe(plain) as expected:
        losses_of_plain = trained(plain, checked=False)
    seen = observe(model)
    assert trained(model, checked=True) == losses_of_plain
    assert hooks_on(model) == []
    assert to_the_bit(seen.trial.steps) == to_the_bit(expected.trial.steps)
    seen.close()
