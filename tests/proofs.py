"""What tests of repairs share: an optimizer, values to compare, code to paste, and races that end as they are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fanin.adapters.torch import TorchAdapter
from fanin.race import Heat, Race
from no_trace import bits


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def values(model: nn.Module) -> dict[str, Any]:
    return {name: bits(p) for name, p in model.named_parameters()}


def paste(code: str, model: nn.Module) -> nn.Module:
    exec(code, {"model": model, "torch": torch, "nn": nn})
    return model


def races(monkeypatch: pytest.MonkeyPatch, *results: tuple[float, float]) -> list[int]:
    """Races that end as they are told: progress as given and repaired, the last one again and again."""
    seeds: list[int] = []

    def race(self: Any, model: Any, batch: Any, loss: Any, spec: Any, options: Any, *_: Any) -> Race:
        given, repaired = results[min(len(seeds), len(results) - 1)]
        seeds.append(options.seed)
        options.on_progress(60, 60)
        return Race((Heat(1e-3, (1.0, *[1 - given] * 59), (1.0, *[1 - repaired] * 59)),), uninformed=1.0)

    monkeypatch.setattr(TorchAdapter, "race", race)
    return seeds
