"""The reference re-draw makes any network sound, and changes nothing that it does not understand."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.redraw import redraw
from fanin.adapters.torch.uninformed import uninformed_loss
from fanin.adapters.torch.watching import TorchWatching
from fanin.trial import ModelSpec


def number(value: Tensor) -> float:
    return float(value.detach())


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec_of(model: nn.Module, *inputs: Tensor) -> ModelSpec:
    """Of a copy's pass."""
    watching = TorchWatching(
        deepcopy(model), WatchPlan(frozenset(), 1, lambda *_: None, on_error="raise"), runs_eagerly=True
    )
    watching.model(*inputs)
    spec = watching.spec
    watching.detach()
    return spec


def redrawn(model: nn.Module, *inputs: Tensor, seed: int = 0) -> Any:
    """The output of the pass in which the model was scaled."""
    return redraw(model, spec_of(model, *inputs), lambda: model(*inputs), seed)


def mlp(depth: int, activation: Callable[[], nn.Module], width: int = 64) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


DIGITS = torch.randn(64, 64, generator=generator())


@pytest.mark.parametrize(
    ("activation", "target"), [(nn.ReLU, 1.0), (nn.Tanh, 0.7), (nn.GELU, 1.0), (nn.SiLU, 1.0)]
)
def test_a_deep_plain_network_keeps_its_signal(activation: Callable[[], nn.Module], target: float) -> None:
    model = mlp(20, activation)
    output = redrawn(model, DIGITS)
    assert number(output.std()) == pytest.approx(0.3, rel=0.3)
    value = DIGITS
    for layer in model[:-1]:
        value = layer(value)
        if isinstance(layer, nn.Linear):
            assert number(value.square().mean().sqrt()) == pytest.approx(target, rel=0.02)


def test_sigmoids_are_centred() -> None:
    model = mlp(8, nn.Sigmoid)
    output = redrawn(model, DIGITS)
    assert number(output.std(dim=0).mean()) > 0.05  # most of it depends on the input still
    assert number(model[:3](DIGITS).mean(dim=0).abs().max()) < 1e-4


def faulty(fault: str) -> nn.Module:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    for parameter in model.parameters():
        parameter.data.fill_({"zeros": 0.0, "nan": math.nan, "constant": 0.3, "huge": 1e30}[fault])
    return model


@pytest.mark.parametrize("fault", ["zeros", "nan", "constant", "huge"])
def test_a_broken_network_becomes_sound(fault: str) -> None:
    model = faulty(fault)
    output = redrawn(model, DIGITS)
    assert number(output.std()) == pytest.approx(0.3, rel=0.3)
    assert is_finite(model)
    assert number(model[0].weight.std()) == pytest.approx(1 / 8, rel=0.2)


def test_values_and_gradients_are_those_of_the_scaled_model() -> None:
    model = mlp(6, nn.ReLU)
    output = redrawn(model, DIGITS)
    output.square().sum().backward()
    during = gradients(model)
    model.zero_grad()
    fresh = model(DIGITS)
    fresh.square().sum().backward()
    assert torch.equal(output, fresh)
    assert all(torch.equal(during[name], value) for name, value in gradients(model).items())


def test_gradients_are_exact_under_autocast() -> None:
    model = mlp(3, nn.ReLU)
    spec = spec_of(model, DIGITS)
    with torch.autocast("cpu", torch.bfloat16):
        redraw(model, spec, lambda: model(DIGITS), 0).float().square().sum().backward()
    during = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model(DIGITS).float().square().sum().backward()
    assert all(torch.equal(during[name], value) for name, value in gradients(model).items())


def test_a_seed_says_what_is_drawn_and_the_global_state_does_not() -> None:
    first, second, third = (mlp(3, nn.ReLU) for _ in range(3))
    spec = spec_of(first, DIGITS)
    before = torch.random.get_rng_state()
    redraw(first, spec, lambda: first(DIGITS), 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    redraw(second, spec, lambda: second(DIGITS), 1)
    redraw(third, spec, lambda: third(DIGITS), 2)
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, third[0].weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32, padding_idx=0)
        self.block = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        value = self.embedding(tokens)
        return self.head(self.norm(value + self.block(value).relu()))


