"""Expected moments against Monte Carlo, in NumPy and on real networks; what is not known; how wide an interval is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, log10, nan, pi, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.gaussian import passed
from fanin.moments import Moments, expected, expected_spans
from fanin.rules.bias_offset import BiasOffset
from fanin.rules.exploding_gradient import ExplodingGradient
from fanin.rules.shrinking_signal import ShrinkingSignal
from fanin.scheme import ACTIVATIONS, HE_NORMAL, InitScheme, gain
from fanin.summary import Floats
from fanin.synthetic import Network, mlp, scaled, seen
from fanin.trial import NETWORK_INPUT, ActivationSpec, Kind, LayerSpec, ModelSpec, ParameterSpec, Role, Trial

DRAWS = 60
SYSTEMATIC = 0.05
"""Decades that a mean over draws may be off beyond its sampling noise: signals of width 32 are not quite Gaussian."""

UNEVEN = (32, 64, 24, 96, 48, 10)
EVEN = (48,) * 11 + (10,)


def needed(activation: str) -> InitScheme:
    return InitScheme("normal", gain(activation) or 1.0)


def moments_of(trial: Trial, *, sound: bool = False) -> Moments:
    assert trial.start is not None
    return expected(trial.spec, trial.start, sound=sound)


# ── integrals ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_integrals_agree_with_samples(activation: str) -> None:
    """Pre-activations with a mean, of which a part is the same for the whole batch."""
    rng = np.random.default_rng(0)
    shared = 0.3 + rng.normal(0, sqrt(1.5), 400_000)
    one, two = (shared + rng.normal(0, sqrt(0.5), 400_000) for _ in range(2))
    φ, found = ACTIVATIONS[activation], passed(activation, 0.3, 2.0 + 0.3**2, 0.5)
    assert found is not None
    slope = (φ(one + 1e-5) - φ(one - 1e-5)) / 2e-5
    assert found.mean == pytest.approx(φ(one).mean(), abs=0.01)
    assert found.square == pytest.approx((φ(one) ** 2).mean(), rel=0.01)
    assert found.chi == pytest.approx((slope**2).mean(), rel=0.01)
    assert found.varying == pytest.approx((φ(one) ** 2 - φ(one) * φ(two)).mean(), rel=0.02)
    assert found.spread == pytest.approx((φ(one) ** 4).mean() / (φ(one) ** 2).mean() ** 2 - 1, rel=0.05)


def test_integrals_of_relu_are_known_exactly() -> None:
    found = passed("relu", 0.0, 1.0, 1.0)
    assert found is not None
    assert (found.mean, found.square, found.chi) == pytest.approx((1 / sqrt(2 * pi), 0.5, 0.5), rel=1e-3)
    assert found.varying == pytest.approx((pi - 1) / (2 * pi), rel=1e-3)
    assert (found.spread, found.slope_spread) == pytest.approx((5.0, 5.0), rel=1e-3)  # Hanin and Nica 2019
    assert (found.response, found.chi_response) == pytest.approx((1.0, 0.0), abs=1e-2)


def test_responses_are_derivatives() -> None:
    for activation in ("tanh", "gelu", "sigmoid"):
        low, at, high = (passed(activation, 0.0, q, q) for q in (0.99, 1.0, 1.01))
        assert low is not None
        assert at is not None
        assert high is not None
        assert at.response == pytest.approx(np.log(high.square / low.square) / np.log(1.01 / 0.99), rel=1e-2)
        assert at.chi_response == pytest.approx(np.log(high.chi / low.chi) / np.log(1.01 / 0.99), rel=1e-2)


def test_what_is_no_activation_that_we_know_has_no_integrals() -> None:
    assert passed("softmax", 0.0, 1.0, 1.0) is None


# ── Monte Carlo, NumPy ──────────────────────────────────────────────────────────────────────────────────────


def drawn_networks(
    widths: tuple[int, ...], activation: str, residual: bool = False
) -> tuple[Trial, list[Network]]:
    """A trial of the first draw, and all draws after a pass of the same batch and of a gradient that knows nothing of
    the weights."""
    rng = np.random.default_rng(0)
    x, δ = rng.normal(size=(64, widths[0])), rng.normal(size=(64, widths[-1]))
    init, networks = scaled(needed(activation)), []
    for seed in range(DRAWS):
        network = Network(activation, residual, len(widths) - 2)
        network.draw(widths, init, {}, seed)
        network.forward(x)
        network.backward(δ)
        networks.append(network)
    batch = x, rng.integers(0, widths[-1], 64)
    return mlp(widths, init, activation, residual=residual, batch=batch), networks


def of_scheme(trial: Trial, activation: str) -> Trial:
    """The trial whose weights are said to have the moments of the scheme to the digit, not those of one draw."""
    (start,) = trial.steps
    exact = {
        layer.parameter_path(layer.weights[0]): (gain(activation) or 1.0) ** 2
        / (layer.weights[0].fan_in or 1)
        for layer in trial.spec.layers
    }
    kept = tuple(
        replace(o, summary=replace(o.summary, mean=0.0, m2=exact[o.tensor] * o.summary.count))
        if o.role is Role.WEIGHT
        else o
        for o in start.observations
    )
    return replace(trial, steps=(replace(start, observations=kept),))


def mean_square(x: Floats) -> float:
    return float((x**2).mean())


def deviations(
    moments: Moments, networks: list[Network], last: str = "head"
) -> dict[str, tuple[float, float]]:
    """By layer: decades between the mean over draws and the expectation, forward and backward, in excess of what
    sampling explains (three standard errors of the mean of a log-normal)."""
    found = {}
    for path in networks[0].paths:
        q = [mean_square(n.outputs[path]) for n in networks]
        g = [mean_square(n.output_grads[path]) / mean_square(n.output_grads[last]) for n in networks]
        z, δ = moments.signals[path], moments.gradients[path]
        found[path] = (
            beyond_noise(q, z.square, z.noise + 2 / moments.widths[path]),
            beyond_noise(g, δ.square, δ.response**2 * z.noise + δ.own),
        )
    return found


def beyond_noise(values: list[float], expectation: float, variance: float) -> float:
    error = 3 * sqrt((exp(variance) - 1) / len(values)) / np.log(10)
    return max(0.0, abs(log10(np.mean(values) / expectation)) - error)


NUMPY_CASES = [
    (widths, activation, False) for widths in (UNEVEN, EVEN) for activation in ("relu", "tanh", "sigmoid")
] + [((48,) * 7 + (10,), "relu", True), ((48,) * 7 + (10,), "tanh", True)]


@pytest.mark.parametrize(("widths", "activation", "residual"), NUMPY_CASES)
def test_expected_moments_are_the_means_over_draws(
    widths: tuple[int, ...], activation: str, residual: bool
) -> None:
    trial, networks = drawn_networks(widths, activation, residual)
    found = deviations(moments_of(of_scheme(trial, activation)), networks)
    assert max(max(pair) for pair in found.values()) < SYSTEMATIC, found


@pytest.mark.parametrize(("widths", "activation", "residual"), NUMPY_CASES)
def test_almost_every_draw_lies_within_its_interval(
    widths: tuple[int, ...], activation: str, residual: bool
) -> None:
    trial, networks = drawn_networks(widths, activation, residual)
    moments = moments_of(of_scheme(trial, activation))
    outside = 0
    for network in networks:
        for path in network.paths[:-1]:
            q, g = moments.signal(path), moments.gradient(path)
            assert q is not None
            assert g is not None
            head = mean_square(network.output_grads["head"])
            outside += log10(mean_square(network.outputs[path])) not in q
            outside += log10(mean_square(network.output_grads[path]) / head) not in g
    assert outside <= 0.01 * 2 * len(networks) * len(networks[0].paths)


def test_fan_in_in_place_of_fan_out_would_be_noticed() -> None:
    trial, networks = drawn_networks(UNEVEN, "relu")
    wrong = tuple(
        replace(layer, parameters=tuple(replace(p, fan_out=p.fan_in) for p in layer.parameters))
        for layer in trial.spec.layers
    )
    moments = moments_of(of_scheme(replace(trial, spec=replace(trial.spec, layers=wrong)), "relu"))
    assert max(back for _, back in deviations(moments, networks).values()) > 0.2


def test_the_slope_of_another_activation_would_be_noticed() -> None:
    """tanh taken for linear: χ = 1 in place of 0.46."""
    trial, networks = drawn_networks(EVEN, "tanh")
    linear = tuple(replace(layer, input_activation="identity") for layer in trial.spec.layers)
    moments = moments_of(of_scheme(replace(trial, spec=replace(trial.spec, layers=linear)), "tanh"))
    assert max(back for _, back in deviations(moments, networks).values()) > 0.3


# ── Monte Carlo, real networks ──────────────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    """x + W₂ φ(W₁ norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class Gated(nn.Module):
    """W₃ (silu(W₁ x) W₂ x), as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Joined(nn.Module):
    """Two towers of different widths, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(32, 96), nn.Linear(32, 24), nn.Linear(120, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x).relu(), self.b(3 * x).relu()], dim=1))


