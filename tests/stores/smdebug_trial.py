"""A small trial of SageMaker Debugger, and where its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .smdebug_writer import TrialWriter

EVENTS = "events/000000000000/000000000000_worker_0.tfevents"
INDEX = "index/000000000/000000000000_worker_0.json"
COLLECTIONS = "collections/000000000/worker_0_collections.json"


def pytorch(step: int, scale: float = 1.0, loss: float | None = None) -> dict[str, Any]:
    """What a small PyTorch model saves at a step."""
    rng = np.random.default_rng(step)
    draw = lambda *shape: (scale * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    return {
        "Net_fc1.weight": draw(16, 8),
        "Net_fc1.bias": draw(16),
        "relu_input_0": draw(32, 16),
        "blocks.0.relu_input_0": draw(32, 16),
        "CrossEntropyLoss_output_0": np.float32(loss if loss is not None else 2.0 - 0.1 * step),
        "gradient/Net_fc1.bias": draw(16),
        "gradient/Net_fc1.weight": draw(16, 8),
    }


def ten_steps(folder: Path) -> Path:
    """Ten steps of a PyTorch model, ended."""
    writer = TrialWriter(folder).collections()
    for step in range(10):
        writer.step(step, pytorch(step))
    writer.end()
    return folder


def unlike_scales(folder: Path) -> Path:
    """A complete trial of ten steps that the documented rule finds poor: two variances that differ 16 times."""
    rng = np.random.default_rng(0)
    writer = TrialWriter(folder).collections()
    for step in range(10):
        tensors = {
            "relu_input_0": rng.normal(size=1000),
            "fc2.relu_input_0": 4 * rng.normal(size=1000),
            "gradient/Net_fc.weight": rng.normal(size=(10, 10)),
            "loss_output_0": 1.0 - 0.05 * step,
        }
        writer.step(step, tensors)
    return writer.end().folder
