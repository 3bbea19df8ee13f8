"""What a network should look like: the second moments of its signal and of its gradient, layer by layer.

Forward, from the batch along the graph, with h what a layer is given (`fanin.intake`):

    mixing          E[z²] = fan_in · E[w²] · E[h²] + E[b²]          (He et al. 2015, eq. 7; Poole et al. 2016, eq. 3)
    normalization   E[z²] = γ² · Var[h] / (Var[h] + ε) + β²         (Ioffe and Szegedy 2015; Ba et al. 2016)
    embedding       E[z²] = E[w²]

Backward, from the last layer's output, where it is 1 by definition; a layer with several readers receives their sum:

    through mixing          E[(∂L/∂h)²] = fan_out · E[w²] · E[δ²]             (He et al. 2015, eq. 13)
    through a norm          E[(∂L/∂h)²] = γ² · (1 - k/n) · e^V / (Var[h] + ε) · E[δ²]
    through an activation   E[(∂L/∂z)²] = χ · E[(∂L/∂h)²],  χ = E[φ′(z)²]     (Schoenholz et al. 2017, section 4)

A normalization over n values takes k directions out of a gradient: 2 of them, or 1 where it does not centre. With batch
normalization Var[h] is that over the batch, so that a ReLU layer multiplies by π / (π - 1) (Yang et al. 2019). Draws
vary ln Var[h] by V, so that E[1 / Var[h]] is e^V times what the mean says.

Over draws of the weights the logarithms are normal, their mean σ²/2 below the logarithm of the expectation, and each
layer of n units adds to their variance

    forward (E[φ⁴] / E[φ²]² - 1) / n,      backward (3 E[φ′⁴] / χ² - 1) / n

which are 5/n for ReLU (Hanin and Nica 2019). That is for one sample: a batch of unlike ones varies less. Weights are
taken as independent of one another, of signals, and of what comes back. Scales that belong to no layer (`0.1 * x`,
dropout) are not seen. What is not known, such as what attention or pooling does, stays so in all that depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, isfinite, log, log10, prod, sqrt

from fanin.intake import Intake, Meeting, Pull, Signal, Wiring, intake, meeting, sound_gain
from fanin.measures import head
from fanin.summary import Interval, TensorSummary
from fanin.trial import NETWORK_INPUT, Kind, LayerSpec, ModelSpec, Observation, ParameterSpec, Role, Step

MIXING = frozenset({Kind.LINEAR, Kind.CONV, Kind.CONV_TRANSPOSE})
"""Layers that sum many inputs with weights."""

EPSILON = 1e-5
"""ε of the normalizations, as PyTorch and Flax (1e-6) have it, within what matters: variances below it."""

SHAPES = (Role.INPUT, Role.OUTPUT, Role.OUTPUT_GRAD)
"""What shows the sizes of a layer's tensors."""

ROUNDING = 1e-6
"""Least variance of a logarithm: float32, and ε, move what no draw does."""

SIGMAS = 3.0
"""Half-width of an interval in standard deviations: 1 in 370 draws lies outside."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Moments of a layer's weight and bias; γ and β of a normalization."""

    square: float
    bias_square: float = 0.0
    mean: float = 0.0
    bias_mean: float = 0.0


@dataclass(frozen=True, slots=True)
class Gradient:
    """E[δ²] at a layer's output, relative to that at the last layer's, and what draws do to its logarithm.

    Attributes:
        square: E[δ²] per value.
        own: Variance of ln E[δ²] from all draws but those before the layer.
        response: d ln E[δ²] / d ln q, through every slope from here on.
    """

    square: float
    own: float = 0.0
    response: float = 0.0


@dataclass(frozen=True, slots=True)
class Moments:
    """The expected moments of a network's layers, by path; what is not known is not there.

    Attributes:
        signals: Of their outputs.
        gradients: At their outputs, relative to that at the last layer's.
        widths: Units of each layer.
    """

    signals: Mapping[str, Signal]
    gradients: Mapping[str, Gradient]
    widths: Mapping[str, int]

    def signal(self, path: str) -> Interval | None:
        """log10 E[z²] at a layer's output, within three standard deviations; None where it is not known."""
        z = self.signals.get(path)
        return _interval(z.square, z.noise + 2 / self.widths[path]) if z else None

    def gradient(self, path: str) -> Interval | None:
        """log10 E[δ²] at a layer's output relative to that at the last one's; None where it is not known."""
        δ, z = self.gradients.get(path), self.signals.get(path)
        return _interval(δ.square, δ.response**2 * z.noise + δ.own) if δ and z else None


def _interval(square: float, variance: float) -> Interval | None:
    if not square > 0 or not isfinite(square + variance):
        return None
    variance = max(variance, ROUNDING)
    middle, half = log10(square) - variance / 2 / log(10), SIGMAS * sqrt(variance) / log(10)
    return Interval(middle - half, middle + half)


