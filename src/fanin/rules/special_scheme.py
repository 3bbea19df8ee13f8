"""FAN409: layers that need a scheme of their own and do not have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import exp, inf, log, log1p, sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval, TensorSummary, summarize
from fanin.trial import (
    NETWORK_INPUT,
    ActivationSpec,
    Kind,
    LayerSpec,
    ModelSpec,
    Observation,
    ParameterSpec,
    Role,
    Step,
    Trial,
)

SINE = Interval(0.1, 3.0)
"""Sound standard deviations of what enters a hidden sine; the authors' scheme gives 1 (Sitzmann et al. 2020, theorem
1.8). Four layers of 128 units that fit two sines (factor on the authors' weights, held-out error where 0.625 is a
constant's): 0.2 to 2 give less than 0.002, 4 to 16 give 0.65: they fit the points and nothing between them. Below 0.1 a
sine is the identity to 0.2 %, and the network linear, unless biases help: with them 0.02 still gave 0.0004."""

FEWEST_SINES = 2
"""A single sine of a layer is a time embedding or a periodic feature, and not a sine network."""

STEP_SIZE = Interval(1e-4, 0.2)
"""Sound step sizes softplus(bias) of a state-space model. The authors draw them log-uniform in 0.001 to 0.1, with a
floor of 1e-4 (Gu and Dao 2023, section 3.6); twice their largest is allowed for. Biases of zero give 0.69."""

MOST = 0.9
"""Share of the step sizes that must be off on one side: trained models have some anywhere."""

FEWEST_VALUES = 8
"""Fewer values have no distribution to speak of."""

RATES = 0.1
"""A mean of A_log that every scheme exceeds: log(1 ... N) has 0.35 with 2 states and 1.9 with 16, log U(1, 16) 1.96."""

CHANCE = 4.0
"""Standard errors that the mean of values drawn around 0 may be from it: exceeded once in 16,000."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What was seen of a layer that has a scheme of its own: the value, and where it should lie."""

    layer: LayerSpec
    tensor: str
    value: float
    sound: Interval
    quantity: str
    message: str
    spec: ParameterSpec
    is_off: bool


class SpecialScheme(Rule):
    r"""A sine network or a state-space model starts like any other network, and needs a scheme of its own.

    What it detects
    ---------------
    Hidden layers in front of a sine whose output, as the sine takes it, has a standard deviation outside 0.1 to 3;
    step sizes of a state-space model of which nine tenths lie above 0.2 or below 1e-4; and decay rates `A_log` drawn
    around zero like weights.

    Why it matters
    --------------
    A sine layer h = sin(ω W h') with ω = 30 composes frequencies. If what enters the sine is much larger than 1, the
    network oscillates between the data points and fits noise; if it is much smaller, the network is linear. PyTorch's
    default, whose weights are too large for ω = 30 by a factor of 12, gives the former.

    A state-space model forgets at the rate dt A. With dt around 0.7, as biases around zero give it, every state is
    gone within a few tokens, however long the sequence. An `_init_weights` that resets every bias to zero does this
    silently; with the right step sizes Mamba-2 went from behind Gated DeltaNet to ahead of it (fla pull request 739).

    How it is measured
    ------------------
    Sines: from the standard deviation of each activation's input, for activations that take the output of one
    linear layer or convolution and feed another layer unchanged; there must be two of them, and layers that read the
    batch alone are passed, since their frequencies are free.

    Step sizes: dt = softplus(b) for biases b called `dt_bias`, or `bias` of a layer called `dt_proj`. Of their
    quantiles q the rule asks for

        softplus(q(0.1)) <= 0.2        and        softplus(q(0.9)) >= 1e-4

    Decay rates: A = -exp(A_log) with A_log = log(1 ... N) per channel (S4D-real, Mamba) or log U(1, 16) (Mamba-2) has a
    mean well above 0. Flagged is an A_log of 8 values or more with |mean| <= 4 std / sqrt(n), which is what any draw
    around zero has; for a matrix [channels, N] also one that is zero throughout.

    When it is wrong
    ----------------
    Names are a convention of the reference code, and a model of short sequences may want large steps. Snakes,
    x + sin^2(x), and sines that a second network modulates are not judged. A finding is a suspect, which counts only
    where the signal shows a fault.

    Fix
    ---
    Sines: weights uniform within sqrt(6 / fan_in) / ω, the first layer within 1 / fan_in. State-space models: draw dt
    log-uniform in 0.001 to 0.1 and set the bias to dt + log(1 - exp(-dt)); A_log to log(1 ... N). Keep general
    initializers away from both.

    References
    ----------
    - Sitzmann, Martel, Bergman, Lindell and Wetzstein 2020, Implicit Neural Representations with Periodic Activation
      Functions, section 3.2 and theorem 1.8.
    - Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, section 3.6.
    - Gu, Gupta, Goel and Ré 2022, On the Parameterization and Initialization of Diagonal State Space Models.
    - athms/mad-lab issue 3, transformers issue 43717, flash-linear-attention pull request 739: step sizes reset.
    """

    code: ClassVar[str] = "FAN409"
    name: ClassVar[str] = "special-scheme"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.WEIGHT), Need(Role.BIAS, histogram=True), Need(Role.ACTIVATION_INPUT)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each layer at fault, or one for all of a sort where there are several and all are."""
        if trial.start is None:
            return
        for sort in (_sines(trial.spec, trial.start), *_state_spaces(trial.spec, trial.start)):
            off = [e for e in sort if e.is_off]
            layers = tuple(dict.fromkeys(e.layer.path for e in off))
            if 1 < len(off) == len(sort):
                yield self._finding(off[0], layers, Scope.EVERYWHERE)
            else:
                yield from (self._finding(e, (e.layer.path,), Scope.LAYER) for e in off)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Sine networks by what enters their sines, and state-space models by their step sizes and decay rates."""
        rng = np.random.default_rng(0)
        steps = np.exp(rng.uniform(log(1e-3), log(0.1), 64))
        rates = np.log(np.tile(np.arange(1.0, 17.0), (64, 1)))
        yield Example("a sine network by its authors' scheme", lambda: _sine_network(30.0, 1.0, 1.0))
        yield Example("hidden sines that turn fast", lambda: _sine_network(9.0, 12.0, 12.0), ("1",))
        sound = steps + np.log(-np.expm1(-steps))
        yield Example("Mamba by its authors' scheme", lambda: _mamba(sound, rates))
        yield Example("Mamba, biases of zero", lambda: _mamba(np.zeros(64), rates), ("mixer",))
        yield Example("Mamba, steps of 1e-6", lambda: _mamba(np.full(64, -13.8), rates), ("mixer",))
        like_weights = rng.normal(0.0, 0.02, (64, 16))
        yield Example("Mamba, rates like weights", lambda: _mamba(sound, like_weights), ("mixer",))

    def _finding(self, judged: Judged, layers: tuple[str, ...], scope: Scope) -> Finding:
        return Finding(
            self.code,
            self.name,
            judged.layer.path,
            0,
            Interval(judged.value, judged.value),
            judged.sound,
            judged.quantity,
            judged.message + (f" So do {len(layers) - 1} more layers." if len(layers) > 1 else ""),
            Cause.SPECIAL_SCHEME_MISSING,
            scope=scope,
            layers=layers,
            tensor=judged.tensor,
            source=judged.spec.source,
            severity=Severity.SUSPECT,
        )


