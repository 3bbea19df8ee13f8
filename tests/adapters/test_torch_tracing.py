"""A forward pass as it runs: activations and their inputs, what feeds what, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.watching import TorchWatching
from fanin.rule import Need
from fanin.trial import Kind, LayerSpec, ModelSpec, Observation, Role, Step

NEEDS = frozenset(Need(role) for role in Role)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    assert torch._C._len_torch_function_stack() == 0


def seen(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Step, ModelSpec]:
    """One training pass, watched."""
    steps: list[tuple[Step, ModelSpec]] = []
    plan = WatchPlan(NEEDS, 1, lambda step, spec: steps.append((step, spec)), on_error="raise")
    watching = TorchWatching(model, plan)
    try:
        tensors = _tensors(model(*args, **kwargs))
        torch.stack([t.float().sum() for t in tensors if t.requires_grad]).sum().backward()
    finally:
        watching.detach()
    return steps[0]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "__dataclass_fields__"):
        value = vars(value)
    return [t for item in (value.values() if isinstance(value, dict) else value) for t in _tensors(item)]


def spec_of(model: nn.Module, *args: Any, **kwargs: Any) -> ModelSpec:
    return seen(model, *args, **kwargs)[1]


def activation_inputs(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Observation]:
    return seen(model, *args, **kwargs)[0].of(Role.ACTIVATION_INPUT)


def x(*shape: int) -> Tensor:
    return torch.randn(*(shape or (5, 4)))


class Run(nn.Module):
    """Layers, and a forward pass given as a function of them and the input."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function."""
        return self.run(self, *args, **kwargs)


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


# ── activations ─────────────────────────────────────────────────────────────────────────────────────────────

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "F.relu": (F.relu, "relu"),
    "F.relu in place": (lambda h: F.relu(h, inplace=True), "relu"),
    "F.relu by name": (lambda h: F.relu(input=h), "relu"),
    "F.relu_": (F.relu_, "relu"),
    "torch.relu": (torch.relu, "relu"),
    "torch.relu_": (torch.relu_, "relu"),
    "x.relu()": (lambda h: h.relu(), "relu"),
    "x.relu_()": (lambda h: h.relu_(), "relu"),
    "F.relu6": (F.relu6, "relu6"),
    "F.leaky_relu": (F.leaky_relu, "leaky_relu"),
    "F.leaky_relu in place": (lambda h: F.leaky_relu(h, 0.1, inplace=True), "leaky_relu"),
    "F.elu": (F.elu, "elu"),
    "F.selu": (F.selu, "selu"),
    "F.celu": (F.celu, "celu"),
    "F.gelu": (F.gelu, "gelu"),
    "F.gelu tanh": (lambda h: F.gelu(h, approximate="tanh"), "gelu"),
    "F.silu": (F.silu, "silu"),
    "F.silu in place": (lambda h: F.silu(h, inplace=True), "silu"),
    "F.mish": (F.mish, "mish"),
    "F.softplus": (F.softplus, "softplus"),
    "F.softsign": (F.softsign, "softsign"),
    "F.hardtanh": (F.hardtanh, "hardtanh"),
    "F.hardsigmoid": (F.hardsigmoid, "hardsigmoid"),
    "F.hardswish": (F.hardswish, "hardswish"),
    "F.logsigmoid": (F.logsigmoid, "logsigmoid"),
    "F.glu": (F.glu, "glu"),
    "F.tanh": (F.tanh, "tanh"),
    "torch.tanh": (torch.tanh, "tanh"),
    "x.tanh_()": (lambda h: h.tanh_(), "tanh"),
    "F.sigmoid": (F.sigmoid, "sigmoid"),
    "torch.sigmoid": (torch.sigmoid, "sigmoid"),
    "x.sigmoid()": (lambda h: h.sigmoid(), "sigmoid"),
    "x.sigmoid_()": (lambda h: h.sigmoid_(), "sigmoid"),
    "F.softmax": (lambda h: F.softmax(h, -1), "softmax"),
    "torch.softmax": (lambda h: torch.softmax(h, -1), "softmax"),
    "x.softmax()": (lambda h: h.softmax(-1), "softmax"),
    "torch.sin": (torch.sin, "sin"),
}

MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ReLU": (nn.ReLU, "relu"),
    "ReLU in place": (lambda: nn.ReLU(inplace=True), "relu"),
    "ReLU6": (nn.ReLU6, "relu6"),
    "LeakyReLU": (nn.LeakyReLU, "leaky_relu"),
    "PReLU": (nn.PReLU, "prelu"),
    "RReLU": (nn.RReLU, "rrelu"),
    "ELU": (nn.ELU, "elu"),
    "SELU": (nn.SELU, "selu"),
    "CELU": (nn.CELU, "celu"),
    "GELU": (nn.GELU, "gelu"),
    "SiLU": (nn.SiLU, "silu"),
    "SiLU in place": (lambda: nn.SiLU(inplace=True), "silu"),
    "Mish": (nn.Mish, "mish"),
    "Softplus": (nn.Softplus, "softplus"),
    "Softsign": (nn.Softsign, "softsign"),
    "Tanh": (nn.Tanh, "tanh"),
    "Sigmoid": (nn.Sigmoid, "sigmoid"),
    "Softmax": (lambda: nn.Softmax(-1), "softmax"),
    "Hardtanh": (nn.Hardtanh, "hardtanh"),
    "Hardsigmoid": (nn.Hardsigmoid, "hardsigmoid"),
    "Hardswish": (nn.Hardswish, "hardswish"),
    "LogSigmoid": (nn.LogSigmoid, "logsigmoid"),
    "Tanhshrink": (nn.Tanhshrink, "tanhshrink"),
    "Hardshrink": (nn.Hardshrink, "hardshrink"),
    "Softshrink": (nn.Softshrink, "softshrink"),
    "Threshold": (lambda: nn.Threshold(0.1, 0.0), "threshold"),
    "GLU": (nn.GLU, "glu"),
}


def require_the_pre_activation(model: nn.Module, given: Tensor, layer: nn.Linear, tensor: str) -> None:
    """The one activation input is what the layer computes, before anything overwrites it."""
    expected = F.linear(given, layer.weight, layer.bias).detach()
    (found,) = activation_inputs(model, given).items()
    assert found[0] == tensor
    assert found[1].summary.mean == pytest.approx(float(expected.double().mean()), rel=1e-5, abs=1e-6)
    assert found[1].summary.minimum == pytest.approx(float(expected.min()), rel=1e-5)
    assert found[1].summary.minimum < 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_input_of_a_function_is_recorded_before_it_runs(name: str) -> None:
    function, activation = FUNCTIONS[name]
    model = Run(lambda self, h: function(self.fc(h)), fc=linear())
    assert isinstance(model.fc, nn.Linear)
    require_the_pre_activation(model, x(), model.fc, f"{activation}_input_0")
    assert spec_of(model, x()).layer("fc").activation == activation


@pytest.mark.parametrize("name", MODULES)
def test_the_input_of_a_module_is_recorded_before_it_runs(name: str) -> None:
    build, activation = MODULES[name]
    layer = linear()
    model = nn.Sequential(layer, build())
    require_the_pre_activation(model, x(), layer, f"1.{activation}_input_0")
    assert spec_of(model, x()).layer("0").activation == activation


def blocks_with(**modules: nn.Module) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, h: Tensor) -> Tensor:
            for module in self.children():
                h = module(h)
            return h

    return Run(lambda self, h: self.blocks(h), blocks=nn.Sequential(Block()))


