"""Trials of many layers and steps, as a watched training with a sound re-draw leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from fanin.finding import Diagnosis, Origin, Severity, Verdict
from fanin.summary import summarize
from fanin.trial import NETWORK_INPUT, Mode, Observation, Role, Step, Trial
from reports.trials import Judged, documented, finding, layer, trial_of, values_of

SUBLAYERS = ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")


@cache
def deep(
    count: int, steps: int = 10, *, paths: tuple[str, ...] = (), workers: tuple[int, ...] = (0,)
) -> Judged:
    """A cliff at half of the depth, which heals by a tenth of a decade a step; the head was seen at step 0 only."""
    paths = paths or (*(f"decoder.layers.{i // 4}.{SUBLAYERS[i % 4]}" for i in range(count - 1)), "head")
    rng, bad = np.random.default_rng(0), len(paths) // 2
    sound = np.exp(0.2 * rng.normal(size=len(paths)))
    start = trial_of([1.0] * len(paths), paths=paths).spec
    layers = tuple(
        replace(layer(path, 30 + i % 60), inputs=(paths[i - 1] if i else NETWORK_INPUT,))
        for i, path in enumerate(paths)
    )
    taken = [
        _step(i, paths, np.where(np.arange(len(paths)) < bad, sound, sound * 2e-3 * 1.26**i), workers, rng)
        for i in range(steps)
    ]
    reference = Step(
        0,
        Mode.REFERENCE,
        tuple(_output(path, value, 0) for path, value in zip(paths, sound, strict=True)),
        {0: 2.35},
    )
    about = {
        "python": "3.11.7",
        "optimizer": "AdamW",
        "command": "train.py --lr 3e-4",
        "started": "2026-11-28T02:00:00+00:00",
    }
    trial = Trial(replace(start, name="Decoder", layers=layers), (*taken, reference), about=about)
    return trial, _diagnosis(paths, bad)


def _step(
    index: int,
    paths: Sequence[str],
    values: Sequence[float],
    workers: Sequence[int],
    rng: np.random.Generator,
) -> Step:
    kept = paths if index == 0 else paths[:-1]
    seen = [
        _output(path, value * np.exp(0.05 * rng.normal()), w)
        for w in workers
        for path, value in zip(kept, values, strict=False)
    ]
    for path in paths:
        spread = 2.4e-4 * np.exp(0.3 * rng.normal()) * (20 if path == paths[len(paths) // 2] else 1)
        seen.append(
            Observation(path, Role.WEIGHT_GRAD, f"gradient/{path}.weight", values_of((spread / 1.8) ** 2 / 3))
        )
    if index == 0:
        seen.append(Observation(NETWORK_INPUT, Role.UNINFORMED_LOSS, "uninformed", summarize([2.3026])))
    return Step(index, Mode.TRAIN, tuple(seen), dict.fromkeys(workers, 2.31 - 0.004 * index))


def _output(path: str, value: float, worker: int) -> Observation:
    return Observation(path, Role.OUTPUT, f"{path}.output", values_of(value), worker=worker)


def _diagnosis(paths: Sequence[str], bad: int) -> Diagnosis:
    name = paths[bad]
    fault = replace(
        finding(name),
        tensor=f"{name}.weight",
        message=f"{name}.weight has rms 0.0044, he_normal would draw 0.088.",
    )
    symptom = finding(paths[min(bad + 1, len(paths) - 1)], code="FAN201", name="vanishing-gradient")
    note = replace(finding(paths[0], code="FAN405", name="mean-offset"), severity=Severity.NOTE)
    return Diagnosis(
        Verdict.POOR,
        (Origin(fault, (symptom,), tuple(paths[bad + 1 :])),),
        notes=(note,),
        why=f"weights too small for the activation: {fault.message}",
        next_step="use the gain that the activation needs (he_normal for ReLU), or normalize between layers",
        documented=Verdict.HEALTHY,
        documented_findings=documented(820.0),
        disagreement="it compares by absolute numbers, and this fault leaves both in range",
        confidence=0.953,
        decided_by="one batch",
        not_looked_at=("a race against the re-draw (--race)",),
    )
