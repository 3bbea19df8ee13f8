"""What a layer is given: the signals of the layers that feed it, through their activations, as they meet.

With h the input of a layer, z_i the outputs that it is made of and φ the activation,

    single          h = φ(z)            E[h²] = E[φ(z)²]
    sum             h = φ(Σ z_i)        E[(Σ z_i)²] = Σ Var[z_i] + (Σ E[z_i])²      no correlation but that of means
    concatenation   h = (φ(z_1), ...)   E[h²] = Σ n_i E[φ(z_i)²] / Σ n_i            n_i values each
    product         h = Π φ_i(z_i)      E[h²] = Π E[φ_i(z_i)²]                      independent factors

and the gradient of h reaches z_i multiplied in the mean square by χ of the activation that z_i passes, and in a
product by the second moments of the other factors. Anything else is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import prod

from fanin.gaussian import Passed, passed
from fanin.scheme import gain
from fanin.trial import ActivationSpec, LayerSpec, ModelSpec

IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Signal:
    """The moments of a layer's output, or of what a layer is given.

    Attributes:
        mean, square: μ = E[z] and q = E[z²].
        varying: v, its variance over the batch (see `fanin.measures`); nan where that is not known.
        noise: Var[ln q] over draws of the weights before the layer; the n units of a Gaussian output add 2/n to it, so
            that it is -2/n for what has been normalized.
    """

    mean: float
    square: float
    varying: float
    noise: float = 0.0

    @property
    def variance(self) -> float:
        """q - μ²."""
        return max(self.square - self.mean**2, 0.0)


@dataclass(frozen=True, slots=True)
class Pull:
    """The way of a gradient from h back to one of the z that it is made of.

    Attributes:
        factor: E[(∂L/∂z)²] / E[(∂L/∂h)²].
        spread: Relative variance of that over draws.
        fresh: Var[ln E[h²]] that the draw of this z adds.
        response: d ln E[h²] / d ln q of this z.
        own_response: d ln factor / d ln q.
    """

    factor: float
    spread: float
    fresh: float
    response: float
    own_response: float


@dataclass(frozen=True, slots=True)
class Intake:
    """What a layer is given, and how its gradient gets back to each source."""

    signal: Signal
    pulls: Mapping[str, Pull]


@dataclass(frozen=True, slots=True)
class Meeting:
    """Which activation each source passes before they meet, and which they pass together."""

    before: Mapping[str, str]
    after: str = IDENTITY


@dataclass(frozen=True, slots=True)
class Wiring:
    """Who takes each layer's output, looked up rather than searched for: a sum of n branches is n long in each of the
    n layers that read it.

    Attributes:
        readers: How many do: layers that ran, and the model's output.
        activations: Those that run on it, alone or with others'.
    """

    readers: Mapping[str, int]
    activations: Mapping[str, tuple[ActivationSpec, ...]]

    @classmethod
    def of(cls, spec: ModelSpec) -> Wiring:
        """That of a model."""
        read = (path for layer in spec.layers if layer.calls for path in dict.fromkeys(layer.inputs))
        running: dict[str, list[ActivationSpec]] = {}
        for activation in spec.activations:
            for path in dict.fromkeys(activation.inputs):
                running.setdefault(path, []).append(activation)
        return cls(
            Counter(chain(read, dict.fromkeys(spec.outputs))),
            {path: tuple(there) for path, there in running.items()},
        )

    def on_any(self, paths: Iterable[str]) -> Iterator[ActivationSpec]:
        """Each activation that runs on one of them, once."""
        told: set[int] = set()
        for path in paths:
            for activation in self.activations.get(path, ()):
                if id(activation) not in told:
                    told.add(id(activation))
                    yield activation


def meeting(wiring: Wiring, layer: LayerSpec) -> Meeting | None:
    """Where the activations stand on the way to a layer; None where the graph leaves that open: `relu(a) + b` and
    `relu(relu(a) + b)` differ in nothing that is recorded."""
    fed_by, φ = layer.inputs, layer.input_activation
    if φ == IDENTITY or (φ and (len(fed_by) == 1 or layer.joins == "concatenation")):
        return Meeting(dict.fromkeys(fed_by, φ))
    if φ and _is_whole(wiring, fed_by, φ):
        return Meeting(dict.fromkeys(fed_by, IDENTITY), φ)
    alone = len(fed_by) > 1 and all(wiring.readers.get(path, 0) == 1 for path in fed_by)
    inside = _inside(wiring, fed_by) if alone else None
    if inside is None or (φ and set(inside.values()) != {φ}):
        return None
    return Meeting({path: inside.get(path, IDENTITY) for path in fed_by})


def _is_whole(wiring: Wiring, fed_by: tuple[str, ...], φ: str) -> bool:
    """Whether all that meets passes one activation together, and nothing of it another."""
    seen = list(islice(wiring.on_any(fed_by), 2))
    return len(seen) == 1 and seen[0].function == φ and set(seen[0].inputs) == set(fed_by)


def _inside(wiring: Wiring, fed_by: tuple[str, ...]) -> dict[str, str] | None:
    """The activation that each source passes by itself; None where some pass one together, or several."""
    inside: dict[str, str] = {}
    for activation in wiring.on_any(fed_by):
        if len(activation.inputs) != 1 or activation.inputs[0] in inside:
            return None
        inside[activation.inputs[0]] = activation.function
    return inside


def sound_gain(layer: LayerSpec, met: Meeting) -> float | None:
    """The gain² that keeps the mean square of what a layer is given, were each source of unit size; None where that
    is not known. Of a product it is the product (E[Π φ_i²] = Π E[φ_i²])."""
    gains = {path: gain(φ) for path, φ in met.before.items()}
    after = gain(met.after)
    known = [g * g for g in gains.values() if g]
    if after is None or len(known) < len(gains):
        return None
    if layer.joins == "product":
        return prod(known) * after**2
    return known[0] * after**2 if len(set(known)) == 1 else None


def intake(
    layer: LayerSpec, met: Meeting, signals: Mapping[str, Signal], widths: Mapping[str, int], sizes: list[int]
) -> Intake | None:
    """What a layer is given; None where that is not known.

    Args:
        layer: It.
        met: Its activations.
        signals: Output of every layer that feeds it.
        widths: Units of each of them, over which the draw averages.
        sizes: Values of each of them, for a concatenation.
    """
    behind = {path: _behind(signals[path], φ) for path, φ in met.before.items()}
    known = {path: found for path, found in behind.items() if found is not None}
    if len(known) < len(behind):
        return None
    parts = {path: _part(signals[path], found, widths[path]) for path, found in known.items()}
    if len(parts) == 1:
        return _single(*parts.items())
    if layer.joins == "sum":
        return _activated(_sum(parts), met.after, max(widths[path] for path in parts))
    if layer.joins == "concatenation" and len(sizes) == len(parts):
        return _concatenation(parts, sizes)
    return _product(parts) if layer.joins == "product" and met.after == IDENTITY else None


Part = tuple[Signal, Pull]
"""One source behind its own activation, as if it came alone."""


def _behind(z: Signal, activation: str) -> Passed | None:
    return passed(activation, z.mean, z.square, z.varying)


def _part(z: Signal, φ: Passed, width: int) -> Part:
    fresh = φ.spread / width
    h = Signal(φ.mean, φ.square, φ.varying, φ.response**2 * z.noise + fresh)
    return h, Pull(φ.chi, φ.slope_spread / width, fresh, φ.response, φ.chi_response)


def _single(part: tuple[str, Part]) -> Intake:
    path, (signal, pull) = part
    return Intake(signal, {path: pull})


def _weighted(signal: Signal, parts: Mapping[str, Part], shares: Mapping[str, float]) -> Intake:
    """Each source moves the whole by its share of it; the noise is at most what it would be if all moved together."""
    noise = sum(shares[path] * h.noise for path, (h, _) in parts.items())
    pulls = {
        path: replace(pull, response=shares[path] * pull.response, fresh=shares[path] ** 2 * pull.fresh)
        for path, (_, pull) in parts.items()
    }
    return Intake(replace(signal, noise=noise), pulls)


def _sum(parts: Mapping[str, Part]) -> Intake:
    given = [h for h, _ in parts.values()]
    mean = sum(h.mean for h in given)
    total = Signal(mean, sum(h.variance for h in given) + mean**2, sum(h.varying for h in given))
    all_of = sum(h.square for h in given) or 1.0
    return _weighted(total, parts, {path: h.square / all_of for path, (h, _) in parts.items()})


def _activated(sums: Intake, activation: str, width: int) -> Intake | None:
    """A sum behind the activation that it passes as a whole."""
    if activation == IDENTITY:
        return sums
    φ = _behind(sums.signal, activation)
    if φ is None:
        return None
    h, whole = _part(sums.signal, φ, width)
    return Intake(h, {path: _then(pull, whole) for path, pull in sums.pulls.items()})


def _then(pull: Pull, whole: Pull) -> Pull:
    return Pull(
        pull.factor * whole.factor,
        whole.spread,
        pull.response**2 * whole.fresh,
        pull.response * whole.response,
        pull.response * whole.own_response,
    )


def _concatenation(parts: Mapping[str, Part], sizes: list[int]) -> Intake:
    share = {path: size / sum(sizes) for path, size in zip(parts, sizes, strict=True)}
    whole = Signal(
        sum(share[path] * h.mean for path, (h, _) in parts.items()),
        sum(share[path] * h.square for path, (h, _) in parts.items()),
        sum(share[path] * h.varying for path, (h, _) in parts.items()),
    )
    of = whole.square or 1.0
    return _weighted(whole, parts, {path: share[path] * h.square / of for path, (h, _) in parts.items()})


def _product(parts: Mapping[str, Part]) -> Intake:
    given = [h for h, _ in parts.values()]
    square = prod(h.square for h in given)
    alike = prod(h.square - h.varying for h in given)  # E over two samples of h(1) h(2)
    noise = sum(h.noise**0.5 for h in given) ** 2  # at most: all factors moved together
    whole = Signal(prod(h.mean for h in given), square, square - alike, noise)
    others = {path: prod(h.square for p, (h, _) in parts.items() if p != path) for path in parts}
    return Intake(
        whole,
        {path: replace(pull, factor=pull.factor * others[path]) for path, (_, pull) in parts.items()},
    )
