"""What other tools would say of a trial, re-expressed by us: each of `PEERS` takes a trial and returns True for poor.

None of their code runs here (their stacks are long dead); the statistics and constants are theirs, from their sources
and papers, applied to what the trial holds. Where a tool acts on several tests, one that fires is enough. What cannot
be computed does not count as poor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import inf, isfinite, nan, sqrt
from typing import NamedTuple

import fanin
from fanin.finding import Verdict
from fanin.measures import uninformed_loss
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.summary import TensorSummary
from fanin.trial import NETWORK_INPUT, RECHECK, Kind, ParameterSpec, Role, Step, Trial

Peer = Callable[[Trial], bool]

KERNELS = frozenset({Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE, Kind.RECURRENT, Kind.ATTENTION})
"""Layers whose weights these tools look at: matrices that mix; not embeddings, not gains."""

RELU_FAMILY = frozenset({"relu", "relu6", "leaky_relu"})
SIGMOIDAL = frozenset({"tanh", "sigmoid", "hardtanh", "hardsigmoid"})


class Kernel(NamedTuple):
    """A weight matrix at step 0."""

    parameter: ParameterSpec
    summary: TensorSummary


# ---------------------------------------------------------------- what they share


def _kernels(trial: Trial) -> Iterator[Kernel]:
    """Weight matrices as they were drawn, in forward order."""
    seen = trial.start.of(Role.WEIGHT) if trial.start else {}
    for layer in trial.spec.weight_layers:
        for parameter in layer.weights:
            found = seen.get(layer.parameter_path(parameter))
            if found and layer.kind in KERNELS and len(parameter.shape) >= 2:
                yield Kernel(parameter, found.summary)


def _gradient_norms(trial: Trial) -> list[float]:
    """L2 norms of the gradients of weight matrices at step 0, in forward order; nan where one is not finite."""
    seen = trial.start.of(Role.WEIGHT_GRAD) if trial.start else {}
    order = {layer.path: place for place, layer in enumerate(trial.spec.layers) if layer.kind in KERNELS}
    matrices = [s for s in seen.values() if len(s.shape) >= 2 and s.layer in order]
    matrices.sort(key=lambda each: order[each.layer])
    return [
        nan if s.summary.non_finite else sqrt(s.summary.second_moment * s.summary.count) for s in matrices
    ]


def _global_activation(trial: Trial) -> str:
    """The one activation that these tools take a network to have: its most frequent one."""
    counts = Counter(activation.function for activation in trial.spec.activations)
    return counts.most_common(1)[0][0] if counts else ""


def _loss_ratio(trial: Trial) -> float:
    """Loss at step 0 relative to that of the best constant; nan where that is not known, inf for no finite loss."""
    start = trial.start
    expected = uninformed_loss(start) if start else nan
    if start is None or not start.losses or not expected > 0:
        return nan
    return start.loss / expected if isfinite(start.loss) else inf


def _is_regression(start: Step) -> bool:
    """Whether the loss is taken of real numbers, not of classes."""
    target = start.first(Role.TARGET).get(NETWORK_INPUT)
    return target is not None and "float" in target.dtype


def _share_beyond(summary: TensorSummary, low: float, high: float) -> float:
    """Share of the values that are surely below `low` or above `high`, up to the width of a bin (3 %)."""
    if summary.histogram is None or not summary.count:
        return 0.0
    near, far = summary.histogram.edges()
    beyond = int(summary.histogram.counts[(far <= low) | (near >= high)].sum())
    return beyond / float(summary.histogram.counts.sum())


# ---------------------------------------------------------------- Amazon SageMaker Debugger

DOCUMENTED_STEPS = RECHECK + 1
"""Steps that a captured trial holds, of the ten that the rule would like."""


def documented_rule(trial: Trial) -> bool:
    """PoorWeightInitialization (AWS 2020, re-implemented here as FAN001) on all activations, its three checks over six
    steps: its patience of 5 needs ten losses, so it is 3."""
    rule = PoorWeightInitialization(
        activation_inputs_regex=None, patience=DOCUMENTED_STEPS // 2, steps=DOCUMENTED_STEPS
    )
    return fanin.judge(trial, rules=[rule]).verdict is Verdict.POOR


def documented_rule_defaults(trial: Trial) -> bool:
    """The same with its default parameters: ReLU inputs alone, and no check of the loss within six steps."""
    return fanin.judge(trial, rules=[PoorWeightInitialization()]).verdict is Verdict.POOR


# ---------------------------------------------------------------- TheDeepChecker

TDC_RATIO = 2.7
"""Critical value of the F distribution at infinite degrees of freedom, as their `pure_f_test` has it: a fixed ratio."""

TDC_ZERO_VARIANCE = 1e-8
TDC_LOSS_DEVIATION = 1.0
"""`init_loss.dev_ratio`: the initial loss may be this share of the uninformed loss away from it."""


def thedeepchecker(trial: Trial) -> bool:
    """TheDeepChecker (Ben Braiek and Khomh, TOSEM 2022), `checkers.py`, its tests before training: weights, biases and
    the initial loss."""
    return thedeepchecker_without_biases(trial) or _tdc_biases(trial)


def thedeepchecker_without_biases(trial: Trial) -> bool:
    """The same but for its wish for biases that sum to 0, which PyTorch's default never grants."""
    activation = _global_activation(trial)
    return any(_tdc_weight(kernel, activation) for kernel in _kernels(trial)) or _tdc_loss(trial)


