"""FAN404: several layers hold the same random draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import mixing
from fanin.rule import Example, Need, Rule
from fanin.scheme import HE_NORMAL
from fanin.summary import Floats, Interval, TensorSummary
from fanin.synthetic import Init, mlp, scaled
from fanin.trial import Kind, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step, Trial

FEWEST_VALUES = 16
"""Below that a kernel may well be set by hand, and equal on purpose: a 3 x 3 blur has 9 values."""

MOST_ZEROS = 0.5
"""Share of zeros above which a weight is a pattern rather than a draw: identities, Dirac kernels, sparse masks."""

FLAT = 0.99
"""Mean square over largest square above which all values have one magnitude: a Hadamard matrix (1; ZerO, Zhao et al.
2022), which layers share on purpose. A uniform draw has 1/3."""

FEWEST_LAYERS = 3
"""Two layers alike are one coincidence of shapes; from three on, all hidden layers alike are a recurrent network."""

NEARLY_ALL = 0.8
"""Share of the mixing layers from which it is one fault of the network: the entrance and the head have shapes of their
own and so are rarely equal to anything, which is 2 layers of 10."""

DRAWN = frozenset(
    {Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE, Kind.EMBEDDING, Kind.RECURRENT, Kind.ATTENTION}
)
"""Kinds whose weights are drawn at random. What other layers own may be a table that all share on purpose, as the
state matrices of S4 and Mamba (Gu and Dao 2023, section 3.6)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A weight of random values at step 0."""

    layer: LayerSpec
    spec: ParameterSpec
    seen: Observation


class DuplicateDraws(Rule):
    """Two or more layers start with exactly the same random values.

    What it detects
    ---------------
    Weights of equal shape in different layers that hold the same values at step 0, to the last bit, though they are
    not tied: each will be trained by itself.

    Why it matters
    --------------
    It is the mark of a mistake: a seed set before each layer, one initialized block that was deep-copied, or a
    generator that every layer starts anew. Training usually parts the copies, since each has inputs and gradients
    of its own, so this is a note. Where one draw fills all hidden layers the network starts as a recurrent one: a
    direction that one layer shrinks is shrunk by all of them, and what survives has fewer dimensions. That is a
    suspect, named as the cause where the signal does suffer.

    How it is measured
    ------------------
    Two weights count as equal if shape, number format, count, zeros, mean, sum of squared deviations, minimum and
    maximum are equal to the last bit, for the tensor and for each unit, and so is each unit's projection on a fixed
    irregular vector. In 16-bit formats two draws may agree in their extremes; in all of these they never do. Passed
    are weights of fewer than 16 values or one dimension, frozen, tied and unused ones, constants, weights that are
    mostly zeros (identities), that have one magnitude (Hadamard matrices), or whose units are mostly copies of one
    another (FAN403), and layers of no known kind.

    When it is wrong
    ----------------
    Copies may be meant: `torch.nn.TransformerEncoder` deep-copies its layer, experts are copied from one dense
    layer (sparse upcycling), trained layers are repeated to deepen a network. Such copies are never all hidden
    layers with one draw, and remain notes. Copies whose sums were rounded differently, because their memory is
    aligned differently, are missed.

    Fix
    ---
    Initialize each layer after it was copied, all from one running generator; set the seed once.

    References
    ----------
    Komatsuzaki et al., "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", ICLR (2023).
    Zhao, Schäfer and Anandkumar, "ZerO Initialization: Initializing Neural Networks with only Zeros and Ones",
    TMLR (2022).
    """

    code: ClassVar[str] = "FAN404"
    name: ClassVar[str] = "duplicate-draws"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.WEIGHT, units=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding about all layers, or one for each set of equal weights."""
        start = trial.start
        if start is None or not start.of(Role.WEIGHT):
            settle = "watch the model from its first training step on"
            yield Missing(self.code, "no weight was seen at training step 0", settle, blocks=False)
            return
        groups = _groups(trial.spec, start)
        concerned = {draw.layer.path for group in groups for draw in group}
        everywhere = len(concerned) >= NEARLY_ALL * len(mixing(trial.spec))
        if groups and everywhere:
            yield self._finding(trial.spec, groups)
        else:
            yield from (self._finding(trial.spec, [group], Scope.LAYER) for group in groups)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Draws that differ, patterns that may be equal, and copies."""
        hidden = [f"blocks.{i}.fc.weight" for i in range(5)]
        once, eye = _seeded(scaled(HE_NORMAL)), _identity
        yield Example("he_normal", mlp)
        yield Example("zeros", lambda: mlp(init="zeros"))
        yield Example("a constant", lambda: mlp(init="ones"))
        yield Example("identities", lambda: mlp(overrides=dict.fromkeys(hidden, eye)))
        yield Example(
            "two copies", lambda: mlp(overrides=dict.fromkeys(hidden[1:3], once)), layers=("blocks.1.fc",)
        )
        yield Example("the seed set before each layer", lambda: mlp(init=once), layers=("blocks.0.fc",))
        yield Example(
            "one residual block, copied",
            lambda: mlp((32,) * 6 + (10,), init=once, residual=True),
            layers=("blocks.0.fc1",),
        )

    def _finding(self, spec: ModelSpec, groups: list[list[Draw]], scope: Scope = Scope.EVERYWHERE) -> Finding:
        first, second = groups[0][:2]
        order = [layer.path for layer in spec.layers]
        concerned = {draw.layer.path for group in groups for draw in group}
        sets = f"{len(concerned)} layers share {len(groups)} draws" if len(groups) > 1 else ""
        others = f"{len(concerned)} layers hold them" if not sets and len(concerned) > 2 else sets
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(len(concerned), len(concerned)),
            Interval(0, 0),
            "layers that share a draw",
            f"{first.seen.tensor} and {second.seen.tensor} hold the same {first.seen.summary.count} values"
            + (f"; {others}." if others else "."),
            Cause.DUPLICATE_DRAWS,
            scope=scope,
            layers=tuple(sorted(concerned, key=order.index)),
            tensor=first.seen.tensor,
            source=first.spec.source,
            severity=Severity.SUSPECT if _is_one_draw(spec, groups) else Severity.NOTE,
        )


def _groups(spec: ModelSpec, start: Step) -> list[list[Draw]]:
    """Equal draws, by first layer; each set lies in at least two layers."""
    alike: dict[tuple[object, ...], list[Draw]] = {}
    for draw in _draws(spec, start):
        alike.setdefault(_fingerprint(draw.seen), []).append(draw)
    return [group for group in alike.values() if len({draw.layer.path for draw in group}) > 1]


def _draws(spec: ModelSpec, start: Step) -> Iterator[Draw]:
    """Trainable random weights of layers that ran, in forward order. Where gradients were seen, a weight without one
    is the frozen copy of another (a teacher, a target network)."""
    weights, grads = start.of(Role.WEIGHT), start.of(Role.WEIGHT_GRAD)
    for layer in spec.layers:
        for weight in layer.weights if layer.calls and layer.kind in DRAWN else ():
            name = layer.parameter_path(weight)
            unused = bool(grads) and f"gradient/{name}" not in grads
            is_own = weight.trainable and weight.tied_to is None and not unused
            seen = weights.get(name)
            if seen and is_own and len(seen.shape) >= 2 and _is_random(seen.summary):
                yield Draw(layer, weight, seen)


def _is_random(summary: TensorSummary) -> bool:
    """Whether the values look drawn, each by itself, rather than set."""
    if summary.non_finite or summary.count < FEWEST_VALUES or summary.is_constant:
        return False
    if summary.zeros > MOST_ZEROS * summary.count or summary.second_moment > FLAT * summary.largest**2:
        return False
    return summary.units is None or 2 * summary.units.distinct() > len(summary.units.mean)


def _fingerprint(seen: Observation) -> tuple[object, ...]:
    s, units = seen.summary, seen.summary.units
    rows = (units.mean, units.m2, units.minimum, units.maximum, units.projection) if units else ()
    whole = (s.count, s.zeros, s.mean, s.m2, s.minimum, s.maximum)
    return (seen.shape, seen.dtype, *whole, *(row.tobytes() for row in rows))


def _is_one_draw(spec: ModelSpec, groups: list[list[Draw]]) -> bool:
    """Whether one draw fills all mixing layers between the entrances and the outputs, and at least three layers."""
    ends = {*spec.entrances, *spec.outputs}
    hidden = {layer.path for layer in mixing(spec)} - ends
    paths = [{draw.layer.path for draw in group} for group in groups]
    return bool(hidden) and any(len(one) >= FEWEST_LAYERS and hidden <= one for one in paths)


def _seeded(init: Init) -> Init:
    """The same draw at every call, as if the seed were set before."""
    return lambda rng, shape: init(np.random.default_rng(7), shape)


def _identity(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return np.eye(shape[0], shape[1])
