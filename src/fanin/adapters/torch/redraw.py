"""The reference re-draw: the same architecture under a sound scheme, scaled as one pass shows.

Each mixing layer is drawn anew (`drawing`) and then, as the pass reaches it, multiplied by the factor that gives its
output a target scale, so that one forward pass sets the whole network (layer-sequential: Mishkin and Matas 2016,
"All you need is a good init"). A function is first computed for its scale and then once more with the scaled weight:
so what the pass returns, and its graph, are those of the new weights, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf, isfinite, nan
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from fanin.adapters.torch.describe import tensors_in
from fanin.adapters.torch.drawing import Drawing
from fanin.adapters.torch.recipe import Recipe
from fanin.adapters.torch.targets import Target, targets
from fanin.change import Treatment
from fanin.trial import ModelSpec, ParameterSpec, Role

WITH_BIAS_THIRD = frozenset(
    {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
)
"""Functions of (input, weight, bias, ...)."""

WITH_BIAS_FIRST = frozenset({torch.addmm, Tensor.addmm})
"""Functions of (bias, a, b); GPT-2's `Conv1D` is one."""

WITHOUT_BIAS = frozenset(
    {
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.__rmatmul__,
        torch.mm,
        Tensor.mm,
        torch.bmm,
        Tensor.bmm,
    }
    | {torch.einsum, F.multi_head_attention_forward}
)
"""Functions that are linear in each of their operands; of attention in its output projection."""

MIXES = WITH_BIAS_THIRD | WITH_BIAS_FIRST | WITHOUT_BIAS

DROPOUTS = frozenset(
    {
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
    }
)

SINES = frozenset({torch.sin, torch.sin_, Tensor.sin, Tensor.sin_})

LARGEST_HEAD_RMS = 1.0
"""Bound on the RMS of the outputs where most of it is common to all samples."""

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
    return scale(model, spec, drawing, run)


def scale(model: nn.Module, spec: ModelSpec, drawing: Drawing, run: Callable[[], Any]) -> Any:
    """Give what was drawn its scale in one pass, and note the factors in the drawing's recipes.

    Args:
        model: Written in place.
        spec: Of this model, from a pass.
        drawing: What was drawn; only that is scaled.
        run: Runs the model once; dropout is off meanwhile.

    Returns:
        What `run` returns, computed with the new weights.
    """
    with _without_dropout(model), _Scaling(targets(model, spec, drawing.drawn), drawing.recipes):
        return run()


# ── the pass ────────────────────────────────────────────────────────────────────────────────────────────────


class _Scaling(TorchFunctionMode):
    """Scales each weight when a function first takes it."""

    def __init__(self, aims: dict[int, Target], recipes: dict[int, Recipe]) -> None:
        super().__init__()
        self._targets = aims
        self._recipes = recipes
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
        if func in SINES:
            self._measure_frequency(args)
        aim = self._taken(args, named) if func in MIXES else None
        if aim is None:
            return func(*args, **named)
        if aim.rms is not None:
            self._scale(aim, lambda: _biasless(func, args, named))
        result = func(*args, **named)
        if aim.is_sine:
            self._before_sine = _rms(next(tensors_in(result)).detach().double())
        return result

    def _taken(self, args: Any, named: dict[str, Any]) -> Target | None:
        """The target of the weight among the arguments that waits for its scale; of a view of one, of the weight. The
        last one: an attention's output projection comes after the projections of its inputs."""
        found = None
        for tensor in tensors_in((args, named)):
            owner = tensor if tensor._base is None else tensor._base
            found = self._targets.get(id(owner), found)
        return self._targets.pop(id(found.weight)) if found else None

    def _scale(self, aim: Target, compute: Callable[[], Any]) -> None:
        with torch.no_grad():
            made = next(tensors_in(compute()), None)
            if made is None or not made.numel():
                return
            made = made.detach().double()
            mean = _unit_mean(made, aim.unit_axis) if aim.centre is not None else torch.zeros(())
            factor = self._factor(aim, made - mean)
            if not isfinite(factor):
                return
            aim.weight.data.mul_(factor)
            self._note_factor(aim.weight, factor)
            if aim.centre is not None:
                aim.centre.data.copy_(-factor * mean.flatten())
                self._note_centre(aim)
        torch.clear_autocast_cache()  # it holds the weight as it was

    def _factor(self, aim: Target, made: Tensor) -> float:
        """What brings the output, without its bias, to the target; nan where there is no signal."""
        rms = _rms(made)
        if aim.rms is None or not VANISHED < rms < inf:
            return nan
        if aim.is_sine:
            return aim.rms / self._frequency / rms
        if aim.is_head and made.numel() > 1:
            return aim.rms / max(float(made.std()), aim.rms * rms / LARGEST_HEAD_RMS)
        return aim.rms / rms

    def _note_factor(self, weight: nn.Parameter, factor: float) -> None:
        known = self._recipes.get(id(weight))
        if known is not None:
            self._recipes[id(weight)] = replace(known, factor=known.factor * factor)

    def _note_centre(self, aim: Target) -> None:
        """What constant input would give these means: its least squares estimate over the units."""
        weight, bias = self._recipes.get(id(aim.weight)), aim.centre
        if weight is None or bias is None:
            return
        sums = aim.weight.detach().double().flatten(1).sum(dim=1)
        value = -float(sums @ bias.detach().double()) / max(float(sums @ sums), VANISHED)
        name = weight.name.rpartition(".")[0] + ".bias" if "." in weight.name else "bias"
        spec = ParameterSpec("bias", Role.BIAS, tuple(bias.shape))
        recipe = Recipe(name, spec, "centred", "minus the mean", value=value, treatment=Treatment.RESET)
        self._recipes[id(bias)] = recipe

    def _measure_frequency(self, args: Any) -> None:
        """What a sine network multiplies a layer's output by; the next layer's is the same, as its makers have it."""
        if self._before_sine > VANISHED and args and isinstance(args[0], Tensor):
            with torch.no_grad():
                frequency = _rms(args[0].detach().double()) / self._before_sine
            self._frequency = frequency if VANISHED < frequency < inf else 1.0
        self._before_sine = 0.0


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _unit_mean(made: Tensor, axis: int) -> Tensor:
    """Mean of each unit over all samples and positions, in a shape that broadcasts."""
    return made.mean(dim=[i for i in range(made.ndim) if i != axis % made.ndim], keepdim=True)


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
    inner: list[tuple[Any, float]] = [
        (m, m.dropout) for m in model.modules() if isinstance(m, nn.MultiheadAttention | nn.RNNBase)
    ]
    try:
        for module, _ in modes:
            module.training = False
        for other, _ in inner:
            other.dropout = 0.0
        yield
    finally:
        for module, training in modes:
            module.training = training
        for other, rate in inner:
            other.dropout = rate
