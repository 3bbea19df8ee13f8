"""Which line of the user's code a finding points at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import getsourcelines
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from examined import CLASSES, INPUTS, X, Y, cross_entropy
from fanin.errors import UsageError
from fanin.examine import check
from fanin.finding import Verdict
from fanin.trial import SourceLine


def line_of(function: Callable[..., Any], text: str) -> SourceLine:
    """Where this text stands in a function."""
    lines, first = getsourcelines(function)
    (offset,) = [i for i, line in enumerate(lines) if text in line]
    return SourceLine(str(Path(__file__)), first + offset)


def sources(build: Any) -> dict[str, SourceLine | None]:
    spec = check(build, (X, Y), cross_entropy).trial.spec
    return {layer.parameter_path(p): p.source for layer in spec.layers for p in layer.parameters}


def by_constructor() -> nn.Module:
    return nn.Sequential(
        nn.Linear(INPUTS, CLASSES),  # here
    )


def by_init() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    nn.init.xavier_normal_(model[0].weight)  # here
    return model


def by_trunc_normal() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    nn.init.trunc_normal_(model[0].weight, std=0.02)  # here
    return model


def by_in_place_write() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    with torch.no_grad():
        model[0].weight.mul_(0.1)  # here
    return model


def by_augmented_assignment() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    with torch.no_grad():
        model[0].weight *= 0.1  # here
    return model


def by_item() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    with torch.no_grad():
        model[0].weight[0] = 0.0  # here
    return model


def by_a_view() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data[1:].zero_()  # here
    return model


def by_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data.normal_(std=0.02)  # here
    return model


def by_new_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data = torch.randn(CLASSES, INPUTS)  # here
    return model


def by_a_write_to_new_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data = torch.empty(CLASSES, INPUTS)
    model[0].weight.data.uniform_(-1, 1)  # here
    return model


def by_a_new_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight = nn.Parameter(torch.randn(CLASSES, INPUTS))  # here
    return model


def _helper(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)  # here


def by_apply() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, CLASSES)).apply(_helper)


def _loop(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            p.data.fill_(0.5)  # here


def by_a_loop() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    _loop(model)
    return model


def by_init_and_moves() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    nn.init.xavier_normal_(model[0].weight)  # here
    return model.half().to(torch.float64).float().requires_grad_(True)


def by_moves_and_init() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES)).double().float()
    model[0].weight.data.normal_()  # here
    return model


def by_copy() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})  # here
    return model


BUILDS: dict[Callable[[], nn.Module], Callable[..., Any]] = {
    by_constructor: by_constructor,
    by_init: by_init,
    by_trunc_normal: by_trunc_normal,
    by_in_place_write: by_in_place_write,
    by_augmented_assignment: by_augmented_assignment,
    by_item: by_item,
    by_a_view: by_a_view,
    by_data: by_data,
    by_new_data: by_new_data,
    by_a_write_to_new_data: by_a_write_to_new_data,
    by_a_new_parameter: by_a_new_parameter,
    by_apply: _helper,
    by_a_loop: _loop,
    by_init_and_moves: by_init_and_moves,
    by_moves_and_init: by_moves_and_init,
    by_copy: by_copy,
}


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_a_function_that_builds_the_model_gives_lines(build: Callable[[], nn.Module]) -> None:
    assert sources(build)["0.weight"] == line_of(BUILDS[build], "# here")


def test_a_bias_that_nobody_wrote_to_keeps_its_constructor() -> None:
    found = sources(by_init)
    assert found["0.bias"] == line_of(by_init, "nn.Linear(")
    assert found["0.weight"] != found["0.bias"]


def test_a_model_built_elsewhere_has_no_lines() -> None:
    assert set(sources(by_init()).values()) == {None}


def test_a_copy_of_a_recorded_model_has_no_lines_of_its_own() -> None:
    kept: list[nn.Module] = []

    def build() -> nn.Module:
        kept.append(by_init())
        return kept[0]

    assert sources(build)["0.weight"] is not None
    assert set(sources(copy.deepcopy(kept[0])).values()) == {None}


def test_a_function_that_fails_raises_its_own_error_and_leaves_no_mode() -> None:
    def build() -> nn.Module:
        raise ZeroDivisionError("in build")

    with pytest.raises(ZeroDivisionError, match="in build"):
        check(build, (X, Y), cross_entropy)
    assert torch._C._len_torch_function_stack() == 0


def test_a_function_that_builds_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="not a model that fanin knows"):
        check(lambda: 3, (X, Y), cross_entropy)


def test_a_poor_finding_points_at_its_line() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(32, 32, bias=False), nn.ReLU())))
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1e-3)  # here
        return model

    report = check(build, (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss)
    assert report.verdict is Verdict.POOR
    assert line_of(build, "# here") in {finding.source for finding in report.findings}
