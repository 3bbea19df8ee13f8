"""FAN406: biases that drown what depends on the input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import mixing
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval
from fanin.synthetic import Init, constant, mlp, normal
from fanin.trial import Kind, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step, Trial

DROWNS = 2.0
"""Bias over signal from which a ReLU of that bias is on, or off, for 98 % of inputs (a normal variable lies within two
standard deviations on that side), so that it no longer tells them apart."""

HARMLESS = 1.0
"""Largest RMS that is never reported: positive biases for ReLU are customarily 0.01 to 1, forget gates start at 1
(Jozefowicz et al. 2015), and PyTorch's default lies below 1/√3."""

ROUNDING = 1e-6
"""Signal over output below which outputs count as equal: ten roundings of float32 (2^-24)."""

NEARLY_ALL = 0.8
"""Share of the layers judged from which it is one fault of the network: an initializer applied to all of them, but for
one or two that another part of the code writes."""

SUMMING = frozenset({Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE})
"""Kinds whose output is W h + b and nothing else. The gates of recurrent cells have biases of their own."""

GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "softplus", "logsigmoid", "sin", "glu"})
"""Activations in front of which a bias is a choice: how far a gate is open (highway networks: -1 to -3, Srivastava et
al. 2015), which step size a state-space model starts with (softplus; Gu and Dao 2023), the phase of a feature (Rahimi
and Recht 2007), or nothing at all (a constant before softmax)."""

REMOVES_ALL = ("batch", "instance", "group")
"""In names of norms that subtract the bias of each unit, or of few units together, whatever it is."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A bias at step 0, and the signal that it is added to.

    Attributes:
        bias: RMS over units; standard deviation over them where what follows removes their mean.
        signal: Root of the output's variance over the batch, mean over units: what depends on the input; 0 where that
            is rounding.
    """

    layer: LayerSpec
    spec: ParameterSpec
    seen: Observation
    bias: float
    signal: float

    @property
    def ratio(self) -> float:
        """Bias over signal."""
        return self.bias / self.signal if self.signal else inf

    @property
    def drowns(self) -> bool:
        """Whether the bias is large both beside the signal and in itself."""
        return self.bias > HARMLESS and self.ratio > DROWNS


class BiasOffset(Rule):
    r"""The biases of a hidden layer are large beside what depends on the input.

    What it detects
    ---------------
    A hidden layer z = W h + b whose b is more than twice as large as the part of z that varies over the batch: a
    prior bias meant for the head, a constant meant for a gate, biases drawn like weights of large scale.

    Why it matters
    --------------
    A unit whose bias exceeds its signal has no threshold within the data: a ReLU is always off, and dead, or always
    on, and linear; tanh is saturated. What is passed on is a constant plus little, and a constant tells nothing.

    How it is measured
    ------------------
    The variance of z over the batch does not contain b. With units i and samples s,

        RMS(b) / √(mean_i Var_s[z_i])

    is compared with 2, where RMS(b) is above 1. Passed are layers whose output reaches the network's output or feeds
    no other layer (prior biases), recurrent cells, gates and other layers in front of sigmoid, softmax or softplus,
    weights of zeros (adaLN-zero and sampling offsets: there the bias is the whole start), frozen biases, and layers
    in front of a batch, group or instance normalization, which removes b. In front of a layer normalization, which
    removes the mean over units only, the standard deviation of b stands for its RMS.

    When it is wrong
    ----------------
    It is a suspect, the cause of a fault only where the signal suffers: beside a skip connection a constant does
    little harm, and an attention's keys may have any bias at all. Trained weights may have large biases. A batch of
    nearly equal samples makes every bias look large; a layer whose output does not vary at all is therefore
    reported only behind another one.

    Fix
    ---
    Start biases at zero. Prior biases belong to the head, and a forget gate's 1 to recurrent layers.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", ICCV (2017), section 4.1: the head's prior bias.
    Jozefowicz, Zaremba and Sutskever, "An Empirical Exploration of Recurrent Network Architectures", ICML (2015).
    Srivastava, Greff and Schmidhuber, "Highway Networks" (2015), section 2.2: negative biases of gates.
    """

    code: ClassVar[str] = "FAN406"
    name: ClassVar[str] = "bias-offset"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.BIAS), Need(Role.WEIGHT), Need(Role.OUTPUT, units=True)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding about nearly all layers, or one for each layer."""
        start = trial.start
        if start is None or not start.of(Role.OUTPUT):
            settle = "watch the model from its first training step on"
            yield Missing(self.code, "no output was seen at training step 0", settle, blocks=False)
            return
        judged = list(_judged(trial.spec, start))
        drowned = [one for one in judged if one.drowns]
        while drowned and not drowned[0].signal:  # what gives the same for all was given the same
            drowned.pop(0)
        if len(drowned) > 1 and len(drowned) >= NEARLY_ALL * len(judged):
            yield self._finding(drowned, Scope.EVERYWHERE)
        else:
            yield from (self._finding([one], Scope.LAYER) for one in drowned)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Biases that are small, meant, or removed, and biases that drown the signal."""
        hidden = [f"blocks.{i}.fc.bias" for i in range(5)]
        prior: Init = constant(-4.6)
        yield Example("biases of zero", mlp)
        yield Example("a prior bias on the head", lambda: mlp(overrides={"head.bias": prior}))
        yield Example("biases of 1 for ReLU", lambda: mlp(overrides=dict.fromkeys(hidden, "ones")))
        yield Example("small random biases", lambda: mlp(overrides=dict.fromkeys(hidden, normal(0.3))))
        yield Example("gates", lambda: mlp(activation="sigmoid", overrides={hidden[2]: prior}))
        yield Example(
            "a prior bias on a hidden layer",
            lambda: mlp(overrides={hidden[2]: prior}),
            layers=("blocks.2.fc",),
        )
        yield Example(
            "biases of std 10 everywhere",
            lambda: mlp(activation="tanh", overrides=dict.fromkeys(hidden, normal(10.0))),
            layers=("blocks.0.fc",),
        )

    def _finding(self, drowned: list[Judged], scope: Scope) -> Finding:
        first = drowned[0]
        return Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(first.ratio, first.ratio),
            Interval(0.0, DROWNS),
            "RMS of the bias / std of the output over the batch",
            f"{first.seen.tensor} has an RMS of {first.seen.summary.rms:.3g}; what depends on the input in the "
            f"output of {first.layer.path} has a standard deviation of {first.signal:.3g}.",
            Cause.BIAS_OFFSET,
            scope=scope,
            layers=tuple(dict.fromkeys(one.layer.path for one in drowned)),
            tensor=first.seen.tensor,
            source=first.spec.source,
            severity=Severity.SUSPECT,
        )


