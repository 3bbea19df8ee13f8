"""FAN408: recurrent weights far off the unit circle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval, TensorSummary, summarize
from fanin.trial import Kind, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step, Trial

NAMES = ("weight_hh", "recurrent_kernel")
"""How PyTorch (`weight_hh_l0`, `weight_hh_l1_reverse`, cells: `weight_hh`) and Keras call the weight that the state
passes through at every time step."""

PLAIN = Interval(0.3, 1.5)
"""Sound spectral radii of a plain recurrent layer: PyTorch's default has 0.577, he_normal 1.41, orthogonal and identity
1, and all are in use. Asked to remember the third of 20
steps, a tanh layer of 64 units (Adam, 1e-3 or 5e-3, 150 steps, two seeds, chance 1.39) reached 0.01 to 0.05 from radius
1 and 1.41, 0.24 and 0.78 from 0.577, 0.79 and 0.93 from 0.3, 0.96 and 1.39 from 0.1, 0.7 to 0.8 from 2, and nothing
from 3 on."""

GATED = Interval(0.0, 5.0)
"""The same for gated cells, whose gates start half open whatever the weight. In the same task a GRU and an
LSTM reached 0.01 to 0.2 from radius 2, 3 and 4, and nothing from 8; below 1 they were slower, not stuck."""

GATES = frozenset({2, 3, 4})
"""Square blocks in the recurrent weight of a gated cell: 2 in minimal ones, 3 in a GRU, 4 in an LSTM."""

DRAWN = 7.0
"""Standard deviations of the values other than 0 within which every one of a fresh draw lies (beyond 7 a normal has
2.6e-12 of its values). Training gives recurrent weights long tails, and their radius is not that of a random matrix."""

NEARLY_ALL = 0.8
"""Share of the judged layers from which the fault is one fault everywhere."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A recurrent weight as drawn."""

    layer: LayerSpec
    spec: ParameterSpec
    seen: TensorSummary
    hidden: int
    gates: int

    @property
    def radius(self) -> float:
        """Spectral radius of its square blocks."""
        return radius(self.seen, self.hidden)

    @property
    def sound(self) -> Interval:
        """Where the radius should lie."""
        return GATED if self.gates in GATES else PLAIN

    @property
    def is_off(self) -> bool:
        """Whether it lies elsewhere, or is a gated cell's weight of zeros."""
        return self.radius not in self.sound or self.seen.is_zero


class RecurrentKernel(Rule):
    r"""The recurrent weight multiplies the state by a factor far from 1 at every time step.

    What it detects
    ---------------
    A trainable recurrent weight (PyTorch's `weight_hh`, Keras' `recurrent_kernel`) whose spectral radius at step 0
    lies outside 0.3 to 1.5 in a plain recurrent layer, or above 5 in a gated one (LSTM, GRU). A gated cell whose
    recurrent weight is zero is noted: it trains, but starts without recurrence other than its memory cell's.

    Why it matters
    --------------
    The state after t steps has passed the same matrix t times: with spectral radius r it carries r^t of what it knew,
    and the gradient the same factor on its way back. At r = 0.3 a state is forgotten to 10^-5 within ten steps; above
    1 a tanh network is chaotic (Sompolinsky et al.), and a ReLU network overflows.

    Gates change that. An LSTM's memory c' = f c + i g does not pass the recurrent matrix at all: it is multiplied by a
    gate between 0 and 1, a half at the start. And each of the products i g, o tanh(c) and z h multiplies the matrix's
    effect by about a half or less, since sigmoids start near 1/2 with a slope of 1/4. So a small recurrent weight
    costs little, and a large one does harm only when it saturates the gates.

    How it is measured
    ------------------
    From the weight's statistics alone. For a square block [n, n] with independent entries of variance σ² and mean m
    the eigenvalues fill a disc, and the mean adds one outlier:

        r = max(σ √n, n |m|)

    (circular law: Girko; Tao and Vu; the outlier: Tao). An orthogonal block has σ √n = 1, as has an identity; both
    have r = 1. Of the packed gates [g n, n] the pooled statistics are used. The rule leaves alone constant weights
    (FAN403), frozen ones, projected ones (LSTM with proj_size), and weights with values beyond 7 standard deviations,
    which were trained and not drawn.

    When it is wrong
    ----------------
    The circular law speaks of random matrices. A designed one (block-diagonal, triangular, skew-symmetric) may have
    another radius than its variance says. An echo-state reservoir should be frozen, and then is not judged. Short
    sequences bear any radius; a finding is therefore a suspect, which counts only where the signal shows a fault.

    Fix
    ---
    Draw each square block orthogonal with gain 1: `nn.init.orthogonal_(block)` for the blocks of
    `weight_hh_l0.chunk(gates)`. Feed-forward schemes are meant for the input weight.

    References
    ----------
    - Girko 1984, Circular law. Tao and Vu 2010, Random matrices: universality of ESDs and the circular law.
    - Tao 2013, Outliers in the spectrum of iid matrices with bounded rank perturbations.
    - Sompolinsky, Crisanti and Sommers 1988, Chaos in random neural networks.
    - Saxe, McClelland and Ganguli 2014, Exact solutions to the nonlinear dynamics of learning: orthogonal weights.
    - Le, Jaitly and Hinton 2015, A simple way to initialize recurrent networks of rectified linear units: identity.
    """

    code: ClassVar[str] = "FAN408"
    name: ClassVar[str] = "recurrent-kernel"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.WEIGHT)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each layer at fault, or one for all where nearly all are."""
        judged = _kernels(trial)
        off = list({k.layer.path: k for k in reversed(judged) if k.is_off}.values())[::-1]
        layers = tuple(k.layer.path for k in off)
        if len(off) > 1 and len(off) >= NEARLY_ALL * len({k.layer.path for k in judged}):
            yield self._finding(off[0], layers, Scope.EVERYWHERE)
        else:
            yield from (self._finding(k, (k.layer.path,), Scope.LAYER) for k in off)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Plain and gated layers: schemes in use, and multiples of them."""
        yield Example("PyTorch's default", lambda: _recurrent(_uniform(1 / 8)))
        yield Example("orthogonal", lambda: _recurrent(_orthogonal()))
        yield Example("identity", lambda: _recurrent(np.eye(64)))
        yield Example("he_normal", lambda: _recurrent(_normal(sqrt(2 / 64))))
        yield Example("LSTM, PyTorch's default", lambda: _recurrent(_uniform(1 / 8, gates=4)))
        yield Example("LSTM, N(0, 0.02^2)", lambda: _recurrent(_normal(0.02, gates=4)))
        yield Example("orthogonal, gain 4", lambda: _recurrent(4 * _orthogonal()), ("rnn",))
        yield Example("N(0, 0.001^2)", lambda: _recurrent(_normal(1e-3)), ("rnn",))
        yield Example("uniform on [0, 1)", lambda: _recurrent(np.abs(_uniform(1.0))), ("rnn",))
        yield Example("LSTM, N(0, 1)", lambda: _recurrent(_normal(1.0, gates=4)), ("rnn",))

    def _finding(self, kernel: Kernel, layers: tuple[str, ...], scope: Scope) -> Finding:
        tensor = kernel.layer.parameter_path(kernel.spec)
        zero = kernel.seen.is_zero and kernel.gates in GATES
        cell = "gated cell" if kernel.gates in GATES else "plain recurrent layer"
        others = f" So have {len(layers) - 1} more layers." if len(layers) > 1 else ""
        return Finding(
            self.code,
            self.name,
            kernel.layer.path,
            0,
            Interval(kernel.radius, kernel.radius),
            Interval(PLAIN.low, GATED.high) if zero else kernel.sound,
            "spectral radius of the recurrent weight",
            f"{tensor} of a {cell} has a spectral radius of about {kernel.radius:.2g}: after ten steps the linear "
            f"part of the state is multiplied by {kernel.radius**10:.1g}.{others}",
            Cause.RECURRENT_KERNEL,
            scope=scope,
            layers=layers,
            tensor=tensor,
            source=kernel.spec.source,
            severity=Severity.NOTE if zero else Severity.SUSPECT,
        )


