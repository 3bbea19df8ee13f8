"""Fresh parameters under a sound scheme, written in place: each by what its layer does with it.

Nothing here runs the model; `redraw` sets the scales that a pass shows. What is not known is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isfinite, sqrt

import torch
from torch import Generator, Tensor, nn

from fanin import measures
from fanin.adapters.torch.recipe import GATES, Recipe, write
from fanin.adapters.torch.targets import is_normalized_trunk
from fanin.change import Plan, Treatment
from fanin.scheme import GLOROT_UNIFORM, gain, scheme_for
from fanin.trial import NETWORK_INPUT, Kind, LayerSpec, ModelSpec, ParameterSpec, Role

EMBEDDING_RMS = 0.5
"""Of an embedding that mixing layers read as it is: order 1, as what they read elsewhere, and half of PyTorch's 1."""

SMALL = 0.02
"""Standard deviation of an embedding whose scale normalizations set (Radford et al. 2019; a small GPT made 1.5 to 1.9
times the progress in 60 steps that it made with 0.5), and of a bare parameter that had to be replaced (class tokens,
positions: Dosovitskiy et al. 2021)."""

ABSURD = 1e4
"""Magnitude that no scheme draws: memory that was never written."""

LOUD = 10.0
"""RMS from which a bare parameter without any variation is taken for a fault."""

SIREN_SPREAD = 10.0
"""Factor around Sitzmann's first layer within which the given one is kept: it sets the frequencies, a choice of the
task's and not of the scheme's."""

LENGTHS = ("weight_g", "original0")
"""Names of the length in a weight that is kept as length and direction (Salimans and Kingma 2016)."""

DRAWN = frozenset({"normal", "uniform", "orthogonal"})
"""Distributions that have a scale."""


