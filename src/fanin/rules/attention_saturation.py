"""FAN104: attention that looks at single positions before anything was learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from statistics import median
from typing import ClassVar

import numpy as np

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import mixing
from fanin.propagation import drawn_excess
from fanin.rule import Example, Need, Rule
from fanin.summary import Floats, Interval
from fanin.synthetic import seen
from fanin.trial import RECHECK, Kind, LayerSpec, Mode, Role, Step, Trial

LOWEST = 0.3
"""Mean normalized entropy below which attention is unusually sharp for a start. Measured on 414 starts labelled by
training: healthy causal models 0.43 (he_normal) to 0.68, bidirectional ones 0.68 to 0.99, failing ones 0 to 0.09."""

SATURATED = 0.2
"""Mean over all attention layers below which a start fails: 0.00 to 0.16 in four of five starts of two transformers
that failed for this reason, the fifth reached 0.86 at 0.09 (InitBench, tune split); one sharp layer among others does
no harm (0.92)."""

TOO_LARGE = 0.6
"""Decades of excess variance in the median layer from which weights are too large everywhere: a factor of 4, twice what
the schemes of the literature differ by."""

SHARP_BY_DESIGN = 0.5
"""A sound draw that gives less than this is sharp because of its masks, biases or few positions: below the lowest
healthy bidirectional value, above the lowest causal one (0.43)."""


@dataclass(frozen=True, slots=True)
class Sharp:
    """A layer whose attention is too sharp at every look.

    Attributes:
        entropy: The mean at step 0.
        highest: The highest of the means at all looks.
    """

    layer: str
    entropy: float
    highest: float


class AttentionSaturation(Rule):
    r"""Attention starts on single positions, where its softmax has no slope.

    What it detects
    ---------------
    An attention layer whose queries each attend to one or two positions before training, and still do after five
    steps, although nothing in the architecture forces them to.

    Why it matters
    --------------
    The gradient of a softmax p with respect to its logits is diag(p) - p pᵀ, which vanishes as p approaches a single
    1. Queries and keys then receive hardly any gradient, and stay as they were drawn: positions are mixed at random,
    and for ever. Low entropy also precedes divergence. Normalizations do not help, since they stand before the query
    and key projections and not behind them.

    How it is measured
    ------------------
    For each query with T ≥ 2 positions that it may attend to, H = -Σ p log p / log T: 1 is uniform, 0 a single
    position. T counts what the mask leaves, so that a causal mask does not lower H. The mean over batch, heads and
    queries is taken for each layer. Below 0.3 at step 0 and at step 5 it is suspect, and a fault where the mean over
    all layers is below 0.2. Where the same architecture was drawn anew by a sound scheme, a layer that has less than
    0.5 there too is passed: its sharpness is no matter of initialization. One finding for each layer, or one for all
    where most layers have it. Where the weights of most layers are too large, that is the cause.

    When it is wrong
    ----------------
    Attention that is sharp by design (hard or local attention, ALiBi and other distance biases, a low temperature)
    looks saturated where there is no reference to compare with. So does any softmax over the last of three axes that
    a model uses for something else, such as routing. Loaded weights may be sharp because they were trained.

    Fix
    ---
    Draw the query and key weights smaller (glorot_uniform on each of them, not on the packed weight's double fan),
    divide their product by √d, or normalize queries and keys.

    References
    ----------
    - Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse, section 3.
    - Vaswani et al. 2017, Attention Is All You Need, section 3.2.1, on the softmax's slope and 1 / √d.
    """

    code: ClassVar[str] = "FAN104"
    name: ClassVar[str] = "attention-saturated"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need(Role.ATTENTION_ENTROPY, recheck=True, reference=True), Need(Role.WEIGHT)}
    )

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding for each layer, or a single one where most layers have it."""
        looks = [entropies(step) for step in trial.looks(Role.ATTENTION_ENTROPY)]
        if not looks:
            return
        reference = entropies(trial.reference) if trial.reference else {}
        sharp = [
            Sharp(layer, entropy, highest)
            for layer, entropy in looks[0].items()
            if (highest := max(look.get(layer, entropy) for look in looks)) < LOWEST
            and reference.get(layer, 1.0) >= SHARP_BY_DESIGN
        ]
        step = trial.looks(Role.ATTENTION_ENTROPY)[0].index
        all_layers = [max(look.get(layer, entropy) for look in looks) for layer, entropy in looks[0].items()]
        fatal = sum(all_layers) / max(1, len(all_layers)) < SATURATED
        cause = Cause.GAIN_TOO_LARGE if _all_too_large(trial) else Cause.ATTENTION_SATURATED
        if len(sharp) > 1 and len(sharp) > len(looks[0]) / 2:
            yield self._finding(sharp, Scope.EVERYWHERE, step, fatal, cause)
        else:
            yield from (self._finding([one], Scope.LAYER, step, fatal, cause) for one in sharp)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Logits of several sizes, with and without a mask, and what becomes of them."""
        yield Example("bidirectional, logits of 1", lambda: _trial(1, 1, 1))
        yield Example("causal, logits of 1.5", lambda: _trial(1.5, 1.5, 1.5, causal=True))
        yield Example("uniform", lambda: _trial(0, 0, 0, causal=True))
        yield Example("two positions", lambda: _trial(1.5, 1.5, 1.5, positions=2))
        yield Example("sharp, and not so after five steps", lambda: _trial(40, 40, 40, later=1))
        yield Example("sharp in the reference too", lambda: _trial(40, 40, 40, reference=15))
        sound, three = 1.0, tuple(f"blocks.{i}.attn" for i in range(3))
        yield Example("one layer of three", lambda: _trial(1, 40, 1, reference=sound), three[1:2])
        yield Example("all layers, causal", lambda: _trial(40, 40, 40, causal=True, later=40), three[:1])
        yield Example("two layers of five", lambda: _trial(1, 9, 1, 40, 1), (*three[1:2], "blocks.3.attn"))

    def _finding(self, sharp: list[Sharp], scope: Scope, step: int, all_sharp: bool, cause: Cause) -> Finding:
        entropies = [one.entropy for one in sharp]
        lowest, first = min(entropies), sharp[0]
        where = f"in {len(sharp)} layers, from {first.layer} on," if len(sharp) > 1 else f"in {first.layer}"
        return Finding(
            self.code,
            self.name,
            first.layer,
            step,
            Interval(lowest, max(entropies)),
            Interval(LOWEST, 1.0),
            "attention entropy / its maximum",
            f"Attention {where} has {lowest:.2g} of the entropy that it would have if it looked at all positions "
            "alike, so its softmax passes hardly any gradient to queries and keys.",
            cause,
            scope=scope,
            layers=tuple(one.layer for one in sharp),
            severity=Severity.FAULT if all_sharp else Severity.SUSPECT,
        )


def _all_too_large(trial: Trial) -> bool:
    """Whether the weights of most layers are, not only those of queries and keys: then that is the cause."""
    start = trial.start
    drawn = [drawn_excess(layer, start) for layer in mixing(trial.spec)] if start else []
    known = [excess for excess in drawn if excess == excess]
    return bool(known) and median(known) > TOO_LARGE


def entropies(step: Step) -> dict[str, float]:
    """Mean normalized entropy of each module in which attention ran, over all its calls."""
    total: dict[str, float] = {}
    count: dict[str, int] = {}
    for found in step.of(Role.ATTENTION_ENTROPY).values():
        summary = found.summary
        total[found.layer] = total.get(found.layer, 0.0) + summary.mean * summary.count
        count[found.layer] = count.get(found.layer, 0) + summary.count
    return {layer: total[layer] / n for layer, n in count.items() if n}


def _trial(
    *stds: float,
    causal: bool = False,
    positions: int = 32,
    later: float | None = None,
    reference: float | None = None,
) -> Trial:
    """Attention whose logits have these standard deviations, one for each layer, at step 0; others may follow."""
    paths = [f"blocks.{i}.attn" for i in range(len(stds))]
    layers = [LayerSpec(path, Kind.ATTENTION, "MultiheadAttention", calls=1) for path in paths]
    trial = _step(layers, list(stds), causal, positions)
    steps = trial.steps
    if later is not None:
        after = _step(layers, [later] * len(stds), causal, positions).steps[0]
        steps += (replace(after, index=RECHECK),)
    if reference is not None:
        sound = _step(layers, [reference] * len(stds), causal, positions).steps[0]
        steps += (replace(sound, mode=Mode.REFERENCE),)
    return replace(trial, steps=steps)


def _step(layers: list[LayerSpec], stds: list[float], causal: bool, positions: int) -> Trial:
    pairs = zip(layers, stds, strict=True)
    return seen(
        layers,
        {
            (layer.path, Role.ATTENTION_ENTROPY): _entropy(i, std, causal, positions)
            for i, (layer, std) in enumerate(pairs)
        },
    )


def _entropy(seed: int, std: float, causal: bool, positions: int, width: int = 16) -> Floats:
    """[batch, heads, queries] of random queries and keys; the first query of a causal mask has nothing to choose."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, 4, 2, positions, width))
    logits = std * q @ np.swapaxes(k, -1, -2) / sqrt(width)
    mask = np.tril(np.ones((positions, positions), bool)) if causal else np.ones((positions, positions), bool)
    logits = np.where(mask, logits, -np.inf)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)
    choices = mask.sum(axis=-1)
    return np.asarray((entropy[..., choices > 1]) / np.log(choices[choices > 1]))
