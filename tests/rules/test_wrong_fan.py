"""Weights scaled by other fans than fan_in."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.finding import Finding, Scope
from fanin.rules.wrong_fan import WrongFan

Init = Callable[[Tensor], object]


def fan_out(w: Tensor) -> None:
    nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu")


def over(fan: Callable[[Tensor], float]) -> Init:
    return lambda w: nn.init.normal_(w, std=sqrt(2 / fan(w)))


SOUND: dict[str, Init] = {
    "default": lambda w: None,
    "he": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "lecun": lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    "glorot": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "orthogonal, gain √2": lambda w: nn.init.orthogonal_(w, sqrt(2)),
    "0.02": lambda w: nn.init.normal_(w, std=0.02),
    "zeros": nn.init.zeros_,
    "mup": lambda w: nn.init.normal_(w, std=1 / w[0].numel()),
    "identity": lambda w: nn.init.eye_(w) if w.ndim == 2 else nn.init.dirac_(w),
}


def dense(init: Init, widths: tuple[int, ...] = (32, 256, 32, 256, 32, 10)) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
        init(layers[-2].weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


def convolutional(init: Init, norm: bool = False, groups: int = 1) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in ((16, 32), (32, 64), (64, 256), (256, 16), (16, 128), (128, 10)):
        layers.append(nn.Conv2d(i, o, 3, padding=1, groups=groups if o != 10 else 1))
        init(layers[-1].weight)  # type: ignore[arg-type]
        layers += [nn.BatchNorm2d(o)] * norm + [nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())


def found(model: nn.Module, *shape: int) -> list[Finding]:
    batch = torch.randn(8, *shape), torch.randint(0, 10, (8,))
    trial = fanin.check(model, batch, nn.functional.cross_entropy, rules=[WrongFan()]).trial
    return [f for f in WrongFan().check(trial) if isinstance(f, Finding)]


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("init", SOUND)
def test_schemes_in_use_are_sound(init: str) -> None:
    assert found(dense(SOUND[init]), 32) == []
    assert found(dense(SOUND[init], (8, 64, 512, 1024, 1024, 10)), 8) == []
    assert found(convolutional(SOUND[init]), 16, 8, 8) == []
    assert found(convolutional(SOUND[init], groups=4), 16, 8, 8) == []


def test_fan_out_in_linear_layers() -> None:
    (finding,) = found(dense(fan_out), 32)
    assert finding.scope is Scope.EVERYWHERE
    assert finding.layers == ("0", "2", "4", "6")
    assert "scaled by fan_out, 256, instead of fan_in, 32" in finding.message


def test_one_sound_layer_speaks_for_a_fixed_scale() -> None:
    model = dense(fan_out)
    nn.init.kaiming_normal_(model[4].weight, nonlinearity="relu")  # type: ignore[arg-type, index]
    assert found(model, 32) == []


def test_fan_out_before_normalizations_is_deliberate() -> None:
    assert found(convolutional(fan_out, norm=True), 16, 8, 8) == []


@pytest.mark.parametrize(
    ("fan", "words"),
    [
        (lambda w: w.shape[1], "channels without the kernel's area"),
        (lambda w: w[0, 0].numel(), "kernel's area alone"),
        (lambda w: w.shape[0] * w[0, 0].numel(), "fan_out"),
    ],
)
def test_parts_of_a_kernel(fan: Callable[[Tensor], float], words: str) -> None:
    (finding,) = found(convolutional(over(fan)), 16, 8, 8)
    assert words in finding.message


def test_groups_that_are_not_divided_out() -> None:
    init = over(lambda w: w[0].numel() * (16 if w.shape[0] != 10 else 1))
    (finding,) = found(convolutional(init, groups=16), 16, 8, 8)
    assert "all groups" in finding.message


def test_frozen_layers_are_not_judged() -> None:
    model = dense(fan_out)
    for p in model[:-1].parameters():  # type: ignore[index]
        p.requires_grad_(False)
    assert found(model, 32) == []
