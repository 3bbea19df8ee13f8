"""Parameters that are NaN, infinite or of an impossible size, and batches that are not numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, nan

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, TensorSummary
from fanin.synthetic import Batch, clusters, constant, mlp, normal
from fanin.trial import LayerSpec, Observation, ParameterSpec, Role, Step, Trial

LARGEST_WEIGHT = 1e4
"""Four decades above N(0, 1), the widest start in use; of the bit patterns of float32, which is what memory that was
never written may hold, 45 % lie beyond (exponents from 2^14 to 2^127 of 2^-126 to 2^127)."""

SMALLEST_RMS = 1e-12
"""Nine decades below he_normal at a fan_in of 10^6: too small to be meant, and not zero, which may be."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter as it was at step 0."""

    layer: LayerSpec
    spec: ParameterSpec
    seen: Observation

    @property
    def is_matrix(self) -> bool:
        """Whether training may change it and its size says something: gains and scales may be of any."""
        return (
            self.spec.role is Role.WEIGHT
            and self.spec.trainable
            and len(self.spec.shape or self.seen.shape) >= 2
        )


class UnsoundValues(Rule):
    """A parameter holds NaN, infinite values or numbers of an impossible size, or the batch is not finite.

    What it detects
    ---------------
    Before the first update: a weight or bias with a value that is NaN or infinite; a trainable weight of two or more
    axes with a magnitude above 10^4, or with 0 < rms < 10^-12. If the network's own input is not finite, that is
    said instead of anything else: it is not the initialization.

    Why it matters
    --------------
    Nothing can be trained from NaN. What lies behind it is rarely an initializer and mostly memory that was
    allocated and never written (torch.empty, a meta device whose reset_parameters was never called, a head resized
    or skipped when a checkpoint was read), which holds whatever was there before.

    How it is measured
    ------------------
    By counting at step 0, without reading any signal. With W the values of a parameter:

        count(W not finite) = 0,        max |W| <= 10^4,        rms(W) = 0 or rms(W) >= 10^-12

    One finding for each of the causes, non-finite and absurd, names its first parameter in forward order and lists
    the layers. Frozen parameters must be finite, but may be of any size. Zeros are another rule's concern
    (FAN402), and so are rows of zeros, such as an embedding's padding.

    When it is wrong
    ----------------
    Memory that was never written is often finite and of a usual size: then there is nothing to see here. A weight
    that is meant to be huge, such as a fixed random projection with large frequencies, should not be trainable.
    An operation without parameters in front of the first layer, such as a logarithm of the input, counts as the
    input.

    Fix
    ---
    Initialize the parameter; look at how it is allocated or loaded. Where the input is to blame, clean the data.

    References
    ----------
    Hugging Face, transformers issues 46002 (NaN heads when loading in half precision, 2026) and 31841 (resized
    classifier left uninitialized, 2024).
    NVIDIA, Megatron-LM issue 6799, and MosaicML, llm-foundry issue 1745: parameters on a meta device never reset.
    """

    code = "FAN401"
    name = "unsound-values"
    needs = frozenset({Need(Role.WEIGHT), Need(Role.BIAS), Need(Role.INPUT)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """A finding for the batch, or else one for each cause."""
        start = trial.start
        parameters = _parameters(trial, start) if start else []
        if start is None or not parameters:
            settle = (
                "watch the model from its first training step on, with fanin.check, fanin.watch or fanin run"
            )
            yield Missing(self.code, "no parameter was seen at training step 0", settle)
            return
        batch = _non_finite_input(trial, start)
        if batch:
            yield self._input_finding(batch)
            return
        broken = [p for p in parameters if p.seen.summary.non_finite]
        absurd = [p for p in parameters if p not in broken and p.is_matrix and _is_absurd(p.seen.summary)]
        if broken:
            yield self._broken(broken)
        if absurd:
            yield self._absurd(absurd)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Sound networks, and one for each way of being unsound."""
        yield Example("he_normal", mlp)
        yield Example("zeros, which are sound", lambda: mlp(init="zeros"))
        yield Example("N(0, 100^2), large but thinkable", lambda: mlp(init=normal(100.0)))
        yield Example(
            "one NaN weight", lambda: mlp(overrides={"head.weight": constant(nan)}), layers=("head",)
        )
        yield Example(
            "an infinite bias",
            lambda: mlp(overrides={"blocks.1.fc.bias": constant(inf)}),
            layers=("blocks.1.fc",),
        )
        yield Example(
            "memory never written: too large",
            lambda: mlp(overrides={"blocks.2.fc.weight": normal(1e30)}),
            layers=("blocks.2.fc",),
        )
        yield Example(
            "memory never written: too small",
            lambda: mlp(overrides={"blocks.3.fc.weight": normal(1e-30)}),
            layers=("blocks.3.fc",),
        )
        yield Example("NaN in the batch", lambda: mlp(batch=_spoiled()), layers=("blocks.0.fc",))

    def _input_finding(self, seen: Observation) -> Finding:
        text = f"The batch holds {seen.summary.nan} NaN and {seen.summary.inf} infinite values."
        return _counted(self, seen, Cause.NON_FINITE_INPUT, text)

    def _broken(self, broken: list[Parameter]) -> Finding:
        first, summary = broken[0], broken[0].seen.summary
        text = (
            f"{first.seen.tensor} holds {summary.nan} NaN and {summary.inf} infinite values among "
            f"{summary.count + summary.non_finite}{_and_others(broken)}."
        )
        return _about(_counted(self, first.seen, Cause.NON_FINITE_PARAMETER, text), broken)

    def _absurd(self, absurd: list[Parameter]) -> Finding:
        first, summary = absurd[0], absurd[0].seen.summary
        too_large = summary.largest > LARGEST_WEIGHT
        value = summary.largest if too_large else summary.rms
        found = Finding(
            self.code,
            self.name,
            first.layer.path,
            0,
            Interval(value, value),
            Interval(0.0, LARGEST_WEIGHT) if too_large else Interval(SMALLEST_RMS, LARGEST_WEIGHT),
            "largest |weight|" if too_large else "rms of weights",
            f"{first.seen.tensor} reaches {summary.largest:.3g}, rms {summary.rms:.3g}{_and_others(absurd)}.",
            Cause.ABSURD_SCALE,
            severity=Severity.SUSPECT,
        )
        return _about(found, absurd)


def _parameters(trial: Trial, start: Step) -> list[Parameter]:
    """Weights and biases in forward order."""
    seen = {**start.of(Role.WEIGHT), **start.of(Role.BIAS)}
    return [
        Parameter(layer, spec, seen[layer.parameter_path(spec)])
        for layer in trial.spec.layers
        for spec in layer.parameters
        if layer.parameter_path(spec) in seen
    ]


def _non_finite_input(trial: Trial, start: Step) -> Observation | None:
    """What the network is given, where it is not finite."""
    entrances = trial.spec.entrances
    seen = start.of(Role.INPUT).values()
    return next((o for o in seen if o.layer in entrances and o.summary.non_finite), None)


def _is_absurd(summary: TensorSummary) -> bool:
    return summary.largest > LARGEST_WEIGHT or 0 < summary.rms < SMALLEST_RMS


def _and_others(parameters: list[Parameter]) -> str:
    others = len(parameters) - 1
    return f", as {'does' if others == 1 else 'do'} {others} more" if others else ""


def _counted(rule: Rule, seen: Observation, cause: Cause, text: str) -> Finding:
    number = float(seen.summary.non_finite)
    return Finding(
        rule.code,
        rule.name,
        seen.layer,
        0,
        Interval(number, number),
        Interval(0.0, 0.0),
        "non-finite values",
        text,
        cause,
        layers=(seen.layer,),
        tensor=seen.tensor,
    )


def _about(finding: Finding, parameters: list[Parameter]) -> Finding:
    """The finding with its layers, its tensor and the line that last wrote it."""
    layers = tuple(dict.fromkeys(p.layer.path for p in parameters))
    scope = Scope.LAYER if len(layers) == 1 else Scope.EVERYWHERE
    first = parameters[0]
    return replace(finding, layers=layers, scope=scope, tensor=first.seen.tensor, source=first.spec.source)


def _spoiled() -> Batch:
    x, labels = clusters(32)
    x[3, 5] = nan
    return x, labels
