"""How sharply attention looks: the entropy of each query's softmax, over the logarithm of what it may attend to.

Zhai et al. 2023 ("Stabilizing Transformer Training by Preventing Attention Entropy Collapse", eq. 1) take the entropy
itself; divided by its largest value it does not depend on the length of the sequence, nor on a causal mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EXAMPLES = 4
"""Samples of a batch that are looked at. With 2 heads and 16 queries they give 128 entropies."""

QUERIES = 64
"""Queries of each sample and head that are looked at, evenly spaced."""

HEADS = 16
"""Heads of a sample that are looked at where batch and heads share an axis."""

MASKED = -9000.0
"""Logits this far below their row's largest one were masked; the usual masks are -inf, the format's lowest value and
-10000."""

SOFTMAXES = frozenset({F.softmax, torch.softmax, Tensor.softmax})


def attention_entropy(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """[batch, heads, queries] normalized entropies of a function that computes attention; None for any other, and
    where no query has two positions to choose from.

    A softmax counts as attention over the last axis of a tensor [..., queries, keys] with at least three axes.
    """
    try:
        return _measured(func, args, kwargs)
    except Exception:  # noqa: BLE001  # exotic layouts and shapes: this is evidence besides others, never worth a fault
        return None


def _measured(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    if func is F.scaled_dot_product_attention:
        logits = _dot_product(
            *_named(args, kwargs, ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"))
        )
    elif func is F.multi_head_attention_forward:
        logits = _packed(args, kwargs)
    elif func in SOFTMAXES:
        logits = _of_softmax(args, kwargs)
    else:
        return None
    return None if logits is None else _entropy(logits.float())


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return (*(given.get(name) for name in names), given.get("scale"))


def _few(tensor: Tensor) -> Tensor:
    return tensor[:EXAMPLES]


def _dot_product(
    query: Tensor, key: Tensor, _value: Any, mask: Any, _dropout: Any, causal: Any, scale: Any
) -> Tensor | None:
    """softmax(q kᵀ / √d + mask): its argument."""
    if query.ndim < 3 or key.is_nested or query.is_nested:
        return None
    rows = _rows(
        query.shape[-2], query.device
    )  # chosen first: all of them would take memory of queries x keys
    q, k = _few(query)[..., rows, :].float(), _few(key).float()
    if q.ndim == 4 and k.shape[1] != q.shape[1]:  # grouped queries
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.transpose(-2, -1) * (scale or 1 / sqrt(q.shape[-1]))
    if causal:
        seen = torch.arange(logits.shape[-1], device=logits.device) <= rows[:, None]
        return logits.masked_fill(~seen, -torch.inf)
    return _masked(logits, mask[..., rows, :] if isinstance(mask, Tensor) and mask.shape[-2] > 1 else mask)


def _rows(queries: int, device: torch.device) -> Tensor:
    """Indices of the queries that are looked at."""
    return torch.arange(0, queries, max(1, -(-queries // QUERIES)), device=device)


def _masked(logits: Tensor, mask: Any) -> Tensor:
    if not isinstance(mask, Tensor):
        return logits
    own: Tensor = _few(mask) if mask.ndim == logits.ndim and mask.shape[0] > 1 else mask
    if own.dtype is torch.bool:
        return logits.masked_fill(~own, -torch.inf)
    return logits + own


def _packed(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What `nn.MultiheadAttention` computes inside, from the weights that it passes on; query [queries, batch, d]."""
    names = ("query", "key", "value", "embed_dim", "num_heads", "in_proj_weight", "in_proj_bias")
    query, key, _, width, heads, weight, bias = _named(args, kwargs, names)[:7]
    if kwargs.get("use_separate_proj_weight"):
        halves = kwargs.get("q_proj_weight"), kwargs.get("k_proj_weight")
    else:
        halves = (weight[:width], weight[width : 2 * width]) if isinstance(weight, Tensor) else (None, None)
    if query.ndim != 3:
        return None
    parts = (bias[:width], bias[width : 2 * width]) if isinstance(bias, Tensor) else (None, None)
    q, k = (
        F.linear(x[:, :EXAMPLES], w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key), halves, parts, strict=True)
        if isinstance(w, Tensor)
    )
    rows, mask = _rows(q.shape[-2], q.device), kwargs.get("attn_mask")
    mask = mask[..., rows, :] if isinstance(mask, Tensor) and mask.shape[-2] > 1 else mask
    logits = q[..., rows, :].float() @ k.float().transpose(-2, -1) / sqrt(q.shape[-1])
    if isinstance(mask, Tensor) and mask.ndim == 3:
        return None if mask.shape[0] < len(q) * heads else _masked_like(logits, mask, heads)
    return _inverted(logits, mask)


def _masked_like(logits: Tensor, mask: Tensor, heads: int) -> Tensor:
    own = mask[: len(logits) * heads].reshape(len(logits), heads, *mask.shape[1:])
    return _inverted(logits, own)


def _inverted(logits: Tensor, mask: Any) -> Tensor:
    """In `nn.MultiheadAttention` a true mask forbids, unlike in scaled_dot_product_attention."""
    return _masked(logits, ~mask if isinstance(mask, Tensor) and mask.dtype is torch.bool else mask)


def _of_softmax(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    logits = args[0] if args else kwargs.get("input")
    axis = args[1] if len(args) > 1 else kwargs.get("dim")
    if not isinstance(logits, Tensor) or logits.ndim < 3 or axis not in (-1, logits.ndim - 1):
        return None
    few = _few(logits) if logits.ndim > 3 else logits[: EXAMPLES * HEADS]
    return few[..., _rows(few.shape[-2], few.device), :]


def _entropy(logits: Tensor) -> Tensor | None:
    allowed = logits > logits.amax(-1, keepdim=True) + MASKED
    choices = allowed.sum(-1)
    p = torch.softmax(logits, -1)
    entropy = -torch.special.xlogy(p, p).sum(-1)
    shares = entropy / choices.clamp(min=2).log()
    kept: Tensor = shares[choices > 1]
    return kept if kept.numel() else None
