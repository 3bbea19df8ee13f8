"""torch.compile: no graph break of ours, and what can be had whenever it is called."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.optimizer import _global_optimizer_pre_hooks

from fanin.adapters.torch.watching import FORWARD_UNSEEN
from fanin.summary import summarize
from fanin.trial import Role

from .nets import Net, batch, gradient, hooks_on, losses, net, observe, of, parameters_of, same, train

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of compiling


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def require_all_but_the_forward_pass(seen: object, model: Net, expected: list[float]) -> None:
    """Parameters, gradients and losses, and the note that says why there is no more."""
    trial = seen.trial  # type: ignore[attr-defined]
    assert [step.loss for step in trial.steps] == pytest.approx(expected)
    assert set(of(trial.steps[0], Role.WEIGHT)) == {"fc1.weight", "fc2.weight"}
    assert set(of(trial.steps[0], Role.WEIGHT_GRAD)) == {"gradient/fc1.weight", "gradient/fc2.weight"}
    assert not of(trial.steps[0], Role.OUTPUT)
    assert trial.spec.notes == (FORWARD_UNSEEN,)


@pytest.mark.parametrize("when", ["compiled, then watched", "watched, then compiled"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_watch_before_the_first_call_adds_no_graph_break(when: str, backend: str) -> None:
    plain, model = net(), net()
    counters = [CompileCounterWithBackend(backend) for _ in range(2)]
    expected = train(torch.compile(plain, backend=counters[0], fullgraph=True), 5)
    torch._dynamo.reset()
    if when == "watched, then compiled":
        seen = observe(model)
        compiled = torch.compile(model, backend=counters[1], fullgraph=True)
    else:
        compiled = torch.compile(model, backend=counters[1], fullgraph=True)
        seen = observe(compiled)
    assert train(compiled, 5) == expected
    assert same(parameters_of(model), parameters_of(plain))
    compilations = (
        2 if when == "watched, then compiled" else 1
    )  # the compiler notices that our hooks have left
    assert (counters[0].frame_count, counters[1].frame_count) == (1, compilations)
    assert counters[1].op_count == compilations * counters[0].op_count
    require_all_but_the_forward_pass(seen, model, expected[:3])
    assert hooks_on(model) == []


@pytest.mark.parametrize("when", ["compiled, then watched", "watched, then compiled"])
def test_that_somebody_may_ask_it_to_stop_costs_no_compilation_more(when: str, tmp_path: Path) -> None:
    """What could stop the training leaves the model when capture does, and hears of its optimizer for longer."""
    counted, model = CompileCounterWithBackend("eager"), net()
    compiled = torch.compile(model, backend=counted, fullgraph=True)
    with observe(model if when == "watched, then compiled" else compiled, trial=tmp_path / "trial"):
        train(compiled, 5)
        assert _global_optimizer_pre_hooks
    assert counted.frame_count == (2 if when == "watched, then compiled" else 1)


@pytest.mark.parametrize("way", ["torch.compile(model)", "model.compile()"])
def test_a_watch_after_the_first_call_is_noticed_and_gets_what_can_be_had(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    if way == "model.compile()":
        model.compile(backend="aot_eager", fullgraph=True)
        compiled: nn.Module = model
    else:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    train(compiled, 1)
    initial = summarize(model.fc1.weight.detach().numpy())
    with caplog.at_level(logging.INFO, "fanin"):
        seen = observe(compiled)
        expected = train(compiled, 3, first=1)
    assert "compiled" in caplog.text
    assert of(seen.trial.steps[0], Role.WEIGHT)["fc1.weight"].maximum == initial.maximum
    require_all_but_the_forward_pass(seen, model, expected)


def test_the_model_within_is_watched_after_its_wrapper_was_called() -> None:
    """Nothing about the inner model says that it is compiled; hooks on it would never fire."""
    model = net()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    train(compiled, 1)
    seen = observe(model)
    expected = train(compiled, 3, first=1)
    require_all_but_the_forward_pass(seen, model, expected)


def test_a_compiled_function_that_calls_the_model_is_not_broken_up() -> None:
    model = net()
    counter = CompileCounterWithBackend("aot_eager")
    seen = observe(model)

    @torch.compile(backend=counter, fullgraph=True)
    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    expected = []
    for step in range(3):
        model.zero_grad()
        loss = loss_of(*batch(step))
        loss.backward()
        expected.append(loss.item())
    seen.close()
    assert counter.frame_count == 1
    require_all_but_the_forward_pass(seen, model, expected)


def test_the_default_compiler_trains_a_watched_model_the_same() -> None:
    """Inductor, which makes one kernel of many operations."""
    plain, model = net(), net()
    expected = train(torch.compile(plain, fullgraph=True), 4)
    compiled = torch.compile(model, fullgraph=True)
    with observe(compiled) as seen:
        assert train(compiled, 4) == expected
    assert same(parameters_of(model), parameters_of(plain))
    assert losses(seen) == pytest.approx(expected[:3])
    assert gradient(seen.trial.steps[0], "fc1.weight").count == 48