def _judged(spec: ModelSpec, start: Step) -> Iterator[Judged]:
    """Biases of hidden layers for which nothing speaks, in forward order."""
    biases, outputs = start.of(Role.BIAS), start.first(Role.OUTPUT)
    removed, centred = _before_norms(spec, REMOVES_ALL), _before_norms(spec, ("layer",))
    for layer in _hidden(spec, start):
        output = outputs.get(layer.path)
        for parameter in layer.parameters if output and layer.path not in removed else ():
            seen = biases.get(layer.parameter_path(parameter))
            if seen is None or output is None or not parameter.trainable or not _are_usable(seen, output):
                continue
            size = seen.summary.std if layer.path in centred else seen.summary.rms
            signal = sqrt(output.summary.unit_variance)
            is_signal = signal > ROUNDING * output.summary.rms
            yield Judged(layer, parameter, seen, size, signal if is_signal else 0.0)


def _hidden(spec: ModelSpec, start: Step) -> Iterator[LayerSpec]:
    """Layers that sum and are no outputs, gates, or zeros."""
    weights = start.first(Role.WEIGHT)
    gates = {p for one in spec.activations if one.function in GATES for p in one.inputs}
    fed = {p for layer in spec.layers for p in layer.inputs}
    ends = spec.outputs or tuple(layer.path for layer in spec.weight_layers[-1:])
    for layer in mixing(spec):
        is_gate = layer.activation in GATES or layer.path in gates
        is_end = layer.path in ends or (bool(fed) and layer.path not in fed)
        seen = weights.get(layer.path)
        if layer.kind in SUMMING and not is_gate and not is_end and not (seen and seen.summary.is_zero):
            yield layer


def _before_norms(spec: ModelSpec, words: tuple[str, ...]) -> set[str]:
    """Paths of the layers that feed a normalization with one of these words in its name."""
    norms = (layer for layer in spec.layers if layer.kind is Kind.NORM)
    return {p for norm in norms if any(word in norm.type_name.lower() for word in words) for p in norm.inputs}


def _are_usable(bias: Observation, output: Observation) -> bool:
    """Whether both are finite and the output was seen by units."""
    finite = not bias.summary.non_finite and not output.summary.non_finite
    return finite and bias.summary.count > 0 and output.summary.unit_variance >= 0
