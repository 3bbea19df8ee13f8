"""Weights of zeros that no gradient can leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import head, mixing
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval
from fanin.synthetic import mlp
from fanin.trial import Kind, LayerSpec, Observation, ParameterSpec, Role, Step, Trial

MOST = 0.5
"""Share of the mixing layers that get no gradient from which on the network is taken to be dead. Two zero layers in one
branch of three or more leave a residual network at 0.99 of a sound one, in a plain stack at 0 (InitBench, tune)."""

WATCH = "watch the model from its first training step on, forward and backward"


@dataclass(frozen=True, slots=True)
class Zeros:
    """A trainable weight of nothing but zeros, and what became of it.

    Attributes:
        place: Of its layer in forward order.
        moves: Whether it received a gradient at any watched step.
    """

    place: int
    layer: LayerSpec
    spec: ParameterSpec
    seen: Observation
    moves: bool

    @property
    def mixes(self) -> bool:
        """Whether it is a matrix or kernel; gains of zero may keep others waiting, but are not named."""
        return self.layer.kind is not Kind.NORM and len(self.spec.shape or self.seen.shape) >= 2


class ZeroPath(Rule):
    r"""Weights of zeros that receive no gradient, and that nothing will give one: they stay zero for ever.

    What it detects
    ---------------
    A trainable weight that is zero throughout at step 0, whose gradient is zero throughout at every step that was
    watched, and that does not merely wait for another weight of zeros to move first.

    Why it matters
    --------------
    Zeros are a good start as long as there is one layer of them on a path: heads, the last layer of a residual
    branch, LoRA's B, ControlNet's zero convolutions, adaLN-zero gates and ReZero's scalars all begin that way, and
    the first update moves them. Two such layers in a row, or one in front of an activation that is flat at zero,
    keep each other at zero: the part of the network behind them is never used, or nothing trains at all.

    How it is measured
    ------------------
    For a layer z = W h with output gradient δ, the gradient of its weight is ∂L/∂W = Σ δ hᵀ over the batch. It is
    zero for a weight of zeros if h = 0 (something in front gives nothing) or δ = 0 (something behind passes nothing
    back). Take y = B A x as LoRA has it:

        ∂L/∂B = δ (A x)ᵀ        ∂L/∂A = Bᵀ δ xᵀ

    With B = 0 alone, ∂L/∂B is not zero: B moves, and then A does. With A = B = 0 both vanish, at every step: a
    stationary point. And for h' = h + relu(W h) with W = 0, relu'(0) = 0 has the same effect.

    So let Z be the trainable weights of zeros at step 0, and M those of Z that receive a gradient at some step. A
    member of Z outside M is excused, for it may only wait, if M has a member behind it (which will pass δ back
    once it has moved) or in front of it (which will supply h). Where inputs and output gradients were watched, they
    tell which: with h not zero only what lies behind counts, with δ not zero only what lies in front. In doubt it is
    excused. A gradient that was not seen proves nothing: frozen weights and unused ones are not judged. All that
    remains is one finding, which names the first layer and lists the others.

    When it is wrong
    ----------------
    It rather stays silent: a weight of zeros anywhere that moves may excuse another on a parallel path. Gradients
    that underflow to zero in float16 look like zero; use loss scaling. A layer that the first batches never reach,
    such as an expert without tokens, receives a gradient of zero without fault: watch more steps. Zeros that do
    move may move as one: behind a sigmoid, which is not 0 at 0, a network of zeros trains, with units that stay
    alike.

    Fix
    ---
    Draw all but one of the layers on the path at random.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR (2022), section 4.1: A random, B zero.
    Zhang, Dauphin and Ma, "Fixup Initialization: Residual Learning Without Normalization", ICLR (2019).
    Bachlechner et al., "ReZero is All You Need: Fast Convergence at Large Depth", UAI (2021).
    Zhang, Rao and Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV (2023): why zero
    convolutions have a gradient.
    Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV (2023): adaLN-zero.
    """

    code = "FAN402"
    name = "zero-path"
    needs = frozenset(
        {
            Need(Role.WEIGHT),
            Need(Role.WEIGHT_GRAD, every_step=True),
            Need(Role.INPUT, units=True),
            Need(Role.OUTPUT_GRAD),
        }
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, about every weight that stays zero."""
        start = trial.start
        weights = start.of(Role.WEIGHT) if start else {}
        if start is None or not weights:
            yield Missing(self.code, "no weight was seen at training step 0", WATCH)
            return
        if not start.of(Role.WEIGHT_GRAD):
            zero = [name for name, seen in weights.items() if seen.summary.is_zero]
            if zero:
                yield Missing(
                    self.code, f"{zero[0]} is zero; whether a gradient moves it was not seen", WATCH
                )
            return
        zeros = _zeros(trial, start)
        stuck = _stuck(trial, start, zeros)
        if stuck:
            yield self._finding(stuck, start, _severity(trial, start, stuck))

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Zeros that move at once, zeros that wait, and zeros that stay."""
        yield Example("he_normal", mlp)
        yield Example("a head of zeros", lambda: mlp(overrides={"head.weight": "zeros"}))
        yield Example("branches that end in zeros", lambda: _residual("fc2.weight"))
        yield Example(
            "branches and head of zeros, which wait for the head",
            lambda: _residual("fc2.weight", **{"head.weight": "zeros"}),
        )
        yield Example("a linear adapter with B = 0", lambda: _residual("fc2.weight", activation="identity"))
        yield Example("a linear adapter with A = 0", lambda: _residual("fc1.weight", activation="identity"))
        yield Example(
            "a first layer of zeros before tanh",
            lambda: mlp(activation="tanh", overrides={"blocks.0.fc.weight": "zeros"}),
        )
        yield Example("zeros everywhere", lambda: mlp(init="zeros"), layers=("blocks.0.fc",))
        yield Example(
            "a layer of zeros before ReLU, which is flat there",
            lambda: mlp(overrides={"blocks.2.fc.weight": "zeros"}),
            layers=("blocks.2.fc",),
        )
        yield Example(
            "linear adapters with A = B = 0",
            lambda: _residual("fc1.weight", "fc2.weight", activation="identity"),
            layers=("blocks.0.fc1",),
        )

    def _finding(self, stuck: list[Zeros], start: Step, severity: Severity) -> Finding:
        first = stuck[0]
        layers = tuple(dict.fromkeys(z.layer.path for z in stuck))
        rest_trains = any(not o.summary.is_zero for o in start.of(Role.WEIGHT_GRAD).values())
        text = (
            f"All {first.seen.summary.count} values of {first.seen.tensor} are 0 and so is its whole gradient, and "
            "it does not wait for another weight of zeros that moves. "
            + ("Other weights do train." if rest_trains else "No other weight has a gradient either.")
        )
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(len(stuck), len(stuck)),
            Interval(0, 0),
            "weights of zeros that cannot move",
            text,
            Cause.NORM_GAIN if all(z.layer.kind is Kind.NORM for z in stuck) else Cause.ZERO_PATH,
            scope=Scope.LAYER if rest_trains else Scope.EVERYWHERE,
            layers=layers,
            tensor=first.seen.tensor,
            source=first.spec.source,
            severity=severity,
        )


def _stuck(trial: Trial, start: Step, zeros: list[Zeros]) -> list[Zeros]:
    """The weights of zeros that neither move nor wait for another that does. Where no layer gets a gradient, gains of
    zero count too: the whole network waits for them."""
    if _all_zero(trial, zeros):
        return [z for z in zeros if z.mixes]  # what moves then moves as one
    movers = [z.place for z in zeros if z.moves]
    passing = {role: _passing(start, role) for role in (Role.INPUT, Role.OUTPUT_GRAD)}
    dead = _share_without_gradient(trial, start) >= MOST and not movers
    judged = [z for z in zeros if (z.mixes or dead) and not z.moves]
    pairs = _pairs(trial, passing[Role.INPUT], judged)
    return [z for z in judged if z.layer.path in pairs or not _may_wait(z, movers, passing)]


def _all_zero(trial: Trial, zeros: list[Zeros]) -> bool:
    """Whether the network has nothing but zeros, more than one layer of them."""
    layers, paths = mixing(trial.spec), {z.layer.path for z in zeros}
    return len(layers) > 1 and all(layer.path in paths for layer in layers)


def _pairs(trial: Trial, given: Passing, zeros: list[Zeros]) -> frozenset[str]:
    """Layers of zeros that are given nothing but what other layers of zeros put out, and those: each waits for the
    other, whatever moves elsewhere."""
    paths = {z.layer.path for z in zeros}
    fed = {z.layer.path: set(z.layer.inputs) for z in zeros if given.get(z.layer.path) is False}
    waiting = {path: sources for path, sources in fed.items() if sources and sources <= paths}
    if not waiting:
        return frozenset()
    readers = trial.spec.readers()
    closed = {path for path in paths if all(reader.path in paths for reader in readers.get(path, ()))}
    return frozenset(waiting).union(*(sources & closed for sources in waiting.values()))


def _severity(trial: Trial, start: Step, stuck: list[Zeros]) -> Severity:
    """A fault where most of the network learns nothing for it, or nothing of the input passes; where the signal has
    another way, the rest of the network trains as well without it."""
    layers = mixing(trial.spec)
    paths = {z.layer.path for z in stuck}
    most = sum(layer.path in paths for layer in layers) >= MOST * len(layers)
    last = head(trial.spec)
    given = start.first(Role.INPUT).get(last.path) if last else None
    blocked = given is not None and given.summary.units is not None and not given.summary.unit_variance > 0
    without = _share_without_gradient(trial, start) >= MOST
    return Severity.FAULT if most or blocked or without else Severity.SUSPECT


def _share_without_gradient(trial: Trial, start: Step) -> float:
    """Of the mixing layers whose weights' gradients were seen, those that get none."""
    grads = start.of(Role.WEIGHT_GRAD)
    seen = [
        grads[name].summary.is_zero
        for layer in mixing(trial.spec)
        for w in layer.weights
        if (name := f"gradient/{layer.parameter_path(w)}") in grads
    ]
    return sum(seen) / len(seen) if seen else 0.0


