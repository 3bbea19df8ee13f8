"""FAN110: values that float16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf, log10, sqrt
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import mixing, network_inputs
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval, TensorSummary, summarize
from fanin.synthetic import INITS, Init, Network, clusters, normal
from fanin.trial import Observation, Role, Step, Trial

LARGEST = 65504.0
"""float16's largest number, (2 - 2^-10) 2^15 (IEEE 754-2019, binary16)."""

HEADROOM = 4.0
"""Factor that values must stay below the largest. Among 10^6 normal values the extreme is 1.4 times what it is among
10^3, and weights move: two bits are left for both."""

SMALLEST = 2.0**-24
"""float16's smallest number, 6e-8 (IEEE 754-2019, binary16)."""

FLUSHED = 2.0**-20
"""RMS of the non-zero gradients below which float16 is to blame for the zeros: 16 times its smallest number, so that
values have four bits at most. Half of a normal gradient is lost at an RMS of 4.4e-8."""

MOSTLY_ZEROS = 0.5
"""Share of a gradient that may be zero."""

SPARSE = 0.9
"""Share of zeros from which an input is sparse, and the weight's gradient with it; a ReLU leaves about half."""

HE_GAIN = 2.0
"""n E[w²] of he_normal (He et al. 2015, eq. 10), which keeps the signal through ReLU: more lets it grow."""


class NumberFormat(Rule):
    """Signals or gradients in float16 that the format cannot hold.

    What it detects
    ---------------
    Outputs and activation inputs in float16 that are infinite or within a factor of four of its largest number, though
    the parameters are finite and not so large that they explain it; and gradients in float16 most of which are
    exactly zero because the others are hardly above its smallest number. It is not the initialization.

    Why it matters
    --------------
    float16 ends at 65504 and begins at 6e-8. What is larger becomes infinite, and NaN a layer later; gradients that
    are smaller become zero, and those weights never learn. The same network trains in bfloat16 or float32, which
    reach from 1e-38 to 3e38.

    How it is measured
    ------------------
    At step 0, of tensors stored as float16 and no others. Forward, for the first layer where

        max |z| > 65504 / 4    or    count(z infinite) > 0

    unless the weights explain it: unless log10(n E[w^2] / 2), summed over the layers up to there as far as positive,
    is at least half of the decades of power between the input and 65504. Backward, at step 5 where it was seen and
    at step 0 otherwise, for gradients g of outputs and weights with

        share of zeros > 0.5    and    rms(g where not zero) < 2^-20

    A gradient that is zero altogether counts only beside such a one: alone it may be a head of zeros. The weight's
    gradient is not judged where 90 % of the layer's input is zero.

    When it is wrong
    ----------------
    Gradients are judged as they are stored. Where a loss scale is at work it is in them: a zero is a zero all the same.
    Under dynamic loss scaling infinite gradients in the first steps are part of the plan, and are not judged.

    Fix
    ---
    Use bfloat16. Or scale the loss where only gradients are too small (`torch.amp.GradScaler`), and compute in float32
    the operation whose output is too large.

    References
    ----------
    - Micikevicius et al. 2018, Mixed Precision Training.
    - IEEE 754-2019, table 3.5.
    """

    code: ClassVar[str] = "FAN110"
    name: ClassVar[str] = "number-format"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {
            *map(Need, (Role.WEIGHT, Role.BIAS, Role.INPUT, Role.OUTPUT, Role.ACTIVATION_INPUT)),
            *(Need(role, recheck=True) for role in (Role.OUTPUT_GRAD, Role.WEIGHT_GRAD)),
        }
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """A finding for the signal, and one for the gradients."""
        start = trial.start
        if start is None or _has_unsound_source(trial, start):
            return
        large = [o for o in _half(trial, start, Role.OUTPUT, Role.ACTIVATION_INPUT) if _is_too_large(o)]
        if large and not _weights_explain(trial, start, large[0].layer):
            yield self._overflow(large)
        looks = trial.looks(Role.WEIGHT_GRAD) or trial.looks(Role.OUTPUT_GRAD)
        if looks:
            yield from self._underflow(trial, start, looks[-1])

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """What float16 holds and does not hold; the same in other formats."""
        first, large = ("blocks.0.fc",), 1.5e4
        yield Example("float16 that suffices", lambda: stored("float16"))
        yield Example("float32 beyond it", lambda: stored("float32", scale=large))
        yield Example("bfloat16 beyond it", lambda: stored("bfloat16", scale=large))
        yield Example("weights that explain it", lambda: stored("float16", normal(3.0)))
        yield Example("a head of zeros", lambda: stored("float16", head="zeros"))
        yield Example("a tiny gradient, in bfloat16", lambda: stored("bfloat16", gradient=1e-6))
        yield Example("an output that overflows", lambda: stored("float16", scale=large), first)
        yield Example("gradients below 6e-8", lambda: stored("float16", gradient=1e-5), first)

    def _overflow(self, large: list[Observation]) -> Finding:
        s = large[0].summary
        what = f"holds {s.inf} infinite values" if s.inf else f"reaches {s.largest:.3g}"
        text = f"{large[0].tensor} is stored in float16, which ends at 65504, and {what}; weights do not explain it."
        reach, limit = inf if s.inf else s.largest, LARGEST / HEADROOM
        return self._finding(large, reach, limit, "largest float16 value", text)

    def _underflow(self, trial: Trial, start: Step, look: Step) -> Iterator[Finding]:
        sparse = {path for path, o in start.first(Role.INPUT).items() if _zeros(o.summary) > SPARSE}
        seen = _half(trial, look, Role.OUTPUT_GRAD, Role.WEIGHT_GRAD)
        gradients = [o for o in seen if o.role is Role.OUTPUT_GRAD or o.layer not in sparse]
        if not any(_is_flushed(o.summary) for o in gradients):
            return
        lost = [o for o in gradients if _is_flushed(o.summary) or o.summary.is_zero]
        share, what = _zeros(lost[0].summary), "share of zeros in a float16 gradient"
        text = f"{share:.0%} of {lost[0].tensor} is zero in float16, which starts at {SMALLEST:.1g}: "
        finding = self._finding(lost, share, MOSTLY_ZEROS, what, f"{text}it needs loss scaling.")
        yield replace(finding, step=look.index)

    def _finding(
        self, seen: list[Observation], value: float, limit: float, quantity: str, text: str
    ) -> Finding:
        layers = tuple(dict.fromkeys(o.layer for o in seen))
        return Finding(
            self.code,
            self.name,
            layer=seen[0].layer,
            step=0,
            measured=Interval(value, value),
            expected=Interval(0, limit),
            quantity=quantity,
            message=text,
            cause=Cause.NUMBER_FORMAT,
            scope=Scope.LAYER if len(layers) == 1 else Scope.EVERYWHERE,
            layers=layers,
            tensor=seen[0].tensor,
            severity=Severity.SUSPECT,
        )


