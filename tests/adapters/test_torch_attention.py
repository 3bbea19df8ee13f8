"""The entropy of attention, against the plain definition, for every way in which it is computed."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin
from fanin.adapters.torch.attention import EXAMPLES, QUERIES, attention_entropy
from fanin.trial import Observation, Role

BATCH, HEADS, T, D = 3, 2, 7, 4


def tensors(seed: int = 0, batch: int = BATCH, positions: int = T, heads: int = HEADS) -> tuple[Tensor, ...]:
    """Query, key and value [batch, heads, positions, d] with logits of some spread."""
    made = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, heads, positions, D, generator=made)
    return 2 * q, 2 * k, v


def entropies(logits: Tensor, allowed: Tensor | None = None) -> list[float]:
    """H = -sum p log p / log n, row by row over what is allowed; rows with one position have none."""
    allowed = torch.ones(logits.shape[-2:], dtype=torch.bool) if allowed is None else allowed
    allowed = allowed.expand(logits.shape)
    found = []
    for row, mask in zip(
        logits.reshape(-1, logits.shape[-1]), allowed.reshape(-1, logits.shape[-1]), strict=True
    ):
        if mask.sum() > 1:
            p = torch.softmax(row[mask].double(), 0)
            found.append(float(-(p * p.log()).sum()) / log(int(mask.sum())))
    return found


def measured(func: Callable[..., Any], *args: Any, **kwargs: Any) -> list[float]:
    found = attention_entropy(func, args, kwargs)
    assert found is not None
    return [float(value) for value in found.flatten()]


SDPA = F.scaled_dot_product_attention
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()
PADDED = torch.arange(T) < torch.tensor([7, 5, 2])[:, None]


def test_dot_product_attention() -> None:
    q, k, v = tensors()
    logits = q @ k.mT / D**0.5
    assert measured(SDPA, q, k, v) == pytest.approx(entropies(logits), abs=1e-5)
    assert measured(SDPA, query=q, key=k, value=v) == pytest.approx(entropies(logits), abs=1e-5)
    assert measured(SDPA, q, k, v, scale=0.1) == pytest.approx(entropies(0.1 * q @ k.mT), abs=1e-5)


@pytest.mark.parametrize("form", ["is_causal", "positional", "bool", "float"])
def test_a_causal_mask_does_not_lower_it(form: str) -> None:
    q, k, v = tensors()
    expected = entropies(q @ k.mT / D**0.5, CAUSAL)
    assert len(expected) == BATCH * HEADS * (T - 1), "the first query has nothing to choose"
    added = torch.zeros(T, T).masked_fill(~CAUSAL, float("-inf"))
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "is_causal": ((q, k, v), {"is_causal": True}),
        "positional": ((q, k, v, None, 0.0, True), {}),
        "bool": ((q, k, v), {"attn_mask": CAUSAL}),
        "float": ((q, k, v, added), {}),
    }
    args, kwargs = given[form]
    assert measured(SDPA, *args, **kwargs) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float32).min, -10000.0])
def test_padding_counts_as_forbidden_in_all_usual_forms(lowest: float) -> None:
    q, k, v = tensors()
    mask = PADDED[:, None, None, :]
    expected = entropies(q @ k.mT / D**0.5, mask)
    assert measured(SDPA, q, k, v, attn_mask=mask) == pytest.approx(expected, abs=1e-5)
    added = torch.zeros(mask.shape).masked_fill(~mask, lowest)
    assert measured(SDPA, q, k, v, attn_mask=added) == pytest.approx(expected, abs=1e-5)


def test_uniform_attention_has_1_and_a_single_position_0() -> None:
    q, k, v = tensors()
    assert measured(SDPA, 0 * q, k, v) == pytest.approx([1.0] * (BATCH * HEADS * T))
    eye = 100 * torch.eye(D).expand(BATCH, HEADS, D, D)
    assert measured(SDPA, eye, eye, eye) == pytest.approx([0.0] * (BATCH * HEADS * D), abs=1e-5)


def test_grouped_queries_share_their_keys() -> None:
    q, _, _ = tensors(heads=4)
    _, k, v = tensors(heads=2)
    logits = q @ k.repeat_interleave(2, dim=1).mT / D**0.5
    assert measured(SDPA, q, k, v, enable_gqa=True) == pytest.approx(entropies(logits), abs=1e-5)


def test_of_large_batches_and_long_sequences_a_sample_is_looked_at() -> None:
    q, k, v = tensors(batch=9, positions=3 * QUERIES)
    found = attention_entropy(SDPA, (q, k, v), {})
    assert found is not None
    assert found.numel() == EXAMPLES * HEADS * QUERIES
    logits = (q @ k.mT / D**0.5)[:EXAMPLES, :, ::3]
    assert found.tolist() == pytest.approx(entropies(logits), abs=1e-4)


@pytest.mark.parametrize("func", [F.softmax, torch.softmax, Tensor.softmax])
def test_a_softmax_over_the_last_axis_is_attention(func: Callable[..., Any]) -> None:
    q, k, _ = tensors()
    logits = q @ k.mT / D**0.5
    assert measured(func, logits, dim=-1) == pytest.approx(entropies(logits), abs=1e-5)
    assert measured(func, logits, 3) == pytest.approx(entropies(logits), abs=1e-5)
    masked = logits.masked_fill(~CAUSAL, float("-inf"))
    assert measured(func, masked, dim=-1) == pytest.approx(entropies(logits, CAUSAL), abs=1e-5)


def test_what_is_no_attention_has_none() -> None:
    q, k, v = tensors()
    assert attention_entropy(F.softmax, (torch.randn(5, 3),), {"dim": -1}) is None  # classes
    assert attention_entropy(F.softmax, (q,), {"dim": 1}) is None
    assert attention_entropy(F.relu, (q,), {}) is None
    assert attention_entropy(SDPA, (q[..., :1, :], k[..., :1, :], v[..., :1, :]), {}) is None


# ── in models ───────────────────────────────────────────────────────────────────────────────────────────────


def observed(model: nn.Module, x: Tensor) -> dict[str, Observation]:
    start = fanin.check(model, x, lambda output, target: output.square().mean()).trial.start
    assert start is not None
    return start.of(Role.ATTENTION_ENTROPY)


class Packed(nn.Module):
    """nn.MultiheadAttention, which packs its projections, told how to call it."""

    def __init__(self, mask: Tensor | None, batch_first: bool, need_weights: bool, **how: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, HEADS, batch_first=batch_first, **how)
        nn.init.normal_(self.attention.out_proj.weight)
        self.mask, self.need_weights = mask, need_weights

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention."""
        out: Tensor = self.attention(x, x, x, attn_mask=self.mask, need_weights=self.need_weights)[0]
        return out

    def logits(self, x: Tensor) -> Tensor:
        """[batch, heads, queries, keys], computed plainly from [batch, positions, 8]."""
        inner = self.attention
        if inner._qkv_same_embed_dim:
            wq, wk, _ = inner.in_proj_weight.chunk(3)
        else:
            wq, wk = inner.q_proj_weight, inner.k_proj_weight
        bq, bk, _ = inner.in_proj_bias.chunk(3)
        q, k = (F.linear(x, w, b).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w, b in ((wq, bq), (wk, bk)))
        return q @ k.mT / q.shape[-1] ** 0.5


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "bool", "float", "per head"])
def test_multihead_attention(mask: str | None, batch_first: bool, need_weights: bool) -> None:
    masks: dict[str | None, Tensor | None] = {
        None: None,
        "bool": ~CAUSAL,
        "float": torch.zeros(T, T).masked_fill(~CAUSAL, float("-inf")),
        "per head": (~CAUSAL).expand(BATCH * HEADS, T, T),
    }
    model, x = Packed(masks[mask], batch_first, need_weights), 3 * torch.randn(BATCH, T, 8)
    (found,) = observed(model, x if batch_first else x.transpose(0, 1)).values()
    expected = torch.tensor(entropies(model.logits(x).detach(), None if mask is None else CAUSAL))
    assert found.layer == "attention"
    assert found.summary.count == len(expected), "neither missed nor counted twice"
    assert found.summary.mean == pytest.approx(float(expected.mean()), abs=1e-4)
    assert found.summary.minimum == pytest.approx(float(expected.min()), abs=1e-4)


