"""Watching real training loops: what is captured, when the hooks leave, and that training never notices."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.checkpoint import checkpoint

import fanin
from fanin.adapters.torch import drafting, tracing
from fanin.adapters.torch.sight import Sight
from fanin.adapters.torch.watching import FORWARD_UNSEEN, TorchWatching
from fanin.capture import Watch, watch
from fanin.errors import StoreError, TrialExistsError, UsageError
from fanin.examine import load_trial
from fanin.judgement import load_rules
from fanin.rule import Need
from fanin.stores.memory import MemoryStore
from fanin.summary import summarize
from fanin.trial import RECHECK, Role
from ways.nets import Everything, hooks_on, losses, observe, of, sgd

ORIGINAL_BACKWARD = torch.autograd.backward
INPUTS, CLASSES = 6, 3
LossFn = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """A network with dropout, so that its training uses random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, 8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.fc2(self.drop(self.relu(self.fc1(x))))
        return out


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(size, INPUTS, generator=made), torch.randint(CLASSES, (size,), generator=made)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x), y)


def train(
    model: nn.Module, steps: int, each: Callable[[int], None] = lambda step: None, first: int = 0
) -> list[float]:
    """Plain training; `each(step)` runs before each step. Returns the losses."""
    optimizer, losses = sgd(model), []
    for step in range(first, first + steps):
        each(step)
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def require_nothing_global() -> None:
    assert torch.autograd.backward is ORIGINAL_BACKWARD
    assert not _global_optimizer_post_hooks
    assert torch._C._len_torch_function_stack() == 0


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    torch.set_num_threads(1)
    require_nothing_global()
    yield
    require_nothing_global()


# ── the steps ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("planned", [1, 3, 10])
def test_exactly_the_planned_steps_are_captured_and_then_no_hook_is_left(planned: int) -> None:
    model = net()
    seen = observe(model, steps=planned)
    expected = train(model, planned)
    assert not seen.attached
    assert hooks_on(model) == []
    require_nothing_global()
    train(model, 3)
    assert [step.index for step in seen.trial.steps] == list(range(planned))
    assert losses(seen) == pytest.approx(expected)
    seen.close()
    assert seen.trial.complete


def test_a_trial_is_complete_as_soon_as_its_last_step_is_over() -> None:
    model = net()
    seen = observe(model)
    train(model, 2)
    assert not seen.trial.complete
    train(model, 1)
    assert seen.trial.complete


def test_closing_early_keeps_what_was_seen() -> None:
    model = net()
    with observe(model) as seen:
        train(model, 2)
    assert hooks_on(model) == []
    assert len(seen.trial.steps) == 2
    assert seen.trial.complete
    seen.close()


def test_the_weights_of_step_0_are_the_initial_ones() -> None:
    model = net()
    initial = {name: summarize(p.detach().numpy()) for name, p in model.named_parameters()}
    with observe(model) as seen:
        train(model, 3)
    start = seen.trial.start
    assert start is not None
    found = {**of(start, Role.WEIGHT), **of(start, Role.BIAS)}
    assert found.keys() == initial.keys()
    for name, summary in initial.items():
        assert found[name].mean == pytest.approx(summary.mean, rel=1e-6, abs=1e-7 * summary.rms)  # of float32
        assert found[name].maximum == summary.maximum
    assert of(seen.trial.steps[1], Role.WEIGHT)["fc1.weight"].m2 != initial["fc1.weight"].m2


def test_every_role_of_every_layer_is_seen_at_every_step() -> None:
    model = net()
    with observe(model) as seen:
        train(model, 3)
    for step in seen.trial.steps:
        assert set(of(step, Role.OUTPUT)) == {"fc1_output_0", "fc2_output_0"}
        assert set(of(step, Role.INPUT)) == {"fc1_input_0", "fc2_input_0"}
        assert set(of(step, Role.ACTIVATION_INPUT)) == {"relu_input_0"}
        assert set(of(step, Role.WEIGHT_GRAD)) == {"gradient/fc1.weight", "gradient/fc2.weight"}
        assert set(of(step, Role.OUTPUT_GRAD)) == {"gradient/fc1_output_0", "gradient/fc2_output_0"}
    spec = seen.trial.spec
    assert [(layer.path, layer.calls) for layer in spec.layers] == [("fc1", 1), ("fc2", 1)]
    assert spec.notes == ()


