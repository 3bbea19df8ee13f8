"""FAN105: units behind a ReLU that are off for every input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, UnitSummary
from fanin.synthetic import Init, clusters, constant, mlp
from fanin.trial import NETWORK_INPUT, ActivationSpec, LayerSpec, ModelSpec, Observation, Role, Trial

FLAT_BELOW: Mapping[str, float] = {"relu": 0.0, "relu6": 0.0, "hardswish": -3.0, "gelu": -5.0, "silu": -10.0}
"""Where an activation stops answering: by definition for the first three; GELU and SiLU have slopes of -7e-6 and
-4e-4 there, and smaller ones below."""

CLOSED = 0.9
"""Share of dead units from which training fails: with its threshold here the fixed rule R2 has F1 0.87 on 414 starts
labelled by training; of the healthy ones 95 % have at most 0.27 (batch 128)."""

BY_CHANCE = 0.5
"""Weights with zero mean close half of the units at most, however alike the inputs have become: the sign of each
unit's mean is a coin's. Measured: 0.48 at 20 he_normal layers, up to 0.69 in one of 50 with 32 units."""

SIGMAS = 4.0
"""Standard deviations that a share of coins may be off: once in 30,000 layers (normal, one-sided)."""

FEWEST_VALUES = 16
"""Values that a unit must have shown. With fewer, one that fires for a tenth of all inputs looks dead to one in five
(0.9^16 = 0.19)."""

RARELY = 2.33
"""Standard deviations above the mean that a normal variable exceeds once in 100: a unit which fires for one input in a
hundred works, and looks dead to most batches smaller than that."""

ENOUGH_VALUES = 300
"""Without one exceeding value among n, the share that exceeds is below 3/n (rule of three): 1 % at 300. From here on
the extreme alone decides."""


@dataclass(frozen=True, slots=True)
class Closed:
    """An activation with too many dead units at every look; `layer` is the last one that feeds it, `share` that of
    its dead units at step 0."""

    layer: str
    share: float
    dead: int
    function: str
    on_output: bool
    severity: Severity


class DeadUnits(Rule):
    r"""Units of a ReLU layer are off for every input.

    What it detects
    ---------------
    A layer most of whose units stay on the flat side of their activation for the whole batch, at step 0 and at step
    5: ReLU and ReLU6 below 0, hardswish below -3, GELU below -5, SiLU below -10.

    Why it matters
    --------------
    A unit that is off for every input puts out a constant and receives no gradient: nothing ever turns it on again.
    Where all units of a layer are off, and no skip leads round it, nothing in front of it learns.

    How it is measured
    ------------------
    A unit is dead if its largest value over batch and positions is on the flat side and, where fewer than 300 values
    were seen, its mean + 2.33 standard deviations is so too: one that fires for one input in a hundred is not dead,
    and small batches do not show it. Units that are exactly 0 throughout are FAN402's. Weights with zero mean close
    up to half of n units once the inputs have become alike, as they do in 50 layers of ReLU, so a share counts from

        1/2 + 4 · (1/2) / √n

    on, as a note; above 0.9 it is a fault if every path from the batch to the output passes through the activation,
    and suspect otherwise. Where all n units are dead and every path passes, the gradient is exactly zero: that is a
    fault for any n. Activations that are multiplied with something else (gates) are passed, and so is what a sound
    draw of the same architecture shows too, unless the gradient is exactly zero.

    When it is wrong
    ----------------
    Sparse codes with strongly negative biases have units that fire for one input in a thousand. A batch of inputs
    that are all alike (one class, blank images) closes units that other inputs open. Where the graph is not known,
    nothing is called a fault.

    Fix
    ---
    Start biases at zero and draw weights with zero mean; take a ReLU off the output. Otherwise an activation with a
    slope on both sides (leaky ReLU).

    References
    ----------
    - Lu, Shin, Su and Karniadakis 2020, Dying ReLU and Initialization: Theory and Numerical Examples.
    - Maas, Hannun and Ng 2013, Rectifier Nonlinearities Improve Neural Network Acoustic Models.
    - Hanley and Lippman-Hand 1983, If Nothing Goes Wrong, Is Everything All Right?, on the rule of three.
    """

    code: ClassVar[str] = "FAN105"
    name: ClassVar[str] = "dead-units"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.ACTIVATION_INPUT, units=True, recheck=True, reference=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each severity, about the layers that have it."""
        steps = trial.looks(Role.ACTIVATION_INPUT)
        if not steps:
            return
        looks = [step.of(Role.ACTIVATION_INPUT) for step in steps]
        sound = trial.reference.of(Role.ACTIVATION_INPUT) if trial.reference else {}
        seen, readers = [a for a in trial.spec.activations if a.tensor in looks[0]], trial.spec.readers()
        judged = [a for a in seen if _is_judged(a, readers)]
        closed = [found for a in judged if (found := _closed(trial.spec, a, looks, sound))]
        for severity in dict.fromkeys(one.severity for one in closed):
            group = [one for one in closed if one.severity is severity]
            yield self._finding(group, len(judged), steps[0].index)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """ReLU networks with biases of several sizes, and zeros."""
        shut = {"blocks.2.fc.bias": constant(-20.0)}
        everywhere: dict[str, Init] = {f"blocks.{i}.fc.bias": constant(-20.0) for i in range(5)}
        yield Example("he_normal", mlp)
        yield Example("50 layers, after which inputs are alike", lambda: mlp((64,) * 51 + (10,)))
        yield Example("a batch of 16", lambda: mlp((64,) * 21 + (10,), batch=clusters(64, size=16)))
        yield Example("sparse units", lambda: mlp(overrides={"blocks.0.fc.bias": constant(-2.0)}))
        yield Example("a layer of zeros", lambda: mlp(overrides={"blocks.2.fc.weight": "zeros"}))
        yield Example("tanh", lambda: mlp(activation="tanh", overrides=shut))
        yield Example("one layer", lambda: mlp(overrides=shut), ("blocks.2.fc",))
        yield Example("one layer, for good", lambda: mlp(overrides=shut, steps=6), ("blocks.2.fc",))
        yield Example("every layer", lambda: mlp(overrides=everywhere), ("blocks.0.fc",))
        branch = {"blocks.1.fc1.bias": constant(-20.0)}
        yield Example(
            "a branch beside a skip", lambda: mlp(residual=True, overrides=branch), ("blocks.1.fc1",)
        )

    def _finding(self, closed: list[Closed], judged: int, step: int) -> Finding:
        first = closed[0]
        what = f"A {first.function} on the output" if first.on_output else f"The {first.function}"
        more = f" So it is in {len(closed) - 1} more layers." if len(closed) > 1 else ""
        shares = [one.share for one in closed]
        return Finding(
            self.code,
            self.name,
            first.layer,
            step,
            Interval(min(shares), max(shares)),
            Interval(0.0, BY_CHANCE),
            "share of dead units",
            f"{what} after {first.layer} is closed for the whole batch in {first.dead} units "
            f"({first.share:.0%}); no gradient passes them.{more}",
            Cause.DEAD_UNITS,
            scope=Scope.EVERYWHERE if len(closed) > 1 and len(closed) > judged / 2 else Scope.LAYER,
            layers=tuple(dict.fromkeys(one.layer for one in closed)),
            severity=first.severity,
        )