def _tdc_weight(kernel: Kernel, activation: str) -> bool:
    """He for ReLU, Glorot for tanh, LeCun for sigmoid, and any of the three for everything else."""
    variance, fan_in, fan_out = kernel.summary.variance, kernel.parameter.fan_in, kernel.parameter.fan_out
    if kernel.summary.non_finite or not abs(variance) > TDC_ZERO_VARIANCE:
        return True
    if not fan_in or not fan_out:
        return False
    expected = {"relu": 2 / fan_in, "tanh": 2 / (fan_in + fan_out), "sigmoid": 1 / fan_in}
    wanted = [expected[activation]] if activation in expected else list(expected.values())
    return not any(1 / TDC_RATIO <= variance / each <= TDC_RATIO for each in wanted)


def _tdc_biases(trial: Trial) -> bool:
    """Biases must sum to 0, in classification."""
    start = trial.start
    if start is None or _is_regression(start):
        return False
    layers = {layer.path for layer in trial.spec.layers if layer.kind in KERNELS}
    biases = (s for s in start.of(Role.BIAS).values() if s.layer in layers)
    return any(s.summary.non_finite or s.summary.mean != 0.0 for s in biases)


def _tdc_loss(trial: Trial) -> bool:
    """In classification alone."""
    if trial.start is None or _is_regression(trial.start):
        return False
    return abs(_loss_ratio(trial) - 1) >= TDC_LOSS_DEVIATION


# ---------------------------------------------------------------- NeuroScope

NEUROSCOPE_STD = (0.5, 2.0)
NEUROSCOPE_LOSS = (0.5, 2.0)
NEUROSCOPE_REGRESSION_LOSS = 5.0
NEUROSCOPE_GRADIENT = (1e-8, 1e2)


def neuroscope(trial: Trial) -> bool:
    """NeuroScope (ahmadrazacdx/neuro-scope), `PreTrainingAnalyzer`: what it marks as FAIL of weights, initial loss and
    gradient norms; its middle marks (WARN) pass."""
    activation = _global_activation(trial)
    return (
        any(_neuroscope_weight(kernel, activation) for kernel in _kernels(trial))
        or _neuroscope_loss(trial)
        or any(not NEUROSCOPE_GRADIENT[0] < norm < NEUROSCOPE_GRADIENT[1] for norm in _gradient_norms(trial))
    )


def _neuroscope_weight(kernel: Kernel, activation: str) -> bool:
    """He for ReLU and leaky ReLU, LeCun for SELU, Xavier for everything else."""
    fan_in, fan_out = kernel.parameter.fan_in, kernel.parameter.fan_out
    if not fan_in or not fan_out:
        return False
    if activation in RELU_FAMILY:
        expected = sqrt(2 / fan_in)
    else:
        expected = sqrt(1 / fan_in) if activation == "selu" else sqrt(2 / (fan_in + fan_out))
    low, high = NEUROSCOPE_STD
    return bool(kernel.summary.non_finite) or not low <= kernel.summary.std / expected <= high