def dense(activation: type[nn.Module], *norm: type[nn.Module], depth: int = 5) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i else 32, 64), *(one(64) for one in norm), activation()]
    return nn.Sequential(*layers, nn.Linear(64, 32))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 16, 32),
    )  # fmt: skip


REAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: dense(nn.ReLU), (32,)),
    "tanh": (lambda: dense(nn.Tanh), (32,)),
    "gelu": (lambda: dense(nn.GELU), (32,)),
    "batch normalization": (lambda: dense(nn.ReLU, nn.BatchNorm1d, depth=8), (32,)),
    "layer normalization": (lambda: dense(nn.ReLU, nn.LayerNorm, depth=8), (32,)),
    "convolutions": (convolutions, (3, 8, 8)),
    "pre-norm residual": (
        lambda: nn.Sequential(
            nn.Linear(32, 48), *(Block(48) for _ in range(4)), nn.LayerNorm(48), nn.Linear(48, 32)
        ),
        (32,),
    ),
    "gated": (lambda: nn.Sequential(nn.Linear(32, 64), Gated(64), nn.Linear(64, 32)), (32,)),
    "concatenation": (Joined, (32,)),
}


CLOSE = 0.1
"""Decades between the mean over 20 draws and the expectation, on networks of up to 9 layers of 32 to 256 units."""