def stored(
    dtype: str,
    init: str | Init = "he_normal",
    *,
    scale: float = 1.0,
    gradient: float = 1.0,
    head: str = "he_normal",
) -> Trial:
    """The network of `synthetic.mlp`, what it computes stored in a format.

    Args:
        dtype: E.g. `float16`.
        init, head: Initializers of all layers but the last, and of the last.
        scale, gradient: Factors on the batch, and on the loss's gradient.
    """
    network = Network("relu", residual=False, blocks=5)
    network.draw((32,) * 6 + (10,), INITS[init] if isinstance(init, str) else init, {"head.weight": head}, 0)
    x, labels = clusters(32)
    network.step(0, x * scale, labels, lr=0.0)
    return Trial(network.describe(), (Step(0, observations=tuple(_observed(network, dtype, gradient))),))


def _observed(network: Network, dtype: str, gradient: float) -> Iterator[Observation]:
    for path in network.paths:
        weight = network.parameters[f"{path}.weight"]
        yield _as(path, Role.WEIGHT, f"{path}.weight", weight, "float32")
        for role, tensor, x in (
            (Role.INPUT, f"{path}_input_0", network.inputs[path]),
            (Role.OUTPUT, f"{path}_output_0", network.outputs[path]),
            (Role.OUTPUT_GRAD, f"gradient/{path}_output_0", gradient * network.output_grads[path]),
            (Role.WEIGHT_GRAD, f"gradient/{path}.weight", gradient * network.grads[f"{path}.weight"]),
        ):
            yield _as(path, role, tensor, x, dtype)


def _as(path: str, role: Role, tensor: str, x: Floats, dtype: str) -> Observation:
    with np.errstate(over="ignore", under="ignore"):
        kept = x.astype(np.float16) if dtype == "float16" else x
    return Observation(path, role, tensor, summarize(kept), x.shape, dtype)


def _half(trial: Trial, step: Step, *roles: Role) -> list[Observation]:
    """What is stored in float16, in forward order."""
    place = {layer.path: i for i, layer in enumerate(trial.spec.layers)}
    seen = [o for role in roles for o in step.of(role).values() if o.dtype == "float16"]
    return sorted(seen, key=lambda o: place.get(o.layer, len(place)))


def _is_too_large(seen: Observation) -> bool:
    return seen.summary.inf > 0 or seen.summary.largest > LARGEST / HEADROOM


def _is_flushed(s: TensorSummary) -> bool:
    """Whether most values are zero, and the others near the end of the format."""
    filled = s.count - s.zeros
    return _zeros(s) > MOSTLY_ZEROS and filled > 0 and s.rms * sqrt(s.count / filled) < FLUSHED


def _zeros(s: TensorSummary) -> float:
    return s.zeros / s.count if s.count else 0.0


def _weights_explain(trial: Trial, start: Step, path: str) -> bool:
    """Whether weights that are too large account for at least half of the way to the format's end."""
    given = [o.summary.second_moment for o in network_inputs(start, trial.spec).values()]
    power = max((q for q in given if 0 < q < inf), default=1.0)
    weights, excess = start.of(Role.WEIGHT), 0.0
    for layer in mixing(trial.spec):
        for spec in layer.weights[:1]:
            seen = weights.get(layer.parameter_path(spec))
            if seen and spec.fan_in and seen.summary.rms > 0:
                excess += max(0.0, log10(spec.fan_in * seen.summary.second_moment / HE_GAIN))
        if layer.path == path:
            break
    return excess > 0 and excess >= log10(LARGEST**2 / power) / 2


def _has_unsound_source(trial: Trial, start: Step) -> bool:
    """Whether a parameter or the batch is not finite itself."""
    sources = [
        *start.of(Role.WEIGHT).values(),
        *start.of(Role.BIAS).values(),
        *network_inputs(start, trial.spec).values(),
    ]
    return any(o.summary.non_finite for o in sources)