def radius(weight: TensorSummary, hidden: int) -> float:
    """Spectral radius of a random block [hidden, hidden] with these entries: the disc's, or the mean's outlier.

    >>> from fanin.summary import summarize
    >>> round(radius(summarize(np.eye(100)), 100), 2)
    1.0
    """
    return max(weight.std * sqrt(hidden), hidden * abs(weight.mean))


def _kernels(trial: Trial) -> list[Kernel]:
    """The recurrent weights that can be judged, in forward order."""
    start = trial.start
    weights = start.of(Role.WEIGHT) if start else {}
    found: list[Kernel] = []
    for layer in trial.spec.layers:
        for spec in layer.weights if layer.kind is Kind.RECURRENT else ():
            drawn = weights.get(layer.parameter_path(spec))
            if drawn and _is_square(spec) and spec.trainable and _is_drawn(drawn.summary):
                hidden = min(spec.shape)
                found.append(Kernel(layer, spec, drawn.summary, hidden, max(spec.shape) // hidden))
    return found


def _is_square(spec: ParameterSpec) -> bool:
    """Whether it is a recurrent weight of square blocks, one for each gate."""
    if not spec.name.startswith(NAMES) or len(spec.shape) != 2 or spec.tied_to:
        return False
    small, large = sorted(spec.shape)
    return small > 1 and large % small == 0 and large // small in GATES | {1}


def _is_drawn(weight: TensorSummary) -> bool:
    """Whether these are values of a draw: finite, not one constant, without the tails that training leaves."""
    if weight.is_zero:
        return True
    if weight.non_finite or weight.is_constant or not weight.count:
        return False
    rms = sqrt(weight.second_moment * weight.count / (weight.count - weight.zeros))
    return weight.largest <= DRAWN * rms


# -- examples


def _recurrent(kernel: Floats) -> Trial:
    """A recurrent layer of 64 units with this recurrent weight."""
    spec = ParameterSpec("weight_hh_l0", Role.WEIGHT, kernel.shape, fan_in=64, fan_out=64, unit_axis=0)
    layer = LayerSpec("rnn", Kind.RECURRENT, "RNN", (spec,), calls=1)
    drawn = Observation("rnn", Role.WEIGHT, "rnn.weight_hh_l0", summarize(kernel), kernel.shape)
    model = ModelSpec("ByHand", "numpy", (layer,), outputs=("rnn",))
    return Trial(model, (Step(0, observations=(drawn,)),))


def _normal(std: float, gates: int = 1) -> Floats:
    return np.random.default_rng(0).normal(0.0, std, (gates * 64, 64))


def _uniform(bound: float, gates: int = 1) -> Floats:
    return np.random.default_rng(0).uniform(-bound, bound, (gates * 64, 64))


def _orthogonal() -> Floats:
    return np.asarray(np.linalg.qr(_normal(1.0))[0])