NAMES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "called like its function": (lambda: blocks_with(fc=linear(), relu=nn.ReLU()), ["blocks.0.relu_input_0"]),
    "called otherwise": (lambda: blocks_with(fc=linear(), act=nn.ReLU()), ["blocks.0.act.relu_input_0"]),
    "numbered": (
        lambda: nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU()),
        ["1.relu_input_0", "3.relu_input_0"],
    ),
    "function in the model": (lambda: Run(lambda self, h: self.fc(h).relu(), fc=linear()), ["relu_input_0"]),
    "function in a block": (
        lambda: Run(lambda self, h: self.block(h), block=Run(lambda self, h: self.fc(h).relu(), fc=linear())),
        ["block.relu_input_0"],
    ),
    "one module called three times": (
        lambda: Run(
            lambda self, h: self.relu(self.c(self.relu(self.b(self.relu(self.a(h)))))),
            a=linear(),
            b=linear(),
            c=linear(),
            relu=nn.ReLU(),
        ),
        ["relu_input_0", "relu_input_1", "relu_input_2"],
    ),
    "functions one after the other": (
        lambda: Run(lambda self, h: F.relu(self.fc(F.relu(self.fc(h)))).tanh(), fc=linear()),
        ["relu_input_0", "relu_input_1", "tanh_input_0"],
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_activation_inputs_are_named_by_the_convention(name: str) -> None:
    build, expected = NAMES[name]
    assert list(activation_inputs(build(), x())) == expected


def test_an_activation_knows_the_layers_that_feed_it() -> None:
    model = Run(lambda self, h: F.relu(self.a(h) + self.b(h)), a=linear(), b=linear())
    (activation,) = spec_of(model, x()).activations
    assert (activation.function, activation.inputs) == ("relu", ("a", "b"))


# ── the graph ───────────────────────────────────────────────────────────────────────────────────────────────


def chain() -> nn.Module:
    return nn.Sequential(linear(), nn.ReLU(), linear(), nn.Tanh(), linear())


def with_norms() -> nn.Module:
    return Run(
        lambda self, h: self.b(F.relu(self.norm(self.a(h)))), a=linear(), norm=nn.LayerNorm(4), b=linear()
    )


def residual() -> nn.Module:
    def forward(self: Any, h: Tensor) -> Tensor:
        h = self.stem(h)
        out: Tensor = self.head(h + self.branch(torch.relu(h)))
        return out

    return Run(forward, stem=linear(), branch=linear(), head=linear())


def residual_in_place() -> nn.Module:
    def forward(self: Any, h: Tensor) -> Tensor:
        h = self.stem(h)
        branch = self.branch(h)
        branch += h
        out: Tensor = self.head(branch)
        return out

    return Run(forward, stem=linear(), branch=linear(), head=linear())


def pre_norm() -> nn.Module:
    def forward(self: Any, h: Tensor) -> Tensor:
        h = self.stem(h)
        h = h + self.down(F.gelu(self.up(self.norm(h))))
        out: Tensor = self.final(h)
        return out

    return Run(
        forward, stem=linear(), norm=nn.LayerNorm(4), up=linear(), down=linear(), final=nn.LayerNorm(4)
    )


def u_net() -> nn.Module:
    def forward(self: Any, h: Tensor) -> Tensor:
        left = torch.relu(self.left(h))
        low = torch.relu(self.low(left))
        out: Tensor = self.right(torch.cat([left, low], dim=1))
        return out

    return Run(forward, left=linear(), low=linear(), right=nn.Linear(8, 2))


def functional_norm() -> nn.Module:
    return Run(lambda self, h: self.b(F.layer_norm(self.a(h), (4,))), a=linear(), b=linear())


def gated() -> nn.Module:
    def forward(self: Any, h: Tensor) -> Tensor:
        h = self.a(h)
        out: Tensor = self.b(h * torch.sigmoid(h))
        return out

    return Run(forward, a=linear(), b=linear())


def views_and_pools() -> nn.Module:
    def forward(self: Any, h: Tensor) -> Tensor:
        h = F.max_pool1d(F.dropout(torch.relu(self.a(h))), 2).repeat(1, 2).reshape(-1, 4).contiguous()
        out: Tensor = self.b(h.transpose(0, 1).transpose(0, 1)[:, :])
        return out

    return Run(forward, a=linear(), b=linear())


Edges = dict[str, tuple[tuple[str, ...], str, str | None]]

GRAPHS: dict[Callable[[], nn.Module], tuple[Edges, tuple[str, ...]]] = {
    chain: (
        {"0": (("",), "", "identity"), "2": (("0",), "", "relu"), "4": (("2",), "", "tanh")},
        ("4",),
    ),
    with_norms: (
        {"a": (("",), "", "identity"), "norm": (("a",), "", "identity"), "b": (("norm",), "", "relu")},
        ("b",),
    ),
    residual: (
        {
            "stem": (("",), "", "identity"),
            "branch": (("stem",), "", "relu"),
            "head": (("branch", "stem"), "sum", "identity"),
        },
        ("head",),
    ),
    residual_in_place: (
        {
            "stem": (("",), "", "identity"),
            "branch": (("stem",), "", "identity"),
            "head": (("branch", "stem"), "sum", "identity"),
        },
        ("head",),
    ),
    pre_norm: (
        {
            "stem": (("",), "", "identity"),
            "norm": (("stem",), "", "identity"),
            "up": (("norm",), "", "identity"),
            "down": (("up",), "", "gelu"),
            "final": (("down", "stem"), "sum", "identity"),
        },
        ("final",),
    ),
    u_net: (
        {
            "left": (("",), "", "identity"),
            "low": (("left",), "", "relu"),
            "right": (("left", "low"), "concatenation", "relu"),
        },
        ("right",),
    ),
    functional_norm: (
        {
            "a": (("",), "", "identity"),
            "layer_norm": (("a",), "", None),
            "b": (("layer_norm",), "", "identity"),
        },
        ("b",),
    ),
    gated: ({"a": (("",), "", "identity"), "b": (("a",), "", None)}, ("b",)),
    views_and_pools: ({"a": (("",), "", "identity"), "b": (("a",), "", "relu")}, ("b",)),
}


def edges(spec: ModelSpec) -> Edges:
    return {layer.path: (layer.inputs, layer.joins, layer.input_activation) for layer in spec.layers}


@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
def test_the_graph_is_the_one_that_ran(build: Callable[[], nn.Module]) -> None:
    expected, outputs = GRAPHS[build]
    spec = spec_of(build(), x())
    assert edges(spec) == expected
    assert list(edges(spec)) == list(expected)
    assert spec.outputs == outputs


def test_a_norm_that_is_a_function_is_a_layer() -> None:
    layer: LayerSpec = spec_of(functional_norm(), x()).layer("layer_norm")
    assert (layer.kind, layer.type_name, layer.calls) == (Kind.NORM, "F.layer_norm", 1)


def test_a_module_called_twice_counts_twice() -> None:
    model = Run(lambda self, h: self.fc(torch.relu(self.fc(h))), fc=linear())
    step, spec = seen(model, x())
    assert spec.layer("fc").calls == 2
    assert spec.layer("fc").inputs == ("",)
    assert list(step.of(Role.OUTPUT)) == ["fc_output_0", "fc_output_1"]
    assert set(step.of(Role.OUTPUT_GRAD)) == {"gradient/fc_output_0", "gradient/fc_output_1"}


def test_layers_that_never_ran_come_last() -> None:
    model = Run(lambda self, h: self.b(h), unused=linear(), b=linear(), other=nn.BatchNorm1d(4))
    spec = spec_of(model, x())
    assert [(layer.path, layer.calls) for layer in spec.layers] == [("b", 1), ("unused", 0), ("other", 0)]


def test_layers_stand_in_the_order_in_which_they_ran() -> None:
    model = Run(lambda self, h: self.a(self.b(h)), a=linear(), b=linear())
    assert [layer.path for layer in spec_of(model, x()).layers] == ["b", "a"]


@dataclass
class Record:
    """What a model may return."""

    logits: Tensor
    hidden: Tensor


RETURNS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (b, a),
    "list": lambda a, b: [b, a],
    "dict": lambda a, b: {"logits": b, "hidden": a},
    "dataclass": lambda a, b: Record(b, a),
    "nested": lambda a, b: {"outputs": (b, [a])},
}


