"""What the output of each layer should be in a network that is soundly initialized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fanin import measures
from fanin.adapters.torch.describe import kind_of, module_at
from fanin.trial import Kind, LayerSpec, ModelSpec

HIDDEN_RMS = 1.0
"""RMS before an activation, for which `fanin.scheme` has its gains."""

TANH_RMS = 0.7
"""Below HIDDEN_RMS, because tanh saturates: between the 0.5 that suits deep networks and the 1 of shallow ones."""

HEAD_STD = 0.3
"""Standard deviation of the network's outputs: logits nearly uniform, with gradients as large as they get; regression
starts near the mean. With it one-pass scaling repaired 129 of 157 poor networks, and unlike with 1 none of the
autoencoders was harmed (18 architectures x 19 initializations)."""

CENTRED = frozenset({"sigmoid", "softplus", "logsigmoid"})
"""Activations whose output has a mean of the order of its size, which the next layer would pass on as a constant per
unit: there the layer's bias takes the mean away (Krähenbühl et al. 2016)."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the output of a weight is to be.

    Attributes:
        weight: The parameter.
        rms: Wanted root mean square of its output, of a sine's input; None where the weight stays as it is.
        is_head: Whether `rms` is meant about the mean.
        is_sine: Whether a sine takes the output.
        centre: The bias that is to take the mean of each unit away; None where it stays.
        unit_axis: Axis of the output that counts units.
    """

    weight: nn.Parameter
    rms: float | None
    is_head: bool = False
    is_sine: bool = False
    centre: nn.Parameter | None = None
    unit_axis: int = -1


def targets(model: nn.Module, spec: ModelSpec, drawn: dict[int, LayerSpec]) -> dict[int, Target]:
    """By id of the weight; none for those that an embedding shares, whose output has passed already, and for those
    that a normalization makes up for.

    Args:
        model: The model.
        spec: Of this model, from a pass.
        drawn: The weights that have been drawn, by id, with the layer whose output they make.
    """
    branches, heads, reset = measures.branch_ends(spec), _heads(spec), _normalized(spec)
    shared = {id(p) for m in model.modules() if kind_of(m) is Kind.EMBEDDING for p in m.parameters()}
    found: dict[int, Target] = dict(_sines(model, spec))
    for weight in model.parameters():
        layer = drawn.get(id(weight))
        if layer is None or id(weight) in shared or layer.path in reset:
            continue
        if layer.path in heads and layer.path not in branches:
            found[id(weight)] = Target(weight, HEAD_STD, is_head=True)
        else:
            found[id(weight)] = _hidden(model, layer, weight, branches.get(layer.path, 1))
    return found


def _hidden(model: nn.Module, layer: LayerSpec, weight: nn.Parameter, branches: int) -> Target:
    """A branch that is added to a trunk of RMS 1 with others has its share of the sum's variance (Hanin and Rolnick
    2018; Radford et al. 2019)."""
    rms = (TANH_RMS if layer.activation == "tanh" else HIDDEN_RMS) / sqrt(branches)
    module = module_at(model, layer.path)
    bias = module._parameters.get("bias") if module is not None else None
    centred = layer.activation in CENTRED and bias is not None and bias.requires_grad
    axis = -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1
    sine = layer.activation == "sin"
    return Target(weight, rms, is_sine=sine, centre=bias if centred else None, unit_axis=axis)


def _sines(model: nn.Module, spec: ModelSpec) -> dict[int, Target]:
    """Weights before a sine: those that keep their values still show its frequency."""
    layers = (layer for layer in spec.layers if layer.activation == "sin" and layer.weights)
    weights = (model.get_parameter(layer.parameter_path(layer.weights[0])) for layer in layers)
    return {id(weight): Target(weight, None, is_sine=True) for weight in weights}


def _heads(spec: ModelSpec) -> set[str]:
    """Layers whose output is the network's and nobody else's."""
    last = measures.head(spec)
    consumed = {path for layer in spec.layers for path in layer.inputs}
    return (set(spec.outputs) - consumed) | ({last.path} if last else set())


def _normalized(spec: ModelSpec) -> set[str]:
    """Layers that feed normalizations and nothing else, alone: their scale has no effect."""
    alone: set[str] = set()
    other = set(spec.outputs)
    for layer in spec.layers:
        only = layer.kind is Kind.NORM and len(layer.inputs) == 1 and layer.input_activation == "identity"
        (alone if only else other).update(layer.inputs)
    return alone - other


def is_normalized_trunk(embedding: LayerSpec, layers: Iterable[LayerSpec]) -> bool:
    """Whether what reads an embedding, alone or in a sum, are normalizations only."""
    readers = [layer for layer in layers if embedding.path in layer.inputs]
    return bool(readers) and all(layer.kind is Kind.NORM for layer in readers)
