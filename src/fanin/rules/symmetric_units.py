"""Units that start identical and stay identical."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import is_chain
from fanin.rule import Example, Need, Rule
from fanin.scheme import HE_NORMAL, LECUN_NORMAL
from fanin.summary import Interval, TensorSummary, UnitSummary
from fanin.synthetic import Init, constant, mlp, normal, scaled, tiled
from fanin.trial import Kind, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step, Trial

MOST_TWINS = 0.5
"""Largest share of units that may have a twin: a majority, for then the layer computes less than half of what its width
promises. Independent random draws have none, so anything between a tenth and nine tenths would tell them apart."""

FEWEST_UNITS = 4
"""Two or three units may be alike by design (a stereo channel, the two ends of a range)."""

FEWEST_TERMS = 4
"""Rows of fewer terms are alike for other reasons: a depthwise identity kernel, a scale per channel."""

FEWEST_LAYERS = 5
"""Layers of a plain stack whose units are alike up to a factor that are fatal together: such units part in size and,
with normalization or sums around them, soon in direction. One row copied to all units of every layer left plain stacks
of five layers and more at 0.46 and less of the best sound start's progress, while networks with normalization or
residual sums and plain ones of four layers reached 0.88 and more (InitBench, tune split)."""

MIXING = frozenset({Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE, Kind.ATTENTION, Kind.RECURRENT})
"""Kinds whose rows are units that learn apart. Embeddings may start from one mean vector. The gates of a recurrent cell
differ though their rows do not: there only a gradient that is the same for all units of a gate keeps them alike."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """The weight of a hidden layer at step 0, and its gradient where one was seen.

    Attributes:
        units, grads: Statistics of the rows of each; None where they were not taken.
        no_grad: Whether the gradient is exactly zero.
    """

    layer: LayerSpec
    spec: ParameterSpec
    seen: Observation
    units: UnitSummary
    grads: UnitSummary | None
    no_grad: bool

    @property
    def has_twins(self) -> bool:
        """Whether more than half of its units certainly have a twin."""
        return share_of_twins(self.units).low > MOST_TWINS

    @property
    def keeps_twins(self) -> bool:
        """Whether the gradients of more than half of its units certainly are multiples of one another."""
        return self.grads is not None and share_of_twins(directions(self.grads)).low > MOST_TWINS

    @property
    def moves_as_one(self) -> bool:
        """Whether the gradients of more than half of its units certainly are the same, not only up to a factor."""
        return self.grads is not None and share_of_twins(self.grads).low > MOST_TWINS


class SymmetricUnits(Rule):
    r"""Most units of a hidden layer have the same incoming weights, and their gradients do not part them.

    What it detects
    ---------------
    A hidden weight of which more than half of the rows (units, output channels) equal another row at step 0, while
    the gradients of more than half of them are multiples of one another. A constant weight is the plainest case.

    Why it matters
    --------------
    Units that compute the same and are changed alike are one unit. The layer passes on a single number, however
    wide it is, and no learning rate helps. With a constant for all weights, a ReLU network of five layers stood at
    a loss of 1.7 after 150 steps of Adam, where he_normal had reached 0.000; and these units had PyTorch's random
    biases, which stay behind when only weights are filled.

    How it is measured
    ------------------
    By a fingerprint of each row w_i: minimum, maximum, mean and Σ_k r_k w_ik with fixed irregular r. With d distinct
    fingerprints among n > d units, between n - d + 1 (all repeats of one row) and min(n, 2 (n - d)) (all in pairs)
    have a twin. The rule asks for

        (n - d + 1) / n > 0.5

    of the rows, and again of the directions of the gradient's rows, g_i up to a factor. For, with outgoing weights
    V, inputs h and slopes φ',

        g_i = Σ_batch (Σ_j V_ji δ_j) φ'(z_i) hᵀ

    Where w_i is the same for all i, so are z_i and φ'. If the columns of V are equal too, all g_i are, and the units
    never part. If they are not, but h is one number for all units (twins in front) or V has one row for all
    (twins behind), all g_i are multiples c_i g: the rows stay on one line, and Adam, which steps by sign, leaves
    two of them. Only diverse inputs and diverse outgoing weights together part the units, as when a single layer
    has twins in a random network: such a layer is passed. So are outputs, weights of zeros (FAN402), frozen
    and tied weights, embeddings, and rows of fewer than 4 terms.

    Biases are not compared: where they matter, because units then differ in φ', gradients show it.

    When it is wrong
    ----------------
    A batch of one sample gives every linear layer a gradient of rank one, whatever its weights; twins are then
    reported that a larger batch might part. A single layer of twins costs some networks their training all the same,
    by closing all its units at once: 1 of 4 seeds of a ReLU network of six layers stayed at chance. Dropout and other
    noise part twins slowly. A weight tiled from a smaller network, with outgoing weights tiled too, is reported
    though it trains as well as the smaller one.

    Fix
    ---
    Draw the weights at random: he_normal, glorot_uniform, orthogonal. To widen a trained network, split outgoing
    weights unevenly among the copies.

    References
    ----------
    Rumelhart, Hinton and Williams, "Learning Internal Representations by Error Propagation" (1986), on breaking
    symmetry.
    Goodfellow, Bengio and Courville, "Deep Learning" (2016), section 8.4.
    Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR (2016), on copies.
    """

    code = "FAN403"
    name = "symmetric-units"
    needs = frozenset({Need(Role.WEIGHT, units=True), Need(Role.WEIGHT_GRAD, units=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, about every layer of twins that stay twins."""
        start = trial.start
        hidden = list(_hidden(trial, start)) if start else []
        if start is None or (not hidden and _lacks_units(trial.spec, start)):
            settle = "watch the model from its first training step on, with this rule among the rules"
            yield Missing(self.code, "no weight was seen by units at training step 0", settle)
            return
        twins = [h for h in hidden if h.has_twins]
        # A gradient of zero parts nothing, but behind a head of zeros it may be another one a step later.
        waiting = [h for h in twins if h.grads is None or (h.no_grad and _any_zeros(start))]
        stay = [h for h in twins if h not in waiting and h.keeps_twins]
        if stay:
            fatal = any(h.moves_as_one for h in stay) or (len(stay) >= FEWEST_LAYERS and is_chain(trial.spec))
            yield self._finding(stay, Severity.FAULT if fatal else Severity.SUSPECT)
        elif waiting:
            yield self._unknown(waiting[0])

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Units that differ, twins that part, and twins that stay."""
        he, lecun = scaled(HE_NORMAL), scaled(LECUN_NORMAL)
        hidden = tuple(f"blocks.{i}.fc" for i in range(5))
        biases: dict[str, Init] = {f"{path}.bias": normal(0.1) for path in hidden}
        yield Example("he_normal", mlp)
        yield Example("a head of ones", lambda: mlp(overrides={"head.weight": "ones"}))
        yield Example(
            "one layer of twins in a random network",
            lambda: mlp(overrides={"blocks.2.fc.weight": tiled(he)}, seed=1),
        )
        yield Example(
            "branches that end in zeros",
            lambda: mlp(residual=True, overrides={f"blocks.{i}.fc2.weight": "zeros" for i in range(5)}),
        )
        head: dict[str, Init] = {"head.weight": he}
        yield Example("a constant", lambda: mlp(init=constant(0.05), overrides=head), layers=hidden[:1])
        yield Example(
            "a constant, with random biases",
            lambda: mlp(init=constant(0.05), overrides=head | biases),
            layers=hidden[1:2],
        )
        yield Example(
            "one row copied to all, tanh",
            lambda: mlp(init=tiled(lecun), activation="tanh", overrides=head),
            layers=hidden[:1],
        )
        yield Example(
            "two layers of twins in a row",
            lambda: mlp(overrides={f"{path}.weight": tiled(he) for path in hidden[2:4]}, seed=1),
            layers=hidden[2:3],
        )

    def _finding(self, stay: list[Hidden], severity: Severity) -> Finding:
        first = stay[0]
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            share_of_twins(first.units),
            Interval(0.0, MOST_TWINS),
            "share of units with a twin",
            f"{_described(first)}, and their gradients do not part them.",
            Cause.SYMMETRIC_UNITS,
            scope=Scope.LAYER if len(stay) == 1 else Scope.EVERYWHERE,
            layers=tuple(dict.fromkeys(h.layer.path for h in stay)),
            tensor=first.seen.tensor,
            source=first.spec.source,
            severity=severity,
        )

    def _unknown(self, hidden: Hidden) -> Missing:
        what = f"{_described(hidden)}; whether gradients will part them was not seen"
        return Missing(self.code, what, "watch a backward pass in which this layer receives a gradient")


def share_of_twins(units: UnitSummary) -> Interval:
    """Share of units that are identical to another, as far as the number of distinct ones tells.

    >>> from fanin.summary import summarize
    >>> rows = [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]
    >>> share_of_twins(summarize(rows, unit_axis=0).units)
    Interval(low=0.75, high=1.0)
    """
    n, d = len(units.mean), units.distinct()
    return Interval((n - d + 1) / n, min(n, 2 * (n - d)) / n) if d < n else Interval(0.0, 0.0)


def directions(units: UnitSummary) -> UnitSummary:
    """The same fingerprints up to a factor of each unit: divided by its largest magnitude, and signed."""
    largest = np.maximum(np.abs(units.minimum), np.abs(units.maximum))
    usable = (largest > 0) & np.isfinite(largest)
    factor = np.where(units.projection < 0, -1.0, 1.0) / np.where(usable, largest, 1.0)
    low, high = np.sort([units.minimum * factor, units.maximum * factor], axis=0)
    return UnitSummary(
        count=units.count,
        mean=units.mean * factor,
        m2=(np.sqrt(units.m2) * factor) ** 2,  # the square of a factor may leave float64, this does not
        minimum=low,
        maximum=high,
        projection=units.projection * factor,
    )


def _hidden(trial: Trial, start: Step) -> Iterator[Hidden]:
    """Weights whose rows are units that should learn apart, in forward order."""
    weights, grads = start.of(Role.WEIGHT), start.of(Role.WEIGHT_GRAD)
    for layer, spec in _candidates(trial.spec):
        name = layer.parameter_path(spec)
        seen, grad = weights.get(name), grads.get(f"gradient/{name}")
        unused = grad is None and bool(grads)
        if seen is None or unused or not _is_judged(seen.summary):
            continue
        assert seen.summary.units is not None
        units, no_grad = (grad.summary.units, grad.summary.is_zero) if grad else (None, False)
        yield Hidden(layer, spec, seen, seen.summary.units, units, no_grad)


def _candidates(spec: ModelSpec) -> Iterator[tuple[LayerSpec, ParameterSpec]]:
    last = tuple(layer.path for layer in spec.weight_layers[-1:])
    for layer in spec.layers:
        if layer.kind in MIXING and layer.path not in (spec.outputs or last):
            yield from ((layer, w) for w in layer.weights if w.trainable and w.tied_to is None)


def _lacks_units(spec: ModelSpec, start: Step) -> bool:
    """Whether hidden weights were not seen, or not by units. Weights of zeros need not be."""
    weights = start.of(Role.WEIGHT)
    seen = [weights.get(layer.parameter_path(w)) for layer, w in _candidates(spec)]
    return not weights or any(o and o.summary.units is None and not o.summary.is_zero for o in seen)


def _is_judged(summary: TensorSummary) -> bool:
    units = summary.units
    if units is None or summary.non_finite or summary.is_zero:
        return False
    return len(units.count) >= FEWEST_UNITS and int(units.count.max()) >= FEWEST_TERMS


def _any_zeros(start: Step) -> bool:
    return any(seen.summary.is_zero for seen in start.of(Role.WEIGHT).values())


def _described(hidden: Hidden) -> str:
    summary, units = hidden.seen.summary, hidden.units
    if summary.is_constant:
        return f"Every value of {hidden.seen.tensor} is {summary.minimum:.3g}, in all {len(units.mean)} units"
    return f"Distinct rows in {hidden.seen.tensor}: {units.distinct()} of {len(units.mean)}"
