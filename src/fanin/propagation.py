"""How far the signal gets: the stretch of layers in which nothing resets its scale, and what each layer does to it.

A layer z = W h + b with h = φ(z') multiplies the mean square of its signal by

    fan_in · E[w²] · E[φ(z')²] / E[z'²]   =   γ² / gain²(φ),        γ² = fan_in · E[w²]

(He et al. 2015, eq. 9). With γ equal to the gain the scale stays; the excess e = log10(γ² / gain²) is what the layer
adds to it, in decades. Over a stretch without normalization the excesses add up: a signal dies or explodes
exponentially with depth, so that weights which are harmless in 3 layers are fatal in 20.

A normalization sets the scale anew whatever it was. So what counts is the stretch from the last normalization, or
from the network's input, to the last layer, along the graph of which layer feeds which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log, log10, nan, sqrt

from fanin.cause import Cause
from fanin.finding import Finding, Scope, Severity
from fanin.measures import decades
from fanin.scheme import gain, scheme_for
from fanin.summary import Interval, TensorSummary
from fanin.trial import Kind, LayerSpec, Observation, ParameterSpec, Role, Step, Trial

MIXING = frozenset({Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE})
"""Layers that sum many inputs with weights, and so set the scale of what they put out."""


BOUNDED = frozenset({"tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign", "relu6"})
"""Activations whose output has a variance of order 1 at most: what an unscaled input loses there is saturation, and not
the weights' doing."""

CLIFF = 1.0
"""Decades of excess that make one layer a cliff: a factor of 10 in variance, which no scheme of the literature
differs from another by (PyTorch's default is 0.78 from he_normal), and no draw of 16 weights by chance."""

OFF = 0.3
"""Decades of excess from which a layer takes part in a slope: a factor of 2 in variance, what ReLU needs over
lecun_normal."""


RECOVERS = 1
"""Layers too small among sound ones that training recovers from: its own gradient is whole, so that it grows in a
few steps. One layer multiplied by 10^-1 to 10^-4 in ReLU and tanh networks of 8 and 20 layers reached 0.83 to 1.05
of the sound network's progress; two still 0.90 to 1.03 with ReLU, but 0.63 to 0.77 with tanh
(benchmarks/results/cliffs.csv)."""


@dataclass(frozen=True, slots=True)
class Link:
    """One layer of the stretch.

    Attributes:
        layer, weight: The layer and its weight.
        gain_squared: γ² = fan_in · E[w²] as drawn.
        needed: gain² of the activation that feeds the layer; 1 where that is not known.
        variance_in: Variance of its input over the batch, mean over units.
        rms: Root mean square of the weight.
    """

    layer: LayerSpec
    weight: ParameterSpec
    gain_squared: float
    needed: float
    variance_in: float
    rms: float

    @property
    def excess(self) -> float:
        """log10(γ² / gain²), decades; -inf for a weight of zeros."""
        return log10(self.gain_squared / self.needed) if self.gain_squared > 0 else -inf

    @property
    def wanted_rms(self) -> float:
        """The rms that keeps the scale: gain / √fan_in."""
        return self.rms * sqrt(self.needed / self.gain_squared) if self.gain_squared else 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """The layers from the last normalization, or from the input, to the head.

    Attributes:
        links: All but the head, in forward order.
        head: The last layer.
        start: Variance over the batch of what enters the first layer.
        end: Variance over the batch of what enters the head.
    """

    links: tuple[Link, ...]
    head: Link
    start: float
    end: float

    @property
    def decades(self) -> float:
        """log10(end / start); -inf when nothing that depends on the input is left."""
        if self.start <= 0:
            return 0.0
        return log10(self.end / self.start) if self.end > 0 else -inf

    @property
    def excess(self) -> float:
        """What the weights explain of it, decades."""
        return sum(link.excess for link in self.links)

    @property
    def has_sums(self) -> bool:
        """Whether branches are added up on the way: then excesses of layers do not add up along one path."""
        return any(link.layer.joins == "sum" for link in (*self.links, self.head))

    @property
    def noise(self) -> float:
        """Three standard deviations of `decades` for well-drawn weights, from the random draw alone: for ReLU
        Var[ln q_L] ≈ 5 Σ 1/n_l (Hanin and Nica 2019, "Products of many large random matrices"), n_l the widths."""
        widths = [link.weight.fan_out or 1 for link in self.links]
        return 3 * sqrt(5 * sum(1 / n for n in widths)) / log(10)