class Rechecking(Everything):
    """Asks for outputs at the start and at the recheck, for inputs at the start, for gradients at every step."""

    needs = frozenset(
        {
            Need(Role.OUTPUT, recheck=True, units=True),
            Need(Role.INPUT),
            Need(Role.WEIGHT_GRAD, every_step=True),
            Need(Role.OUTPUT_GRAD, recheck=True, reference=True),
        }
    )


def test_the_recheck_sees_what_was_asked_for_again() -> None:
    model = net()
    with observe(model, rules=[Rechecking()], steps=RECHECK + 2) as seen:
        train(model, RECHECK + 2)
    again = {Role.OUTPUT, Role.OUTPUT_GRAD, Role.WEIGHT_GRAD}
    expected = [{Role.WEIGHT_GRAD}] * (RECHECK + 2)
    expected[0], expected[RECHECK] = again | {Role.INPUT}, again
    assert [{o.role for o in step.observations} for step in seen.trial.steps] == expected
    assert of(seen.trial.steps[RECHECK], Role.OUTPUT)["fc1_output_0"].units is not None
    assert [step.index for step in seen.trial.looks(Role.OUTPUT)] == [0, RECHECK]


def test_all_rules_together_look_again_at_step_5() -> None:
    model = net()
    with watch(model, steps=10, on_error="raise") as seen:
        train(model, 10)
    wanted = {n.role for rule in load_rules() for n in rule.needs if n.recheck or n.every_step}
    unseen = {Role.ATTENTION_ENTROPY, Role.UPDATE, Role.TARGET, Role.UNINFORMED_LOSS}
    assert {o.role for o in seen.trial.steps[RECHECK].observations} == wanted - unseen
    assert Role.OUTPUT_GRAD not in {o.role for o in seen.trial.steps[RECHECK + 1].observations}


def test_what_is_seen_is_what_the_loop_computed() -> None:
    model, (x, y) = net(), batch()
    pre = []
    model.fc1.register_forward_hook(lambda module, args, output: pre.append(output.detach().clone()))
    with observe(model, steps=1) as seen:
        nn.functional.cross_entropy(model(x), y).backward()
    (step,) = seen.trial.steps
    assert of(step, Role.ACTIVATION_INPUT)["relu_input_0"].variance == pytest.approx(
        float(pre[0].var(correction=0))
    )
    gradient = model.fc1.weight.grad
    assert gradient is not None
    assert of(step, Role.WEIGHT_GRAD)["gradient/fc1.weight"].m2 == pytest.approx(
        float((gradient - gradient.mean()).square().sum())
    )


def no_step_evaluation(model: nn.Module) -> None:
    model.eval()
    model(batch()[0])
    with torch.no_grad():
        model(batch()[0])
    model.train()


def no_step_without_gradients(model: nn.Module) -> None:
    with torch.no_grad():
        model(batch()[0])
    with torch.inference_mode():
        model(batch()[0])


def no_step_undifferentiated(model: nn.Module) -> None:
    loss_of(model)


def no_step_foreign(model: nn.Module) -> None:
    train(net(5), 1)


def no_step_for_the_input(model: nn.Module) -> None:
    x = batch()[0].requires_grad_()
    torch.autograd.grad(model(x).sum(), x)


@pytest.mark.parametrize(
    "other",
    [
        no_step_evaluation,
        no_step_without_gradients,
        no_step_undifferentiated,
        no_step_foreign,
        no_step_for_the_input,
    ],
)
def test_other_passes_between_the_steps_are_none(other: Callable[[nn.Module], None]) -> None:
    model = net()
    with observe(model, steps=4) as seen:
        expected = train(model, 4, lambda step: other(model))
    assert losses(seen) == pytest.approx(expected)
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1]


