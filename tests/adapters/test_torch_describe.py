"""Torch modules in neutral words: kinds, fans, units, roles, ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fanin.adapters.torch.describe import kind_of, layers, model_spec, output_axis
from fanin.capture import watch
from fanin.trial import Kind, LayerSpec, ParameterSpec, Role


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it in transformers: the weight is [fan_in, fan_out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        """[*, nx] to [*, nf]."""
        return x @ self.weight + self.bias


class LlamaRMSNorm(nn.Module):
    """A norm that only its name gives away."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class NormalizedLinear(nn.Module):
    """`norm` in the name, but a matrix inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


@dataclass(frozen=True)
class Case:
    """A module, and its weight in neutral words."""

    build: Callable[[], nn.Module]
    kind: Kind
    fan_in: int | None
    fan_out: int | None
    unit_axis: int | None
    weight: str = "weight"


CASES: dict[str, Case] = {
    "Linear": Case(lambda: nn.Linear(5, 7), Kind.LINEAR, 5, 7, 0),
    "Conv1D of transformers": Case(lambda: Conv1D(7, 5), Kind.LINEAR, 5, 7, 1),
    "Conv1d": Case(lambda: nn.Conv1d(4, 6, 3), Kind.CONV, 12, 18, 0),
    "Conv2d": Case(lambda: nn.Conv2d(4, 6, 3), Kind.CONV, 36, 54, 0),
    "Conv2d not square": Case(lambda: nn.Conv2d(4, 6, (1, 5)), Kind.CONV, 20, 30, 0),
    "Conv3d": Case(lambda: nn.Conv3d(2, 4, 3), Kind.CONV, 54, 108, 0),
    "grouped": Case(lambda: nn.Conv2d(4, 8, 3, groups=2), Kind.CONV, 18, 36, 0),
    "depthwise": Case(lambda: nn.Conv2d(4, 4, 3, groups=4), Kind.CONV, 9, 9, 0),
    "depthwise with multiplier": Case(lambda: nn.Conv2d(4, 8, 3, groups=4), Kind.CONV, 9, 18, 0),
    "dilated": Case(lambda: nn.Conv2d(4, 6, 3, dilation=2), Kind.CONV, 36, 54, 0),
    "strided": Case(lambda: nn.Conv2d(4, 6, 4, stride=2), Kind.CONV, 64, 24, 0),
    "patches": Case(lambda: nn.Conv2d(3, 8, 4, stride=4), Kind.CONV, 48, 8, 0),
    "transposed": Case(lambda: nn.ConvTranspose2d(4, 6, 3), Kind.CONV_TRANSPOSE, 36, 54, 1),
    "transposed, strided": Case(
        lambda: nn.ConvTranspose2d(8, 6, 4, stride=2), Kind.CONV_TRANSPOSE, 32, 96, 1
    ),
    "transposed, grouped": Case(
        lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), Kind.CONV_TRANSPOSE, 6, 9, None
    ),
    "Embedding": Case(lambda: nn.Embedding(10, 4), Kind.EMBEDDING, 1, 4, 0),
    "EmbeddingBag": Case(lambda: nn.EmbeddingBag(10, 4), Kind.EMBEDDING, 1, 4, 0),
    "RNN": Case(lambda: nn.RNN(3, 5), Kind.RECURRENT, 3, 5, 0, "weight_ih_l0"),
    "LSTM": Case(lambda: nn.LSTM(3, 5), Kind.RECURRENT, 3, 5, 0, "weight_ih_l0"),
    "LSTM, recurrent": Case(lambda: nn.LSTM(3, 5), Kind.RECURRENT, 5, 5, 0, "weight_hh_l0"),
    "GRU, upper layer": Case(lambda: nn.GRU(3, 5, num_layers=2), Kind.RECURRENT, 5, 5, 0, "weight_ih_l1"),
    "LSTMCell": Case(lambda: nn.LSTMCell(3, 5), Kind.RECURRENT, 3, 5, 0, "weight_ih"),
    "attention, packed": Case(lambda: nn.MultiheadAttention(8, 2), Kind.ATTENTION, 8, 8, 0, "in_proj_weight"),
    "attention, unpacked": Case(
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4), Kind.ATTENTION, 6, 8, 0, "k_proj_weight"
    ),
    "LayerNorm": Case(lambda: nn.LayerNorm(4), Kind.NORM, None, None, None),
    "RMSNorm": Case(lambda: nn.RMSNorm(4), Kind.NORM, None, None, None),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, 4), Kind.NORM, None, None, None),
    "BatchNorm2d": Case(lambda: nn.BatchNorm2d(4), Kind.NORM, None, None, None),
    "InstanceNorm1d": Case(lambda: nn.InstanceNorm1d(4, affine=True), Kind.NORM, None, None, None),
    "norm by name": Case(LlamaRMSNorm, Kind.NORM, None, None, None),
    "no norm in spite of its name": Case(NormalizedLinear, Kind.OTHER, None, None, None),
    "PReLU": Case(nn.PReLU, Kind.OTHER, None, None, None),
    "Bilinear": Case(lambda: nn.Bilinear(3, 4, 5), Kind.OTHER, None, None, None),
}


def only(model: nn.Module) -> LayerSpec:
    (layer,) = model_spec(model).layers
    return layer


def parameter(layer: LayerSpec, name: str) -> ParameterSpec:
    (found,) = [p for p in layer.parameters if p.name == name]
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_layer_in_neutral_words(name: str) -> None:
    case = CASES[name]
    module = case.build()
    layer = model_spec(module).layers[0]  # that of attention has another within
    weight = parameter(layer, case.weight)
    assert layer.kind is case.kind
    assert layer.type_name == type(module).__name__
    assert weight.role is Role.WEIGHT
    assert (weight.fan_in, weight.fan_out, weight.unit_axis) == (case.fan_in, case.fan_out, case.unit_axis)
    assert weight.shape == tuple(module.get_parameter(case.weight).shape)


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, bias=False), 2),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2, bias=False), 2),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), 2),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, bias=False), 2),
    "strided": (lambda: nn.Conv2d(4, 6, 4, stride=2, bias=False), 2),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 5, bias=False), 1),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, bias=False), 2),
    "transposed, strided": (lambda: nn.ConvTranspose2d(8, 6, 4, stride=2, bias=False), 2),
    "transposed, kernel is stride": (lambda: nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), 2),
    "transposed, kernel no multiple of stride": (
        lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, bias=False),
        2,
    ),
    "transposed, dilated": (lambda: nn.ConvTranspose1d(8, 6, 3, dilation=2, bias=False), 1),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(8, 6, 4, stride=2, groups=2, bias=False), 1),
}


def middle(tensor: Tensor, dims: int) -> Tensor:
    """The values away from the borders, where every output has all its terms; whole periods of the stride."""
    for axis in range(tensor.ndim - dims, tensor.ndim):
        tensor = tensor.narrow(axis, 8, (tensor.shape[axis] - 16) // 2 * 2)
    return tensor


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_fans_are_what_the_variance_of_outputs_and_gradients_says(name: str) -> None:
    """Var[out] = fan_in Var[w] Var[in], and backward the same with fan_out: both measured."""
    build, dims = CONVOLUTIONS[name]
    torch.manual_seed(0)
    forward, backward = [], []
    for _ in range(20):
        module = build()
        nn.init.normal_(module.get_parameter("weight"))
        x = torch.randn(2, module.in_channels, *[48] * dims, requires_grad=True)  # type: ignore[list-item]
        out = module(x)
        out.backward(torch.randn_like(out))
        assert x.grad is not None
        forward.append(middle(out.detach(), dims).square().mean())
        backward.append(middle(x.grad, dims).square().mean())
    weight = parameter(only(build()), "weight")
    assert weight.fan_in is not None
    assert weight.fan_out is not None
    # 20 draws of 24 weights or more: a relative error of √(2 / 480) = 6 % for one standard deviation. A fan that is
    # no whole number (kernel no multiple of the stride) is rounded down.
    assert float(torch.stack(forward).mean()) == pytest.approx(weight.fan_in, rel=0.2)
    assert float(torch.stack(backward).mean()) == pytest.approx(weight.fan_out, rel=0.2)


OUTPUTS: dict[str, tuple[nn.Module, tuple[int, ...], int | None]] = {
    "Linear": (nn.Linear(3, 4), (2, 4), -1),
    "Linear on sequences": (nn.Linear(3, 4), (2, 5, 4), -1),
    "Conv2d": (nn.Conv2d(3, 4, 1), (2, 4, 5, 5), 1),
    "Conv2d without batch": (nn.Conv2d(3, 4, 1), (4, 5, 5), 0),
    "Conv1d": (nn.Conv1d(3, 4, 1), (2, 4, 5), 1),
    "BatchNorm2d": (nn.BatchNorm2d(4), (2, 4, 5, 5), 1),
    "LayerNorm": (nn.LayerNorm(4), (2, 5, 4), -1),
    "LayerNorm over two axes": (nn.LayerNorm((5, 4)), (2, 5, 4), None),
    "Embedding": (nn.Embedding(10, 4), (2, 5, 4), -1),
    "PReLU": (nn.PReLU(), (2, 4), None),
    "a vector": (nn.Linear(3, 4), (4,), None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_axis_of_an_output_that_counts_units(name: str) -> None:
    module, shape, axis = OUTPUTS[name]
    assert output_axis(module, torch.zeros(shape)) == axis


@pytest.mark.parametrize(
    "build", [lambda: nn.Linear(3, 4), lambda: nn.LSTM(3, 4), lambda: nn.MultiheadAttention(4, 2)]
)
def test_biases_are_biases(build: Callable[[], nn.Module]) -> None:
    for p in model_spec(build()).layers[0].parameters:
        assert p.role is (Role.BIAS if "bias" in p.name else Role.WEIGHT)
        assert p.fan_in is None or p.role is Role.WEIGHT


def test_a_bias_that_is_off_is_none() -> None:
    assert [p.name for p in only(nn.Linear(3, 4, bias=False)).parameters] == ["weight"]


def test_layers_stand_in_the_order_of_construction_by_their_paths() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
    spec = model_spec(model)
    assert [(layer.path, layer.kind) for layer in spec.layers] == [
        ("0", Kind.LINEAR),
        ("2.0", Kind.NORM),
        ("2.1", Kind.LINEAR),
    ]
    assert spec.name == "Sequential"
    assert spec.framework == f"torch {torch.__version__}"


def test_a_norm_without_parameters_is_a_layer_and_an_activation_is_none() -> None:
    model = nn.Sequential(
        nn.LayerNorm(4, elementwise_affine=False), nn.BatchNorm1d(4, affine=False), nn.ReLU()
    )
    assert list(layers(model)) == ["0", "1"]
    assert [layer.parameters for layer in model_spec(model).layers] == [(), ()]


class Rooted(nn.Module):
    """Owns parameters itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.fc = nn.Linear(4, 4)