def stretch(trial: Trial) -> Stretch | None:
    """The last stretch without normalization of a trial's start; None where it is shorter than two layers or was
    not observed.

    Of the paths that lead to the last layer (branches of a sum, skips, towers) it is the one that should carry most:
    what one path loses another may deliver.
    """
    step = trial.start
    if step is None:
        return None
    links = _links(trial, step)
    path = _path(trial.spec.layers, links)
    if len(path) < 2:
        return None
    bounded = any(link.layer.input_activation in BOUNDED for link in path)
    start = min(path[0].variance_in, 1.0) if bounded else path[0].variance_in
    return Stretch(tuple(path[:-1]), path[-1], start, path[-1].variance_in)


def _links(trial: Trial, step: Step) -> dict[str, Link]:
    """The mixing layers that ran and were observed, by path."""
    inputs, weights = step.first(Role.INPUT), step.of(Role.WEIGHT)
    found: dict[str, Link] = {}
    for layer in trial.spec.layers:
        known = [p for p in layer.weights if p.fan_in]
        taken = inputs.get(layer.path)
        drawn = weights.get(layer.parameter_path(known[0])) if known else None
        mixes = layer.kind in MIXING and layer.calls
        if mixes and drawn and taken and taken.summary.units and known[0].fan_in:
            found[layer.path] = _link(layer, known[0], known[0].fan_in, drawn.summary, taken)
    return found


def _path(layers: tuple[LayerSpec, ...], links: dict[str, Link]) -> list[Link]:
    """From the last reset of the scale to the last mixing layer, on the way that carries most.

    A normalization resets the scale, and so do layers whose effect on it is not known (recurrent, embedding); an
    attention passes it on. Layers come in forward order, so that what feeds a layer is known before it.
    """
    best: dict[str, _Way | None] = {}
    most: dict[tuple[str, ...], _Way | None] = {}
    head: _Way | None = None
    before = ""
    for layer in (layer for layer in layers if layer.calls):
        fed_by = layer.inputs or ((before,) if before else ())
        way = most[fed_by] = _most(fed_by, best, most)
        if layer.path in links:
            way = head = _longer(way, links[layer.path])
        best[layer.path] = way if layer.path in links or layer.kind is Kind.ATTENTION else None
        before = layer.path
    return _links_of(head)


def _most(
    fed_by: tuple[str, ...], best: dict[str, _Way | None], most: dict[tuple[str, ...], _Way | None]
) -> _Way | None:
    """The way that carries most. A residual stream is read as a sum of ever more branches, each time of those that were
    read before and a new one."""
    if len(fed_by) > 1 and fed_by[:-1] in most:
        return max(most[fed_by[:-1]], best.get(fed_by[-1]), key=_carried)
    return max([best.get(path) for path in fed_by], key=_carried, default=None)


@dataclass(frozen=True, slots=True)
class _Way:
    """A path by its last link and the path before it, so that to go on costs the same however long it is.

    Attributes:
        start: Variance of what enters it.
        excess: Sum over its links.
    """

    link: Link
    before: _Way | None
    start: float
    excess: float


def _longer(way: _Way | None, link: Link) -> _Way:
    if way is None:
        return _Way(link, None, link.variance_in, link.excess)
    return _Way(link, way, way.start, way.excess + link.excess)


def _links_of(way: _Way | None) -> list[Link]:
    found: list[Link] = []
    while way is not None:
        found.append(way.link)
        way = way.before
    return found[::-1]