@pytest.mark.parametrize("form", RETURNS)
def test_outputs_of_every_form_are_found(form: str) -> None:
    def forward(self: Any, h: Tensor) -> Any:
        a = self.a(h)
        return RETURNS[form](a, self.b(a))

    assert spec_of(Run(forward, a=linear(), b=linear()), x()).outputs == ("b", "a")


def test_integer_inputs_and_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    step, spec = seen(model, torch.randint(10, (3, 5)))
    assert edges(spec) == {"0": (("",), "", "identity"), "1": (("0",), "", "identity")}
    assert list(step.of(Role.INPUT)) == ["1_input_0"]
    assert list(step.of(Role.OUTPUT)) == ["0_output_0", "1_output_0"]


def positional(model: nn.Module) -> ModelSpec:
    return spec_of(model, x(), x())


def named(model: nn.Module) -> ModelSpec:
    return spec_of(model, first=x(), second=x())


def mixed(model: nn.Module) -> ModelSpec:
    return spec_of(model, x(), second=x())


@pytest.mark.parametrize("call", [positional, named, mixed])
def test_inputs_are_known_however_they_are_given(call: Callable[[nn.Module], ModelSpec]) -> None:
    def forward(self: Any, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = self.b(input=self.a(first) + second)
        return out

    assert edges(call(Run(forward, a=linear(), b=linear()))) == {
        "a": (("",), "", "identity"),
        "b": (("", "a"), "sum", "identity"),
    }


def test_recurrent_and_attention_layers_run_as_one_layer_each() -> None:
    def forward(self: Any, h: Tensor) -> Tensor:
        h, _ = self.rnn(h)
        h, _ = self.attention(h, h, h)
        out: Tensor = self.head(h)
        return out

    model = Run(
        forward,
        rnn=nn.LSTM(4, 4, batch_first=True),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        head=linear(),
    )
    spec = spec_of(model, x(2, 3, 4))
    assert spec.layer("attention").inputs == ("rnn",)
    assert spec.layer("head").inputs == ("attention",)
    assert spec.layer("attention").calls == 1


# ── others' modes ───────────────────────────────────────────────────────────────────────────────────────────


class Counting(TorchFunctionMode):
    """Counts what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts."""
        self.calls.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def test_a_mode_around_the_forward_pass_sees_the_model_and_none_of_our_arithmetic() -> None:
    model, given = chain(), x()
    with Counting() as alone:
        model(given)
    steps: list[Step] = []
    watching = TorchWatching(model, WatchPlan(NEEDS, 1, lambda step, spec: steps.append(step), "raise"))
    with Counting() as watched:
        out = model(given)
    out.sum().backward()
    watching.detach()
    assert watched.calls == alone.calls
    assert len(steps[0].of(Role.ACTIVATION_INPUT)) == 2


def test_a_mode_within_the_forward_pass_works() -> None:
    counting = Counting()

    def forward(self: Any, h: Tensor) -> Tensor:
        with counting:
            h = torch.relu(self.a(h))
        out: Tensor = self.b(h)
        return out

    model = Run(forward, a=linear(), b=linear())
    assert edges(spec_of(model, x()))["b"] == (("a",), "", "relu")
    assert counting.calls == ["linear", "relu"]


def device_around(model: nn.Module) -> ModelSpec:
    with torch.device("cpu"):
        return spec_of(model, x())


def device_default(model: nn.Module) -> ModelSpec:
    torch.set_default_device("cpu")
    try:
        return spec_of(model, x())
    finally:
        torch.set_default_device(None)


def device_within(model: nn.Module) -> ModelSpec:
    def forward(self: Any, h: Tensor) -> Tensor:
        with torch.device("meta"):
            assert torch.ones(2).is_meta
        with torch.device("cpu"):
            out: Tensor = self.model(h + torch.ones(4))
            return out

    return spec_of(Run(forward, model=model), x())


@pytest.mark.parametrize("how", [device_around, device_default, device_within])
def test_device_contexts_keep_working(how: Callable[[nn.Module], ModelSpec]) -> None:
    assert len(how(chain()).activations) == 2


def test_a_mode_that_outlives_the_forward_pass_stays_and_ours_goes() -> None:
    counting = Counting()

    def forward(self: Any, h: Tensor) -> Tensor:
        counting.__enter__()
        out: Tensor = self.a(h)
        return out

    watching = TorchWatching(
        model := Run(forward, a=linear()), WatchPlan(NEEDS, 1, lambda step, spec: None, "raise")
    )
    try:
        model(x())
        assert torch._C._len_torch_function_stack() == 1
    finally:
        counting.__exit__(None, None, None)
        watching.detach()


def test_a_module_in_an_exception_handler_is_no_failure() -> None:
    def forward(self: Any, h: Tensor) -> Tensor:
        try:
            raise ValueError
        except ValueError:
            out: Tensor = self.a(h)
        return out

    assert spec_of(Run(forward, a=linear()), x()).layer("a").calls == 1
