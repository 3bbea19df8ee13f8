"""What every report shows of a trial: each layer's signal and gradient at the first watched step."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Protocol

from fanin.finding import Diagnosis
from fanin.summary import TensorSummary
from fanin.trial import LayerSpec, ParameterSpec, Role, Step, Trial

PARAMETERS = (Role.WEIGHT, Role.BIAS)
"""Roles that can be seen of a layer that never ran."""


class Renderer(Protocol):
    """A report: a pure function from a trial and its diagnosis to text."""

    def __call__(
        self, trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What one layer shows.

    Attributes:
        layer: Its path.
        label: What to call it: the layer's path, or a tensor's name where layers are not known.
        variance: Of its output; None where it was not seen, nan or inf where the output holds such values.
        spread: 95th minus 5th percentile of its weight's gradient; None where not seen.
    """

    layer: str
    label: str
    variance: float | None = None
    spread: float | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """The readings of a trial, in forward order.

    Attributes:
        quantity: What the variance was taken of.
        step: The training step; None when nothing was watched.
        readings: One for each layer.
    """

    quantity: str
    step: int | None
    readings: tuple[Reading, ...]


def profile(trial: Trial, blamed: frozenset[str] = frozenset()) -> Profile:
    """The readings of the weight layers that ran, and of all layers that are blamed.

    Trials of other tools may hold activation inputs only; then each of those is a reading.
    """
    step = shown_step(trial)
    if step is None:
        return Profile("Var[out]", None, ())
    activations = step.of(Role.ACTIVATION_INPUT)
    if activations and not step.of(Role.OUTPUT):
        spreads = _spreads(step)
        readings = tuple(
            Reading(seen.layer, name, variance(seen.summary), spreads.get(seen.layer))
            for name, seen in activations.items()
        )
        return Profile("Var[input]", step.index, readings)
    known = {layer.path for layer in trial.spec.weight_layers} | blamed
    found = (reading for reading in layer_readings(trial, step) if reading.layer in known)
    return Profile("Var[out]", step.index, tuple(r for r in found if was_seen(r) or r.layer in blamed))


def layer_readings(trial: Trial, step: Step) -> tuple[Reading, ...]:
    """The readings of all layers at one step, in the order of the model."""
    outputs, spreads = step.first(Role.OUTPUT), _spreads(step)
    return tuple(
        Reading(
            layer.path,
            layer.path,
            variance(outputs[layer.path].summary) if layer.path in outputs else None,
            spreads.get(layer.path),
        )
        for layer in trial.spec.layers
    )


def was_seen(reading: Reading) -> bool:
    """Whether there is anything to show."""
    return reading.variance is not None or reading.spread is not None


def shown_step(trial: Trial) -> Step | None:
    """The step that a report shows: the initialization itself, or else the first step there is."""
    return trial.start or next(iter((*trial.train_steps, *trial.steps)), None)


def shown_worker(trial: Trial, diagnosis: Diagnosis) -> int:
    """The rank whose view a report shows: one that saw the first fault, or else the first."""
    if diagnosis.origins:
        return diagnosis.origins[0].finding.workers[0]
    return trial.workers[0] if trial.workers else 0


def variance(summary: TensorSummary) -> float:
    """Variance of an output: per unit where known; nan or inf where it holds such values."""
    if summary.non_finite:
        return nan if summary.nan else inf
    per_unit = summary.unit_variance
    return summary.variance if isnan(per_unit) else per_unit


def _spreads(step: Step) -> dict[str, float]:
    seen = step.first(Role.WEIGHT_GRAD)
    found = {path: spread(observation.summary) for path, observation in seen.items()}
    return {path: value for path, value in found.items() if value is not None}


def spread(summary: TensorSummary) -> float | None:
    """95th minus 5th percentile; None without a histogram, nan or inf where there are such values."""
    if summary.non_finite:
        return nan if summary.nan else inf
    if summary.histogram is None or not summary.count:
        return None
    return summary.quantile(0.95).middle - summary.quantile(0.05).middle


def fired(trial: Trial) -> tuple[LayerSpec, ...]:
    """The layers that ran."""
    seen = {o.layer for step in trial.steps for o in step.observations if o.role not in PARAMETERS}
    return tuple(layer for layer in trial.spec.layers if layer.calls or layer.path in seen)


def dimensions(parameter: ParameterSpec) -> str:
    """Inputs, outputs and kernel of a weight, e.g. `3->32 5x5`; empty where they are not known.

    >>> dimensions(ParameterSpec("weight", Role.WEIGHT, (32, 3, 5, 5), unit_axis=0))
    '3->32 5x5'
    """
    shape, unit = parameter.shape, parameter.unit_axis
    if unit is None or len(shape) < 2 or unit >= len(shape):
        return ""
    # Frameworks keep the two channel axes first (torch) or last (keras); the unit axis tells which.
    first = 0 if unit < 2 else len(shape) - 2
    channels = shape[first : first + 2]
    kernel = shape[2:] if first == 0 else shape[:first]
    size = " " + "x".join(map(str, kernel)) if kernel else ""
    return f"{channels[first + 1 - unit]}->{shape[unit]}{size}"