def _carried(way: _Way | None) -> float:
    """log10 of the variance that a path should deliver: what enters it, times what its weights make of it; 0 for a
    signal whose scale has just been set."""
    if way is None:
        return 0.0
    return log10(way.start) + way.excess if way.start > 0 else -inf


def _link(
    layer: LayerSpec, weight: ParameterSpec, fan_in: int, drawn: TensorSummary, taken: Observation
) -> Link:
    return Link(
        layer=layer,
        weight=weight,
        gain_squared=fan_in * drawn.second_moment,
        needed=(gain(layer.input_activation) or 1.0) ** 2,
        variance_in=taken.summary.unit_variance,
        rms=drawn.rms,
    )


def drawn_excess(layer: LayerSpec, step: Step) -> float:
    """log10(fan_in E[w²] / gain²) of a layer's first weight that is not all zeros; nan where it is not known."""
    seen = step.of(Role.WEIGHT)
    for weight in layer.weights:
        drawn = seen.get(layer.parameter_path(weight))
        if drawn and weight.fan_in and len(weight.shape) >= 2 and not drawn.summary.is_zero:
            needed = (gain(layer.input_activation) or 1.0) ** 2
            return decades(weight.fan_in * drawn.summary.second_moment / needed)
    return nan


def blamed(path: Stretch, sign: int) -> tuple[tuple[tuple[Link, ...], Scope], ...]:
    """Who is at fault for a signal that shrinks (sign -1) or grows (+1): groups of links, each with its reach.

    A few layers that stand out by a decade are faults of their own, one group each; otherwise all that are off
    share one slope.
    """
    off = tuple(link for link in path.links if sign * link.excess > OFF)
    cliffs = tuple(link for link in off if sign * link.excess > CLIFF)
    if cliffs and len(off) <= len(path.links) / 2:
        return tuple(((link,), Scope.LAYER) for link in cliffs)
    return ((off, Scope.EVERYWHERE),) if off else ()


def gain_findings(
    code: str, name: str, path: Stretch, sign: int, tolerated: float, cause: Cause
) -> Iterator[Finding]:
    """A finding for each group of `blamed`, at the first layer where the scale breaks.

    Args:
        code, name: Of the rule that finds.
        path: The stretch, which exceeds what is tolerated.
        sign: -1 for a signal that shrinks, +1 for one that grows.
        tolerated: Decades, positive.
        cause: The explanation.
    """
    expected = Interval(-tolerated, inf) if sign < 0 else Interval(-inf, tolerated)
    for links, scope in blamed(path, sign):
        first = links[0]
        yield Finding(
            code=code,
            name=name,
            layer=first.layer.path,
            step=0,
            measured=Interval(path.decades, path.decades),
            expected=expected,
            quantity="decades of variance gained from the input to the last layer",
            message=_explained(first, links, scope),
            cause=cause,
            severity=_severity(path, sign, scope),
            scope=scope,
            layers=tuple(link.layer.path for link in links),
            tensor=first.layer.parameter_path(first.weight),
            source=first.weight.source,
        )


def _severity(path: Stretch, sign: int, scope: Scope) -> Severity:
    """A few layers that are too small are a note; a slope, many of them, or layers too large are a fault."""
    few = scope is Scope.LAYER and sum(link.excess < -CLIFF for link in path.links) <= RECOVERS
    return Severity.NOTE if few and sign < 0 else Severity.FAULT


def _explained(first: Link, links: tuple[Link, ...], scope: Scope) -> str:
    scheme = scheme_for(first.layer.input_activation)
    wanted = (
        f"{scheme.name} would draw {first.wanted_rms:.2g}" if scheme else f"{first.wanted_rms:.2g} keeps it"
    )
    factor = first.gain_squared / first.needed
    text = (
        f"{first.layer.parameter_path(first.weight)} has rms {first.rms:.2g}, {wanted}: "
        f"the layer multiplies the signal's variance by {factor:.2g}"
    )
    return f"{text}, and {len(links)} layers do so in a row" if scope is Scope.EVERYWHERE else text
