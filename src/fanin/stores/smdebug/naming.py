"""What a tensor of SageMaker Debugger is to the network, by its name: all that such a trial says about that.

PyTorch        MLP_blocks.0.layer.weight   gradient/MLP_...       blocks.0.relu_input_0    CrossEntropyLoss_output_0
MXNet Gluon    conv0_weight                gradient/conv0_weight  conv0_relu_input_0       softmax...loss0_output_0
Keras          weights/dense/kernel:0      gradients/dense/...    re_lu/inputs             loss
TensorFlow 1   conv2d/kernel:0             gradients/...          conv2d/inputs/...        loss:0
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fanin.trial import Role

REDUCTION = re.compile(r"smdebug/reductions/(abs_)?([^/]+)/(.+)", re.DOTALL)
"""What a tensor's name becomes where only a reduction of it is saved."""

GRADIENT = re.compile(r"gradients?/(.+)", re.DOTALL)
GRADIENT_END = re.compile(r"/?Grad(?::\d+)?$")
BIAS = re.compile(
    r"(?:^|[._/])(?:bias|beta)(?:_[ih]h_l\d+(?:_reverse)?)?(?::\d+)?$|BiasAdd_grad", re.IGNORECASE
)
WEIGHT = re.compile(
    r"(?:^|[._/])(?:\w*weight|kernel|gamma|embeddings)(?:_[ih]h_l\d+(?:_reverse)?)?(?::\d+)?$", re.IGNORECASE
)
INPUT = re.compile(r"(.+?)(?:_input_\d+|/inputs(?:_\d+)?(?:/.+)?)$", re.DOTALL)
OUTPUT = re.compile(r"(.+?)(?:_output_\d+|/outputs(?:_\d+)?(?:/.+)?)$", re.DOTALL)
LOSS = re.compile(r"loss(?:\d*_output(?:_\d+)?)?(?::\d+)?$", re.IGNORECASE)
LOSS_INPUT = re.compile(r"loss\d*(?:_input_\d+|/inputs)", re.IGNORECASE)
SCALAR = "scalar/"


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor's role and the layer that it belongs to.

    Attributes:
        parameter: The parameter that it is, or is the gradient of; empty for others.
    """

    role: Role
    layer: str
    parameter: str = ""


def meaning(name: str) -> Named | None:
    """What a tensor is; None for what no rule looks at.

    >>> meaning("gradient/MLP_blocks.0.layer.weight")
    Named(role=<Role.WEIGHT_GRAD: 'weight_grad'>, layer='MLP_blocks.0.layer', parameter='MLP_blocks.0.layer.weight')
    """
    if gradient := GRADIENT.fullmatch(name):
        parameter = GRADIENT_END.sub("", gradient[1])
        return None if BIAS.search(parameter) else _of_parameter(Role.WEIGHT_GRAD, parameter)
    if LOSS_INPUT.search(name) or name.startswith(SCALAR):
        return None
    if found := INPUT.fullmatch(name):
        return Named(Role.ACTIVATION_INPUT, found[1])
    if found := OUTPUT.fullmatch(name):
        return Named(Role.OUTPUT, found[1])
    parameter = name.removeprefix("weights/").removeprefix("biases/")
    if BIAS.search(parameter):
        return _of_parameter(Role.BIAS, parameter)
    return _of_parameter(Role.WEIGHT, parameter) if WEIGHT.search(parameter) else None


def _of_parameter(role: Role, parameter: str) -> Named:
    return Named(role, layer_of(parameter), parameter)


def layer_of(parameter: str) -> str:
    """The layer of a parameter; of a name that is not a path it is the parameter itself.

    >>> layer_of("MLP_blocks.0.layer.weight"), layer_of("conv0_weight")
    ('MLP_blocks.0.layer', 'conv0_weight')
    """
    return parameter.rpartition(".")[0] if is_path(parameter) else parameter


def is_path(name: str) -> bool:
    """Whether a name is one of PyTorch's: attributes with dots between them."""
    return "." in name and "/" not in name


def is_loss(name: str, losses: Iterable[str] = ()) -> bool:
    """Whether a tensor is a loss: one of the collection `losses`, or called so."""
    return name in losses or (bool(LOSS.search(name)) and not name.startswith(SCALAR))


def reduction(name: str) -> tuple[str, str, bool] | None:
    """Tensor, reduction, and whether that is of magnitudes; None for a tensor itself.

    >>> reduction("smdebug/reductions/abs_mean/fc_weight")
    ('fc_weight', 'mean', True)
    """
    found = REDUCTION.fullmatch(name)
    return (found[3], found[2], bool(found[1])) if found else None