def softplus(x: float) -> float:
    """log(1 + exp(x)), without overflow.

    >>> round(softplus(0.0), 3), softplus(1000.0)
    (0.693, 1000.0)
    """
    return max(x, 0.0) + log1p(exp(-abs(x)))


def _sines(spec: ModelSpec, start: Step) -> list[Judged]:
    """What enters the sines of hidden layers, if there are sines of two layers at least."""
    entering = start.of(Role.ACTIVATION_INPUT)
    mixing = {layer.path: layer for layer in spec.weight_layers if layer.kind in (Kind.LINEAR, Kind.CONV)}
    fed_on = {p for layer in spec.layers if layer.input_activation == "sin" for p in layer.inputs}
    found = {
        a.inputs[0]: entering[a.tensor].summary
        for a in reversed(spec.activations)
        if a.function == "sin"
        and a.tensor in entering
        and len(a.inputs) == 1
        and a.inputs[0] in fed_on & mixing.keys()
    }
    if len(found) < FEWEST_SINES:
        return []
    hidden = (layer for path, layer in mixing.items() if path in found and layer.inputs != (NETWORK_INPUT,))
    return [_sine(layer, found[layer.path]) for layer in hidden if any(w.trainable for w in layer.weights)]


def _sine(layer: LayerSpec, entering: TensorSummary) -> Judged:
    std, weight = entering.std, layer.weights[0]
    effect = "the sine turns many times within the data" if std > SINE.high else "the sine is linear there"
    text = f"What the sine takes from {layer.path} has a standard deviation of {std:.3g}: {effect}."
    return Judged(
        layer,
        layer.parameter_path(weight),
        std,
        SINE,
        "std of what enters the sine",
        text,
        weight,
        std not in SINE,
    )