TOKENS = torch.randint(1, 50, (16, 12), generator=generator())


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    output = redrawn(model, TOKENS)
    assert model.head.weight is model.embedding.weight
    assert number(model.embedding.weight[1:].std()) == pytest.approx(1 / math.sqrt(32), rel=0.1)
    assert not model.embedding.weight[0].any()
    assert torch.equal(output, model(TOKENS))


class Residual(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 64)
        self.up = nn.ModuleList(nn.Linear(64, 64) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(64, 64) for _ in range(blocks))
        self.head = nn.Linear(64, 10)

    def forward(self, value: Tensor) -> Tensor:
        value = self.stem(value)
        for up, down in zip(self.up, self.down, strict=True):
            value = value + down(up(value).relu())
        return self.head(value)


def test_branches_share_the_variance_of_their_sum() -> None:
    model = Residual(9)
    seen: list[float] = []
    spec = spec_of(model, DIGITS)
    redraw(model, spec, lambda: model(DIGITS), 0)
    model.down[4].register_forward_hook(lambda _, __, out: seen.append(number(out.square().mean().sqrt())))
    assert number(model(DIGITS).std()) == pytest.approx(0.3, rel=0.01)
    assert seen == [pytest.approx(1 / 3, rel=0.02)]


class Recurrent(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.head = nn.Linear(24, 3)

    def forward(self, value: Tensor) -> Tensor:
        return self.head(self.inner(value)[0][:, -1])


SERIES = torch.randn(16, 9, 5, generator=generator())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_get_their_own_schemes(kind: type[nn.RNNBase]) -> None:
    model = Recurrent(kind(5, 24, num_layers=2, batch_first=True, dropout=0.5))
    output = redrawn(model, SERIES)
    inner: Any = model.inner
    gate = inner.weight_hh_l0[:24]
    assert torch.allclose(gate @ gate.T, torch.eye(24), atol=1e-5)
    assert number(output.std()) == pytest.approx(0.3, rel=0.01)
    assert inner.dropout == 0.5
    if kind is nn.LSTM:
        both = inner.bias_ih_l1 + inner.bias_hh_l1
        assert both[24:48].unique().tolist() == [1.0]
        assert not both[:24].any()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(5, 24)
        self.norm = nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, value: Tensor) -> Tensor:
        value = self.inside(value)
        normal = self.norm(value)
        return self.head(value + self.attention(normal, normal, normal)[0])


def test_attention_is_scaled_at_its_output_projection() -> None:
    model = Attention()
    seen: list[float] = []
    output = redrawn(model, SERIES)
    model.eval()
    model.attention.register_forward_hook(
        lambda _, __, out: seen.append(number(out[0].square().mean().sqrt()))
    )
    model(SERIES)
    assert seen == [pytest.approx(1.0, rel=0.01)]
    assert number(output.std()) == pytest.approx(0.3, rel=0.01)
    assert model.attention.dropout == 0.3


def test_normalizations_and_dropout() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.LazyLinear(10),
    )  # fmt: skip
    images = DIGITS.reshape(64, 1, 8, 8)
    model(images)
    nn.init.constant_(model[1].weight, 30.0)
    nn.init.constant_(model[1].bias, -30.0)
    output = redrawn(model, images)
    assert model[1].weight.unique().tolist() == [1.0]
    assert model[1].bias.unique().tolist() == [0.0]
    assert model[3].training
    assert model[4](model[:3](images)).square().mean().sqrt().item() == pytest.approx(1.0, rel=0.01)
    assert number(output.std()) == pytest.approx(0.3, rel=0.3)


