"""What functions of torch do to a signal, by name: activations, normalizations, joins, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fanin.adapters.torch.attention import SOFTMAXES


def _named(names: dict[str, tuple[Any, ...]]) -> dict[Any, str]:
    return {function: name for name, functions in names.items() for function in functions}


ACTIVATIONS: dict[Any, str] = _named(
    {
        "relu": (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
        "relu6": (F.relu6,),
        "leaky_relu": (F.leaky_relu, F.leaky_relu_),
        "rrelu": (F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_),
        "prelu": (F.prelu, torch.prelu, Tensor.prelu),
        "elu": (F.elu, F.elu_),
        "celu": (F.celu, F.celu_, torch.celu, torch.celu_),
        "selu": (F.selu, F.selu_, torch.selu, torch.selu_),
        "gelu": (F.gelu,),
        "silu": (F.silu,),
        "mish": (F.mish,),
        "tanh": (F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_),
        "sigmoid": (F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_),
        "softplus": (F.softplus,),
        "softsign": (F.softsign,),
        "hardtanh": (F.hardtanh, F.hardtanh_),
        "hardsigmoid": (F.hardsigmoid,),
        "hardswish": (F.hardswish,),
        "logsigmoid": (F.logsigmoid,),
        "tanhshrink": (F.tanhshrink,),
        "hardshrink": (F.hardshrink, torch.hardshrink, Tensor.hardshrink),
        "softshrink": (F.softshrink,),
        "threshold": (F.threshold, torch.threshold),
        "glu": (F.glu,),
        "sin": (torch.sin, torch.sin_, Tensor.sin, Tensor.sin_),
        "softmax": (F.softmax, torch.softmax, Tensor.softmax),
    }
)
"""Elementwise nonlinearities, gates and softmax, under every name that torch gives them."""

NORMALIZATIONS: dict[Any, str] = _named(
    {
        "layer_norm": (F.layer_norm, torch.layer_norm),
        "rms_norm": (F.rms_norm, torch.rms_norm),
        "batch_norm": (F.batch_norm, torch.batch_norm),
        "group_norm": (F.group_norm, torch.group_norm),
        "instance_norm": (F.instance_norm, torch.instance_norm),
        "normalize": (F.normalize,),
    }
)
"""Functions that set the scale of their output whatever that of their input."""

SUMS = frozenset(
    {
        torch.add,
        Tensor.add,
        Tensor.add_,
        Tensor.__add__,
        Tensor.__radd__,
        Tensor.__iadd__,
        torch.sub,
        Tensor.sub,
        Tensor.sub_,
        Tensor.__sub__,
        Tensor.__rsub__,
        Tensor.__isub__,
    }
)
PRODUCTS = frozenset(
    {torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__}
)
CONCATENATIONS = frozenset(
    {torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack}
)

JOINS: dict[Any, str] = {
    **dict.fromkeys(SUMS, "sum"),
    **dict.fromkeys(PRODUCTS, "product"),
    **dict.fromkeys(CONCATENATIONS, "concatenation"),
}
"""How a function of several tensors joins them."""

ATTENTIONS = SOFTMAXES | {F.scaled_dot_product_attention, F.multi_head_attention_forward}
"""Functions that may compute attention."""


def activation_of(func: Callable[..., Any], kwargs: dict[str, Any]) -> str | None:
    """Which activation a function is, if any; `nn.ReLU6` calls a hardtanh from 0 to 6."""
    name = ACTIVATIONS.get(func)
    limits = kwargs.get("min_val"), kwargs.get("max_val")
    return "relu6" if name == "hardtanh" and limits == (0.0, 6.0) else name
