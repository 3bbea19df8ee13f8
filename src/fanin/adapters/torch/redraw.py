"""The reference re-draw: the same architecture under a sound scheme, scaled as one pass shows.

Each mixing layer is drawn anew (`drawing`) and then, as the pass reaches it, multiplied by the factor that gives its
output a target scale, so that one forward pass sets the whole network (layer-sequential: Mishkin and Matas 2016,
"All you need is a good init"). A function is first computed for its scale and then once more with the scaled weight:
so what the pass returns, and its graph, are those of the new weights, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from fanin import measures
from fanin.adapters.torch.describe import kind_of, tensors_in
from fanin.adapters.torch.drawing import Drawing
from fanin.trial import NETWORK_INPUT, Kind, LayerSpec, ModelSpec

WITH_BIAS_THIRD = frozenset(
    {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
)
"""Functions of (input, weight, bias, ...)."""

WITH_BIAS_FIRST = frozenset({torch.addmm, Tensor.addmm})
"""Functions of (bias, a, b); GPT-2's `Conv1D` is one."""

WITHOUT_BIAS = frozenset(
    {torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm}
    | {torch.einsum, F.multi_head_attention_forward}
)
"""Functions that are linear in each of their operands; of attention in its output projection."""

MIXES = WITH_BIAS_THIRD | WITH_BIAS_FIRST | WITHOUT_BIAS

DROPOUTS = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)

SINES = frozenset({torch.sin, torch.sin_, Tensor.sin, Tensor.sin_})

HIDDEN_RMS = 1.0
"""RMS before an activation for which `fanin.scheme` has its gains."""

TANH_RMS = 0.7
"""Below HIDDEN_RMS, because tanh saturates: between the 0.5 that suits deep networks and the 1 of shallow ones."""

HEAD_STD = 0.3
"""Standard deviation of the network's outputs: logits nearly uniform, with gradients as large as they get; regression
starts near the mean. Repaired 129 of 157 poor networks, where 1 harmed autoencoders (one-pass scaling, 18 networks)."""

LARGEST_HEAD_RMS = 1.0
"""Bound on the RMS of the outputs where most of it is common to all samples."""

CENTRED = frozenset({"sigmoid", "softplus", "logsigmoid"})
"""Activations whose output has a mean of the order of its size, which the next layer would pass on as a constant per
unit: there the layer's bias takes the mean away (Krähenbühl et al. 2016)."""

VANISHED = 1e-30
"""RMS below which there is no signal to scale."""


def redraw(model: nn.Module, spec: ModelSpec, run: Callable[[], Any], seed: int) -> Any:
    """Draw the parameters anew, in place, and scale them in one pass.

    What is not known is kept: parameters of unknown role, frozen ones, scalars and vectors of their own. Parameters
    that are tied are drawn once. The global random state is not drawn from, though the model may do so in its pass.

    Args:
        model: Written in place; the caller keeps copies, or passes one.
        spec: Of this model, from a pass.
        run: Runs the model once, and its backward pass if wanted; dropout is off meanwhile.
        seed: Of the draw.

    Returns:
        What `run` returns, computed with the new weights.

    Raises:
        Whatever `run` raises.
    """
    drawing = Drawing(model, spec, torch.Generator().manual_seed(seed))
    drawing.everything()
    with _without_dropout(model), _Scaling(_targets(model, spec, drawing.drawn)):
        return run()


# ── what to aim at ──────────────────────────────────────────────────────────────────────────────────────────


class Target:
    """What the output of a drawn weight is to be.

    Attributes:
        layer: Whose output it is.
        rms: Wanted root mean square.
        is_head: Whether `rms` is meant about the mean.
    """

    __slots__ = ("is_head", "layer", "rms")

    def __init__(self, layer: LayerSpec, rms: float, is_head: bool) -> None:
        self.layer = layer
        self.rms = rms
        self.is_head = is_head


def _targets(
    model: nn.Module, spec: ModelSpec, drawn: dict[int, LayerSpec]
) -> dict[int, tuple[nn.Parameter, Target]]:
    """By id of the weight; none for those that an embedding shares, whose output has passed already, and for those
    that a normalization makes up for."""
    branches, heads, reset = _branches(spec), _heads(spec), _normalized(spec)
    shared = {id(p) for m in model.modules() if kind_of(m) is Kind.EMBEDDING for p in m.parameters()}
    found: dict[int, tuple[nn.Parameter, Target]] = {}
    for parameter in model.parameters():
        layer = drawn.get(id(parameter))
        if layer is None or id(parameter) in shared or layer.path in reset:
            continue
        is_head = layer.path in heads and layer.path not in branches
        rms = TANH_RMS if layer.activation == "tanh" else HIDDEN_RMS
        rms = HEAD_STD if is_head else rms / sqrt(branches.get(layer.path, 1))
        found[id(parameter)] = parameter, Target(layer, rms, is_head)
    return found


def _heads(spec: ModelSpec) -> set[str]:
    """Layers whose output is the network's and nobody else's."""
    last = measures.head(spec)
    consumed = {path for layer in spec.layers for path in layer.inputs}
    return (set(spec.outputs) - consumed) | ({last.path} if last else set())


