"""What decides whether a network can learn, as pure numbers: the same for every loss scale, reduction, batch size,
width and number of classes.

Let z be what a layer puts out, with units i and samples b. Its second moment splits into a part that depends on the
input and one that does not,

    q = E[z²] = v + m,      v = mean_i Var_b[z_i],      d = v / q  in [0, 1]

and only v carries anything: a large constant has q without v. For inputs drawn at random 1 - d is the mean cosine
between the outputs for two of them (Poole et al. 2016, c*).
"""

from __future__ import annotations

from math import inf, log10, nan
from statistics import median

from fanin.summary import TensorSummary
from fanin.trial import NETWORK_INPUT, Kind, LayerSpec, ModelSpec, Observation, Role, Step

MIXING = frozenset({Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE})

DEEP = 0.3
"""Depth over width from which random directions lose a signal even where its scale is kept, and orthogonal ones do not
(Saxe et al. 2014; Hanin and Nica 2019: Var[ln q] ≈ 5 L/n). Below it Gaussian directions did as well."""


FRESH = 0.8
"""Of both losses, down to which a network may be fresh: the lowest of the 951 starts of InitBench's tune split is at
0.98 of the uninformed loss, and at 0.91 of its re-draw's."""


def decades(ratio: float) -> float:
    """log10, with -inf for 0, and nan for what is no ratio."""
    if ratio != ratio or ratio < 0:
        return nan
    return log10(ratio) if 0 < ratio < inf else (-inf if ratio == 0 else inf)


def depends_on_input(seen: TensorSummary) -> float:
    """d = v / q: the share of the second moment that varies over the batch; nan without units or values."""
    q = seen.second_moment
    return seen.unit_variance / q if q > 0 else nan


def head(spec: ModelSpec) -> LayerSpec | None:
    """The last layer with weights that reaches the model's output; None where that is not known or there are several
    (then no one of them speaks for the network)."""
    last = [layer for layer in spec.weight_layers if layer.path in spec.outputs and layer.calls]
    if len(last) == 1:
        return last[0]
    if last:
        return None
    ran = [layer for layer in spec.weight_layers if layer.calls]
    return ran[-1] if ran and not spec.outputs else None


def mixing(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    """Layers with a weight matrix that ran, embeddings excepted, in forward order."""
    return tuple(
        layer
        for layer in spec.weight_layers
        if layer.calls
        and layer.kind is not Kind.EMBEDDING
        and any(len(p.shape) >= 2 and p.tied_to is None for p in layer.weights)
    )


def is_chain(spec: ModelSpec) -> bool:
    """Whether the network is a plain stack: nothing normalizes its signal, and no sum leads around a layer."""
    ran = [layer for layer in spec.layers if layer.calls]
    return not any(layer.kind in (Kind.NORM, Kind.ATTENTION) or layer.joins == "sum" for layer in ran)


def branch_ends(spec: ModelSpec) -> dict[str, int]:
    """The layers that end a residual branch, with the largest number of branches that meet in one sum with theirs.

    Of the members of a sum the earliest is the trunk. The network's output is such a sum where it goes on from one.
    """
    order = {layer.path: place for place, layer in enumerate(spec.layers)} | {NETWORK_INPUT: -1}
    sums = [layer.inputs for layer in spec.layers if layer.joins == "sum"]
    if any(set(members) < set(spec.outputs) for members in sums):
        sums.append(spec.outputs)
    counts: dict[str, int] = {}
    for members in sums:
        known = sorted((member for member in members if member in order), key=lambda member: order[member])
        for end in known[1:]:
            counts[end] = max(counts.get(end, 1), len(known) - 1)
    return counts


def is_deep_and_plain(spec: ModelSpec) -> bool:
    """Whether nothing resets or bypasses the signal on the way, and the way is long for its width."""
    ran = [layer for layer in spec.layers if layer.calls]
    if any(
        layer.kind in (Kind.NORM, Kind.RECURRENT, Kind.ATTENTION) or layer.joins == "sum" for layer in ran
    ):
        return False
    fans = [layer.weights[0].fan_in for layer in ran if layer.kind in MIXING and layer.weights]
    known = [fan for fan in fans if fan]
    return bool(known) and len(known) / median(known) > DEEP


def has_attention(step: Step) -> bool:
    """Whether attention was seen at this step."""
    return any(seen.role is Role.ATTENTION_ENTROPY for seen in step.observations)


def unit_power(seen: Observation) -> float:
    """Second moment summed over units, per sample and position: what a layer passes on whatever its width."""
    return seen.summary.second_moment * (len(seen.summary.units.mean) if seen.summary.units else 1)


def backward_gain(step: Step, path: str, last: str) -> float:
    """log10 of the power of ∂L/∂z at a layer, relative to that at the last one; nan where either was not seen.

    Power is summed over units and positions and averaged over samples, so that width, batch size, reduction and
    the loss's scale cancel out.
    """
    seen = step.first(Role.OUTPUT_GRAD)
    if path not in seen or last not in seen:
        return nan
    here, there = (s.summary.second_moment * s.summary.count for s in (seen[path], seen[last]))
    return decades(here / there) if there > 0 else nan


def uninformed_loss(step: Step) -> float:
    """The loss of the best constant output; nan where it is not known."""
    for seen in step.of(Role.UNINFORMED_LOSS).values():
        return seen.summary.mean
    return nan


def has_learned(step: Step, sound: float) -> bool:
    """Whether a first loss is so far below that of the best constant output, and that of soundly drawn weights, that
    the weights cannot be fresh.

    Args:
        step: The first one, with its loss and the uninformed loss.
        sound: Loss of the same network with soundly drawn weights.

    Returns:
        False where either is not known, or not positive.
    """
    return 0 < step.loss < FRESH * min(uninformed_loss(step), sound)


def layer_output(step: Step, path: str) -> Observation | None:
    """A layer's first output at this step."""
    return step.first(Role.OUTPUT).get(path)


def network_inputs(step: Step, spec: ModelSpec) -> dict[str, Observation]:
    """What the batch brings to the layers that read nothing else, by their paths; integers (tokens) do not count."""
    seen = step.first(Role.INPUT)
    return {
        layer.path: seen[layer.path]
        for layer in spec.layers
        if layer.inputs == (NETWORK_INPUT,) and layer.path in seen
    }
