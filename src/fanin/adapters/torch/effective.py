"""Weights that are computed from other parameters at each pass: weight_norm, spectral_norm, orthogonal and the like.

The layer computes with the effective weight, so that is what its rules judge; the parameters that it is made of are
parts of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from fanin.adapters.torch.describe import fans
from fanin.adapters.torch.sources import line_of
from fanin.trial import LayerSpec, ParameterSpec, Role

OLD_PARTS = (("_g", "_v"), ("_orig",))
"""Endings of the parameters that `torch.nn.utils.weight_norm`, and `spectral_norm` and `prune` there, leave in place of
one called like the weight."""


def host_of(path: str, module: nn.Module) -> tuple[str, str] | None:
    """Path and name of the weight that a parametrization makes; None of any other module."""
    if not isinstance(module, ParametrizationList):
        return None
    host, _, name = path.rpartition(".")
    return host.removesuffix("parametrizations").removesuffix("."), name


def old_parts(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """The weights that a forward pre-hook of the module computes, as plain attributes, and what of."""
    own = [name for name, p in module._parameters.items() if p is not None]
    found: dict[str, tuple[str, ...]] = {}
    for name in own:
        for endings in OLD_PARTS:
            weight = name.removesuffix(endings[0])
            parts = tuple(weight + ending for ending in endings)
            made = weight != name and isinstance(vars(module).get(weight), Tensor)
            if made and all(part in own for part in parts):
                found[weight] = parts
    return found


def computed(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of the weights that pre-hooks have computed."""
    yield from ((name, vars(module)[name]) for name in old_parts(module))


class EffectiveWeights:
    """The effective weights that passes have shown."""

    def __init__(self) -> None:
        self._specs: dict[str, dict[str, ParameterSpec]] = {}
        self._parts: dict[str, str] = {}

    def add(self, path: str, name: str, weight: Tensor, module: nn.Module) -> ParameterSpec:
        """One has been computed.

        Args:
            path: Of the layer that computes with it.
            name: Within it.
            weight: Its value.
            module: The layer.
        """
        parts = _parts(module, name)
        fan_in, fan_out, axis = fans(module, name, weight)
        spec = ParameterSpec(
            name=name,
            role=Role.WEIGHT,
            shape=tuple(weight.shape),
            dtype=str(weight.dtype).removeprefix("torch."),
            fan_in=fan_in,
            fan_out=fan_out,
            unit_axis=axis,
            trainable=weight.requires_grad,
            source=next((line for part in parts.values() if (line := line_of(part))), None),
        )
        self._specs.setdefault(path, {})[name] = spec
        self._parts |= {f"{path}.{part}".lstrip("."): f"{path}.{name}".lstrip(".") for part in parts}
        return spec

    def described(self, spec: LayerSpec) -> LayerSpec:
        """A layer with its effective weights; what they are made of is tied to them."""
        parameters = [
            replace(p, fan_in=None, fan_out=None, unit_axis=None, tied_to=self._parts[full])
            if (full := spec.parameter_path(p)) in self._parts
            else p
            for p in spec.parameters
        ]
        return replace(spec, parameters=(*self._specs.get(spec.path, {}).values(), *parameters))


def _parts(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The parameters that a weight is made of, by their path within the layer."""
    old = old_parts(module).get(name)
    if old is not None:
        return {part: module.get_parameter(part) for part in old}
    inside = f"parametrizations.{name}"
    return {f"{inside}.{part}": p for part, p in module.get_submodule(inside).named_parameters(recurse=False)}