def _branches(spec: ModelSpec) -> dict[str, int]:
    """The layers that end a residual branch, with the largest number of branches that meet in one sum with theirs.

    Of the members of a sum the earliest is the trunk. The network's output is such a sum where it goes on from one.
    """
    order = {layer.path: place for place, layer in enumerate(spec.layers)}
    sums = [layer.inputs for layer in spec.layers if layer.joins == "sum"]
    if any(set(members) < set(spec.outputs) for members in sums):
        sums.append(spec.outputs)
    counts: dict[str, int] = {}
    for members in sums:
        known = sorted((m for m in members if m in order or m == NETWORK_INPUT), key=lambda m: order.get(m, -1))
        for end in known[1:]:
            counts[end] = max(counts.get(end, 1), len(known) - 1)
    return counts


def _normalized(spec: ModelSpec) -> set[str]:
    """Layers that feed normalizations and nothing else, alone: their scale has no effect."""
    alone, other = set[str](), set(spec.outputs)
    for layer in spec.layers:
        only = layer.kind is Kind.NORM and len(layer.inputs) == 1 and layer.input_activation == "identity"
        (alone if only else other).update(layer.inputs)
    return alone - other


# ── the pass ────────────────────────────────────────────────────────────────────────────────────────────────


class _Scaling(TorchFunctionMode):
    """Scales each weight when a function first takes it."""

    def __init__(self, targets: dict[int, tuple[nn.Parameter, Target]]) -> None:
        super().__init__()
        self._targets = targets
        self._frequency = 1.0
        self._before_sine = 0.0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in DROPOUTS:
            return args[0] if args else named["input"]
        if func is F.scaled_dot_product_attention:
            args, named = _without_attention_dropout(args, named)
        found = self._taken(args, named) if func in MIXES else None
        if found is not None:
            self._scale(*found, lambda: _biasless(func, args, named))
        elif func in SINES:
            self._measure_frequency(args)
        return func(*args, **named)

    def _taken(self, args: Any, named: dict[str, Any]) -> tuple[nn.Parameter, Target] | None:
        """The weight among the arguments that waits for its scale; of a view of one, the weight. The last one: an
        attention's output projection comes after the projections of its inputs."""
        found = None
        for tensor in tensors_in((args, named)):
            owner = tensor if tensor._base is None else tensor._base
            found = self._targets.get(id(owner), found)
        return found

    def _scale(self, weight: nn.Parameter, target: Target, compute: Callable[[], Any]) -> None:
        del self._targets[id(weight)]
        with torch.no_grad():
            made = next(tensors_in(compute()), None)
            if made is None:
                return
            made = made.detach().double()
            mean = self._centre(weight, target, made)
            factor = self._factor(target, made if mean is None else made - mean[0])
            if not isfinite(factor) or factor <= 0:
                return
            weight.data.mul_(factor)
            if mean is not None:
                mean[1].data.copy_(-factor * mean[0].flatten())
        torch.clear_autocast_cache()  # it holds the weight as it was

    def _centre(self, weight: nn.Parameter, target: Target, made: Tensor) -> tuple[Tensor, nn.Parameter] | None:
        """Mean of each unit and the bias that is to take it away; None where that is not wanted."""
        return None

    def _factor(self, target: Target, made: Tensor) -> float:
        """What brings the output, without its bias, to the target; nan where there is no signal."""
        rms = float(made.square().mean().sqrt())
        if not VANISHED < rms < float("inf"):
            return float("nan")
        if target.layer.activation == "sin":
            self._before_sine = target.rms / self._frequency
            return self._before_sine / rms
        if target.is_head and made.numel() > 1:
            return target.rms / max(float(made.std()), target.rms * rms / LARGEST_HEAD_RMS)
        return target.rms / rms

    def _measure_frequency(self, args: Any) -> None:
        """What a sine network multiplies a layer's output by: the same for the next layer, as its makers have it."""


def _biasless(func: Callable[..., Any], args: Any, named: dict[str, Any]) -> Any:
    """The function's value without its bias."""
    if func in WITH_BIAS_THIRD:
        bare = {**named, "bias": None} if "bias" in named else named
        return func(*args[:2], *([None] if len(args) > 2 else []), *args[3:], **bare)
    if func in WITH_BIAS_FIRST and args and isinstance(args[0], Tensor):
        return func(torch.zeros_like(args[0]), *args[1:], **named)
    return func(*args, **named)


def _without_attention_dropout(args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if len(args) > 4:  # (query, key, value, mask, dropout_p, ...)
        return (*args[:4], 0.0, *args[5:]), named
    return args, {**named, "dropout_p": 0.0}


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout modules evaluate, and what attention and recurrent modules drop is nothing; put back afterwards."""
    modes = [(m, m.training) for m in model.modules() if isinstance(m, _DropoutNd)]
    inner = [(m, m.dropout) for m in model.modules() if isinstance(m, nn.MultiheadAttention | nn.RNNBase)]
    try:
        for module, _ in modes:
            module.training = False
        for module, _ in inner:
            module.dropout = 0.0
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, rate in inner:
            module.dropout = rate
