"""A batch, as users give it: what the model is fed, what the loss is fed, and how many examples that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from fanin.adapters.torch.describe import tensors_in
from fanin.errors import BatchError, LossError

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Keys under which a batch that is a mapping may hold its target."""

BATCH_FORMS = "(inputs, targets), a mapping, a tensor, or an iterable of these such as a DataLoader"


def batches(given: Any, most: int) -> list[Any]:
    """Up to this many batches of an iterable of them, or of a list of pairs or mappings; a batch by itself otherwise.

    Raises:
        BatchError: There is none.
    """
    if isinstance(given, list) and given and all(isinstance(one, tuple | list | Mapping) for one in given):
        return given[:most]
    if isinstance(given, Tensor | tuple | list | Mapping) or not isinstance(given, Iterable):
        return [given]
    found = list(islice(given, most))
    if not found:
        raise BatchError("the iterable of batches is empty", expected=BATCH_FORMS, next_step="pass one batch")
    return found


def examples_in(batch: Any) -> int:
    """How many examples a batch holds; 0 where its tensors do not agree along their first axis."""
    sizes = {len(t) if t.ndim else 0 for t in tensors_in(batch, depth=5)}
    return sizes.pop() if len(sizes) == 1 else 0


def has_positions(batch: Any) -> bool:
    """Whether examples are sequences or images: tokens [batch, positions], or values [batch, ..., ...]."""
    inputs = next(tensors_in(batch, depth=5), None)
    return inputs is not None and inputs.ndim > (2 if inputs.is_floating_point() else 1)


def part(batch: Any, examples: slice) -> Any:
    """Some examples of a batch whose tensors all count examples along their first axis."""
    if isinstance(batch, Tensor):
        return batch[examples]
    if isinstance(batch, Mapping):
        return {key: part(one, examples) for key, one in batch.items()}
    return type(batch)(part(one, examples) for one in batch) if type(batch) in (tuple, list) else batch


def parts(batch: Any, loss_fn: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional and named arguments of the model, and the target; copies, so that the batch stays as it is."""
    batch = _copied(batch)
    if isinstance(batch, Mapping):
        named = dict(batch)
        key = next((k for k in TARGET_NAMES if k in named), None) if loss_fn is not None else None
        return (), named, named.pop(key) if key is not None else None
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs, target = batch[0], batch[1] if len(batch) == 2 else None
        if isinstance(inputs, Mapping):
            return (), dict(inputs), target
        return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}, target
    size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise BatchError(
        "this is not a batch",
        got=f"{type(batch).__name__}{size}",
        expected=BATCH_FORMS,
        next_step="for several inputs pass ((first, second), targets)",
    )


def _copied(value: Any) -> Any:
    """Tensors cloned, the containers around them rebuilt where that is plain."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_copied(v) for v in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(v) for v in value))
    return value


def require_examples(values: Any) -> None:
    """Refuse a batch without an example.

    Raises:
        BatchError: Every tensor is empty.
    """
    sizes = [list(tensor.shape) for tensor in tensors_in(values, depth=5)]
    if sizes and all(0 in shape for shape in sizes):
        raise BatchError(
            "the batch holds no example",
            got=f"a tensor of shape {sizes[0]}",
            expected="at least one example, better 32 or more",
            next_step="pass a batch as training would see it",
        )


def require_same_device(model: nn.Module, values: Any) -> None:
    """Refuse a batch that lies elsewhere than the model, and a model without values.

    Raises:
        BatchError: It does.
    """
    own = {t.device for t in (*model.parameters(), *model.buffers())}
    if torch.device("meta") in own:
        raise BatchError(
            "the model has no values yet",
            got="parameters on the meta device",
            expected="parameters with memory",
            next_step="materialize it first: model.to_empty(device=...), then initialize it",
        )
    for tensor in tensors_in(values, depth=5):
        if own and tensor.device not in own:
            raise BatchError(
                "the batch is on another device than the model",
                got=f"a tensor of shape {list(tensor.shape)} on {tensor.device}",
                expected=" or ".join(sorted(str(d) for d in own)),
                next_step=f"move it: batch.to({str(min(own, key=str))!r})",
            )


def detached(output: Any) -> Any:
    """The output without what it was computed from, where that is plain to do."""
    return output.detach() if isinstance(output, Tensor) else output


def loss_of(output: Any, target: Any, loss_fn: Callable[[Any, Any], Any] | None) -> Tensor:
    """The loss: computed, or the model's own where there is no function.

    Raises:
        LossError: It cannot be computed, or is no scalar.
    """
    loss = _own_loss(output) if loss_fn is None else _computed_loss(output, target, loss_fn)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LossError(
            "the loss is not a scalar",
            got=got,
            expected="a tensor with one element",
            next_step="reduce it, for example with reduction='mean' or .mean()",
        )
    return loss


def loss_if_any(output: Any, target: Any, loss_fn: Callable[[Any, Any], Any] | None) -> float:
    """The loss; nan where it cannot be computed, as where inputs came without targets."""
    try:
        with torch.no_grad():
            return float(loss_of(output, target, loss_fn))
    except LossError:
        return nan


def _own_loss(output: Any) -> Any:
    """The loss of a model that returns its own: `.loss`, `["loss"]`, the first scalar of a tuple, or the output."""
    if isinstance(output, Mapping) and output.get("loss") is not None:
        return output["loss"]
    if getattr(output, "loss", None) is not None:
        return output.loss
    first = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(first, Tensor) and first.numel() == 1:
        return first
    shapes = ", ".join(str(list(t.shape)) for t in tensors_in(output))
    raise LossError(
        "no loss function was given and the model does not return a loss",
        got=f"{type(output).__name__} with tensors of shape {shapes or 'none'}",
        expected="an output with .loss, a scalar, or a loss function",
        next_step="pass loss_fn(output, target); for a transformers model put labels into the batch",
    )


def _computed_loss(output: Any, target: Any, loss_fn: Callable[[Any, Any], Any]) -> Any:
    try:
        return loss_fn(output, target)
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in tensors_in(output))
        shape = ", ".join(f"{list(t.shape)} {str(t.dtype)[6:]}" for t in tensors_in(target))
        given = f"output {shapes}, target {shape or repr(target)[:40]}"
        raise LossError(
            "the loss function cannot be computed",
            where="loss_fn(output, target)",
            got=f"{given}; {type(error).__name__}: {one_line(error)}",
            expected="a loss function of the model's output and the batch's target",
            next_step="wrap it when the output is a record: lambda output, target: loss(output.logits, target)",
        ) from error


def one_line(error: Exception) -> str:
    """An error's text on one line, cut where it is long."""
    return " ".join(str(error).split())[:200]
