"""Fans of bare weights, known by what the forward pass does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.watching import TorchWatching
from fanin.rule import Need
from fanin.trial import Kind, LayerSpec, ModelSpec, ParameterSpec, Role, Step

NEEDS = frozenset(Need(role, units=True) for role in Role)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    assert torch._C._len_torch_function_stack() == 0


def seen(model: nn.Module, *args: Any) -> tuple[Step, ModelSpec]:
    """One training pass, watched."""
    steps: list[tuple[Step, ModelSpec]] = []
    plan = WatchPlan(NEEDS, 1, lambda step, spec: steps.append((step, spec)), on_error="raise")
    watching = TorchWatching(model, plan)
    try:
        model(*args).square().sum().backward()
    finally:
        watching.detach()
    return steps[0]


class Bare(nn.Module):
    """One bare weight, and what is done with it."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        """What `use` makes of x and the weight."""
        return self.use(x, self.w)


@dataclass(frozen=True)
class Case:
    """A use of a weight, and the fans that it shows."""

    shape: tuple[int, ...]
    x: tuple[int, ...]
    use: Callable[[Tensor, Tensor], Tensor]
    fan_in: int | None
    fan_out: int | None
    unit_axis: int | None
    kind: Kind = Kind.LINEAR


def _experts(x: Tensor, w: Tensor) -> Tensor:
    return torch.stack([F.linear(x, w[i]) for i in range(len(w))])


def _packed(x: Tensor, w: Tensor) -> Tensor:
    q, k, v = w.chunk(3)
    return F.linear(x, q) + F.linear(x, k) + F.linear(x, v)


def _packed_unevenly(x: Tensor, w: Tensor) -> Tensor:
    q, kv = w.split((6, 3))
    return torch.cat([F.linear(x, q), F.linear(x, kv)], -1)


IDS = torch.tensor([0, 2, 1, 1, 0])

CASES: dict[str, Case] = {
    "x @ w": Case((4, 7), (5, 4), lambda x, w: x @ w, 4, 7, 1),
    "x @ w.t()": Case((7, 4), (5, 4), lambda x, w: x @ w.t(), 4, 7, 0),
    "x @ w.T": Case((7, 4), (5, 4), lambda x, w: x @ w.T, 4, 7, 0),
    "w @ x": Case((7, 4), (4, 5), lambda x, w: w @ x, 4, 7, 0),
    "a square one": Case((4, 4), (5, 4), lambda x, w: x @ w.mT, 4, 4, 0),
    "torch.matmul on sequences": Case((4, 7), (2, 5, 4), lambda x, w: torch.matmul(x, w), 4, 7, 1),
    "by a name": Case((4, 7), (5, 4), lambda x, w: torch.matmul(input=x, other=w), 4, 7, 1),
    "torch.mm": Case((4, 7), (5, 4), lambda x, w: torch.mm(x, w), 4, 7, 1),
    "F.linear": Case((7, 4), (5, 4), F.linear, 4, 7, 0),
    "F.linear by names": Case((7, 4), (5, 4), lambda x, w: F.linear(input=x, weight=w), 4, 7, 0),
    "addmm": Case((4, 7), (5, 4), lambda x, w: torch.addmm(torch.zeros(7), x, w), 4, 7, 1),
    "a matrix with a vector": Case((7, 4), (4,), lambda x, w: torch.mv(w, x), 4, 7, 0),
    "tensordot": Case((4, 7), (5, 4), lambda x, w: torch.tensordot(x, w, 1), 4, 7, 1),
    "tensordot over two axes": Case((3, 4, 7), (5, 3, 4), lambda x, w: torch.tensordot(x, w, 2), 12, 7, 2),
    "conv2d": Case((6, 4, 3, 3), (2, 4, 8, 8), lambda x, w: F.conv2d(x, w), 36, 54, 0, Kind.CONV),
    "conv1d, grouped and strided": Case(
        (8, 2, 4), (2, 4, 16), lambda x, w: F.conv1d(x, w, stride=2, groups=2), 8, 8, 0, Kind.CONV
    ),
    "experts by bmm": Case((3, 4, 7), (3, 5, 4), torch.bmm, 4, 7, 2),
    "experts by bmm, transposed": Case((3, 7, 4), (3, 5, 4), lambda x, w: torch.bmm(x, w.mT), 4, 7, 1),
    "experts by matmul": Case((3, 4, 7), (5, 4), lambda x, w: x @ w, 4, 7, 2),
    "experts by einsum": Case((3, 4, 7), (3, 5, 4), lambda x, w: torch.einsum("ebi,eio->ebo", x, w), 4, 7, 2),
    "experts by index": Case((3, 7, 4), (5, 4), _experts, 4, 7, 1),
    "experts by unbind": Case(
        (3, 7, 4), (5, 4), lambda x, w: torch.stack([x @ one.t() for one in w.unbind()]), 4, 7, 1
    ),
    "experts by a tensor of one index": Case(
        (3, 7, 4), (5, 4), lambda x, w: F.linear(x, w[torch.tensor(1)]), 4, 7, 1
    ),
    "experts gathered": Case((3, 4, 7), (5, 4), lambda x, w: torch.bmm(x[:, None], w[IDS]), 4, 7, 2),
    "experts cast": Case((3, 4, 7), (3, 5, 4), lambda x, w: torch.bmm(x.double(), w.double()), 4, 7, 2),
    "experts expanded": Case(
        (4, 7), (3, 5, 4), lambda x, w: torch.bmm(x, w.expand(3, -1, -1)), 4, 7, 1
    ),
    "packed, in chunks": Case((12, 4), (5, 4), _packed, 4, 4, 0),
    "packed, in unequal parts": Case((9, 4), (5, 4), _packed_unevenly, 4, None, 0),
    "packed, as axes": Case(
        (12, 4), (5, 4), lambda x, w: torch.einsum("bi,koi->kbo", x, w.view(3, 4, 4)), 4, 12, 0
    ),
    "a copy in another order": Case((7, 4), (5, 4), lambda x, w: x @ w.t().contiguous(), 4, 7, 0),
    "einsum": Case((4, 7), (5, 4), lambda x, w: torch.einsum("bi,io->bo", x, w), 4, 7, 1),
    "einsum without an arrow": Case((4, 7), (5, 4), lambda x, w: torch.einsum("bi,io", x, w), 4, 7, 1),
    "einsum with an ellipsis": Case(
        (4, 7), (2, 5, 4), lambda x, w: torch.einsum("...i, io -> ...o", x, w), 4, 7, 1
    ),
    "einsum into heads": Case(
        (4, 2, 3), (5, 4), lambda x, w: torch.einsum("bi,ihd->bhd", x, w), 4, 6, None
    ),
    "einsum out of heads": Case(
        (2, 3, 7), (5, 2, 3), lambda x, w: torch.einsum("bhd,hdo->bo", x, w), 6, 7, 2
    ),
    "einsum with its operands in a list": Case(
        (4, 7), (5, 4), lambda x, w: torch.einsum("bi,io->bo", [x, w]), 4, 7, 1
    ),
}  # fmt: skip


if hasattr(F, "grouped_mm"):
    ENDS = torch.tensor([2, 5, 8], dtype=torch.int32)
    CASES["experts by grouped_mm"] = Case(
        (3, 8, 4), (8, 4), lambda x, w: F.grouped_mm(x, w.mT, offs=ENDS), 4, 8, 1
    )


def only(spec: ModelSpec, kind: Kind) -> tuple[LayerSpec, ParameterSpec]:
    (layer,) = [layer for layer in spec.layers if layer.kind is kind]
    (weight,) = layer.weights
    return layer, weight


@pytest.mark.parametrize("name", CASES)
def test_a_use_shows_the_fans(name: str) -> None:
    case = CASES[name]
    step, spec = seen(nn.Sequential(nn.Identity(), Bare(case.shape, case.use)), torch.randn(case.x))
    layer, weight = only(spec, case.kind)
    assert (weight.fan_in, weight.fan_out, weight.unit_axis) == (case.fan_in, case.fan_out, case.unit_axis)
    assert layer.path == "1"
    assert layer.parameter_path(weight) == "1.w"
    assert layer.calls >= 1
    assert layer.inputs == ("",)
    assert spec.outputs == ("1",)
    units = step.of(Role.WEIGHT)["1.w"].summary.units
    assert (units is not None) == (case.unit_axis is not None)
    assert "gradient/1.w" in step.of(Role.WEIGHT_GRAD)


@pytest.mark.parametrize("name", [name for name in CASES if name != "packed, in chunks"])  # a sum of three
def test_the_fan_in_is_what_the_variance_of_outputs_says(name: str) -> None:
    """Var[out] = fan_in Var[w] Var[in], measured."""
    case = CASES[name]
    ratios = [
        float(case.use(torch.randn(case.x), torch.randn(case.shape)).square().mean()) for _ in range(600)
    ]
    # 600 draws of 20 outputs or more that share weights and inputs: about √(2 · 2 / (600 · 4)) = 4 %.
    assert sum(ratios) / len(ratios) == pytest.approx(case.fan_in, rel=0.15)


UNKNOWN: dict[str, Case] = {
    "used both ways round": Case((4, 4), (5, 4), lambda x, w: (x @ w) @ w.t(), None, None, None),
    "two of its parts with other fans": Case(
        (4, 7), (5, 4), lambda x, w: x @ w + x[:, :2] @ w[:2], None, None, None
    ),
    "a lookup, and the other way round": Case(
        (9, 4), (5,), lambda x, w: F.embedding(x.long().abs().clamp(max=8), w) @ w.t(), None, None, None
    ),
    "axes mixed by a reshape": Case((3, 4, 7), (5, 12), lambda x, w: x @ w.reshape(12, 7), None, None, None),
    "axes mixed by a reshape that copies": Case(
        (3, 7, 4), (5, 12), lambda x, w: x @ w.transpose(1, 2).reshape(12, 7), None, None, None
    ),
    "a product of three": Case(
        (4, 4), (5, 4), lambda x, w: torch.einsum("bi,ij,jk->bk", x, w, torch.eye(4)), None, None, None
    ),
    "a diagonal": Case((4, 4), (5, 4), lambda x, w: torch.einsum("bi,ii->b", x, w), None, None, None),
    "values of its own": Case((4, 7), (5, 4), lambda x, w: x @ (w * 2), None, None, None),
    "no product": Case((1, 4), (5, 4), lambda x, w: x + w, None, None, None),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_told_is_unknown(name: str) -> None:
    case = UNKNOWN[name]
    step, spec = seen(nn.Sequential(nn.Identity(), Bare(case.shape, case.use)), torch.randn(case.x))
    _, weight = only(spec, Kind.OTHER)
    assert (weight.fan_in, weight.fan_out, weight.unit_axis) == (None, None, None)
    assert "1.w" in step.of(Role.WEIGHT)


def test_a_product_of_two_weights_is_unknown() -> None:
    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.a @ self.b)

    _, spec = seen(Factors(), torch.randn(5, 4))
    assert [p.fan_in for layer in spec.layers for p in layer.parameters] == [None, None]


class Lora(nn.Module):
    """A frozen layer with two factors beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.zeros(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        """[*, 8] to [*, 6]."""
        return self.fc(x) + x @ self.a @ self.b


class LoraLinear(nn.Linear):
    """The same as one layer, with the factors the other way round."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.zeros(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[*, 8] to [*, 6]."""
        return super().forward(x) + F.linear(F.linear(x, self.a), self.b)


@pytest.mark.parametrize("build", [Lora, LoraLinear])
def test_several_weights_of_a_module_are_layers_of_their_own(build: Callable[[], nn.Module]) -> None:
    _, spec = seen(nn.Sequential(build()), torch.randn(5, 8))
    fans = {layer.path: [(p.fan_in, p.fan_out) for p in layer.weights] for layer in spec.layers}
    known = {"0.a": [(8, 2)], "0.b": [(2, 6)]}
    assert fans == {**known, ("0.fc" if build is Lora else "0"): [(8, 6)]}
    assert spec.layer("0.b").inputs == ("0.a",)
    assert all(layer.calls == 1 for layer in spec.layers)


class Stack(nn.Module):
    """Experts in one module with an activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 4, 7))
        self.down = nn.Parameter(torch.randn(3, 7, 4))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[3, *, 4] to the same."""
        return torch.bmm(self.act(torch.bmm(x, self.up)), self.down)


def test_experts_are_placed_in_the_network() -> None:
    step, spec = seen(nn.Sequential(nn.Linear(4, 4), Stack(), nn.Linear(4, 2)), torch.randn(3, 5, 4))
    assert [layer.path for layer in spec.layers] == ["0", "1.up", "1.down", "2"]
    up, down = spec.layer("1.up"), spec.layer("1.down")
    assert (up.inputs, up.input_activation, up.activation) == (("0",), "identity", "relu")
    assert (down.inputs, down.input_activation) == (("1.up",), "relu")
    assert spec.layer("2").inputs == ("1.down",)
    assert {"1.up_input_0", "1.down_input_0"} <= step.of(Role.INPUT).keys()
    assert {"1.up_output_0", "1.down_output_0"} <= step.of(Role.OUTPUT).keys()
    assert "gradient/1.down_output_0" in step.of(Role.OUTPUT_GRAD)
    units = step.of(Role.ACTIVATION_INPUT)["1.act.relu_input_0"].summary.units
    assert units is not None
    assert len(units.mean) == 7
    assert step.of(Role.WEIGHT)["1.up"].layer == "1.up"


# ── weights that are computed from others ───────────────────────────────────────────────────────────────────


def _old_weight_norm(module: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(module)


def _old_spectral_norm(module: nn.Module) -> nn.Module:
    return nn.utils.spectral_norm(module)


EFFECTIVE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": _old_weight_norm,
    "old spectral_norm": _old_spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", EFFECTIVE)
def test_the_effective_weight_is_the_layers(name: str, bias: bool) -> None:
    model = nn.Sequential(EFFECTIVE[name](nn.Linear(8, 6, bias=bias)), nn.Linear(6, 2))
    before = [p.detach().clone() for p in model.parameters()]
    step, spec = seen(model, torch.randn(5, 8))
    layer = spec.layer("0")
    (weight,) = [p for p in layer.weights if p.tied_to is None]
    assert (layer.kind, layer.calls) == (Kind.LINEAR, 1)
    assert (weight.name, weight.shape) == ("weight", (6, 8))
    assert (weight.fan_in, weight.fan_out, weight.unit_axis) == (8, 6, 0)
    parts = [p for one in spec.layers for p in one.parameters if p.tied_to]
    assert parts
    assert all((p.tied_to, p.fan_in) == ("0.weight", None) for p in parts)
    found = step.of(Role.WEIGHT)["0.weight"]
    assert found.layer == "0"
    assert found.summary.units is not None
    assert "gradient/0.weight" in step.of(Role.WEIGHT_GRAD)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_effective_weight_of_weight_norm_has_the_length_that_is_set() -> None:
    module = parametrizations.weight_norm(nn.Linear(8, 6))
    module.parametrizations.weight.original0.data.fill_(3.0)  # type: ignore[operator, union-attr]
    step, _ = seen(nn.Sequential(module), torch.randn(5, 8))
    rms = step.of(Role.WEIGHT)["0.weight"].summary.rms
    assert rms == pytest.approx(3 / 8**0.5)  # each row has length 3 and 8 values


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        """Twice the weight."""
        return 2 * w


def test_a_bare_weight_may_be_computed_too() -> None:
    module = Bare((4, 7), lambda x, w: x @ w)
    parametrize.register_parametrization(module, "w", Doubled())
    _, spec = seen(nn.Sequential(nn.Linear(4, 4), module), torch.randn(5, 4))
    layer = spec.layer("1.w")
    (weight,) = layer.weights
    assert (layer.kind, layer.inputs, layer.calls) == (Kind.LINEAR, ("0",), 1)
    assert (weight.fan_in, weight.fan_out, weight.unit_axis) == (4, 7, 1)
