"""What a watch captures, step by step, and what is no step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fanin.capture import watch
from fanin.judgement import load_rules
from fanin.rule import Need
from fanin.summary import summarize
from fanin.trial import RECHECK, Role
from ways.nets import Everything, hooks_on, losses, observe, of

from .loops import (
    INPUTS,
    batch,
    loss_of,
    net,
    require_nothing_global,
    train,
)


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
