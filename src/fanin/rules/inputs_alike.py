"""FAN109: to the last layer of a normalized network all inputs look alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import ClassVar

import numpy as np

from fanin import synthetic
from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope
from fanin.measures import decades, depends_on_input, head, mixing
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval
from fanin.trial import Kind, LayerSpec, Mode, ParameterSpec, Role, Step, Trial

ALIKE = 1.5
"""Decades by which the share of the last layer's input that depends on the network's input may lie below that of the
reference re-draw. All seven starts of normalized networks below it (1.7 to 14 decades) stayed at 0.48 and less, none
of 170 healthy ones came near (-1.0 the lowest; InitBench, tune split)."""

BY_DESIGN = -3.0
"""log10 of the share in the reference below which inputs look alike by design: CaiT reads the image through branches
scaled by 1e-5, and shows 10^-7 however it is drawn (benchmarks/zoo). References of InitBench's tune split: 10^-2 and
more."""

FEWEST = 3
"""Layers with weights from which on a network is judged."""


class InputsAlike(Rule):
    """To the last layer of a normalized network all inputs look alike.

    What it detects
    ---------------
    A network with normalizations in which something that does not depend on the input (biases, position embeddings,
    the common mean of equal rows) drowns what does. The normalizations keep the scale in order, so that nothing
    shrinks or grows; only the differences between inputs are gone.

    Why it matters
    --------------
    A head that is given nearly the same for every input learns the classes' frequencies and little else; the
    gradients of all inputs point the same way and cancel what tells them apart.

    How it is measured
    ------------------
    d = v / q at the input of the last layer: the variance over the batch of each unit, averaged, over the second
    moment. 1 - d is the mean cosine between what two inputs become. It is compared with the same share in the
    reference re-draw: deep ReLU stacks bring inputs together by design (0.87 after ten layers), and there the
    reference shows it too. A fault from 1.5 decades below it, at every look.

    When it is wrong
    ----------------
    Without a reference nothing is said. Networks without normalization are left to FAN101 and FAN107, since what is
    drowned there still has its own scale. A batch of nearly equal examples looks alike in the reference too.

    Fix
    ---
    Draw weights with zero mean and at a scale that tells inputs apart beside biases and position embeddings
    (glorot_uniform, lecun_normal); start biases at zero and position embeddings at 0.02.

    References
    ----------
    - Poole et al. 2016, Exponential expressivity in deep neural networks through transient chaos, on c*.
    - Noci et al. 2022, Signal Propagation in Transformers: rank collapse.
    """

    code: ClassVar[str] = "FAN109"
    name: ClassVar[str] = "inputs-alike"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.INPUT, units=True, recheck=True, reference=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, at the last layer."""
        last, looks = head(trial.spec), trial.looks(Role.INPUT)
        normalized = any(layer.kind is Kind.NORM and layer.calls for layer in trial.spec.layers)
        if last is None or not looks or trial.reference is None or not normalized:
            return
        if len(mixing(trial.spec)) < FEWEST or _share(looks[0], last) == -inf:
            return  # exactly nothing: zeros, which FAN402 judges
        beside = _share(trial.reference, last)
        behind = [_share(look, last) - beside for look in looks]
        if beside > BY_DESIGN and all(fallen < -ALIKE for fallen in behind):
            yield self._finding(looks[0], last, behind[0])

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A head behind a normalization, given inputs that differ more or less."""
        yield Example("as different as in the reference", lambda: _trial(1.0))
        yield Example("alike by design", lambda: _trial(0.05, reference=0.05))
        yield Example("without a norm", lambda: _trial(0.01, kind=Kind.OTHER))
        yield Example("drowned by an offset", lambda: _trial(0.02), ("head",))

    def _finding(self, step: Step, last: LayerSpec, fallen: float) -> Finding:
        share = 10 ** _share(step, last)
        return Finding(
            self.code,
            self.name,
            last.path,
            step.index,
            Interval(fallen, fallen),
            Interval(-ALIKE, inf),
            "decades of the share that depends on the input, relative to a sound start",
            f"Of what enters {last.path} a share of {share:.2g} depends on the input, 10^{-fallen:.1f} times less than "
            "with soundly drawn weights.",
            Cause.INPUTS_ALIKE,
            scope=Scope.LAYER,
            layers=(last.path,),
        )


def _share(step: Step, last: LayerSpec) -> float:
    """log10(v / q) of what enters the last layer; 0 where it was not seen."""
    seen = step.first(Role.INPUT).get(last.path)
    if seen is None or seen.summary.units is None:
        return 0.0
    share = decades(depends_on_input(seen.summary))
    return share if share == share else 0.0


def _trial(std: float, reference: float = 1.0, kind: Kind = Kind.NORM) -> Trial:
    """Units with an offset of 1 and this spread over the batch, in front of the head of a small network."""
    rng = np.random.default_rng(0)

    def given(spread: float) -> Floats:
        return 1.0 + spread * rng.normal(size=(64, 16))

    weight = ParameterSpec("weight", Role.WEIGHT, (16, 16), fan_in=16, fan_out=16, unit_axis=0)
    names = ("fc1", "fc2", "head")
    layers = [LayerSpec(name, Kind.LINEAR, "Linear", (weight,), calls=1) for name in names]
    layers.insert(2, LayerSpec("norm", kind, "LayerNorm", calls=1))
    trial = synthetic.seen(layers, {("head", Role.INPUT): given(std)}, outputs=("head",))
    beside = synthetic.seen(layers, {("head", Role.INPUT): given(reference)}).steps[0]
    return replace(trial, steps=(*trial.steps, replace(beside, mode=Mode.REFERENCE)))
