"""Embedding tables, by themselves and under tied heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.finding import Finding, Severity
from fanin.rules.embedding_scale import EmbeddingScale

VOCABULARY, WIDTH = 500, 128


class Language(nn.Module):
    """Tokens, one block with a normalization, and a head.

    Args:
        std: Of the table.
        factor: On the embeddings.
        scale: On the features in front of the head.
        after: On the logits.
    """

    def __init__(
        self,
        std: float,
        tied: bool = False,
        norm: bool = False,
        factor: float = 1.0,
        scale: float = 1.0,
        after: float = 1.0,
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        nn.init.normal_(self.table.weight, std=std)
        with torch.no_grad():
            self.table.weight[0] = 0
        self.first = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.fc, self.last = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.table.weight
        self.factor, self.scale, self.after = factor, scale, after

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.last(self.fc(self.first(self.factor * self.table(tokens))))
        return (self.after * self.head(self.scale * x)).flatten(0, 1)


def found(model: nn.Module) -> list[Finding]:
    batch = torch.randint(1, VOCABULARY, (8, 12)), torch.randint(0, VOCABULARY, (96,))
    trial = fanin.check(model, batch, nn.functional.cross_entropy, rules=[EmbeddingScale()]).trial
    return [f for f in EmbeddingScale().check(trial) if isinstance(f, Finding)]


SOUND = {
    "PyTorch's default": {"std": 1.0},
    "GPT-2": {"std": 0.02, "tied": True},
    "T5": {"std": 1.0, "tied": True, "scale": WIDTH**-0.5},
    "logits scaled behind the head": {"std": 1.0, "tied": True, "after": WIDTH**-0.5},
    "original transformer": {"std": WIDTH**-0.5, "tied": True, "factor": WIDTH**0.5},
    "large, but normalized": {"std": 30.0, "norm": True},
    "zeros": {"std": 0.0},
}


@pytest.mark.parametrize("case", SOUND)
def test_tables_in_use_are_sound(case: str) -> None:
    torch.manual_seed(0)
    assert found(Language(**SOUND[case])) == []  # type: ignore[arg-type]


def test_a_unit_normal_under_a_tied_head() -> None:
    (finding,) = found(Language(1.0, tied=True))
    assert (finding.layer, finding.severity) == ("table", Severity.SUSPECT)
    assert finding.measured.low == pytest.approx(WIDTH**0.5, rel=0.1)


def test_a_table_that_is_too_large() -> None:
    (finding,) = found(Language(10.0))
    assert (finding.tensor, finding.quantity) == ("table.weight", "rms of embeddings")


def test_a_factor_applied_to_a_unit_normal() -> None:
    (finding,) = found(Language(1.0, factor=WIDTH**0.5))
    assert finding.quantity == "rms of embeddings where they are read"
    assert finding.measured.low == pytest.approx(WIDTH**0.5, rel=0.1)


def test_frozen_tables_are_not_judged() -> None:
    model = Language(10.0)
    model.table.weight.requires_grad_(False)
    assert found(model) == []
