"""Repairs of other people, re-expressed by us from their papers, on the same networks and batches.

Each takes a network in train mode, its neutral description and some batches, and initializes it anew in place.

- `he_by_activation`: what the framework offers: kaiming_normal_ before rectifiers, xavier_normal_ elsewhere, biases at
  zero, every other layer by its own reset_parameters. Needs no data.
- `lsuv`: Mishkin and Matas 2016, "All you need is a good init", algorithm 1: orthonormal weights, then layer by layer
  each weight divided by the standard deviation of its output until that is 1.
- `autoinit`: Bingham and Miikkulainen 2023, "AutoInit: Analytic Signal-Preserving Weight Initialization for Neural
  Networks", eq. 4: Var[w] = 1 / (fan_in (μ² + ν)) with the mean μ and variance ν of what the layer is given, propagated
  through activations by their Gaussian integrals. Needs no data. From the published equations alone.
- `gradinit`: Zhu et al. 2021, "GradInit: Learning to Initialize Neural Networks for Stable and Efficient Training",
  algorithm 1, for Adam: one factor a tensor, learned so that the loss after one sign step is low, as long as the
  gradient's norm is below a bound. ITERATIONS steps only, so it is a small-budget version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from fanin.trial import NETWORK_INPUT, Kind, LayerSpec, ModelSpec

Batches = Sequence[tuple[tuple[Any, ...], Any]]
LossFn = Callable[[Any, Any], Tensor]

RECTIFIERS = frozenset(
    {"relu", "leaky_relu", "relu6", "gelu", "silu", "elu", "mish", "hardswish", "softplus"}
)
"""Activations before which He's gain is the usual choice."""

TOLERANCE, TRIES = 0.1, 10
"""Of LSUV: how near the variance must come to 1, and how often a layer is scaled (the paper's values)."""

ITERATIONS, RATE, BOUND, STEP, LEAST = 80, 1e-2, 10.0, 1e-3, 1e-2
"""Of GradInit: steps, their rate, the bound on the gradient's norm, the size of the step looked ahead, and the least
factor (the paper's rate and least factor for Adam; its bound is tuned for each network, this one is its smallest)."""


def _weights(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Linear | _ConvNd)]


def he_by_activation(network: nn.Module, spec: ModelSpec, batches: Batches, loss_fn: LossFn) -> None:
    """Framework reset."""
    activations = {layer.path: layer.activation for layer in spec.layers}
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            rectified = activations.get(path) in RECTIFIERS
            (nn.init.kaiming_normal_ if rectified else nn.init.xavier_normal_)(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif hasattr(module, "_reset_parameters"):
            module._reset_parameters()


def lsuv(network: nn.Module, spec: ModelSpec, batches: Batches, loss_fn: LossFn) -> None:
    """Layer-sequential unit variance; hooks scale each layer when the pass first reaches it."""
    for module in _weights(network):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    seen: set[nn.Module] = set()

    def scale(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if module in seen:
            return output
        seen.add(module)
        for _ in range(TRIES):
            variance = float(output.var())
            if not variance > 0 or abs(variance - 1) < TOLERANCE:
                break
            module.weight.div_(sqrt(variance))
            output = module.forward(*inputs)
        return output

    handles = [module.register_forward_hook(scale) for module in _weights(network)]
    with torch.no_grad():
        network(*batches[0][0])
    for handle in handles:
        handle.remove()


# -- AutoInit


def autoinit(network: nn.Module, spec: ModelSpec, batches: Batches, loss_fn: LossFn) -> None:
    """Analytic mean and variance propagation in forward order; every mixing layer's output becomes (0, 1)."""
    out: dict[str, tuple[float, float]] = {NETWORK_INPUT: (0.0, 1.0)}
    for layer in spec.layers:
        mean, variance = _given(layer, out)
        module = network.get_submodule(layer.path)
        if isinstance(module, nn.Linear | _ConvNd) and layer.weights[0].fan_in:
            with torch.no_grad():
                std = 1 / sqrt(layer.weights[0].fan_in * max(mean**2 + variance, 1e-12))
                module.weight.normal_(0.0, std)
                if module.bias is not None:
                    module.bias.zero_()
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        out[layer.path] = (0.0, 1.0) if layer.kind is not Kind.OTHER else (mean, variance)


def _given(layer: LayerSpec, out: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Mean and variance of a layer's input: of a sum the sums, of several others the means over the members."""
    members = [out.get(path, (0.0, 1.0)) for path in layer.inputs] or [(0.0, 1.0)]
    means, variances = zip(*members, strict=True)
    share = 1.0 if layer.joins == "sum" else 1 / len(members)
    mean, variance = share * sum(means), share * sum(variances)
    return _activated(layer.input_activation or "identity", mean, variance)


_NODES, _PROBABILITIES = np.polynomial.hermite_e.hermegauss(64)


def _activated(name: str, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance behind an activation of Gaussian input, by Gauss-Hermite quadrature."""
    function = ACTIVATIONS.get(name)
    if function is None:
        return mean, variance
    z = torch.from_numpy(mean + sqrt(variance) * _NODES)
    values = function(z).numpy()
    weights = _PROBABILITIES / _PROBABILITIES.sum()
    centre = float(weights @ values)
    return centre, float(weights @ np.square(values - centre))


F = nn.functional
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "mish": F.mish,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
}


# -- GradInit


def gradinit(network: nn.Module, spec: ModelSpec, batches: Batches, loss_fn: LossFn) -> None:
    """Learn one factor a tensor of what is there; the draw itself stays."""
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    factors = {name: torch.ones((), requires_grad=True) for name in start}
    buffers = {name: b.detach().clone() for name, b in network.named_buffers()}
    optimizer = torch.optim.Adam(factors.values(), lr=RATE)

    def loss(parameters: dict[str, Tensor], index: int) -> Tensor:
        inputs, target = batches[index % len(batches)]
        copied = {name: b.clone() for name, b in buffers.items()}
        return loss_fn(functional_call(network, (parameters, copied), inputs), target)

    for index in range(ITERATIONS):
        scaled = {name: factors[name] * start[name] for name in start}
        gradients = torch.autograd.grad(
            loss(scaled, index), list(scaled.values()), create_graph=True, allow_unused=True
        )
        norm = sum((g.abs().sum() for g in gradients if g is not None), torch.zeros(())) * STEP
        if float(norm.detach()) > BOUND:
            aim = norm
        else:
            ahead = {
                name: p if g is None else p - STEP * g.sign().detach()
                for (name, p), g in zip(scaled.items(), gradients, strict=True)
            }
            aim = loss(ahead, index + 1)
        if not bool(torch.isfinite(aim)):
            break
        optimizer.zero_grad()
        aim.backward()
        optimizer.step()
        with torch.no_grad():
            for factor in factors.values():
                factor.clamp_(min=LEAST)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(factors[name] * start[name])


PEERS: dict[str, Callable[[nn.Module, ModelSpec, Batches, LossFn], None]] = {
    "lsuv": lsuv,
    "he_by_activation": he_by_activation,
    "autoinit": autoinit,
    "gradinit": gradinit,
}
"""By name."""
