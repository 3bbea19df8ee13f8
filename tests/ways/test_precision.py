"""Mixed and low precision: what a loss scale multiplies is captured without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn import functional as F

from fanin.adapters.torch import scaling
from fanin.summary import summarize
from fanin.trial import Role, Step

from .nets import batch, gradient, hooks_on, loss_of, losses, net, observe, of, parameters_of, same, sgd

ORIGINAL_SCALE = GradScaler.scale
SCALE = 2.0**16
"""A scaler's first one."""


def scaled_training(
    model: nn.Module,
    steps: int,
    dtype: torch.dtype = torch.float16,
    scaler: Any = None,
    clip: float | None = None,
    backward: Callable[[Any, Tensor], None] = lambda scaler, loss: scaler.scale(loss).backward(),
) -> list[float]:
    """As PyTorch's guide to automatic mixed precision has it; returns the losses as the loop knows them."""
    optimizer, scaler, losses = sgd(model), scaler or GradScaler("cpu"), []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model, step)
        backward(scaler, loss)
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def require_gradients_of(step: Step, model: nn.Module, tolerance: float) -> None:
    """The gradients of this step are those of a loss without a scale, up to the rounding of the format."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.grad is not None
            expected = summarize(parameter.grad.numpy(), unit_axis=0, histogram=True)
            found = gradient(step, name)
            assert found.rms == pytest.approx(expected.rms, rel=tolerance)
            assert found.quantile(0.95).low <= expected.quantile(0.95).high * (1 + tolerance)
            assert found.quantile(0.95).high >= expected.quantile(0.95).low * (1 - tolerance)
            assert found.units is not None
            assert expected.units is not None
            np.testing.assert_allclose(
                found.units.projection, expected.units.projection, atol=3 * tolerance * expected.rms * 8
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_with_a_grad_scaler_is_captured_without_the_scale(dtype: torch.dtype) -> None:
    model, twin = net(), net()
    with observe(model, steps=3) as seen:
        expected = scaled_training(model, 3, dtype)
    loss_of(twin).backward()
    assert losses(seen) == pytest.approx(expected)
    require_gradients_of(seen.trial.steps[0], twin, 0.05 if dtype is torch.bfloat16 else 0.01)
    plain = float(twin.fc2.weight.grad.abs().max())  # type: ignore[union-attr]
    assert gradient(seen.trial.steps[0], "fc2.weight").largest == pytest.approx(plain, rel=0.05)


def test_gradients_of_outputs_are_captured_without_the_scale() -> None:
    model, twin = net(), net()
    with observe(model, steps=1) as seen, observe(twin, steps=1) as plain:
        scaled_training(model, 1)
        loss_of(twin).backward()
    found = of(seen.trial.steps[0], Role.OUTPUT_GRAD)["gradient/fc1_output_0"]
    expected = of(plain.trial.steps[0], Role.OUTPUT_GRAD)["gradient/fc1_output_0"]
    assert found.rms == pytest.approx(expected.rms, rel=0.01)


SCALED: dict[str, Callable[[Any, Tensor], None]] = {
    "scale(loss)": lambda scaler, loss: scaler.scale(loss).backward(),
    "the mean of scale(loss)": lambda scaler, loss: scaler.scale(loss).mean().backward(),
    "a list": lambda scaler, loss: scaler.scale([loss])[0].backward(),
    "one that is inspected": lambda scaler, loss: torch.autograd.backward([scaler.scale(loss)]),
}


@pytest.mark.parametrize("way", SCALED)
def test_the_scale_is_found_however_backward_is_called(way: str) -> None:
    model = net()
    with observe(model, steps=2) as seen:
        expected = scaled_training(model, 2, torch.bfloat16, backward=SCALED[way])
    assert losses(seen) == pytest.approx(expected)
    assert gradient(seen.trial.steps[1], "fc1.weight").largest < 1


@pytest.mark.parametrize("scale", [1.0, 1024.0, 1000.0])
def test_a_scale_that_is_no_power_of_two_is_taken_out_as_well(scale: float) -> None:
    model, twin = net(), net()
    with observe(model, steps=1) as seen:
        scaled_training(model, 1, torch.bfloat16, GradScaler("cpu", init_scale=scale))
    loss_of(twin).backward()
    require_gradients_of(seen.trial.steps[0], twin, 0.05)


def test_a_disabled_scaler_changes_nothing() -> None:
    model = net()
    with observe(model) as seen:
        expected = scaled_training(model, 3, torch.bfloat16, GradScaler("cpu", enabled=False))
    assert losses(seen) == pytest.approx(expected)
    assert gradient(seen.trial.steps[0], "fc1.weight").largest > 1e-3


def test_a_scaler_that_overrides_scale_is_understood() -> None:
    model = net()
    assert "scale" in vars(ShardedGradScaler)
    with observe(model, steps=1) as seen:
        loss = loss_of(model)
        scaler = GradScaler("cpu")
        ShardedGradScaler.scale(scaler, loss).backward()  # type: ignore[arg-type]
    assert losses(seen) == pytest.approx([loss.item()])


def test_a_step_that_a_scaler_skips_is_taken_again() -> None:
    """Its gradients overflow on account of the scale, and the parameters stay: the next pass is the same step."""
    model = net()
    initial = summarize(model.fc1.weight.detach().numpy())
    scaler = GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)  # float16 ends at 2^16
    with observe(model, steps=2) as seen:
        scaled_training(model, 20, torch.float16, scaler)
    first, second = seen.trial.steps
    assert of(first, Role.WEIGHT)["fc1.weight"].maximum == initial.maximum
    assert gradient(first, "fc1.weight").non_finite == 0
    assert of(second, Role.WEIGHT)["fc1.weight"].maximum != initial.maximum


def test_infinities_that_no_scale_explains_are_recorded() -> None:
    model = net()
    with torch.no_grad():
        model.fc2.weight.fill_(torch.inf)
    with observe(model, steps=1) as seen:
        scaled_training(model, 1, torch.bfloat16)
    assert gradient(seen.trial.steps[0], "fc2.weight").non_finite > 0


def test_a_skipped_step_that_is_the_last_one_is_kept() -> None:
    model = net()
    with observe(model, steps=3) as seen:
        scaled_training(model, 1, torch.float16, GradScaler("cpu", init_scale=2.0**24))
    assert gradient(seen.trial.steps[0], "fc1.weight").non_finite > 0


def test_unscaling_and_clipping_leave_what_was_captured_as_it_came() -> None:
    model, twin = net(), net()
    with observe(model, steps=1) as seen:
        scaled_training(model, 1, torch.float16, clip=1e-3)
    loss_of(twin).backward()
    clipped = float(model.fc2.weight.grad.abs().max())  # type: ignore[union-attr]
    assert gradient(seen.trial.steps[0], "fc2.weight").largest > 100 * clipped
    require_gradients_of(seen.trial.steps[0], twin, 0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaled_training_is_the_same_with_and_without_a_watch(dtype: torch.dtype) -> None:
    plain, model = net(), net()
    expected = scaled_training(plain, 6, dtype, clip=0.5)
    with observe(model):
        assert scaled_training(model, 6, dtype, clip=0.5) == expected
    assert same(parameters_of(model), parameters_of(plain))
    assert hooks_on(model) == []


def test_scalers_are_left_as_they_were() -> None:
    with observe(net()):
        assert GradScaler.scale is not ORIGINAL_SCALE
    assert GradScaler.scale is ORIGINAL_SCALE
    assert scaling._theirs == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_all_in_low_precision_is_captured(dtype: torch.dtype) -> None:
    plain, model = net().to(dtype), net().to(dtype)

    def trained(one: nn.Module) -> list[float]:
        optimizer, found = sgd(one), []
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(one(x.to(dtype)), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    expected = trained(plain)
    with observe(model) as seen:
        assert trained(model) == expected
    assert losses(seen) == pytest.approx(expected[:3])
    assert {o.dtype for o in seen.trial.steps[0].observations} == {str(dtype).removeprefix("torch.")}
    assert same(parameters_of(model), parameters_of(plain))


def test_autocast_in_bfloat16_is_captured_as_it_computes() -> None:
    model = net()
    with observe(model) as seen:
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad  # type: ignore[operator]
    start = seen.trial.steps[0]
    assert start.of(Role.OUTPUT)["fc1_output_0"].dtype == "bfloat16"
    assert start.of(Role.WEIGHT)["fc1.weight"].dtype == "float32"
    assert start.of(Role.WEIGHT_GRAD)["gradient/fc1.weight"].dtype == "float32"