def test_multihead_attention_with_separate_projections() -> None:
    model, x = Packed(None, True, False), torch.randn(BATCH, T, 8)
    model.attention = nn.MultiheadAttention(8, HEADS, kdim=8, vdim=8, batch_first=True)
    model.attention._qkv_same_embed_dim = False
    for name in ("q", "k", "v"):
        setattr(model.attention, f"{name}_proj_weight", nn.Parameter(torch.randn(8, 8)))
    model.attention.register_parameter("in_proj_weight", None)
    (found,) = observed(model, x).values()
    expected = entropies(model.logits(x).detach())
    assert found.summary.mean == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_an_encoder_layer_in_train_mode_is_seen_once() -> None:
    torch.manual_seed(0)
    found = observed(nn.TransformerEncoderLayer(8, HEADS, 16, batch_first=True), torch.randn(BATCH, T, 8))
    assert [o.layer for o in found.values()] == ["self_attn"]


def test_a_model_without_attention_has_none() -> None:
    assert observed(nn.Sequential(nn.Linear(8, 8), nn.Softmax(dim=-1)), torch.randn(5, 8)) == {}


class Routed(nn.Module):
    """A mixture of two experts per token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 2)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        """[batch, positions, width], as x."""
        shares = F.softmax(self.router(x), dim=-1)
        return sum(shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))  # type: ignore


class OneProjection(nn.Module):
    """Attention from one packed projection, whose width happens to be no number of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, positions, width], as x."""
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.softmax(q @ k.mT, dim=-1) @ v  # type: ignore[no-any-return]


def test_a_router_chooses_among_experts_and_is_no_attention() -> None:
    torch.manual_seed(0)
    assert observed(Routed(), torch.randn(BATCH, T, 8)) == {}
    assert len(observed(OneProjection(), torch.randn(BATCH, T, 8))) == 1