def captured(model: nn.Module, shape: tuple[int, ...], seed: int) -> Trial:
    """A real trial; the loss's gradient knows nothing of the weights, nor of the input."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((64, *shape), generator=generator)
    with torch.no_grad():
        out = model(x).shape
    rules = [ExplodingGradient(), ShrinkingSignal(), BiasOffset()]
    loss = lambda y, t: (y * t).sum()  # noqa: E731
    return fanin.check(model, (x, torch.randn(out, generator=generator)), loss, rules=rules).trial


@pytest.mark.parametrize("name", REAL)
def test_real_networks_have_the_moments_that_their_weights_explain(name: str) -> None:
    """Each draw within its interval, and the mean over draws close to the expectation."""
    build, shape = REAL[name]
    ratios: dict[tuple[str, str], list[float]] = {}
    for seed in range(20):
        torch.manual_seed(seed)
        trial = captured(build(), shape, seed)
        moments = moments_of(trial)
        assert trial.start is not None
        outputs, grads = trial.start.first(Role.OUTPUT), trial.start.first(Role.OUTPUT_GRAD)
        last = grads[trial.spec.outputs[0]].summary.second_moment
        for path in outputs:
            q, g = outputs[path].summary.second_moment, grads[path].summary.second_moment / last
            assert log10(q) in (moments.signal(path) or ()), path
            assert log10(g) in (moments.gradient(path) or ()) or g == 1, path
            ratios.setdefault((path, "forward"), []).append(q / moments.signals[path].square)
            ratios.setdefault((path, "backward"), []).append(g / moments.gradients[path].square)
    off = {key: log10(np.mean(values)) for key, values in ratios.items()}
    print(
        name,
        {way: max((v for (_, w), v in off.items() if w == way), key=abs) for way in ("forward", "backward")},
    )
    assert max(map(abs, off.values())) < CLOSE, off


def test_plain_networks_with_batch_normalization_explode_by_design() -> None:
    """π / (π - 1) per ReLU layer (Yang et al. 2019): 0.166 decades."""
    torch.manual_seed(0)
    moments = moments_of(captured(dense(nn.ReLU, nn.BatchNorm1d, depth=12), (32,), 0), sound=True)
    norms = [path for path in moments.gradients if path != "0" and int(path) % 3 == 1]
    grown = [log10(moments.gradients[path].square) for path in sorted(norms, key=int)]
    rate = (grown[1] - grown[-1]) / (len(grown) - 2)
    assert rate == pytest.approx(log10(pi / (pi - 1) * (1 - 2 / 64)), abs=0.04)  # and e^V, V = 5/64


# ── what is not known ───────────────────────────────────────────────────────────────────────────────────────


def test_what_feeds_from_something_unknown_is_unknown() -> None:
    trial = mlp((32,) * 6 + (10,))
    layers = tuple(
        replace(layer, kind=Kind.ATTENTION) if layer.path == "blocks.2.fc" else layer
        for layer in trial.spec.layers
    )
    moments = moments_of(replace(trial, spec=replace(trial.spec, layers=layers)))
    assert list(moments.signals) == ["blocks.0.fc", "blocks.1.fc"]
    assert moments.gradients == {}


def test_a_normalization_makes_the_signal_known_again_but_not_the_gradient_before_it() -> None:
    trial = mlp((32,) * 6 + (10,))
    kinds = {"blocks.1.fc": (Kind.OTHER, "Mystery"), "blocks.2.fc": (Kind.NORM, "LayerNorm")}
    layers = tuple(
        replace(layer, kind=kinds[layer.path][0], type_name=kinds[layer.path][1])
        if layer.path in kinds
        else layer
        for layer in trial.spec.layers
    )
    moments = moments_of(replace(trial, spec=replace(trial.spec, layers=layers)), sound=True)
    assert "blocks.1.fc" not in moments.signals
    assert moments.signals["blocks.2.fc"].square == pytest.approx(1.0, rel=1e-3)
    assert moments.signals["blocks.2.fc"].varying != moments.signals["blocks.2.fc"].varying  # nan
    assert set(moments.gradients) == {"blocks.2.fc", "blocks.3.fc", "blocks.4.fc", "head"}


def test_pooling_makes_unknown_what_comes_behind_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    assert list(moments_of(captured(model, (3, 8, 8), 0)).signals) == ["0"]


class Rectified(nn.Module):
    """Whether the skip passes the ReLU too is not recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.a(x)).relu()
        return self.head((x + self.b(x)).relu())


