"""What one step is: accumulation, clipping, closures that are evaluated again, recomputation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fanin.summary import summarize
from fanin.trial import Role

from .nets import batch, gradient, loss_of, losses, net, observe, of, parameters_of, same, sgd

MICRO = 4


def accumulated(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model)
    for step in range(steps):
        for micro in range(MICRO):
            (loss_of(model, MICRO * step + micro) / MICRO).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_gradient_accumulation_is_one_record_for_each_step_of_the_optimizer() -> None:
    model, twin = net(), net()
    with observe(model, steps=10) as seen:
        accumulated(model, 3)
    for micro in range(MICRO):
        (loss_of(twin, micro) / MICRO).backward()
    whole = twin.fc2.weight.grad
    assert whole is not None
    assert [step.index for step in seen.trial.steps] == [0, 1, 2]
    assert gradient(seen.trial.steps[0], "fc2.weight").maximum == float(whole.max())
    assert losses(seen)[0] == pytest.approx(loss_of(net(), 0).item() / MICRO)  # that of the first part


CLIPS: dict[str, Callable[[nn.Module], object]] = {
    "by norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "by value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-4),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_a_gradient_is_the_one_before_clipping(clip: str) -> None:
    model, twin = net(), net()
    optimizer = sgd(model)
    with observe(model, steps=2) as seen:
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            CLIPS[clip](model)
            optimizer.step()
    loss_of(twin).backward()
    raw, clipped = twin.fc2.weight.grad, model.fc2.weight.grad
    assert raw is not None
    assert clipped is not None
    assert gradient(seen.trial.steps[0], "fc2.weight").maximum == float(raw.max())
    assert float(clipped.abs().max()) < 0.1 * float(raw.abs().max())


def test_a_gradient_that_a_hook_clips_as_it_arrives_is_the_clipped_one() -> None:
    """Whoever registers a hook on the tensor changes the gradient itself: there is no other."""
    model = net()
    model.fc2.weight.register_hook(lambda arriving: arriving.clamp(-1e-3, 1e-3))
    with observe(model, steps=1) as seen:
        loss_of(model).backward()
    assert gradient(seen.trial.steps[0], "fc2.weight").maximum == pytest.approx(1e-3)


def lbfgs(model: nn.Module, steps: int) -> int:
    """Train with line search; returns how often the loss was computed."""
    optimizer, evaluations = (
        torch.optim.LBFGS(model.parameters(), max_iter=5, line_search_fn="strong_wolfe"),
        0,
    )
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    return evaluations


def test_a_step_of_lbfgs_is_one_record_of_its_first_evaluation() -> None:
    model, twin = net(), net()
    expected = loss_of(twin)
    expected.backward()
    with observe(model, steps=3) as seen:
        evaluations = lbfgs(model, 3)
    assert evaluations > 9
    assert [step.index for step in seen.trial.steps] == [0, 1, 2]
    assert losses(seen)[0] == expected.item()
    assert gradient(seen.trial.steps[0], "fc2.weight").maximum == float(twin.fc2.weight.grad.max())  # type: ignore[union-attr]
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1]


def test_lbfgs_trains_the_same_with_and_without_a_watch() -> None:
    plain, model = net(), net()
    expected = lbfgs(plain, 4)
    with observe(model):
        assert lbfgs(model, 4) == expected
    assert same(parameters_of(model), parameters_of(plain))


def test_a_closure_that_raises_leaves_the_next_step_whole() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def broken() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        raise ValueError("in the user's closure")

    with observe(model, steps=2) as seen:
        with pytest.raises(ValueError, match="closure"):
            optimizer.step(broken)
        lbfgs(model, 2)
    assert [step.index for step in seen.trial.steps] == [0, 1]


class Checkpointed(nn.Module):
    """Its middle is computed anew in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.block, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = torch.relu(self.stem(x))
        again = checkpoint(lambda h: torch.relu(self.block(h)), hidden, use_reentrant=self.reentrant)
        out: Tensor = self.head(again)
        return out


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_not_a_second_forward_pass(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Checkpointed(reentrant)
    expected = summarize(model.block(torch.relu(model.stem(batch()[0]))).detach().numpy())
    optimizer = sgd(model)
    with observe(model) as seen:
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
    start = seen.trial.steps[0]
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1, 1]
    assert set(of(start, Role.OUTPUT)) == {"stem_output_0", "block_output_0", "head_output_0"}
    assert of(start, Role.OUTPUT)["block_output_0"].m2 == pytest.approx(expected.m2)
    assert len(of(start, Role.WEIGHT_GRAD)) == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_accumulation_is_one_record_a_step(reentrant: bool) -> None:
    model = Checkpointed(reentrant)
    with observe(model, steps=10) as seen:
        accumulated(model, 2)
    assert [step.index for step in seen.trial.steps] == [0, 1]
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1, 1]
