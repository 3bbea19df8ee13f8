"""Models and steps to store, and a way to compare what comes back to the last bit."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np

from fanin.summary import TensorSummary, summarize
from fanin.trial import (
    ActivationSpec,
    Kind,
    LayerSpec,
    Mode,
    ModelSpec,
    Observation,
    ParameterSpec,
    Role,
    SourceLine,
    Step,
)

EMPTY = TensorSummary(0, 0, 0, 0, 0.0, 0.0, np.inf, -np.inf)

SPEC = ModelSpec(
    name="Net",
    framework="torch 2.13.0",
    layers=(
        LayerSpec(
            path="fc1",
            kind=Kind.LINEAR,
            type_name="Linear",
            parameters=(
                ParameterSpec("weight", Role.WEIGHT, (8, 4), fan_in=4, fan_out=8, unit_axis=0),
                ParameterSpec("bias", Role.BIAS, (8,), trainable=False, source=SourceLine("model.py", 41)),
            ),
            inputs=("",),
            activation="relu",
            calls=1,
        ),
        LayerSpec("fc2", Kind.LINEAR, "Linear", inputs=("fc1", ""), joins="sum", calls=2),
        LayerSpec("späť", Kind.OTHER, "Never"),
    ),
    activations=(ActivationSpec("relu_input_0", "relu", ("fc1",)),),
    outputs=("fc2",),
    notes=("späť never ran.",),
)


def layer(path: str, calls: int = 1) -> LayerSpec:
    """A layer of which only this matters."""
    return LayerSpec(path, Kind.LINEAR, "Linear", calls=calls)


def observation(index: int, worker: int = 0, role: Role = Role.OUTPUT) -> Observation:
    """What worker `worker` saw of fc1 in step `index`, with everything that a summary can have."""
    values = np.random.default_rng([index, worker]).normal(size=(16, 8))
    summary = summarize(values, histogram=True, unit_axis=1)
    return Observation("fc1", role, f"fc1_{role}_0", summary, (16, 8), "float32", worker)


def step(index: int, worker: int = 0, mode: Mode = Mode.TRAIN) -> Step:
    """One step as one worker sees it."""
    seen = tuple(observation(index, worker, role) for role in (Role.OUTPUT, Role.OUTPUT_GRAD))
    return Step(index, mode, seen, {worker: index + worker / 10})


def plain(value: Any) -> Any:
    """A value in terms of which equal means the same to the last bit, nan included."""
    if is_dataclass(value):
        return type(value).__name__, {
            f.name: plain(getattr(value, f.name)) for f in fields(value) if f.compare
        }
    if isinstance(value, np.ndarray):
        return value.dtype.str, [repr(item) for item in value.tolist()]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value if isinstance(value, Enum) else (type(value).__name__, repr(value))