def test_a_sum_of_which_a_part_may_have_been_activated_before_is_unknown() -> None:
    signals = moments_of(captured(Rectified(), (32,), 0)).signals
    assert "a" in signals
    assert not {"b", "head"} & signals.keys()


def test_a_layer_that_runs_twice_is_unknown() -> None:
    shared = nn.Linear(32, 32)
    model = nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(32, 10)
    )
    assert list(moments_of(captured(model, (32,), 0)).signals) == ["0"]


# ── intervals ───────────────────────────────────────────────────────────────────────────────────────────────


def half_width(width: int, activation: str = "relu", depth: int = 6) -> float:
    """Of the gradient's interval at the first of so many layers; nothing this large is drawn."""
    paths = [f"fc{i}" for i in range(depth)]
    layers = tuple(
        LayerSpec(
            path,
            Kind.LINEAR,
            "Linear",
            (ParameterSpec("weight", Role.WEIGHT, (width, width), fan_in=width, fan_out=width, unit_axis=0),),
            (paths[i - 1] if i else NETWORK_INPUT,),
            input_activation=activation if i else "identity",
            calls=1,
        )
        for i, path in enumerate(paths)
    )
    acts = tuple(ActivationSpec(f"{path}_input", activation, (path,)) for path in paths[:-1])
    x = np.random.default_rng(0).normal(size=(16, 8))
    step = seen(layers, {("fc0", Role.INPUT): x}).start
    assert step is not None
    found = expected(ModelSpec("ByHand", "", layers, acts, (paths[-1],)), step, sound=True).gradient("fc0")
    assert found is not None
    return (found.high - found.low) / 2


def test_an_interval_is_as_wide_as_the_layers_are_narrow() -> None:
    """A 4x4 layer is not judged like 4096x4096: √(5 L / n), Hanin and Nica 2019."""
    assert half_width(4) == pytest.approx(3 * sqrt(5 * 5 / 4) / np.log(10), rel=0.01)
    assert half_width(4096) == pytest.approx(half_width(4) / 32, rel=0.01)


def test_tanh_is_less_noisy_than_relu_forward() -> None:
    relu, tanh = (
        moments_of(mlp(EVEN, scaled(needed(a)), a), sound=True).signal("head") for a in ("relu", "tanh")
    )
    assert relu is not None
    assert tanh is not None
    assert tanh.high - tanh.low < (relu.high - relu.low) / 2


# ── the yardstick ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_yardstick_is_what_sound_weights_do_not_what_was_drawn() -> None:
    for factor in (1e-3, 1.0):
        trial = mlp(EVEN, scaled(HE_NORMAL, factor))
        assert trial.start is not None
        sound = expected_spans(trial.spec, trial.start)["blocks.0.fc"]
        drawn = expected_spans(trial.spec, trial.start, sound=False)["blocks.0.fc"]
        assert sound.middle == pytest.approx(-0.3, abs=0.4)
        assert drawn.middle == pytest.approx(sound.middle + 20 * log10(factor), abs=0.5)


def test_there_is_no_yardstick_where_the_last_layer_is_not_the_only_one() -> None:
    trial = mlp(EVEN)
    several = replace(trial, spec=replace(trial.spec, outputs=("head", "blocks.9.fc")))
    assert several.start is not None
    assert expected_spans(several.spec, several.start) == {}
    assert expected(several.spec, several.start, sound=True).gradients == {}


def test_signals_of_unknown_variation_stay_so() -> None:
    found = passed("tanh", 0.0, 1.0, nan)
    assert found is not None
    assert found.varying != found.varying
    assert found.square == pytest.approx(0.394, abs=1e-3)
