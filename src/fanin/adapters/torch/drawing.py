"""Fresh parameters under a sound scheme, written in place: each by what its layer does with it.

Nothing here runs the model; `redraw` sets the scales that a pass shows. What is not known is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt

import torch
from torch import Generator, Tensor, nn

from fanin import measures
from fanin.adapters.torch.targets import is_deep_and_plain, is_normalized_trunk
from fanin.scheme import GLOROT_UNIFORM, gain
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

FORGET = 1.0
"""Bias of the forget gate (Jozefowicz et al. 2015); half of it in each of the two bias vectors, which add up."""

FORGET_GATE = 1
"""Its place among PyTorch's four gates: input, forget, cell, output."""

SIREN_SPREAD = 10.0
"""Factor around Sitzmann's first layer within which the given one is kept: it sets the frequencies, a choice of the
task's and not of the scheme's."""


class Drawing:
    """Draws the parameters of one model.

    Args:
        model: Written in place.
        spec: Of this model, from a pass.
        generator: On the CPU; the only source of randomness.

    Attributes:
        drawn: The drawn weights of mixing layers by id, with the layer that they belong to.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, generator: Generator) -> None:
        self.drawn: dict[int, LayerSpec] = {}
        self._model = model
        self._generator = generator
        self._head = measures.head(spec)
        self._layers = {layer.path: layer for layer in spec.layers}
        self._tied = {p.tied_to for layer in spec.layers for p in layer.parameters if p.tied_to}
        own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        computed = [(layer.parameter_path(p), layer, p) for layer in spec.layers for p in layer.weights]
        self._effective = {full: (layer, p) for full, layer, p in computed if full not in own}
        self._orthogonal = is_deep_and_plain(spec)

    def everything(self) -> None:
        """Draw every parameter once, in the order of the specification."""
        with torch.no_grad():
            for layer in self._layers.values():
                for parameter in layer.parameters:
                    tensor = self._tensor(layer, parameter) if self._is_own(parameter) else None
                    if tensor is not None:
                        self._draw(layer, parameter, tensor)

    def _is_own(self, parameter: ParameterSpec) -> bool:
        """Whether it is no other's memory: it is tied to nothing, or to a weight that is computed from it."""
        return parameter.tied_to is None or parameter.tied_to in self._effective

    def _tensor(self, layer: LayerSpec, parameter: ParameterSpec) -> nn.Parameter | None:
        try:
            tensor = self._model.get_parameter(layer.parameter_path(parameter))
        except AttributeError:  # a layer without a module, such as a normalization by function
            return None
        unknown = nn.parameter.is_lazy(tensor) or tensor.is_meta or not tensor.numel()
        return tensor if tensor.is_floating_point() and not unknown else None

    def _draw(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        if not tensor.requires_grad:
            self._keep(tensor, sound=bool(torch.isfinite(tensor).all()))
        elif self._is_weight_norm(layer, parameter):
            self._draw_direction(layer, parameter, tensor)
        else:
            self._way(layer, parameter)(layer, parameter, tensor)

    def _way(
        self, layer: LayerSpec, parameter: ParameterSpec
    ) -> Callable[[LayerSpec, ParameterSpec, nn.Parameter], None]:
        matrix = parameter.role is Role.WEIGHT and len(parameter.shape) >= 2
        if layer.kind is Kind.NORM:
            return self._draw_norm
        if layer.kind is Kind.RECURRENT:
            return self._draw_recurrent
        if layer.kind is Kind.EMBEDDING:
            return self._draw_embedding if matrix else self._draw_bare
        if matrix and parameter.fan_in:
            return self._draw_sine if _is_first_sine(layer) else self._draw_mixing
        if parameter.role is Role.BIAS and (layer.kind is not Kind.OTHER or parameter.name == "bias"):
            return self._draw_sine if _is_first_sine(layer) else self._draw_zeros
        return self._draw_bare

    # -- each way

    def _draw_mixing(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        fan_in, fan_out = parameter.fan_in or 1, parameter.fan_out or 1
        std = (gain(layer.input_activation) or 1.0) / sqrt(fan_in)
        if layer.kind is Kind.ATTENTION:
            std = GLOROT_UNIFORM.std(fan_in, fan_out)  # queries and keys: logits of order 1
        hidden = self._head is None or layer.path != self._head.path
        if self._orthogonal and hidden and tensor[0].numel() == fan_in:
            _write(tensor, _orthogonal_rows(tensor, fan_in, self._generator) * std * sqrt(fan_in))
        else:
            self._normal(tensor, std)
        if layer.kind is not Kind.ATTENTION:  # its packed projections have no output that is seen
            self.drawn[id(tensor)] = self._owner(layer)

    def _owner(self, layer: LayerSpec) -> LayerSpec:
        """The layer whose output the weight makes: of an attention's output projection the attention."""
        around = self._layers.get(layer.path.rpartition(".")[0])
        inside = around is not None and around.kind is Kind.ATTENTION and not layer.calls
        return around if inside and around is not None else layer

    def _draw_embedding(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        tied = layer.parameter_path(parameter) in self._tied
        free = SMALL if is_normalized_trunk(layer, self._layers.values()) else EMBEDDING_RMS
        self._normal(tensor, 1 / sqrt(tensor.shape[-1]) if tied else free)  # tied: logits of order 1
        padding = getattr(self._model.get_submodule(layer.path), "padding_idx", None)
        if padding is not None:
            tensor.data[padding] = 0

    def _draw_norm(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        ours = type(self._model.get_submodule(layer.path)).__module__.startswith("torch.")
        if parameter.role is Role.BIAS:
            tensor.data.zero_()
        elif ours or not bool((tensor == 0).all()):  # others' gains may be stored as their difference from 1
            tensor.data.fill_(1.0)

    def _draw_recurrent(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        """Glorot uniform from the input, orthogonal from the last state, each gate by itself (Saxe et al. 2014)."""
        hidden = int(getattr(self._model.get_submodule(layer.path), "hidden_size", tensor.shape[0]))
        if tensor.ndim < 2:
            tensor.data.zero_()
            if layer.type_name.startswith("LSTM") and len(tensor) == 4 * hidden:
                tensor.data[FORGET_GATE * hidden : (FORGET_GATE + 1) * hidden] = FORGET / 2
        elif "_hh" in parameter.name:
            _write(tensor, _orthogonal_rows(tensor, tensor.shape[1], self._generator, hidden))
        else:
            bound = sqrt(3) * GLOROT_UNIFORM.std(tensor.shape[1], min(hidden, tensor.shape[0]))
            _write(tensor, bound * (2 * torch.rand(tensor.shape, generator=self._generator) - 1))

    def _draw_sine(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        """The first layer of a sine network: U(-1/n, 1/n) (Sitzmann et al. 2020, section 3.2), unless it is near."""
        weight = layer.weights[0]
        bound = 1 / (weight.fan_in or 1)
        if parameter.role is Role.BIAS:
            sound = _is_plausible(tensor)
        else:
            rms = float(tensor.square().mean().sqrt())
            sound = _varies(tensor) and 1 / SIREN_SPREAD < rms * sqrt(3) / bound < SIREN_SPREAD
        if not sound:
            _write(tensor, bound * (2 * torch.rand(tensor.shape, generator=self._generator) - 1))

    def _draw_zeros(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        tensor.data.zero_()

    def _draw_bare(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        loud = tensor.ndim >= 2 and not _varies(tensor) and float(tensor.square().mean().sqrt()) > LOUD
        self._keep(tensor, sound=_is_plausible(tensor) and not loud)

    def _keep(self, tensor: nn.Parameter, *, sound: bool) -> None:
        if not sound:
            self._normal(tensor, SMALL)

    # -- weights kept as length and direction (Salimans and Kingma 2016)

    def _is_weight_norm(self, layer: LayerSpec, parameter: ParameterSpec) -> bool:
        names = {p.name for p in layer.parameters}
        pairs = ({"weight_g", "weight_v"}, {"original0", "original1"})
        return any(parameter.name in pair and pair <= names for pair in pairs)

    def _draw_direction(self, layer: LayerSpec, parameter: ParameterSpec, tensor: nn.Parameter) -> None:
        """The direction is drawn like a weight, and the length is that of the direction."""
        if parameter.name in ("weight_g", "original0"):
            return
        around, whole = self._effective.get(parameter.tied_to or "", (layer, parameter))
        fan_in = whole.fan_in or max(1, tensor[0].numel())
        self._normal(tensor, (gain(around.input_activation) or 1.0) / sqrt(fan_in))
        other = next(p for p in layer.parameters if p.name in ("weight_g", "original0"))
        length = self._tensor(layer, other)
        if length is not None and length.ndim == tensor.ndim:
            axes = [axis for axis in range(tensor.ndim) if length.shape[axis] == 1]
            length.data.copy_(tensor.norm(dim=axes, keepdim=True))

    def _normal(self, tensor: nn.Parameter, std: float) -> None:
        _write(tensor, torch.randn(tensor.shape, generator=self._generator) * std)


def _is_first_sine(layer: LayerSpec) -> bool:
    return layer.activation == "sin" and layer.inputs == (NETWORK_INPUT,)


def _is_plausible(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) and float(tensor.abs().max()) < ABSURD


def _varies(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) and float(tensor.max() - tensor.min()) > 0


def _write(tensor: nn.Parameter, values: Tensor) -> None:
    """Into the parameter's own memory, without a word to autograd."""
    tensor.data.copy_(values)


def _orthogonal_rows(tensor: Tensor, fan_in: int, generator: Generator, block: int | None = None) -> Tensor:
    """Blocks of rows, each semi-orthogonal, with elements of RMS 1/√fan_in (Saxe et al. 2014).

    Args:
        tensor: Of which the shape is taken, [out, ...] with fan_in elements in each row.
        fan_in: Elements of a row.
        generator: On the CPU.
        block: Rows of a block (a gate); all where None.
    """
    rows = prod(tensor.shape) // fan_in
    size = block or rows
    blocks = [_orthogonal(min(size, rows - start), fan_in, generator) for start in range(0, rows, size)]
    return torch.cat(blocks).reshape(tensor.shape)


def _orthogonal(rows: int, columns: int, generator: Generator) -> Tensor:
    drawn = torch.randn(max(rows, columns), min(rows, columns), generator=generator)
    q, r = torch.linalg.qr(drawn)
    q = q * r.diagonal().sign()  # uniform over the group (Mezzadri 2007)
    q = q if rows >= columns else q.T
    scaled: Tensor = q * sqrt(max(rows, columns) / columns)
    return scaled