def _zeros(trial: Trial, start: Step) -> list[Zeros]:
    """Z, in forward order, as far as a gradient was seen."""
    weights, grads = start.of(Role.WEIGHT), start.of(Role.WEIGHT_GRAD)
    moving = {
        name
        for step in trial.train_steps
        for name, seen in step.of(Role.WEIGHT_GRAD).items()
        if not seen.summary.is_zero
    }
    return [
        Zeros(place, layer, spec, weights[name], f"gradient/{name}" in moving)
        for place, layer in enumerate(trial.spec.layers)
        for spec in layer.weights
        if spec.trainable
        and (name := layer.parameter_path(spec)) in weights
        and f"gradient/{name}" in grads
        and weights[name].summary.is_zero
    ]


def _may_wait(zeros: Zeros, movers: list[int], passing: Mapping[Role, Passing]) -> bool:
    """Whether a weight of zeros that moves, at one of these places in forward order, may give this one a gradient."""
    behind = bool(movers) and movers[-1] >= zeros.place
    in_front = bool(movers) and movers[0] <= zeros.place
    given = passing[Role.INPUT].get(zeros.layer.path)
    returned = passing[Role.OUTPUT_GRAD].get(zeros.layer.path)
    if given and returned is False:
        return behind
    if returned and given is False:
        return in_front
    return behind or in_front


Passing = Mapping[str, bool]
"""By layer, whether any of its tensors of one role holds more than zeros; without those of which none was seen."""


def _passing(step: Step, role: Role) -> Passing:
    found: dict[str, bool] = {}
    for seen in step.observations:
        if seen.role is role:
            found[seen.layer] = found.get(seen.layer, False) or not seen.summary.is_zero
    return found


def _residual(*zeros: str, activation: str = "relu", **others: str) -> Trial:
    """Four residual blocks, with these parameters of each block zero."""
    overrides = {f"blocks.{i}.{name}": "zeros" for i in range(4) for name in zeros} | others
    return mlp((32,) * 5 + (10,), activation=activation, residual=True, overrides=overrides)