class Sine(nn.Module):
    def __init__(self, depth: int, frequency: float = 30.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 if i == 0 else 64, 64) for i in range(depth))
        self.head = nn.Linear(64, 1)
        self.frequency = frequency
        self.entering: list[float] = []

    def forward(self, value: Tensor) -> Tensor:
        self.entering.clear()
        for layer in self.layers:
            angle = self.frequency * layer(value)
            self.entering.append(number(angle.detach().std()))
            value = torch.sin(angle)
        return self.head(value)


def test_what_enters_a_sine_has_unit_variance() -> None:
    model = Sine(5)
    nn.init.uniform_(model.layers[0].weight, -0.5, 0.5, generator=generator())
    first = model.layers[0].weight.clone()
    output = redrawn(model, 2 * torch.rand(256, 2, generator=generator()) - 1)
    assert torch.equal(model.layers[0].weight, first)
    assert model.entering[1:] == [pytest.approx(1.0, rel=0.1)] * 4
    assert number(output.std()) == pytest.approx(0.3, rel=0.01)


class Exotic(nn.Module):
    """Parameters of all kinds that a scheme knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 1, 64), 0.01))
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.gamma = nn.Parameter(torch.full((64,), 1e-5))
        self.broken = nn.Parameter(torch.full((64,), math.inf))
        self.loud = nn.Parameter(torch.full((3, 64), 1e3))
        self.shared = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.idle = nn.Linear(4, 4)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.counts = nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False)

    def forward(self, value: Tensor) -> dict[str, Tensor]:
        value = (
            self.shared(value)
            + self.token[0] * self.gamma
            + self.broken.nan_to_num(0, 0, 0)
            + self.loud.sum(0)
        )
        value = self.shared(F.dropout(value.relu()))
        return {"output": self.frozen(value) * self.scale}


def test_what_is_not_known_is_kept() -> None:
    model = Exotic()
    before = {name: p.clone() for name, p in model.named_parameters()}
    output = redrawn(model, DIGITS)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed & {"token", "scale", "gamma", "frozen.weight", "counts"} == set()
    assert {"broken", "loud", "shared.parametrizations.weight.original1"} <= changed
    assert is_finite(model)
    assert number(model.shared.weight.detach().square().sum(1).mean()) == pytest.approx(1.0, rel=0.1)
    assert set(output) == {"output"}


def test_a_layer_that_is_called_often_is_scaled_at_its_first_call() -> None:
    inner = nn.Linear(64, 64)
    model = nn.Sequential(inner, nn.ReLU(), inner, nn.ReLU(), inner, nn.ReLU(), nn.Linear(64, 10))
    output = redrawn(model, DIGITS)
    assert torch.equal(output, model(DIGITS))
    assert number(inner(DIGITS).square().mean().sqrt()) == pytest.approx(1.0, rel=0.01)


class Experts(nn.Module):
    """Stacked weights without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.zeros(3, *shape)) for shape in ((64, 96), (96, 64)))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 64] to [3, batch, 64]."""
        return torch.stack([(x @ self.up[i]).relu() @ self.down[i] for i in range(3)])


def test_each_expert_gets_a_draw_of_its_own() -> None:
    model = nn.Sequential(Experts(), nn.ReLU(), nn.Linear(64, 10))
    redrawn(model, DIGITS)
    for weight, fan_in in ((model[0].up, 64), (model[0].down, 96)):
        rms = weight.detach().square().mean(dim=(1, 2)).sqrt() * math.sqrt(fan_in)
        assert [number(one) for one in rms] == pytest.approx(
            [1.0 if fan_in == 64 else math.sqrt(2)] * 3, rel=0.2
        )
        assert not torch.equal(weight[0], weight[1])
    outputs = model[0](DIGITS)
    assert number(outputs.square().mean().sqrt()) == pytest.approx(1.0, rel=0.2)


def old_weight_norm(module: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(module)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, old_weight_norm])
@pytest.mark.parametrize("build", [lambda: nn.Linear(64, 64), lambda: nn.ConvTranspose1d(64, 64, 1)])
def test_weight_norm_gets_a_length_that_keeps_the_signal(
    wrap: Callable[[nn.Module], nn.Module], build: Callable[[], nn.Module]
) -> None:
    model = nn.Sequential(wrap(build()), nn.ReLU(), wrap(build()))
    for p in model.parameters():
        p.data.fill_(1e-6)
    x = DIGITS if isinstance(model[0], nn.Linear) else DIGITS[:, :, None]
    with torch.no_grad():
        model(x)  # so that the old one's weight can be copied
    output = redrawn(model, x)
    assert number(output.square().mean().sqrt()) == pytest.approx(1.0, rel=0.2)


def test_what_spectral_norm_divides_by_is_kept() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 9)
    )
    before = model[0].parametrizations.weight.original.detach().clone()
    redrawn(model, DIGITS)
    assert torch.equal(model[0].parametrizations.weight.original, before)


def test_what_the_pass_raises_passes_and_modes_come_back() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(), nn.Linear(64, 10))
    spec = spec_of(model, DIGITS)

    def fail() -> None:
        model(DIGITS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        redraw(model, spec, fail, 0)
    assert model[1].training
    assert torch.overrides._get_current_function_mode() is None


# ── the uninformed loss ─────────────────────────────────────────────────────────────────────────────────────


def test_of_cross_entropy_it_is_the_entropy_of_the_labels() -> None:
    labels = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    entropy = -sum(p * math.log(p) for p in (0.1, 0.3, 0.6))
    assert uninformed_loss(torch.randn(100, 3), labels, F.cross_entropy, 1) == pytest.approx(
        entropy, abs=1e-3
    )
    assert uninformed_loss(torch.randn(100, 3), labels, nn.CrossEntropyLoss(), -1) == pytest.approx(
        entropy, abs=1e-3
    )


def test_of_squared_errors_it_is_the_variance() -> None:
    target = torch.randn(50, 4, generator=generator()) * 3 + 100
    variance = number(target.var(dim=0, unbiased=False).mean())
    assert uninformed_loss(torch.zeros(50, 4), target, F.mse_loss, -1) == pytest.approx(variance, rel=1e-3)


def test_class_weights_of_single_precision_do() -> None:
    labels = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3))
    assert uninformed_loss(torch.randn(100, 3), labels, weighted, 1) == pytest.approx(0.8979, abs=1e-3)


def test_of_a_large_output_the_entropy_is_counted() -> None:
    labels = torch.arange(1000) % 5
    output = torch.zeros(1, 1).expand(1000, 5000)
    assert uninformed_loss(output, labels, F.cross_entropy, 1) == pytest.approx(math.log(5))


def test_a_model_with_its_own_loss_is_known_by_its_logits() -> None:
    class Output:
        logits = torch.zeros(10, 4)

    assert uninformed_loss(Output(), torch.arange(10) % 2, None, None) == pytest.approx(math.log(2))
    assert math.isnan(uninformed_loss(Output(), torch.zeros(3, dtype=torch.long), None, None))


@pytest.mark.parametrize("output", [(torch.zeros(2), torch.zeros(2)), None, {"logits": torch.zeros(2)}])
def test_what_is_no_single_tensor_has_none(output: object) -> None:
    assert math.isnan(uninformed_loss(output, torch.zeros(2), F.mse_loss, None))


class Decoder(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.norm = nn.LayerNorm(32) if norm else nn.Identity()
        self.block = nn.Linear(32, 32)
        self.end = nn.LayerNorm(32) if norm else nn.Identity()
        self.head = nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        value = self.embedding(tokens)
        return self.head(self.end(value + self.block(self.norm(value)).relu()))


@pytest.mark.parametrize(("norm", "std"), [(True, 0.02), (False, 0.5)])
def test_an_embedding_is_as_large_as_its_readers_need(norm: bool, std: float) -> None:
    model = Decoder(norm)
    redrawn(model, TOKENS)
    assert number(model.embedding.weight.std()) == pytest.approx(std, rel=0.1)
