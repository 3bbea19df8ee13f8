"""Modules in neutral words: which of them are layers, of what kind, with what fans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from fanin.adapters.torch.sources import line_of
from fanin.trial import Kind, LayerSpec, ModelSpec, ParameterSpec, Role

Fans = tuple[int | None, int | None, int | None]
"""fan_in, fan_out and unit axis of a weight; None where not known."""

UNKNOWN: Fans = (None, None, None)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that owns parameters, and every normalization, by path, in the order of construction."""
    return {
        path: module
        for path, module in model.named_modules()
        if kind_of(module) is Kind.NORM
        or any(p is not None for p in module._parameters.values())
        or is_parametrized(module)
    }


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module of a layer; None of one that is a function or a bare weight."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def uncompiled(model: nn.Module) -> nn.Module:
    """The model within what `torch.compile(model)` returned; any other as it is."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Modules that only distribute another: that one is the model, by its own names."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within what compiles or distributes it; any other as it is."""
    inner = model.module if isinstance(model, WRAPPERS) else uncompiled(model)
    return model if inner is model else unwrapped(inner)


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a module in it runs compiled."""
    return any(
        uncompiled(module) is not module or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def model_spec(model: nn.Module) -> ModelSpec:
    """The model without running it: layers in the order of construction."""
    first_names: dict[int, str] = {}
    found = tuple(layer_spec(path, module, first_names) for path, module in layers(model).items())
    return ModelSpec(type(model).__name__, framework(), found)


def kind_of(module: nn.Module) -> Kind:
    """What a module does; OTHER when that is not known."""
    for kind, belongs in _KINDS:
        if belongs(module):
            return kind
    return Kind.OTHER


def _is_norm(module: nn.Module) -> bool:
    """By class, or by what third parties agree on: `Norm` in the class's name and nothing but vectors inside."""
    if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.LocalResponseNorm):
        return True
    own = [p for p in module._parameters.values() if p is not None]
    return "norm" in type(module).__name__.lower() and bool(own) and all(p.ndim <= 1 for p in own)


def _is_conv1d_of_transformers(module: nn.Module) -> bool:
    """GPT-2's `Conv1D` is a linear layer that stores its weight as [fan_in, fan_out]."""
    weight = module._parameters.get("weight")
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight is not None


_KINDS: tuple[tuple[Kind, Callable[[nn.Module], bool]], ...] = (
    (Kind.LINEAR, lambda m: isinstance(m, nn.Linear) or _is_conv1d_of_transformers(m)),
    (Kind.CONV_TRANSPOSE, lambda m: isinstance(m, _ConvNd) and m.transposed),
    (Kind.CONV, lambda m: isinstance(m, _ConvNd)),
    (Kind.EMBEDDING, lambda m: isinstance(m, nn.Embedding | nn.EmbeddingBag)),
    (Kind.NORM, _is_norm),
    (Kind.RECURRENT, lambda m: isinstance(m, nn.RNNBase | nn.RNNCellBase)),
    (Kind.ATTENTION, lambda m: isinstance(m, nn.MultiheadAttention)),
)


def is_computing(module: nn.Module) -> bool:
    """Whether the module's own output is a layer's output, rather than that of the layers inside it."""
    return kind_of(module) is not Kind.OTHER or not any(True for _ in module.children())


def output_axis(module: nn.Module, output: Tensor) -> int | None:
    """The axis of a layer's output that counts units; None where not known."""
    if isinstance(module, _ConvNd):
        return output.ndim - 1 - len(module.kernel_size)
    if isinstance(module, _NormBase | nn.GroupNorm):
        return 1 if output.ndim > 1 else None
    if kind_of(module) is Kind.NORM and not _gains_one_axis(module, output):
        return None
    return -1 if kind_of(module) is not Kind.OTHER and output.ndim > 1 else None


def _gains_one_axis(module: nn.Module, output: Tensor) -> bool:
    """Whether a normalization has a gain for each index of the output's last axis."""
    gain = module._parameters.get("weight")
    return gain is not None and output.ndim > 1 and tuple(gain.shape) == (output.shape[-1],)


def layer_spec(path: str, module: nn.Module, first_names: dict[int, str]) -> LayerSpec:
    """A module without running it.

    Args:
        path: Where it is.
        module: A layer.
        first_names: Full name of the first parameter at each address; completed, so that later ones are tied to it.
    """
    kind = kind_of(module)
    parameters = tuple(
        _parameter_spec(path, name, p, kind, module, first_names)
        for name, p in module._parameters.items()
        if p is not None
    )
    return LayerSpec(path=path, kind=kind, type_name=type(module).__name__, parameters=parameters)


