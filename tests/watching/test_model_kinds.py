"""Models of all sorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fanin
from fanin.adapters.torch.watching import FORWARD_UNSEEN
from fanin.summary import summarize
from fanin.trial import Role
from ways.nets import hooks_on, losses, observe, of, sgd

from .loops import (
    CLASSES,
    INPUTS,
    Net,
    accumulation,
    batch,
    loss_of,
    net,
    train,
)


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
