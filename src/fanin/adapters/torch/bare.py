"""Weights that no known layer computes with: bare parameters, known by what the pass does with them.

A matrix that is used like a layer's weight is a layer. It is the module that owns it, where that is nothing else;
otherwise it is one of its own beside the module, called like the parameter (`blocks.0.experts.down_proj`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from fanin.adapters.torch.effective import old_parts
from fanin.adapters.torch.uses import Taken, Use, uses
from fanin.adapters.torch.views import Key, Views
from fanin.trial import Kind, LayerSpec, ParameterSpec, Role

OPEN = frozenset({Kind.OTHER, Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE})
"""Kinds of modules that may own weights besides those they are known by."""


@dataclass(frozen=True, slots=True)
class Met:
    """A bare weight at work.

    Attributes:
        layer: Path of the layer that it is.
        operands: What the function takes.
        is_first: Whether it has met no data before in this pass.
    """

    layer: str
    operands: Taken
    is_first: bool


class BareWeights:
    """The bare weights of one model, and what passes have shown of them.

    Attributes:
        views: What the tensors of the current pass show of them.
    """

    def __init__(self) -> None:
        self.views = Views({})
        self._weights: dict[Key, Tensor] = {}
        self._computed: dict[Key, str] = {}
        self._layers: dict[Key, str] = {}
        self._uses: dict[Key, Use] = {}
        self._output_axes: dict[str, int | None] = {}
        self._ran: set[str] = set()
        self._fed: set[str] = set()

    def refresh(self, specs: Mapping[str, LayerSpec], modules: Mapping[str, nn.Module]) -> None:
        """Look for them again, in layers as they are described without a pass."""
        found = {path: list(_bare(spec, modules[path])) for path, spec in specs.items()}
        self._weights = {(path, n): modules[path].get_parameter(n) for path in found for n in found[path]}
        self._layers = self._computed | {
            (path, name): path if _is_alone(specs[path], modules[path]) else f"{path}.{name}".lstrip(".")
            for path, name in self._weights
        }

    def begin(self) -> None:
        """A pass begins."""
        self.views = Views(self._weights)
        self._ran.clear()
        self._fed.clear()

    def end(self) -> None:
        """It has ended."""
        self.views = Views({})

    def add(self, path: str, name: str, weight: Tensor) -> None:
        """A weight that the pass itself computes, and that no known layer is described by."""
        self._computed[path, name] = self._layers[path, name] = f"{path}.{name}".lstrip(".")
        self.views.add((path, name), weight)

    def meet(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Met | None:
        """A function has run: the bare weight that it computes with."""
        if not self._layers:
            return None
        met: Met | None = None
        for use, operands in uses(func, args, kwargs, self.views):
            self._uses[use.key] = known = self._uses.get(use.key, use).joined(use)
            if operands is not None and known.kind is not Kind.OTHER:
                layer = self._layers[use.key]
                met = Met(layer, operands, is_first=layer not in self._fed)
                self._output_axes.setdefault(layer, operands.output_axis)
                self._ran.add(use.key[0])
                if operands.data.numel():
                    self._fed.add(layer)
        return met

    def computes(self, path: str) -> bool:
        """Whether weights of this module were at work in this pass: then what it puts out comes from them."""
        return path in self._ran

    def is_layer(self, path: str) -> bool:
        """Whether a layer is such a weight."""
        return path in self._output_axes

    def output_axis(self, path: str, value: Tensor) -> int | None:
        """The axis that counts units in what comes from such a layer; only the last one survives what follows."""
        return -1 if self._output_axes.get(path) == -1 and value.ndim > 1 else None

    def layer_of(self, path: str, name: str) -> str:
        """The layer that a parameter belongs to, as far as passes have shown."""
        layer = self._layers.get((path, name))
        return layer if layer is not None and layer in self._output_axes else path

    def is_used(self, path: str, name: str) -> bool:
        """Whether a parameter is such a weight, and has been at work."""
        return (path, name) in self._uses

    def known(self, path: str, parameter: ParameterSpec) -> ParameterSpec:
        """A parameter with what its uses tell."""
        use = self._uses.get((path, parameter.name))
        if use is None or use.kind is Kind.OTHER:
            return parameter
        return replace(parameter, fan_in=use.fan_in, fan_out=use.fan_out, unit_axis=use.unit_axis)

    def split(self, spec: LayerSpec) -> list[LayerSpec]:
        """A module's layer, what its uses tell filled in, and beside it the layers that weights of its own are."""
        parameters = tuple(self.known(spec.path, p) for p in spec.parameters)
        away = [p for p in parameters if self.layer_of(spec.path, p.name) != spec.path]
        own = replace(spec, parameters=tuple(p for p in parameters if p not in away))
        if self.is_layer(spec.path):
            own = replace(own, kind=self._kind(spec.path))
        return [own, *(self._layer(spec.path, p) for p in away)]

    def _layer(self, path: str, parameter: ParameterSpec) -> LayerSpec:
        layer = self.layer_of(path, parameter.name)
        return LayerSpec(layer, self._kind(layer), "Parameter", (replace(parameter, name=""),))

    def _kind(self, layer: str) -> Kind:
        kinds = {
            self._uses[key].kind for key, path in self._layers.items() if path == layer and key in self._uses
        }
        return kinds.pop() if len(kinds) == 1 else Kind.OTHER


def _bare(spec: LayerSpec, module: nn.Module) -> Iterator[str]:
    """Names of a module's matrices of which its class says nothing, parts of effective weights aside."""
    if spec.kind not in OPEN or isinstance(module, ParametrizationList):
        return
    parts = {part for of in old_parts(module).values() for part in of}
    for p in spec.parameters:
        unknown = p.role is Role.WEIGHT and p.fan_in is None and p.tied_to is None
        if unknown and len(p.shape) >= 2 and p.name not in parts:
            yield p.name


def _is_alone(spec: LayerSpec, module: nn.Module) -> bool:
    """Whether a module is nothing but a weight, and vectors."""
    matrices = [p for p in spec.parameters if len(p.shape) >= 2]
    leaf = not any(True for _ in module.children())
    return spec.kind is Kind.OTHER and len(matrices) == 1 and leaf and bool(spec.path)