def expected(spec: ModelSpec, step: Step, *, sound: bool) -> Moments:
    """The expected moments of every layer for which they are known.

    Args:
        spec: The model.
        step: Where the batch's moments and the sizes of tensors are taken from, and the weights'.
        sound: Whether the weights are those that the activations need (gain² / fan_in, no bias, γ = 1, β = 0), rather
            than those of this step.
    """
    weights = step.of(Role.WEIGHT) | step.of(Role.BIAS)
    network = _Network(spec, Wiring.of(spec), {role: step.first(role) for role in SHAPES}, weights, sound)
    for layer in spec.layers:
        if layer.calls == 1:
            network.run(layer)
    return Moments(network.signals, network.backward(), network.widths)


def expected_spans(spec: ModelSpec, step: Step, *, sound: bool = True) -> dict[str, Interval]:
    """What `fanin.measures.backward_gain` should be, by layer: decades of the power of the gradient, summed over its
    values, relative to that at the last layer; only where that is known."""
    last, grads = head(spec), step.first(Role.OUTPUT_GRAD)
    there = grads[last.path].summary.count if last and last.path in grads else 0
    if not there:
        return {}
    moments = expected(spec, step, sound=sound)
    found = {}
    for path, seen in grads.items():
        values, per_value = seen.summary.count / there, moments.gradient(path)
        if per_value and values:
            found[path] = Interval(per_value.low + log10(values), per_value.high + log10(values))
    return found


