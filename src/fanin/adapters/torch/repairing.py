"""A plan carried out on a model, in place: draw, scale in one forward pass, and account for every parameter that moved.

What a repair writes is decided on a copy; the user's own model gets the copy's values, all of them or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.adapters.base import Treated
from fanin.adapters.torch.batches import batches, detached, loss_if_any, parts
from fanin.adapters.torch.describe import tensors_in, uncompiled
from fanin.adapters.torch.drawing import Drawing, is_plain
from fanin.adapters.torch.examining import put_in_train_mode, run_eagerly
from fanin.adapters.torch.gathered import is_sharded, kept, put, whole
from fanin.adapters.torch.pasting import families, pasted, replacement
from fanin.adapters.torch.recipe import Recipe
from fanin.adapters.torch.redraw import scale
from fanin.adapters.torch.restore import _same_bits, beside_untouched, untouched
from fanin.adapters.torch.sources import was_loaded
from fanin.adapters.torch.twins import duplicate, mapped, seed_everything
from fanin.change import Change, Plan, Values
from fanin.errors import BatchError, UsageError
from fanin.trial import ModelSpec

WRITES = 10
"""Writes to every single parameter from which they are no initializer's: a constructor and two or three more make a
handful, and each step of an optimizer one."""


def copied(model: nn.Module, optimizer: Any = None) -> tuple[nn.Module, Any]:
    """Another model with the same values, for a repair to be tried on, and the optimizer that would train it.

    Raises:
        UsageError: It cannot be copied, or not be repaired at all.
    """
    plain = uncompiled(model)
    _require_written(plain)
    if is_sharded(plain):
        return whole(plain, optimizer)
    other = duplicate(plain, "a repair is tried on a copy first")
    own = isinstance(optimizer, Optimizer)
    return other, mapped(optimizer, plain, other) if own else optimizer


@torch.inference_mode(False)
def treat(model: nn.Module, batch: Any, loss_fn: Any, spec: ModelSpec, plan: Plan, seed: int) -> Treated:
    """Carry out a plan, in place, with one forward pass. Nothing but parameters changes, and after an exception not
    even those: buffers, modes, gradients, hooks and random state stay as they are.

    Args:
        model: Written in place; it holds no lazy parameters.
        batch, loss_fn: As `fanin.check` takes them; inputs alone will do.
        spec: Of this model, from a pass.
        plan: What to do.
        seed: Of the draw; the random state of the process has no part in it.

    Raises:
        BatchError: The model cannot run the batch.
        UsageError: The model has parameters that cannot be written.
    """
    plain = uncompiled(model)
    _require_written(plain)
    with untouched(plain, parameters=False), beside_untouched(plain, loss_fn, batch):
        args, kwargs, target = parts(batches(batch, 1)[0], loss_fn)  # a loader draws its order
    _require_numbers((args, kwargs))
    before = {name: p.detach().clone() for name, p in plain.named_parameters() if is_plain(p)}
    drawing = Drawing(plain, spec, torch.Generator().manual_seed(seed))

    def run() -> Any:
        seed_everything(seed)
        with torch.enable_grad():  # some networks differentiate in their forward pass
            return detached(plain(*args, **kwargs))

    try:
        with (
            untouched(plain, parameters=False),
            beside_untouched(plain, loss_fn, batch),
            run_eagerly(plain),
        ):
            put_in_train_mode(plain)
            drawing.follow(plan)
            loss = loss_if_any(scale(plain, spec, drawing, run), target, loss_fn)
    except Exception as error:
        _put_back(plain, before)
        raise _not_run(error) from error
    except BaseException:
        _put_back(plain, before)
        raise
    return replace(_accounted(plain, spec, before, drawing.recipes), loss=loss)


def _require_numbers(given: Any) -> None:
    for tensor in tensors_in(given, depth=5):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise BatchError(
                "the batch holds NaN, and no scale can be measured with it",
                got=f"{int(tensor.isnan().sum())} of {tensor.numel()} values of a tensor of shape {list(tensor.shape)}",
                expected="numbers",
                next_step="look for the missing or invalid values in the data; the model is as it was",
            )


def _put_back(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data.copy_(before[name])


def _not_run(error: Exception) -> Exception:
    if isinstance(error, UsageError):
        return error
    return BatchError(
        "the model does not run this batch with newly drawn weights",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        expected="a model that runs whatever its weights are",
        next_step="name the layers to be repaired with layers=[...], and leave out those that it depends on",
    )


def _accounted(
    model: nn.Module, spec: ModelSpec, before: Mapping[str, Tensor], recipes: Mapping[int, Recipe]
) -> Treated:
    """Every parameter that moved, with its recipe, in the order in which they were written: what is computed from
    another parameter comes after it."""
    moved = {n: p for n, p in model.named_parameters() if n in before and not _same_bits(p, before[n])}
    names = {id(p): name for name, p in moved.items()}
    known = {names[key]: recipe for key, recipe in recipes.items() if key in names}
    groups = families(model, list(known.values()))
    family = {recipe.name: tuple(one.name for one in group) for group in groups for recipe in group}
    ties = _ties(spec)
    changes = tuple(
        _change(recipe, before[name], moved[name], ties.get(name, ()), family.get(recipe.name, ()))
        for name, recipe in known.items()
    )
    calls = {name: replacement(recipe, moved[name]) for name, recipe in known.items()}
    return Treated(changes, pasted(model, groups), calls)


def _ties(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for layer in spec.layers:
        for parameter in layer.parameters:
            if parameter.tied_to is not None:
                found[parameter.tied_to] = (
                    *found.get(parameter.tied_to, ()),
                    layer.parameter_path(parameter),
                )
    return found


def _change(
    recipe: Recipe, before: Tensor, after: Tensor, ties: tuple[str, ...], family: tuple[str, ...]
) -> Change:
    std = recipe.std if recipe.distribution == "kept" else recipe.std * recipe.factor
    return Change(
        recipe.name,
        recipe.treatment,
        recipe.scheme,
        recipe.distribution,
        std,
        std * sqrt(recipe.parameter.fan_in) if recipe.parameter.fan_in else nan,
        recipe.factor,
        values(before),
        values(after),
        ties,
        family,
    )


def values(tensor: Tensor) -> Values:
    """A tensor in two numbers."""
    wide = tensor.detach().double()
    rms, mean = float(wide.square().mean().sqrt()), float(wide.mean())
    return Values(rms if isfinite(rms) else nan, mean if isfinite(mean) else nan)


def adopt(model: nn.Module, repaired: nn.Module, names: Sequence[str]) -> Callable[[], None]:
    """Give a model the values of its repaired copy: all of them, or none when interrupted.

    Returns:
        What puts the values back that were there before, bit for bit.
    """
    own = dict(uncompiled(model).named_parameters())
    new = dict(uncompiled(repaired).named_parameters())
    before = [kept(own[name]) for name in names]

    def undo() -> None:
        for put_back in before:
            put_back()

    try:
        for name in names:
            put(own[name], new[name])
    except BaseException:
        undo()
        raise
    return undo


# ── whether training has begun ──────────────────────────────────────────────────────────────────────────────


def history(model: nn.Module, optimizer: Any) -> tuple[str, ...]:
    """What shows that this is no fresh initialization, one sentence each; none where nothing does."""
    plain = uncompiled(model)
    trainable = {n: p for n, p in plain.named_parameters() if p.requires_grad and not nn.parameter.is_lazy(p)}
    said = []
    if held := [n for n, p in trainable.items() if _has_state(optimizer, p)]:
        said.append(
            f"the {type(optimizer).__name__} holds state for {held[0]}{_more(held)}: it has taken steps"
        )
    if loaded := [n for n, p in trainable.items() if was_loaded(p)]:
        said.append(f"{loaded[0]}{_more(loaded)} was loaded from a checkpoint")
    writes = min((p._version for p in trainable.values() if not p.is_inference()), default=0)
    if writes >= WRITES and not held:
        said.append(f"every parameter has been written to at least {writes} times: it has been trained")
    batches = [int(b) for n, b in plain.named_buffers() if n.endswith("num_batches_tracked")]
    if batches and min(batches) >= WRITES:
        said.append(f"its normalizations have seen {min(batches)} batches")
    return tuple(said)


def _has_state(optimizer: Any, parameter: nn.Parameter) -> bool:
    return isinstance(optimizer, Optimizer) and bool(optimizer.state.get(parameter))


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _require_written(model: nn.Module) -> None:
    """Neither lazy nor without memory.

    Raises:
        UsageError: One of its parameters is.
    """
    for name, parameter in model.named_parameters():
        what = _unwritable(parameter)
        if what:
            raise UsageError(
                f"a parameter is {what[0]}, and cannot be drawn",
                where=name,
                got=f"a {type(parameter).__name__} of shape {_shape(parameter)}",
                expected="parameters that have been made",
                next_step=what[1],
            )


def _unwritable(parameter: nn.Parameter) -> tuple[str, str] | None:
    if nn.parameter.is_lazy(parameter):
        return "lazy", "run the model once on a batch first"
    if parameter.is_meta:
        return "on the meta device", "materialize it first: model.to_empty(device=...)"
    return None


def _shape(parameter: nn.Parameter) -> str:
    return "unknown" if nn.parameter.is_lazy(parameter) else str(list(parameter.shape))