def role_of(name: str, parameter: Tensor, kind: Kind) -> Role:
    """WEIGHT or BIAS, by name and shape."""
    is_bias = "bias" in name or (kind is Kind.OTHER and parameter.ndim == 0)
    return Role.BIAS if is_bias and parameter.ndim <= 1 else Role.WEIGHT


def _parameter_spec(
    path: str, name: str, p: nn.Parameter, kind: Kind, module: nn.Module, first_names: dict[int, str]
) -> ParameterSpec:
    full = f"{path}.{name}" if path else name
    first = first_names.setdefault(id(p), full)
    role = role_of(name, p, kind)
    lazy = nn.parameter.is_lazy(p)
    fan_in, fan_out, axis = fans(module, name, p) if role is Role.WEIGHT and not lazy else UNKNOWN
    return ParameterSpec(
        name=name,
        role=role,
        shape=() if lazy else tuple(p.shape),
        dtype=str(p.dtype).removeprefix("torch."),
        fan_in=fan_in,
        fan_out=fan_out,
        unit_axis=axis,
        trainable=p.requires_grad,
        tied_to=first if first != full else None,
        source=line_of(p),
    )


def fans(module: nn.Module, name: str, weight: Tensor) -> Fans:
    """True fan_in and fan_out of a weight: terms in one output's sum, and outputs that one input reaches.

    Of the weights that a class is known for; others of its module are known by their uses alone (`bare`).
    """
    if name != "weight" and kind_of(module) in _ONE_WEIGHT:
        return UNKNOWN
    for recognizes, of in _FANS:
        if recognizes(module):
            return of(module, name, weight)
    return UNKNOWN


def _linear(module: nn.Module, name: str, weight: Tensor) -> Fans:
    if _is_conv1d_of_transformers(module):
        return weight.shape[0], weight.shape[1], 1
    return weight.shape[1], weight.shape[0], 0


def _conv(module: nn.Module, name: str, weight: Tensor) -> Fans:
    """Weight [out, in/groups, *kernel]; a stride of s lets an input reach only every s-th position."""
    assert isinstance(module, _ConvNd)
    kernel, stride = prod(module.kernel_size), prod(module.stride)
    return (
        weight.shape[1] * kernel,
        max(1, weight.shape[0] // module.groups * kernel // stride),
        0,
    )


def _conv_transpose(module: nn.Module, name: str, weight: Tensor) -> Fans:
    """Weight [in, out/groups, *kernel]; of the kernel's taps only one in s meets an input (Shi et al. 2016)."""
    assert isinstance(module, _ConvNd)
    kernel, stride = prod(module.kernel_size), prod(module.stride)
    return (
        max(1, weight.shape[0] // module.groups * kernel // stride),
        weight.shape[1] * kernel,
        1 if module.groups == 1 else None,
    )


def _embedding(module: nn.Module, name: str, weight: Tensor) -> Fans:
    """A lookup: one row, one term."""
    return 1, weight.shape[1], 0


def _recurrent(module: nn.Module, name: str, weight: Tensor) -> Fans:
    """Weight [gates * hidden, in]: each gate is a layer of its own beside the others."""
    if weight.ndim != 2:
        return UNKNOWN
    hidden = getattr(module, "hidden_size", weight.shape[0])
    return weight.shape[1], hidden, 0


def _attention(module: nn.Module, name: str, weight: Tensor) -> Fans:
    """`in_proj_weight` [3 d, d] packs three layers of fan_out d."""
    if weight.ndim != 2:
        return UNKNOWN
    packed = 3 if name == "in_proj_weight" else 1
    return weight.shape[1], weight.shape[0] // packed, 0


_ONE_WEIGHT = frozenset({Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE, Kind.EMBEDDING})
"""Kinds whose class has one weight, called so; what it is made of (`weight_v`), or a factor beside it, is another."""

_FANS: tuple[tuple[Callable[[nn.Module], bool], Callable[[nn.Module, str, Tensor], Fans]], ...] = (
    (lambda m: kind_of(m) is Kind.LINEAR, _linear),
    (lambda m: kind_of(m) is Kind.CONV_TRANSPOSE, _conv_transpose),
    (lambda m: kind_of(m) is Kind.CONV, _conv),
    (lambda m: kind_of(m) is Kind.EMBEDDING, _embedding),
    (lambda m: kind_of(m) is Kind.RECURRENT, _recurrent),
    (lambda m: kind_of(m) is Kind.ATTENTION, _attention),
)


def tensors_in(value: object, depth: int = 3) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and records, first to last."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and hasattr(value, "values") and hasattr(value, "keys"):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and hasattr(value, "__dataclass_fields__"):
        for item in vars(value).values():
            yield from tensors_in(item, depth - 1)


def framework() -> str:
    """E.g. `torch 2.13.0`."""
    return f"torch {torch.__version__}"