class Drawing:
    """Draws the parameters of one model.

    Args:
        model: Written in place.
        spec: Of this model, from a pass.
        generator: On the CPU; the only source of randomness.

    Attributes:
        drawn: The weights of mixing layers that now wait for their scale, by id, with the layer that they belong to.
        recipes: What was written, by id of the parameter.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, generator: Generator) -> None:
        self.drawn: dict[int, LayerSpec] = {}
        self.recipes: dict[int, Recipe] = {}
        self._model = model
        self._generator = generator
        self._head = measures.head(spec)
        self._layers = {layer.path: layer for layer in spec.layers}
        self._tied = {p.tied_to for layer in spec.layers for p in layer.parameters if p.tied_to}
        own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        computed = [(layer.parameter_path(p), layer, p) for layer in spec.layers for p in layer.weights]
        self._effective = {full: (layer, p) for full, layer, p in computed if full not in own}
        self._orthogonal = measures.is_deep_and_plain(spec)
        self._named = False

    def everything(self) -> None:
        """Draw every parameter once, in the order of the specification."""
        self._treat(lambda _: Treatment.REDRAW)

    def follow(self, plan: Plan) -> None:
        """Treat what a plan names, once, in the order of the specification."""
        self._named = plan.named
        self._treat(plan.treatments.get)

    def _treat(self, treatment: Callable[[str], Treatment | None]) -> None:
        with torch.no_grad():
            for layer in self._layers.values():
                for parameter in layer.parameters:
                    asked = treatment(self._asked_as(layer, parameter)) if self._is_own(parameter) else None
                    tensor = self._tensor(layer, parameter) if asked is not None else None
                    if tensor is not None and asked is not None:
                        self._apply(layer, parameter, tensor, asked)

    def _asked_as(self, layer: LayerSpec, parameter: ParameterSpec) -> str:
        """The name by which a plan knows it: that of the weight that is computed from it, if there is one."""
        return parameter.tied_to or layer.parameter_path(parameter)

    def _is_own(self, parameter: ParameterSpec) -> bool:
        """Whether it is no other's memory: it is tied to nothing, or to a weight that is computed from it."""
        return parameter.tied_to is None or parameter.tied_to in self._effective

    def _tensor(self, layer: LayerSpec, parameter: ParameterSpec) -> nn.Parameter | None:
        try:
            tensor = self._model.get_parameter(layer.parameter_path(parameter))
        except AttributeError:  # a layer without a module, such as a normalization by function
            return None
        return tensor if tensor.is_floating_point() and is_plain(tensor) and tensor.numel() else None

    def _apply(
        self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter, asked: Treatment
    ) -> None:
        recipe = self._recipe(layer, parameter, tensor)
        if recipe is None:
            return
        factor = _missing_factor(recipe, tensor) if asked is Treatment.SCALE else None
        if factor is not None:
            tensor.data.mul_(factor)
            recipe = replace(recipe, distribution="kept", treatment=asked, factor=factor)
        else:
            write(recipe, tensor, self._generator)
        self.recipes[id(tensor)] = recipe
        if self._is_mixing(layer, parameter) and (tensor.requires_grad or self._named):
            self.drawn[id(tensor)] = self._owner(layer)
        if self._is_weight_norm(layer, parameter):
            self._set_length(layer, tensor)

    def _recipe(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe | None:
        """What the parameter is to hold; None where it keeps what it holds."""
        if not tensor.requires_grad and not self._named:
            return self._kept(layer, parameter, sound=bool(torch.isfinite(tensor).all()))
        if self._is_weight_norm(layer, parameter):
            return self._direction(layer, parameter, tensor)
        return self._way(layer, parameter)(layer, parameter, tensor)

    def _way(
        self, layer: LayerSpec, parameter: ParameterSpec
    ) -> Callable[[LayerSpec, ParameterSpec, nn.Parameter], Recipe | None]:
        matrix = parameter.role is Role.WEIGHT and len(parameter.shape) >= 2
        if layer.kind is Kind.NORM:
            return self._norm
        if layer.kind is Kind.RECURRENT:
            return self._recurrent
        if layer.kind is Kind.EMBEDDING:
            return self._embedding if matrix else self._bare
        if matrix and parameter.fan_in:
            return self._sine if _is_first_sine(layer) else self._mixing
        if parameter.role is Role.BIAS and (layer.kind is not Kind.OTHER or parameter.name == "bias"):
            return self._sine if _is_first_sine(layer) else self._zeros
        return self._bare

    # -- each way

    def _mixing(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe:
        fan_in, fan_out = parameter.fan_in or 1, parameter.fan_out or 1
        if layer.kind is Kind.ATTENTION:  # queries and keys: logits of order 1
            return _named(layer, parameter, "normal", "glorot_normal", GLOROT_UNIFORM.std(fan_in, fan_out))
        std = (gain(layer.input_activation) or 1.0) / sqrt(fan_in)
        hidden = self._head is None or layer.path != self._head.path
        if self._orthogonal and hidden and tensor[0].numel() == fan_in:
            return _named(layer, parameter, "orthogonal", "orthogonal", std)
        known = scheme_for(layer.input_activation)
        return _named(layer, parameter, "normal", known.name if known else "lecun_normal", std)

    def _is_mixing(self, layer: LayerSpec, parameter: ParameterSpec) -> bool:
        """Whether the pass sees what comes of it; not so of an attention's packed projections, and of a sine network's
        first layer, which sets frequencies."""
        return self._way(layer, parameter) == self._mixing and layer.kind is not Kind.ATTENTION

    def _owner(self, layer: LayerSpec) -> LayerSpec:
        """The layer whose output the weight makes: of an attention's output projection the attention."""
        around = self._layers.get(layer.path.rpartition(".")[0])
        inside = around is not None and around.kind is Kind.ATTENTION and not layer.calls
        return around if inside and around is not None else layer

    def _embedding(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe:
        tied = layer.parameter_path(parameter) in self._tied
        free = SMALL if is_normalized_trunk(layer, self._layers.values()) else EMBEDDING_RMS
        std = 1 / sqrt(tensor.shape[-1]) if tied else free  # tied: logits of order 1
        made = _named(layer, parameter, "normal", "normal", std)
        return replace(made, padding=getattr(self._model.get_submodule(layer.path), "padding_idx", None))

    def _norm(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe | None:
        ours = type(self._model.get_submodule(layer.path)).__module__.startswith("torch.")
        if parameter.role is Role.BIAS:
            return _constant(layer, parameter, 0.0)
        if ours or not bool((tensor == 0).all()):  # others' gains may be stored as their difference from 1
            return _constant(layer, parameter, 1.0)
        return None

    def _recurrent(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe:
        """Glorot uniform from the input, orthogonal from the last state, each gate by itself (Saxe et al. 2014)."""
        hidden = int(getattr(self._model.get_submodule(layer.path), "hidden_size", tensor.shape[0]))
        if tensor.ndim < 2:
            if layer.type_name.startswith("LSTM") and len(tensor) == GATES * hidden:
                return replace(
                    _constant(layer, parameter, 0.0), distribution="forget_gate", scheme="forget gate +1"
                )
            return _constant(layer, parameter, 0.0)
        if "_hh" in parameter.name:
            made = _named(layer, parameter, "orthogonal", "orthogonal", 1 / sqrt(tensor.shape[1]))
            return replace(made, block=hidden)
        std = GLOROT_UNIFORM.std(tensor.shape[1], min(hidden, tensor.shape[0]))
        return _named(layer, parameter, "uniform", "glorot_uniform", std)

    def _sine(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe | None:
        """The first layer of a sine network: U(-1/n, 1/n) (Sitzmann et al. 2020, section 3.2), unless it is near."""
        bound = 1 / (layer.weights[0].fan_in or 1)
        if parameter.role is Role.BIAS:
            sound = _is_plausible(tensor)
        else:
            rms = float(tensor.square().mean().sqrt())
            sound = _varies(tensor) and 1 / SIREN_SPREAD < rms * sqrt(3) / bound < SIREN_SPREAD
        return None if sound else _named(layer, parameter, "uniform", "siren, first layer", bound / sqrt(3))

    def _zeros(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe:
        return _constant(layer, parameter, 0.0)

    def _bare(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe | None:
        loud = tensor.ndim >= 2 and not _varies(tensor) and float(tensor.square().mean().sqrt()) > LOUD
        return self._kept(layer, parameter, sound=_is_plausible(tensor) and not loud)

    def _kept(self, layer: LayerSpec, parameter: ParameterSpec, *, sound: bool) -> Recipe | None:
        return None if sound else _named(layer, parameter, "normal", "normal", SMALL)

    # -- weights kept as length and direction (Salimans and Kingma 2016)

    def _is_weight_norm(self, layer: LayerSpec, parameter: ParameterSpec) -> bool:
        names = {p.name for p in layer.parameters}
        pairs = ({"weight_g", "weight_v"}, {"original0", "original1"})
        return any(parameter.name in pair and pair <= names for pair in pairs)

    def _direction(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> Recipe | None:
        """The direction is drawn like a weight, and the length is that of the direction."""
        if parameter.name in LENGTHS:
            return None
        around, whole = self._effective.get(parameter.tied_to or "", (layer, parameter))
        fan_in = whole.fan_in or max(1, tensor[0].numel())
        return _named(
            layer, parameter, "normal", "normal", (gain(around.input_activation) or 1.0) / sqrt(fan_in)
        )

    def _set_length(self, layer: LayerSpec, direction: nn.Parameter) -> None:
        other = next(p for p in layer.parameters if p.name in LENGTHS)
        length = self._tensor(layer, other)
        if length is not None and length.ndim == direction.ndim:
            axes = [axis for axis in range(direction.ndim) if length.shape[axis] == 1]
            length.data.copy_(direction.norm(dim=axes, keepdim=True))
            self.recipes[id(length)] = _named(layer, other, "length", "length of the direction")


def is_plain(tensor: nn.Parameter) -> bool:
    """Whether the values are there to be written: neither lazy, without memory, sharded nor quantized."""
    return not nn.parameter.is_lazy(tensor) and not tensor.is_meta and type(tensor.data) is Tensor


def _named(
    layer: LayerSpec, parameter: ParameterSpec, distribution: str, scheme: str, std: float = 1.0
) -> Recipe:
    path = layer.parameter_path(parameter)
    return Recipe(path, parameter, distribution, scheme, std, activation=layer.input_activation)  # type: ignore[arg-type]


def _constant(layer: LayerSpec, parameter: ParameterSpec, value: float) -> Recipe:
    path, scheme = layer.parameter_path(parameter), "ones" if value else "zeros"
    return Recipe(path, parameter, "constant", scheme, value=value, treatment=Treatment.RESET)


def _missing_factor(recipe: Recipe, tensor: Tensor) -> float | None:
    """What brings the values to the recipe's scale; None where they have none, or none that a factor can mend."""
    rms = float(tensor.detach().double().square().mean().sqrt())
    factor = recipe.std / rms if rms > 0 else 0.0
    return factor if recipe.distribution in DRAWN and isfinite(factor) and factor > 0 else None


def _is_first_sine(layer: LayerSpec) -> bool:
    return layer.activation == "sin" and layer.inputs == (NETWORK_INPUT,)


def _is_plausible(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) and float(tensor.abs().max()) < ABSURD


def _varies(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) and float(tensor.max() - tensor.min()) > 0
