"""Odd starts of dense and shallow networks: from zero, from the identity, from PyTorch's defaults, by special rules."""

from __future__ import annotations

from itertools import pairwise

import torch
from benchmarks._batches import images
from torch import Tensor, nn
from torch.nn import functional


def default(*widths: int) -> nn.Sequential:
    """A shallow ReLU network as PyTorch draws it."""
    return _stack(nn.ReLU, *widths)


def _stack(activation: type[nn.Module], *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for taken, made in pairwise(widths):
        layers += [nn.Linear(taken, made), activation()]
    return nn.Sequential(*layers[:-1])


def _linear(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def _zero_biases(model: nn.Module) -> None:
    for layer in _linear(model):
        nn.init.zeros_(layer.bias)


def logistic() -> nn.Sequential:
    """Convex: it may start from zero."""
    return _from_zero(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))


def linear() -> nn.Sequential:
    """Convex as well."""
    return _from_zero(nn.Sequential(nn.Linear(16, 1)))


def _from_zero(model: nn.Sequential) -> nn.Sequential:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def first_zero() -> nn.Sequential:
    """The first layer is zero, the second random: gradients reach the first, and differ by unit."""
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    return model


def lenet() -> nn.Sequential:
    """LeNet-5 with ReLU, as PyTorch's tutorials have it."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def positive_bias() -> nn.Sequential:
    """he_normal, and biases of 0.1 before ReLU, as TensorFlow's first tutorials had them."""
    model = _stack(nn.ReLU, 784, 256, 256, 256, 10)
    for layer in _linear(model):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.constant_(layer.bias, 0.1)
    return model


def orthogonal(activation: str, depth: int) -> nn.Sequential:
    """Orthogonal weights with the gain of their activation (Saxe et al. 2014)."""
    model = _stack({"tanh": nn.Tanh, "relu": nn.ReLU}[activation], 784, *([128] * depth), 10)
    gain = {"tanh": 1.1, "relu": 2**0.5}[activation]
    for layer in _linear(model):
        nn.init.orthogonal_(layer.weight, gain)
    nn.init.orthogonal_(_linear(model)[-1].weight)
    _zero_biases(model)
    return model


def identity() -> nn.Sequential:
    """Square layers at the identity, ends by glorot_uniform (as in Le et al. 2015, without recurrence)."""
    model = _stack(nn.ReLU, 784, 128, 128, 128, 128, 10)
    for layer in _linear(model):
        square = layer.in_features == layer.out_features
        nn.init.eye_(layer.weight) if square else nn.init.xavier_uniform_(layer.weight)
    _zero_biases(model)
    return model


def linear_identity() -> nn.Sequential:
    """A deep linear network of identities (Hardt and Ma 2017) with a random head."""
    layers = [nn.Linear(16, 16) for _ in range(6)]
    for layer in layers:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Linear(16, 1))


def glorot_tanh() -> nn.Sequential:
    """glorot_uniform and tanh (Glorot and Bengio 2010)."""
    model = _stack(nn.Tanh, 784, 256, 256, 256, 256, 10)
    for layer in _linear(model):
        nn.init.xavier_uniform_(layer.weight)
    _zero_biases(model)
    return model


def selu() -> nn.Sequential:
    """lecun_normal and SELU, no normalization, 12 layers (Klambauer et al. 2017)."""
    model = _stack(nn.SELU, 784, *([128] * 12), 10)
    for layer in _linear(model):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    _zero_biases(model)
    return model


def mup() -> nn.Sequential:
    """Maximal update parametrization: he_normal inside, zero readout (Yang et al. 2022)."""
    model = _stack(nn.ReLU, 784, 512, 512, 10)
    for layer in _linear(model)[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(_linear(model)[-1].weight)
    _zero_biases(model)
    return model


def weight_normed() -> nn.Sequential:
    """Weight normalization with its data-dependent start (Salimans and Kingma 2016)."""
    model = _stack(nn.ReLU, 784, 128, 128, 128, 10)
    x, _ = images(64, 28, channels=1, seed=99)
    x = x.flatten(1)
    for layer in _linear(model):
        nn.init.normal_(layer.weight, std=0.05)
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            z = layer(x)
            layer.weight /= z.std(0)[:, None]
            layer.bias -= z.mean(0) / z.std(0)
            x = functional.relu(layer(x))
        nn.utils.parametrizations.weight_norm(layer)
    return model


class Sine(nn.Module):
    """sin(ω W x + b) (Sitzmann et al. 2020)."""

    def __init__(self, taken: int, made: int, first: bool, omega: float = 30.0) -> None:
        super().__init__()
        self.omega, self.linear = omega, nn.Linear(taken, made)
        bound = 1 / taken if first else (6 / taken) ** 0.5 / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[points, taken] to [points, made]."""
        return torch.sin(self.omega * self.linear(x))


class Siren(nn.Module):
    """Coordinates to brightness."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(Sine(2, width, True), *(Sine(width, width, False) for _ in range(3)))
        self.head = nn.Linear(width, 1)
        bound = (6 / width) ** 0.5 / 30
        nn.init.uniform_(self.head.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[points, 2] to [points, 1]."""
        return self.head(self.layers(x))


def coordinates(seed: int) -> tuple[Tensor, Tensor]:
    """The pixels of one image: where, and how bright."""
    pixels, _ = images(2, 32, channels=1, seed=seed)
    axis = torch.linspace(-1, 1, 32)
    return torch.cartesian_prod(axis, axis), pixels[0].reshape(-1, 1)


class ActorCritic(nn.Module):
    """PPO's usual start: orthogonal by √2, the policy's last layer by 0.01, the value's by 1 (Huang et al. 2022)."""

    def __init__(self, taken: int = 16, actions: int = 6) -> None:
        super().__init__()
        self.actor = nn.Sequential(*_stack(nn.Tanh, taken, 64, 64, actions))
        self.critic = nn.Sequential(*_stack(nn.Tanh, taken, 64, 64, 1))
        for part, last in ((self.actor, 0.01), (self.critic, 1.0)):
            for layer in _linear(part):
                nn.init.orthogonal_(layer.weight, 2**0.5)
            nn.init.orthogonal_(_linear(part)[-1].weight, last)
        _zero_biases(self)

    def forward(self, x: Tensor) -> Tensor:
        """States [batch, taken] to [batch, actions + 1], the value last."""
        return torch.cat([self.actor(x), self.critic(x)], 1)


def ppo_like(output: Tensor, target: Tensor) -> Tensor:
    """Policy gradient of one action each, weighed by the target, and the value's squared error."""
    logits, value = output[:, :-1], output[:, -1:]
    taken = torch.arange(len(logits)) % logits.shape[1]
    gain = ((target - target.mean()) / target.std()).squeeze(1)
    policy = (functional.cross_entropy(logits, taken, reduction="none") * gain).mean()
    return policy + 0.5 * functional.mse_loss(value, target)


def dqn() -> nn.Sequential:
    """The Atari network (Mnih et al. 2015) as PyTorch draws it."""
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


class CrossNetwork(nn.Module):
    """Deep & Cross v2 (Wang et al. 2021): x + x0 · (W x), beside a ReLU network; glorot_uniform."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.deep = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(width + 64, 1)
        for layer in _linear(self):
            nn.init.xavier_uniform_(layer.weight)
        _zero_biases(self)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] to [batch, 1]."""
        crossed = x
        for layer in self.cross:
            crossed = crossed + x * layer(crossed)
        return self.head(torch.cat([crossed, self.deep(x)], 1))