@pytest.mark.parametrize(
    "model", [nn.BatchNorm1d(INPUTS, affine=False), nn.ReLU(), nn.Linear(3, 3).requires_grad_(False)]
)
def test_a_model_without_anything_to_train_gives_no_step(model: nn.Module) -> None:
    with observe(model) as seen:
        model(torch.randn(4, 3 if isinstance(model, nn.Linear) else INPUTS))
    assert seen.trial.steps == ()
    assert hooks_on(model) == []


# ── when a step ends ────────────────────────────────────────────────────────────────────────────────────────

Loop = Callable[[nn.Module, int], None]


def accumulation(model: nn.Module, steps: int) -> None:
    optimizer = sgd(model)
    for step in range(steps):
        for micro in range(3):
            (loss_of(model, 3 * step + micro) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()


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


# ── the loss ────────────────────────────────────────────────────────────────────────────────────────────────

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


# ── models of all sorts ─────────────────────────────────────────────────────────────────────────────────────


class Tied(nn.Module):
    """One weight in two places, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, INPUTS)
        self.second = nn.Linear(INPUTS, INPUTS)
        self.second.weight = self.first.weight
        self.head = nn.Linear(INPUTS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.head(self.second(torch.relu(self.first(torch.relu(self.first(x))))))
        return out


def test_tied_weights_and_modules_called_twice_are_seen_once_each() -> None:
    model = Tied()
    with observe(model) as seen:
        train(model, 3)
    (start, *_) = seen.trial.steps
    assert set(of(start, Role.WEIGHT)) == {"first.weight", "head.weight"}
    assert set(of(start, Role.WEIGHT_GRAD)) == {"gradient/first.weight", "gradient/head.weight"}
    assert {"first_output_0", "first_output_1"} <= set(of(start, Role.OUTPUT))
    assert seen.trial.spec.layer("first").calls == 2
    assert seen.trial.spec.layer("second").parameters[0].tied_to == "first.weight"


def test_frozen_layers_have_no_gradient_and_hinder_nothing() -> None:
    model = net()
    model.fc1.requires_grad_(False)
    with observe(model) as seen:
        accumulation(model, 3)
    assert len(seen.trial.steps) == 3
    start = seen.trial.steps[0]
    assert set(of(start, Role.WEIGHT_GRAD)) == {"gradient/fc2.weight"}
    assert set(of(start, Role.WEIGHT)) == {"fc1.weight", "fc2.weight"}
    assert not seen.trial.spec.layer("fc1").parameters[0].trainable


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precisions(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    optimizer = sgd(model)
    with observe(model) as seen:
        for step in range(3):
            x, y = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
            optimizer.step()
    assert len(seen.trial.steps) == 3
    assert {o.dtype for o in seen.trial.steps[0].observations} == {str(dtype).removeprefix("torch.")}


def test_autocast_does_not_reach_the_statistics() -> None:
    model = net()
    with observe(model, steps=1) as seen, torch.autocast("cpu", torch.bfloat16):
        loss_of(model).backward()
    weights = of(seen.trial.steps[0], Role.WEIGHT)
    expected = summarize(model.fc1.weight.detach().numpy(), unit_axis=0)
    units = weights["fc1.weight"].units
    assert units is not None
    assert expected.units is not None
    np.testing.assert_allclose(units.projection, expected.units.projection, rtol=1e-5)
    assert seen.trial.steps[0].of(Role.OUTPUT)["fc1_output_0"].dtype == "bfloat16"


class Lazy(nn.Module):
    """Layers that learn their width from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.LazyLinear(8)
        self.norm = nn.LazyBatchNorm1d()
        self.fc2 = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.fc2(torch.relu(self.norm(self.fc1(x))))
        return out


def test_lazy_modules_are_seen_from_the_first_step_on() -> None:
    model = Lazy()
    with observe(model) as seen:
        x, y = batch()
        out = model(x)
        optimizer = sgd(model)
        nn.functional.cross_entropy(out, y).backward()
        optimizer.step()
        train(model, 2)
    start = seen.trial.steps[0]
    assert len(seen.trial.steps) == 3
    assert {"fc1.weight", "fc2.weight"} <= set(of(start, Role.WEIGHT))
    assert {"gradient/fc1.weight", "gradient/fc2.weight"} <= set(of(start, Role.WEIGHT_GRAD))
    assert seen.trial.spec.layer("fc1").parameters[0].fan_in == INPUTS


class Sparse(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4, sparse=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.head(self.embedding(x))
        return out


def test_sparse_gradients_accumulate_like_others() -> None:
    model, optimizer = Sparse(), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with observe(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):
                nn.functional.cross_entropy(
                    model(torch.tensor([1, 2, 2])), torch.tensor([0, 1, 2])
                ).backward()
            optimizer.step()
    assert len(seen.trial.steps) == 2
    gradient = of(seen.trial.steps[0], Role.WEIGHT_GRAD)["gradient/embedding.weight"]
    assert gradient.count == 80
    assert gradient.zeros >= 72


class Checkpointed(nn.Module):
    """A network that computes its middle anew in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.block, self.head = nn.Linear(INPUTS, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = torch.relu(self.stem(x))
        again = checkpoint(lambda h: torch.relu(self.block(h)), hidden, use_reentrant=self.reentrant)
        out: Tensor = self.head(again)
        return out


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_one_forward_pass_a_step(reentrant: bool) -> None:
    model = Checkpointed(reentrant)
    with observe(model) as seen:
        expected = train(model, 3)
    assert losses(seen) == pytest.approx(expected)
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1, 1]
    assert len(of(seen.trial.steps[0], Role.OUTPUT)) == 3
    assert len(of(seen.trial.steps[0], Role.WEIGHT_GRAD)) == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_that_is_checkpointed_as_a_whole_gives_one_step_each(reentrant: bool) -> None:
    model = net()
    optimizer = sgd(model)
    expected = []
    with observe(model) as seen:
        for step in range(3):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                checkpoint(model, x.requires_grad_(), use_reentrant=reentrant), y
            )
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert losses(seen) == pytest.approx(expected)
    assert [layer.calls for layer in seen.trial.spec.layers] == [1, 1]
    assert set(of(seen.trial.steps[0], Role.OUTPUT)) == {"fc1_output_0", "fc2_output_0"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", ["before", "after"])
@pytest.mark.parametrize("part", ["model", "in place", "child"])
def test_of_a_compiled_model_parameters_gradients_and_loss_are_seen(compiled: str, part: str) -> None:
    def compile_it(model: nn.Module) -> nn.Module:
        if part == "child":
            model.fc1 = torch.compile(model.fc1, backend="eager", fullgraph=True)
        elif part == "in place":
            model.compile(backend="eager", fullgraph=True)
        return torch.compile(model, backend="eager", fullgraph=True) if part == "model" else model

    torch._dynamo.reset()
    model = plain = net()
    if compiled == "before":
        model = compile_it(model)
    seen = observe(model)
    if compiled == "after":
        model = compile_it(model)
    expected = train(model, 4)
    assert not seen.attached
    assert hooks_on(plain) == []
    assert losses(seen) == pytest.approx(expected[:3])
    start = seen.trial.steps[0]
    initial = {name: summarize(p.detach().numpy()) for name, p in net().named_parameters()}
    weights = {name.replace("_orig_mod.", ""): s for name, s in of(start, Role.WEIGHT).items()}
    assert {name: s.maximum for name, s in weights.items()} == {
        name: initial[name].maximum for name in weights
    }
    assert len(of(start, Role.WEIGHT_GRAD)) == 2
    assert seen.trial.spec.notes == (FORWARD_UNSEEN,)
    seen.close()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_function_within_the_forward_pass_is_left_alone() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def scaled(x: Tensor) -> Tensor:
        return torch.relu(x) * 2

    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc2(scaled(self.fc1(x)))
            return out

    model = Model()
    with observe(model) as seen:
        expected = train(model, 3)
    assert losses(seen) == pytest.approx(expected)
    assert set(of(seen.trial.steps[0], Role.OUTPUT)) == {"fc1_output_0", "fc2_output_0"}


def test_parts_that_are_called_one_by_one_are_seen_through_their_gradients() -> None:
    class Parts(Net):
        def encode(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc1(x))

    model = Parts()
    optimizer = sgd(model)
    with observe(model) as seen:
        for step in range(3):
            x, y = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.fc2(model.encode(x)), y).backward()
            optimizer.step()
    assert len(seen.trial.steps) == 3
    assert seen.trial.spec.notes == (FORWARD_UNSEEN,)


# ── copies, threads, processes ──────────────────────────────────────────────────────────────────────────────


def by_pickle(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_watched_model_trains_unwatched(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    with observe(model) as seen:
        train(model, 1)
        twin = copied(model)
        train(twin, 5)
        assert len(seen.trial.steps) <= 1
        train(model, 2, first=1)
    assert len(seen.trial.steps) == 3


def test_a_watched_model_can_be_loaded_where_fanin_is_not_installed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with observe(model):
        torch.save(model, tmp_path / "model.pt")
    script = (
        "import sys; sys.modules['fanin'] = None; import torch;"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False);"
        "model(torch.ones(1, 2)).sum().backward()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_forward_pass_in_another_thread_is_left_alone() -> None:
    model = net()
    failures = []

    def elsewhere() -> None:
        try:
            for _ in range(5):
                loss_of(model)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def in_a_thread(step: int) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    with observe(model) as seen:
        expected = train(model, 3, in_a_thread)
    assert failures == []
    assert losses(seen) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_nothing(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import os, sys, torch
torch.set_num_threads(1)
from fanin.capture import watch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def train(steps):
    for step in range(steps):
        optimizer.zero_grad(); model(torch.ones(2, 3)).sum().backward(); optimizer.step()
seen = watch(model, trial={str(tmp_path / "trial")!r}, steps=5)
train(1)
child = os.fork()
if not child:
    train(7)
    sys.exit(0)
os.waitpid(child, 0)
train(2)
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    trial = load_trial(tmp_path / "trial")
    assert len(trial.steps) == 3
    assert trial.complete


# ── training is not affected ────────────────────────────────────────────────────────────────────────────────


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


# ── faults of ours ──────────────────────────────────────────────────────────────────────────────────────────


class OurFaultError(Exception):
    """Something in fanin is broken."""


def broken(*args: Any, **kwargs: Any) -> Any:
    raise OurFaultError("broken")


FAULTS: dict[str, tuple[Any, str]] = {
    "summaries": (drafting, "summarize"),
    "observe": (drafting.Draft, "observe"),
    "finished": (drafting.Draft, "finished"),
    "tracer.begin": (tracing.Tracer, "begin"),
    "tracer.enters": (tracing.Tracer, "enters"),
    "tracer.leaves": (tracing.Tracer, "leaves"),
    "tracer.before": (tracing.Tracer, "before"),
    "tracer.after": (tracing.Tracer, "after"),
    "tracer.refresh": (tracing.Tracer, "_of"),
    "a step begins": (TorchWatching, "_begin_step"),
    "a step ends": (TorchWatching, "_is_over"),
    "an optimizer steps": (TorchWatching, "_stepped"),
    "a gradient arrives": (TorchWatching, "_has_gradient"),
    "an output's gradient arrives": (Sight, "_has_output_gradient"),
    "the writer": (Watch, "_keep"),
}


def break_it(monkeypatch: pytest.MonkeyPatch, name: str, model: nn.Module, on_error: str) -> Watch:
    """Watch, then break a part of fanin; hooks that hold their function have to be hung after that."""
    where, what = FAULTS[name]
    monkeypatch.setattr(where, what, broken)
    return observe(model, on_error=on_error)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_ours_is_logged_once_and_training_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = train(net(), 5)
    model = net()
    with caplog.at_level(logging.WARNING, "fanin"):
        seen = break_it(monkeypatch, name, model, "warn")
        assert train(model, 5) == expected
        seen.close()
    assert [r.name for r in caplog.records] == ["fanin"]
    assert "training goes on" in caplog.text
    assert "OurFaultError: broken" in caplog.text
    assert hooks_on(model) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_ours_is_raised_where_that_was_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    seen = break_it(monkeypatch, name, model, "raise")
    with pytest.raises(OurFaultError):
        train(model, 5)
    assert hooks_on(model) == []
    seen.close()


def test_a_trial_that_cannot_be_written_is_reported_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    seen = observe(model, on_error="warn")
    monkeypatch.setattr(
        type(seen._writer), "close", lambda self: (_ for _ in ()).throw(StoreError("disk full"))
    )
    train(model, 5)
    seen.close()
    assert [r.message.count("disk full") for r in caplog.records] == [1]


def test_watching_does_not_start_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    monkeypatch.setattr(TorchWatching, "_attach_to_modules", broken)
    with pytest.raises(OurFaultError):
        observe(model)
    assert hooks_on(model) == []


# ── trials ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trial_on_disk_is_the_one_in_memory(tmp_path: Path) -> None:
    in_memory, on_disk = net(), net()
    with observe(in_memory) as a:
        torch.manual_seed(1)
        train(in_memory, 3)
    with observe(on_disk, trial=tmp_path / "trial") as b:
        torch.manual_seed(1)
        train(on_disk, 3)
    kept = load_trial(tmp_path / "trial")
    assert kept.complete
    assert kept.spec == a.trial.spec == b.trial.spec
    assert losses(a) == losses(b)
    for x, y in zip(a.trial.steps, kept.steps, strict=True):
        assert x.losses == y.losses
        assert [(o.tensor, o.role, o.shape, o.dtype) for o in x.observations] == [
            (o.tensor, o.role, o.shape, o.dtype) for o in y.observations
        ]
        assert [o.summary.m2 for o in x.observations] == [o.summary.m2 for o in y.observations]


def test_an_existing_trial_is_refused_before_any_hook_is_hung(tmp_path: Path) -> None:
    with observe(net(), trial=tmp_path / "trial"):
        pass
    model = net()
    with pytest.raises(TrialExistsError):
        observe(model, trial=tmp_path / "trial")
    assert hooks_on(model) == []


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps must be positive"):
        observe(net(), steps=steps, trial=tmp_path / "trial")
    assert not (tmp_path / "trial").exists()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a model that fanin knows"):
        watch(net().state_dict(), trial=tmp_path / "trial")
    assert not (tmp_path / "trial").exists()


def test_the_trial_knows_its_run() -> None:
    model = net()
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)) as seen:
        pass
    assert seen.trial.about["optimizer"] == "SGD lr=0.05 momentum=0.9"
    assert seen.trial.about["framework"].startswith("torch ")
    assert isinstance(seen._store, MemoryStore)


def test_watch_is_a_public_name() -> None:
    assert fanin.watch is watch


class Turning(nn.Module):
    """From its third pass on it takes another way, with a layer that no pass has shown before."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0
        self.fc = nn.Linear(6, 8)
        self.extra = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 6] to [batch, 3]."""
        self.passes += 1
        h = torch.relu(self.fc(x))
        if self.passes > 2:
            h = torch.relu(self.extra(h))
        return self.head(h)


def test_a_model_that_takes_another_way_is_followed_anew() -> None:
    torch.manual_seed(0)
    model = Turning()
    optimizer = sgd(model)
    seen = fanin.watch(model, optimizer, steps=6, on_error="raise")
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().sum().backward()
        optimizer.step()
    trial = seen.trial
    inputs = {p.path: p.inputs for p in trial.spec.layers}
    assert inputs["extra"] == ("fc",)
    assert inputs["head"] == ("extra",)
    assert [len(of(step, Role.ACTIVATION_INPUT)) for step in trial.steps] == [1, 1, 2, 2, 2, 2]