@dataclass(slots=True)
class _Network:
    """What is known so far, in forward order."""

    spec: ModelSpec
    wiring: Wiring
    seen: dict[Role, dict[str, Observation]]
    weights: dict[str, Observation]
    sound: bool
    signals: dict[str, Signal] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    intakes: dict[str, Intake] = field(default_factory=dict)
    draws: dict[str, Draw] = field(default_factory=dict)

    def run(self, layer: LayerSpec) -> None:
        """What a layer is given and what it puts out, where that is known."""
        met, given = meeting(self.wiring, layer), None
        if met and self._is_passed_on_whole(layer):
            given = intake(layer, met, self._sources(layer), self.widths, self._sizes(layer.inputs))
        elif layer.inputs == (NETWORK_INPUT,):
            given = self._entrance(layer)
        self.widths[layer.path] = self._width(layer)
        draw = self._draw(layer, met)
        if given:
            self.intakes[layer.path] = given
        if draw:
            self.draws[layer.path] = draw
            put_out = self._output(layer, draw, given.signal if given else None)
            if put_out and isfinite(put_out.square + put_out.noise):
                self.signals[layer.path] = put_out

    def _output(self, layer: LayerSpec, draw: Draw, h: Signal | None) -> Signal | None:
        if layer.kind is Kind.EMBEDDING:
            return Signal(draw.mean, draw.square, draw.square - draw.mean**2)
        if layer.kind is Kind.NORM:
            return _normalized(layer, draw, h, self.widths[layer.path])
        weight = _weight(layer)
        return _mixed(self._fan_in(layer, weight), draw, h) if weight and h else None

    # -- what feeds a layer

    def _sources(self, layer: LayerSpec) -> dict[str, Signal]:
        return {path: self.signals[path] for path in layer.inputs}

    def _entrance(self, layer: LayerSpec) -> Intake | None:
        """What the batch brings is not expected but seen."""
        seen = self._seen(layer.path, Role.INPUT)
        return Intake(_signal_of(seen.summary), {}) if seen and seen.summary.count else None

    def _is_passed_on_whole(self, layer: LayerSpec) -> bool:
        """Whether the signals that meet are known and arrive in full: pooling, slicing and broadcasting change the
        number of values."""
        if NETWORK_INPUT in layer.inputs and len(layer.inputs) > 1:
            self._admit_batch()
        if not layer.inputs or not all(path in self.signals for path in layer.inputs):
            return False
        taken, sizes = self._seen(layer.path, Role.INPUT), self._sizes(layer.inputs)
        if taken is None or len(sizes) < len(layer.inputs):
            return True  # sizes were not seen: the graph's word
        parts = {sum(sizes)} if layer.joins == "concatenation" else set(sizes)
        return parts == {prod(taken.shape)}

    def _admit_batch(self) -> None:
        """The batch as one source among others: as a layer saw it that is given nothing else, unactivated."""
        if NETWORK_INPUT in self.signals:
            return
        for layer in self.spec.layers:
            alone = layer.inputs == (NETWORK_INPUT,) and layer.input_activation == "identity"
            seen = self._seen(layer.path, Role.INPUT) if alone else None
            if seen and seen.summary.units:
                self.signals[NETWORK_INPUT] = _signal_of(seen.summary)
                self.widths[NETWORK_INPUT] = len(seen.summary.units.mean)
                return

    # -- what was seen

    def _seen(self, path: str, role: Role) -> Observation | None:
        return self.seen[role].get(path)

    def _shape(self, path: str) -> tuple[int, ...]:
        seen = self._seen(path, Role.OUTPUT) or self._seen(path, Role.OUTPUT_GRAD)
        return seen.shape if seen else ()

    def _sizes(self, paths: tuple[str, ...]) -> list[int]:
        """Values of each output; of those only that were seen."""
        shapes = [self._shape(path) for path in paths]
        return [prod(shape) for shape in shapes if shape]

    def _width(self, layer: LayerSpec) -> int:
        """Units of a layer's output, over which the draw averages; where that is not known one, which is least."""
        weight = layer.weights[0] if layer.weights else None
        if weight and layer.kind in (Kind.LINEAR, Kind.EMBEDDING):
            return weight.fan_out or 1
        if weight and weight.unit_axis is not None:
            return weight.shape[weight.unit_axis]
        if weight and layer.kind is Kind.NORM:
            return weight.shape[0] if weight.shape else 1
        return max((self.widths.get(path, 1) for path in layer.inputs), default=1)

    # -- weights

    def _draw(self, layer: LayerSpec, met: Meeting | None) -> Draw | None:
        if layer.kind not in (*MIXING, Kind.NORM, Kind.EMBEDDING):
            return None
        if layer.kind is Kind.EMBEDDING or not self.sound:  # of embeddings no scale is the sound one
            return self._drawn(layer)
        if layer.kind is Kind.NORM:
            return Draw(1.0)
        weight = _weight(layer)
        needed = sound_gain(layer, met) if met else 1.0 if layer.inputs == (NETWORK_INPUT,) else None
        return Draw(needed / weight.fan_in) if weight and weight.fan_in and needed else None

    def _drawn(self, layer: LayerSpec) -> Draw | None:
        weight, bias = self._summary(layer, Role.WEIGHT), self._summary(layer, Role.BIAS)
        if layer.kind is Kind.NORM and not layer.weights:
            return Draw(1.0)
        if weight is None:
            return None
        beside = (bias.second_moment, bias.mean) if bias else (0.0, 0.0)
        return Draw(weight.second_moment, beside[0], weight.mean, beside[1])

    def _summary(self, layer: LayerSpec, role: Role) -> TensorSummary | None:
        found = (self.weights.get(layer.parameter_path(p)) for p in layer.parameters if p.role is role)
        return next((one.summary for one in found if one), None)

    def _fan_in(self, layer: LayerSpec, weight: ParameterSpec) -> float:
        return (weight.fan_in or 1) * self._within(layer, weight)

    def _fan_out(self, layer: LayerSpec, weight: ParameterSpec) -> float:
        return (weight.fan_out or 1) * self._within(layer, weight)

    def _within(self, layer: LayerSpec, weight: ParameterSpec) -> float:
        """The share of a convolution's taps that meet the image rather than its zero padding."""
        taken, kernel = self._seen(layer.path, Role.INPUT), weight.shape[2:]
        sides, made = (taken.shape if taken else ()), self._shape(layer.path)
        if layer.kind is not Kind.CONV or not kernel or len(sides) != len(made) or len(made) <= len(kernel):
            return 1.0
        axes = zip(sides[-len(kernel) :], made[-len(kernel) :], kernel, strict=True)
        return prod(_taps_within(*axis) for axis in axes)

    # -- backward

    def backward(self) -> dict[str, Gradient]:
        """Gradients at the layers' outputs, from the last layer back."""
        last = head(self.spec)
        if last is None or self.spec.outputs not in ((), (last.path,)) or last.path not in self.signals:
            return {}
        found, readers = {last.path: Gradient(1.0)}, self.spec.readers()
        for layer in reversed([one for one in self.spec.layers if one.calls and one.path != last.path]):
            ran = [reader for reader in readers.get(layer.path, ()) if reader.calls]
            ways = [self._way(layer.path, reader, found) for reader in ran]
            if known := [way for way in ways if way]:
                found.update({layer.path: _sum(known)} if len(known) == len(ways) else {})
        return found

    def _way(self, path: str, reader: LayerSpec, found: Mapping[str, Gradient]) -> Gradient | None:
        """What a layer receives through one of its readers; None where that is not known."""
        given, draw, δ = self.intakes.get(reader.path), self.draws.get(reader.path), found.get(reader.path)
        pull = given.pulls.get(path) if given else None
        if not given or not pull or not draw or not δ:
            return None
        if reader.kind is Kind.NORM:
            back = self._through_norm(reader, draw, given.signal)
            return _pulled(pull, δ, back, -1.0) if back is not None else None
        weight = _weight(reader)
        if not weight or not weight.fan_out:
            return None
        return _pulled(pull, δ, self._fan_out(reader, weight) * draw.square, δ.response)

    def _through_norm(self, layer: LayerSpec, draw: Draw, h: Signal) -> float | None:
        """γ² (1 - k/n) e^V / (Var[h] + ε)."""
        variance = _normalized_by(layer, h)
        if variance is None or not isfinite(variance):
            return None
        batch = "batch" in layer.type_name.lower()
        n = prod(self._shape(layer.path)) / self.widths[layer.path] if batch else self.widths[layer.path]
        kept = max(1 - (1 if _is_rms(layer) else 2) / n, 0.0) if n else 1.0
        return draw.square * kept * exp(min(h.noise, 1.0)) / (variance + EPSILON)


