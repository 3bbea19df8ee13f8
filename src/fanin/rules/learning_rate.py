"""FAN303: weights that move too far in a step, or hardly at all, though they and the signal are sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from math import inf, isfinite, isnan, log10, nan, sqrt
from statistics import median
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import backward_gain, head, mixing, uninformed_loss
from fanin.rule import Example, Need, Rule
from fanin.summary import Interval, summarize
from fanin.synthetic import INITS, Init, Network, clusters, mlp, normal
from fanin.trial import RECHECK, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step, Trial

USUAL_RATIO = Interval(1e-6, 0.1)
"""Change of a weight per step, relative to its size; the rule of thumb is 1e-3. Five ReLU layers drawn by he_normal on
scikit-learn's digits, loss after 40 steps, mean of 3 seeds (chance 2.30): with Adam 0.57 at 4e-3, 0.11 at 0.03, 0.26
at 0.09, 1.59 at 0.29 and 2.33 at 0.86; with SGD 1.96 at 5e-4, and nothing is learned at 6e-6 or below."""

SMALLEST_DRAW = 1 / sqrt(3)
"""√fan_in rms(w) of PyTorch's default, the smallest scheme in use. Of weights that are smaller the change is measured
against this size: a step is not too long because the weights are too short."""

ONE_RATE = 3.0
"""Decades between the ratios of the layers up to which one learning rate explains them all; beyond, the gradients
differ by layer, and the initialization does."""

BLOWN_UP = 10.0
"""Loss at the second look, relative to the first. In the experiment above Adam at 0.3 multiplied it by 47, and SGD at
3 made it NaN; SGD at 0.3, which trains, multiplied it by 1.05."""

SOUND_LOSS = 5.0
"""Loss at step 0, relative to that of the best constant output: above it the head starts overconfident."""

SOUND_GRADIENT = 5.0
"""Decades of power between a layer's gradient and the last one's; sound networks stay within (414 networks)."""


class LearningRate(Rule):
    """Weights move too far in a step, or hardly at all, and in all layers alike.

    What it detects
    ---------------
    Weights that change by more than a tenth of their size per step, or a loss that grows tenfold within five steps
    from a sound start: the learning rate is too high. Weights that change by less than a millionth though gradients
    reach them: it is too low, or warms up. Neither is the initialization.

    Why it matters
    --------------
    Both look like a poor initialization: the loss explodes or stands still. But drawing the weights anew does not
    help, as was measured with counterfactual twins: of a network trained with three hundred times its best rate, only
    the one with another rate learned.

    How it is measured
    ------------------
    At step 5, from the change of each weight since step 0:

        u = rms(W_5 - W_0) / (5 rms(W_0))            1e-6 <= median over layers of u <= 0.1

    over trainable layers whose weights are not zero, embeddings excepted. For the upper bound, weights that are smaller
    than PyTorch's default count as large as that. A learning rate is one number for all layers: where u spreads over
    more than three decades, the layers differ, and this rule says nothing. The lower bound is judged only where the
    median layer's gradient is within 5 decades of the last layer's.

    Both upper bounds, on u and on the loss, are judged only where step 0 was sound: parameters and outputs finite, a
    loss of at most five times that of the best constant output, and gradients within five decades of the last
    layer's. Then the loss may not be ten times as large at step 5, or not finite.

    When it is wrong
    ----------------
    A warm-up starts with tiny steps on purpose; hence too low is a note. Weights in front of a normalization
    may grow by long steps, which then shorten by themselves. Losses that start near zero (policy gradients, contrastive
    objectives) may grow tenfold without harm.

    Fix
    ---
    Change the learning rate so that a step moves weights by about a thousandth of their size; warm it up; clip
    gradients. Leave the weights alone.

    References
    ----------
    - Karpathy, CS231n, Convolutional Neural Networks for Visual Recognition, "Ratio of weights:updates".
    - Gilmer et al. 2022, A Loss Curvature Perspective on Training Instabilities of Deep Learning Models.
    """

    code: ClassVar[str] = "FAN303"
    name: ClassVar[str] = "learning-rate"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {
            *map(Need, (Role.WEIGHT, Role.BIAS, Role.OUTPUT, Role.OUTPUT_GRAD, Role.WEIGHT_GRAD)),
            *(Need(Role.UPDATE, recheck=True), Need(Role.UNINFORMED_LOSS)),
        }
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, about all layers."""
        start = trial.start
        later = next((step for step in trial.train_steps if step.index == RECHECK), None)
        if start is None or later is None:
            return
        steps = {
            layer.path: size for layer in mixing(trial.spec) if (size := _step_size(layer, start, later))
        }
        relative = {path: long for path, (_, long) in steps.items()}
        usual, sound = median(relative.values()) if relative else nan, _is_sound(trial.spec, start)
        if sound and _are_alike(relative) and USUAL_RATIO.high < usual < inf:
            text = f"In {RECHECK} steps weights have changed by {usual:.2g} of their size per step"
            yield self._finding(usual, relative, f"{text}, in all layers alike.", Severity.SUSPECT)
        elif sound and (ratio := _growth(start, later)) > BLOWN_UP:
            yield self._blown_up(trial.spec, start, later, ratio)
        else:
            yield from self._too_low(trial, {path: plain for path, (plain, _) in steps.items()}, start)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Rates that suit, weights that do not, and rates that do not suit."""
        first = ("blocks.0.fc",)
        cliff: dict[str, Init] = {"blocks.2.fc.weight": normal(1e-5)}
        yield Example("no second look", mlp)
        yield Example("SGD at 0.05", lambda: trained(0.05))
        yield Example("SGD at 0.001", lambda: trained(0.001))
        yield Example("a layer of 1e-5", lambda: trained(0.05, overrides=cliff))
        yield Example("gradients that vanish", lambda: trained(0.05, normal(1e-3)))
        yield Example("N(0, 1), from which the loss falls or grows", lambda: trained(0.05, normal(1.0)))
        yield Example("SGD at 1e-6", lambda: trained(1e-6), first)
        yield Example("no step at all", lambda: trained(0.0), first)
        yield Example("SGD at 20", lambda: trained(20.0), first)

    def _too_low(self, trial: Trial, ratios: Mapping[str, float], start: Step) -> Iterator[Finding]:
        usual = median(ratios.values()) if ratios else nan
        if usual < USUAL_RATIO.low and _are_alike(ratios) and _has_live_gradients(trial, start, ratios):
            text = f"In {RECHECK} steps weights have changed by {usual:.2g} of their size per step"
            text += ", though gradients reach them: a rate that is too low, or that warms up."
            yield self._finding(usual, ratios, text, Severity.NOTE)

    def _blown_up(self, spec: ModelSpec, start: Step, later: Step, ratio: float) -> Finding:
        text = (
            f"The loss went from {start.loss:.3g} to {later.loss:.3g} in {RECHECK} steps from a sound start."
        )
        layers = dict.fromkeys((layer.path for layer in mixing(spec)), 0.0)
        found = self._finding(ratio, layers, text, Severity.SUSPECT)
        return replace(found, expected=Interval(0, BLOWN_UP), quantity="loss at step 5 / loss at step 0")

    def _finding(self, value: float, layers: Mapping[str, float], text: str, severity: Severity) -> Finding:
        return Finding(
            self.code,
            self.name,
            layer=next(iter(layers), ""),
            step=RECHECK,
            measured=Interval(value, value),
            expected=USUAL_RATIO,
            quantity="update per step / weight (median layer)",
            message=text,
            cause=Cause.LEARNING_RATE,
            scope=Scope.EVERYWHERE,
            layers=tuple(layers),
            severity=severity,
        )


def trained(lr: float, init: Init | str = "he_normal", overrides: Mapping[str, Init] | None = None) -> Trial:
    """The network of `synthetic.mlp`, watched up to the second look, where what has changed is seen too."""
    widths, steps = (32,) * 6 + (10,), RECHECK + 1
    trial = mlp(widths, init, overrides=overrides, steps=steps, lr=lr)
    network = Network("relu", residual=False, blocks=len(widths) - 2)
    network.draw(widths, INITS[init] if isinstance(init, str) else init, overrides or {}, seed=0)
    before, batch = dict(network.parameters), clusters(widths[0], widths[-1])
    with np.errstate(all="ignore"):
        for index in range(RECHECK):
            network.step(index, *batch, lr)
    seen = []
    for path in network.paths:
        name = f"{path}.weight"
        change = network.parameters[name] - before[name]
        seen.append(Observation(path, Role.UPDATE, name, summarize(change), change.shape, "float64"))
    last = trial.steps[RECHECK]
    changed = replace(last, observations=(*last.observations, *seen))
    return replace(trial, steps=(*trial.steps[:RECHECK], changed))


def _step_size(layer: LayerSpec, start: Step, later: Step) -> tuple[float, float] | None:
    """How far the first matrix of a layer moves per step, relative to its size, and to that of a usual draw where
    it is smaller; None where that is not known."""
    weights, updates = start.of(Role.WEIGHT), later.of(Role.UPDATE)
    for spec in layer.weights:
        name = layer.parameter_path(spec)
        if not spec.trainable or len(spec.shape) < 2 or name not in weights or name not in updates:
            continue
        size, change = weights[name].summary.rms, updates[name].summary
        if not size > 0:
            continue
        moved = inf if change.non_finite else change.rms / RECHECK
        return moved / size, moved / max(size, _smallest(spec))
    return None


def _smallest(spec: ParameterSpec) -> float:
    return SMALLEST_DRAW / sqrt(spec.fan_in) if spec.fan_in else 0.0


def _are_alike(ratios: Mapping[str, float]) -> bool:
    """Whether one learning rate explains them all."""
    low, high = min(ratios.values(), default=nan), max(ratios.values(), default=nan)
    if not ratios or isnan(low) or isnan(high):
        return False
    if low in (0.0, inf) or high == inf:
        return low == high
    return log10(high / low) <= ONE_RATE


def _has_live_gradients(trial: Trial, start: Step, paths: Mapping[str, float]) -> bool:
    """Whether the gradient reaches most layers: then small steps are the learning rate's doing."""
    last = head(trial.spec)
    gains = [backward_gain(start, path, last.path) for path in paths if last and path != last.path]
    known = [gain for gain in gains if gain == gain]
    return bool(known) and median(known) >= -SOUND_GRADIENT


def _growth(start: Step, later: Step) -> float:
    """Loss at the second look, relative to the first; inf where it is no longer a number, nan where not seen."""
    if not later.losses or not start.loss > 0:
        return nan
    constant = uninformed_loss(start)
    if not isfinite(later.loss):
        return inf
    return later.loss / start.loss if isnan(constant) or later.loss > constant else nan


def _is_sound(spec: ModelSpec, start: Step) -> bool:
    """Whether parameters, signal, loss and gradients are as they should be at step 0."""
    seen = chain.from_iterable(start.of(role).values() for role in (Role.WEIGHT, Role.BIAS, Role.OUTPUT))
    if not isfinite(start.loss) or any(o.summary.non_finite for o in seen):
        return False
    if start.loss > SOUND_LOSS * uninformed_loss(start):  # nan: not known, and no objection
        return False
    last = head(spec)
    gains = [backward_gain(start, layer.path, last.path) for layer in mixing(spec)] if last else []
    return all(abs(gain) <= SOUND_GRADIENT for gain in gains if not isnan(gain))