def _state_spaces(spec: ModelSpec, start: Step) -> tuple[list[Judged], list[Judged]]:
    """Step sizes and decay rates, by the names that the reference code gives them."""
    seen = {**start.of(Role.WEIGHT), **start.of(Role.BIAS)}
    steps, rates = [], []
    for layer in spec.layers:
        for p in layer.parameters:
            tensor = layer.parameter_path(p)
            drawn = seen[tensor].summary if tensor in seen and p.trainable and not p.tied_to else None
            if drawn is None or drawn.count < FEWEST_VALUES:
                continue
            if tensor.endswith(("dt_bias", "dt_proj.bias")) and len(p.shape) == 1 and drawn.histogram:
                steps.append(_step_size(layer, p, drawn))
            elif p.name == "A_log" and len(p.shape) <= 2:
                rates.append(_rate(layer, p, drawn))
    return steps, rates


def _step_size(layer: LayerSpec, p: ParameterSpec, drawn: TensorSummary) -> Judged:
    """The step size that nine tenths exceed, if it is too large; else the one that nine tenths stay below."""
    low, high = (softplus(drawn.quantile(q).middle) for q in (1 - MOST, MOST))
    value, side = (low, "above") if low > STEP_SIZE.high else (high, "below")
    is_off = low > STEP_SIZE.high or high < STEP_SIZE.low
    tensor = layer.parameter_path(p)
    text = f"Nine tenths of the step sizes softplus({tensor}) are {side} {value:.2g}."
    return Judged(layer, tensor, value, STEP_SIZE, "step size dt", text, p, is_off)


def _rate(layer: LayerSpec, p: ParameterSpec, drawn: TensorSummary) -> Judged:
    error = CHANCE * drawn.std / sqrt(drawn.count)
    is_off = abs(drawn.mean) <= error and (drawn.std > 0 or len(p.shape) == 2)
    tensor, sound = layer.parameter_path(p), Interval(max(error, RATES), inf)
    text = f"{tensor} has mean {drawn.mean:.2g} and standard deviation {drawn.std:.2g}, as weights have."
    return Judged(layer, tensor, drawn.mean, sound, "mean of A_log", text, p, is_off)


# -- examples


def _sine_network(*stds: float) -> Trial:
    """Layers 0, 1, ... before sines that take values of these standard deviations, and a head."""
    weight = ParameterSpec("weight", Role.WEIGHT, (64, 64), fan_in=64, fan_out=64, unit_axis=0)
    names = [str(i) for i in range(len(stds))]
    fed_by = [NETWORK_INPUT, *names]
    made = partial(LayerSpec, kind=Kind.LINEAR, type_name="Linear", parameters=(weight,), calls=1)
    layers = tuple(
        made(path, inputs=(before,), activation="sin", input_activation="sin" if before else "identity")
        for path, before in zip([*names, "head"], fed_by, strict=True)
    )
    rng = np.random.default_rng(0)
    entering = tuple(
        Observation(path, Role.ACTIVATION_INPUT, f"sin_input_{path}", summarize(rng.normal(0, std, 4096)))
        for path, std in zip(names, stds, strict=True)
    )
    sines = tuple(ActivationSpec(f"sin_input_{path}", "sin", (path,)) for path in names)
    return Trial(ModelSpec("Sines", "numpy", layers, sines, ("head",)), (Step(0, observations=entering),))


def _mamba(bias: Floats, rates: Floats) -> Trial:
    """A state-space layer of 64 channels with these biases of its step sizes, and these logarithms of its rates."""
    drawn = {"A_log": (Role.WEIGHT, rates), "dt_bias": (Role.BIAS, bias)}
    specs = tuple(ParameterSpec(name, role, values.shape) for name, (role, values) in drawn.items())
    layer = LayerSpec("mixer", Kind.OTHER, "Mamba", specs, calls=1)
    seen = tuple(
        Observation("mixer", role, f"mixer.{name}", summarize(values, histogram=True))
        for name, (role, values) in drawn.items()
    )
    return Trial(ModelSpec("Mamba", "numpy", (layer,)), (Step(0, observations=seen),))