def dead_units(units: UnitSummary, flat_below: float) -> int:
    """How many units are off for all inputs, as far as these tell; units of nothing but zeros do not count.

    >>> from fanin.summary import summarize
    >>> values = np.linspace(-3, -1, 16)[:, None] * [1, -1, 0]
    >>> dead_units(summarize(values, unit_axis=1).units, 0.0)
    1
    """
    is_zero = (units.minimum == 0) & (units.maximum == 0)
    likely = units.mean + RARELY * np.sqrt(units.variance)
    off = (units.maximum <= flat_below) & ((likely <= flat_below) | (units.count >= ENOUGH_VALUES))
    return int((off & ~is_zero & (units.count >= FEWEST_VALUES)).sum())


def tolerated(units: int) -> float:
    """Share of dead units that zero-mean weights may show by chance."""
    return BY_CHANCE + SIGMAS * BY_CHANCE / sqrt(units)


def is_unavoidable(spec: ModelSpec, activation: ActivationSpec) -> bool:
    """Whether every path from the batch to the output passes this activation; False where that is not known."""
    if _is_output(spec, activation):
        return set(spec.outputs) == set(activation.inputs)
    layers = {layer.path: layer for layer in spec.layers}
    waiting, reached = list(spec.outputs), set(spec.outputs)
    while waiting:
        layer = layers.get(waiting.pop())
        if layer is None or not layer.inputs:
            return False  # where it comes from is not known, or it is the batch
        if set(layer.inputs) == set(activation.inputs) and layer.input_activation == activation.function:
            continue
        waiting += [path for path in layer.inputs if path not in reached]
        reached.update(layer.inputs)
    return bool(spec.outputs)


def _is_output(spec: ModelSpec, activation: ActivationSpec) -> bool:
    """Whether the network puts out what this activation does: what feeds it feeds nothing else."""
    fed = set(activation.inputs)
    if not fed <= set(spec.outputs):
        return False
    used = any(fed & set(layer.inputs) for layer in spec.layers)
    return not used and any(x.path in fed and x.activation == activation.function for x in spec.layers)


def _is_judged(activation: ActivationSpec, readers: Mapping[str, list[LayerSpec]]) -> bool:
    """Whether it can die, and is no gate."""
    fed = set(activation.inputs)
    gates = any(x.joins == "product" for path in fed for x in readers.get(path, ()))
    return activation.function in FLAT_BELOW and bool(fed - {NETWORK_INPUT}) and not gates


def _closed(
    spec: ModelSpec,
    activation: ActivationSpec,
    looks: list[dict[str, Observation]],
    sound: dict[str, Observation],
) -> Closed | None:
    shares = [
        dead_units(units, FLAT_BELOW[activation.function]) / len(units.count)
        for look in looks
        if activation.tensor in look and (units := look[activation.tensor].summary.units) is not None
    ]
    units = looks[0][activation.tensor].summary.units
    if units is None or not shares:
        return None
    share, n = min(shares), len(units.count)
    unavoidable = share > CLOSED and is_unavoidable(spec, activation)
    on_output = _is_output(spec, activation)
    if not (unavoidable and (share == 1 or on_output)):
        there = sound[activation.tensor].summary.units if activation.tensor in sound else None
        in_reference = dead_units(there, FLAT_BELOW[activation.function]) / n if there is not None else 0.0
        if share <= tolerated(n) or in_reference > tolerated(n):
            return None
    order = {layer.path: place for place, layer in enumerate(spec.layers)}
    layer = max(activation.inputs, key=lambda path: order.get(path, -1))
    severity = Severity.FAULT if unavoidable else Severity.SUSPECT if share > CLOSED else Severity.NOTE
    return Closed(layer, shares[0], round(shares[0] * n), activation.function, on_output, severity)