def _neuroscope_loss(trial: Trial) -> bool:
    ratio = _loss_ratio(trial)
    if ratio != ratio or trial.start is None:
        return False
    if _is_regression(trial.start):
        return ratio > NEUROSCOPE_REGRESSION_LOSS
    return not NEUROSCOPE_LOSS[0] <= ratio <= NEUROSCOPE_LOSS[1]


# ---------------------------------------------------------------- DeepDiagnosis

DEEPDIAGNOSIS_VARIANCE = (1e-5, 10.0)
DEEPDIAGNOSIS_DEAD = 0.7
DEEPDIAGNOSIS_SATURATED = 0.5
DEEPDIAGNOSIS_FLAT = 5.0


def deepdiagnosis_variance(trial: Trial) -> bool:
    """DeepDiagnosis (Wardat et al., ICSE 2022): "improper weight initialization", the variance of a weight outside
    1e-5..10, whatever its fan."""
    low, high = DEEPDIAGNOSIS_VARIANCE
    return any(k.summary.non_finite or not low <= k.summary.variance <= high for k in _kernels(trial))


def deepdiagnosis(trial: Trial) -> bool:
    """The same with its dead nodes (70 % of a ReLU's outputs at 0) and saturation (half of the inputs of a tanh or
    sigmoid beyond 5 in size) at step 0."""
    if deepdiagnosis_variance(trial):
        return True
    functions = {activation.tensor: activation.function for activation in trial.spec.activations}
    seen = trial.start.of(Role.ACTIVATION_INPUT) if trial.start else {}
    return any(_is_off(functions.get(name, ""), tensor.summary) for name, tensor in seen.items())


def _is_off(function: str, summary: TensorSummary) -> bool:
    if function in RELU_FAMILY and summary.count:
        not_positive = _share_beyond(summary, -(2.0**-149), inf) + summary.zeros / summary.count
        return not_positive >= DEEPDIAGNOSIS_DEAD
    if function in SIGMOIDAL:
        beyond = _share_beyond(summary, -DEEPDIAGNOSIS_FLAT, DEEPDIAGNOSIS_FLAT)
        return beyond > DEEPDIAGNOSIS_SATURATED
    return False


# ---------------------------------------------------------------- AutoTrainer

AUTOTRAINER_VANISHING = 1e-3
AUTOTRAINER_FIRST = 1e-4
AUTOTRAINER_EXPLODING = 70.0


def autotrainer_gradients(trial: Trial) -> bool:
    """AutoTrainer (Zhang et al., ICSE 2021), `gradient_issue` at step 0 without its gate of accuracy: the norm of the
    first kernel's gradient over that of the last one; it vanishes, explodes or is not a number."""
    norms = _gradient_norms(trial)
    if not norms:
        return False
    if not all(map(isfinite, norms)):
        return True
    ratio = norms[0] / norms[-1] if norms[-1] else 1.0  # as theirs: a last norm of 0 has no ratio
    vanishes = ratio < AUTOTRAINER_VANISHING and norms[0] < AUTOTRAINER_FIRST
    return vanishes or ratio > AUTOTRAINER_EXPLODING


# ---------------------------------------------------------------- none at all


def flag_everything(_trial: Trial) -> bool:
    """What any tool must beat."""
    return True


PEERS: dict[str, Peer] = {
    "documented rule": documented_rule,
    "documented rule, defaults": documented_rule_defaults,
    "TheDeepChecker": thedeepchecker,
    "TheDeepChecker without biases": thedeepchecker_without_biases,
    "NeuroScope": neuroscope,
    "DeepDiagnosis, variance": deepdiagnosis_variance,
    "DeepDiagnosis": deepdiagnosis,
    "AutoTrainer, gradients": autotrainer_gradients,
    "flag everything": flag_everything,
}
"""Every peer by its name in tables."""