def test_parameters_of_the_model_itself_belong_to_the_path_of_nothing() -> None:
    spec = model_spec(Rooted())
    root = spec.layers[0]
    assert (root.path, root.kind) == ("", Kind.OTHER)
    assert [root.parameter_path(p) for p in root.parameters] == ["cls_token", "scale"]
    assert [p.role for p in root.parameters] == [Role.WEIGHT, Role.BIAS]
    assert parameter(root, "cls_token").fan_in is None


def test_frozen_parameters_are_known_as_such() -> None:
    model = nn.Linear(3, 4)
    model.weight.requires_grad_(False)
    assert [p.trainable for p in only(model).parameters] == [False, True]


def test_a_tied_weight_is_tied_to_its_first_place() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    spec = model_spec(model)
    assert parameter(spec.layer("0"), "weight").tied_to is None
    assert parameter(spec.layer("1"), "weight").tied_to == "0.weight"


def test_a_module_in_two_places_is_one_layer() -> None:
    shared = nn.Linear(3, 3)
    assert [layer.path for layer in model_spec(nn.Sequential(shared, nn.ReLU(), shared)).layers] == ["0"]


def test_lazy_modules_have_a_kind_and_no_shape_yet() -> None:
    layer = only(nn.LazyLinear(4))
    assert layer.kind is Kind.LINEAR
    assert parameter(layer, "weight").shape == ()
    assert parameter(layer, "weight").fan_in is None
    assert kind_of(nn.LazyBatchNorm1d()) is Kind.NORM
    assert kind_of(nn.LazyConv2d(3, 3)) is Kind.CONV


def weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(4, 4))


def spectral_norm() -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(2, 4, 3))


def orthogonal() -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(4, 4))


INPUTS_OF: dict[Callable[[], nn.Module], tuple[int, ...]] = {
    weight_norm: (2, 4),
    spectral_norm: (2, 2, 5, 5),
    orthogonal: (2, 4),
}


@pytest.mark.parametrize("build", INPUTS_OF, ids=lambda build: build.__name__)
def test_parametrized_weights_are_described_and_watched(build: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(build())
    spec = model_spec(model)
    assert all(p.fan_in is None for layer in spec.layers for p in layer.parameters if layer.path != "0")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, steps=2, on_error="raise") as seen:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(INPUTS_OF[build])).square().mean().backward()
            optimizer.step()
    assert len(seen.trial.steps) == 2
    assert seen.trial.spec.layer("0").calls == 1


def models() -> list[Any]:
    return [
        nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
        nn.Identity(),
        nn.ParameterList([torch.ones(2), torch.ones(3)]),
        nn.ParameterDict({"a": torch.ones(2)}),
        nn.ModuleList(),
        nn.Linear(3, 3, device="meta"),
        nn.Linear(3, 3, dtype=torch.bfloat16),
    ]


@pytest.mark.parametrize("model", models(), ids=lambda m: type(m).__name__)
def test_whatever_is_a_module_can_be_described(model: nn.Module) -> None:
    spec = model_spec(model)
    named = {layer.parameter_path(p) for layer in spec.layers for p in layer.parameters}
    assert named == {name for name, _ in model.named_parameters(remove_duplicate=False)}