def _signal_of(seen: TensorSummary) -> Signal:
    return Signal(seen.mean, seen.second_moment, seen.unit_variance)


def _weight(layer: LayerSpec) -> ParameterSpec | None:
    """The weight that mixes; None where there is no such one, or more than one."""
    known = [p for p in layer.weights if p.fan_in and len(p.shape) >= 2]
    return known[0] if layer.kind in MIXING and len(known) == 1 else None


def _mixed(fan_in: float, draw: Draw, h: Signal) -> Signal:
    """z = Σ w h + b. A mean of the weights multiplies the sum of all h, which a mean of h makes large."""
    common = fan_in * draw.mean * h.mean
    together = draw.mean**2 * fan_in * (fan_in - 1) * h.mean**2
    return Signal(
        mean=common + draw.bias_mean,
        square=fan_in * draw.square * h.square + together + 2 * common * draw.bias_mean + draw.bias_square,
        varying=fan_in * draw.square * h.varying,
        noise=h.noise,
    )


def _normalized(layer: LayerSpec, draw: Draw, h: Signal | None, width: int) -> Signal | None:
    """What a normalization puts out: known even where what it is given is not, but for how much that varies."""
    if not _is_known_norm(layer):
        return None
    variance = _normalized_by(layer, h) if h else None
    kept = variance / (variance + EPSILON) if variance and isfinite(variance) else 1.0
    share = (
        1.0
        if "batch" in layer.type_name.lower()
        else h.varying / variance
        if h and variance
        else float("nan")
    )
    square = draw.square * kept
    return Signal(draw.bias_mean, square + draw.bias_square, square * min(share, 1.0), -2 / width)


def _normalized_by(layer: LayerSpec, h: Signal) -> float | None:
    """What a normalization divides by, squared: the variance over the batch, over the units, or the mean square."""
    if not _is_known_norm(layer):
        return None
    if "batch" in layer.type_name.lower():
        return h.varying
    return h.square if _is_rms(layer) else h.variance


def _is_rms(layer: LayerSpec) -> bool:
    return "rms" in layer.type_name.lower()


def _is_known_norm(layer: LayerSpec) -> bool:
    """Not `InstanceNorm`, which divides by what varies within an image, nor `LocalResponseNorm`."""
    name = layer.type_name.lower().replace("_", "")
    return any(known in name for known in ("batchnorm", "layernorm", "groupnorm", "rmsnorm"))


def _taps_within(side: int, made: int, kernel: int) -> float:
    """Along one axis, of the kernel's taps at all positions those that meet the image, for even padding."""
    stride = max(1, round(side / made)) if made else 1
    padding = max(0, (made - 1) * stride + kernel - side) // 2
    starts = [i * stride - padding for i in range(made)]
    met = sum(min(start + kernel, side) - max(start, 0) for start in starts)
    return met / (made * kernel) if made else 1.0


def _pulled(pull: Pull, δ: Gradient, back: float, response: float) -> Gradient:
    """Back through a reader (`back`) and the activation before it.

    Args:
        pull: The way from what the reader is given to this layer.
        δ: At the reader's output.
        back: E[(∂L/∂h)²] / E[δ²].
        response: d ln E[(∂L/∂h)²] / d ln E[h²]: the reader passes it on, or, a normalization, divides by it.
    """
    return Gradient(
        pull.factor * back * δ.square,
        δ.own + pull.spread + response**2 * pull.fresh,
        pull.own_response + response * pull.response,
    )


def _sum(ways: list[Gradient]) -> Gradient:
    """Of what comes by several ways, each is weighed by its share."""
    total = sum(way.square for way in ways)
    if not total:
        return Gradient(0.0)
    return Gradient(
        total,
        sum(way.own * way.square for way in ways) / total,
        sum(way.response * way.square for way in ways) / total,
    )
