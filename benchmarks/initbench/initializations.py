"""The ways in which a network of the benchmark is initialized: sound schemes, and faults with a known cause.

Every initialization starts from ``Architecture.build()`` and writes parameters in place. *Hidden weights* are the
weights with two or more dimensions of linear, convolutional, recurrent and attention modules, the head excepted;
embeddings, bare parameters and norms keep their defaults unless the initialization is about them. *Base* is what
the faults are planted into: He normal with the gain of the activation, zero biases, a LeCun normal head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmarks.initbench.architectures import Architecture
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Applies = Callable[[Architecture, nn.Module], bool]
Apply = Callable[[Architecture, nn.Module, Generator], tuple[str, ...]]
Fill = Callable[["Weight", Tensor, Generator], None]

GAINS = {
    "relu": math.sqrt(2),
    "tanh": 5 / 3,
    "sigmoid": 4.0,
    "gelu": 1.534,
    "silu": 1.677,
    "elu": 1.245,
    "selu": 1.0,
    "linear": 1.0,
    "sin": math.sqrt(2),
}
"""The gain that keeps the second moment of a standard normal through the activation (tanh, sigmoid: Glorot)."""

NORMALIZED_FAMILIES = ("transformer", "vit", "mixer", "gpt", "attention", "bert", "post-norm encoder")


@dataclass(frozen=True, slots=True)
class Initialization:
    """One way to initialize a network, and what is known about it beforehand."""

    name: str
    sound: bool
    """A scheme of the literature that is meant well: a candidate for the best sound scheme."""
    cause: str
    """Empty for the sound ones, else what is wrong."""
    single_layer: bool
    """The fault sits in one layer."""
    applies: Applies
    apply: Apply
    """Writes the parameters; returns the paths of the modules at fault, () for none or everywhere."""


# ---------------------------------------------------------------- what a network consists of


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of two or more dimensions, and where it sits."""

    path: str
    module: nn.Module
    name: str
    tensor: Tensor

    @property
    def recurrent(self) -> bool:
        """It maps the previous state to the next one."""
        return self.name.startswith("weight_hh")

    @property
    def recurrent_module(self) -> bool:
        """It belongs to a recurrent module."""
        return isinstance(self.module, nn.RNNBase | nn.RNNCellBase)

    @property
    def transposed(self) -> bool:
        """Its output units are its second dimension."""
        return isinstance(self.module, _ConvTransposeNd)

    def blocks(self) -> tuple[Tensor, ...]:
        """Views of the maps packed into it: gates, or query, key and value."""
        if self.name == "in_proj_weight":
            return self.tensor.chunk(3)
        if isinstance(self.module, nn.LSTM | nn.LSTMCell) and "hr" not in self.name:
            return self.tensor.chunk(4)
        if isinstance(self.module, nn.GRU | nn.GRUCell):
            return self.tensor.chunk(3)
        return (self.tensor,)

    def fans(self) -> tuple[float, float]:
        """How many inputs a unit sums, and how many units an input reaches, of one block."""
        block = self.blocks()[0]
        rows, columns = block.shape[0], block.shape[1]
        if not isinstance(self.module, _ConvNd):
            return columns, rows
        area, groups = math.prod(block.shape[2:]), self.module.groups
        strides = math.prod(self.module.stride)
        if self.transposed:
            return max(1.0, rows / groups * area / strides), columns * area
        return columns * area, max(1.0, rows / groups * area / strides)


def _weights(network: nn.Module) -> list[Weight]:
    found, seen = [], set()
    for path, module in network.named_modules():
        if not isinstance(module, nn.Linear | _ConvNd | nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
            continue
        for name, tensor in module.named_parameters(recurse=False):
            if tensor.ndim >= 2 and "weight" in name and id(tensor) not in seen:
                seen.add(id(tensor))
                found.append(Weight(path, module, name, tensor))
    return found


def _in_head(architecture: Architecture, path: str) -> bool:
    return path == architecture.head or path.startswith(architecture.head + ".")


def hidden_weights(architecture: Architecture, network: nn.Module) -> list[Weight]:
    """The weights of all mixing layers but the head, in the order of registration."""
    return [weight for weight in _weights(network) if not _in_head(architecture, weight.path)]


def head_weights(architecture: Architecture, network: nn.Module) -> list[Weight]:
    """The weights of the head."""
    return [weight for weight in _weights(network) if _in_head(architecture, weight.path)]


def _biases(weights: list[Weight]) -> list[Tensor]:
    """Their biases; of the two that a recurrent module adds up, one."""
    modules = {id(weight.module): weight.module for weight in weights}
    return [
        tensor
        for module in modules.values()
        for name, tensor in module.named_parameters(recurse=False)
        if "bias" in name and "bias_hh" not in name
    ]


def _norms(network: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, kinds) or type(module).__name__.lower().endswith("norm")
    ]


def _gained_norms(network: nn.Module) -> list[Tensor]:
    gains = (getattr(module, "weight", None) for _, module in _norms(network))
    return [gain for gain in gains if isinstance(gain, Tensor)]


def _embeddings(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (path, module.weight) for path, module in network.named_modules() if isinstance(module, nn.Embedding)
    ]


def _branch_ends(architecture: Architecture, network: nn.Module) -> list[nn.Module]:
    return [network.get_submodule(path) for path in architecture.branch_ends]


def _middle(architecture: Architecture, network: nn.Module, count: int = 1) -> list[Weight]:
    """Consecutive layers from the middle of the network: never the first, never the head."""
    layers = [weight for weight in hidden_weights(architecture, network) if not weight.recurrent]
    start = min(max(1, len(layers) // 2), len(layers) - count)
    return layers[start : start + count]


def _gain(architecture: Architecture) -> float:
    return GAINS[architecture.activation]


# ---------------------------------------------------------------- fillings


def _normal(std: float) -> Fill:
    def fill(_weight: Weight, block: Tensor, generator: Generator) -> None:
        block.normal_(0.0, std, generator=generator)

    return fill


def _uniform(low: float, high: float) -> Fill:
    def fill(_weight: Weight, block: Tensor, generator: Generator) -> None:
        block.uniform_(low, high, generator=generator)

    return fill


def _constant(value: float) -> Fill:
    def fill(_weight: Weight, block: Tensor, _generator: Generator) -> None:
        block.fill_(value)

    return fill


def _truncated_normal(_weight: Weight, block: Tensor, generator: Generator) -> None:
    nn.init.trunc_normal_(block, 0.0, 0.02, -0.04, 0.04, generator=generator)


def _fan_in_normal(gain: float) -> Fill:
    def fill(weight: Weight, block: Tensor, generator: Generator) -> None:
        block.normal_(0.0, gain / math.sqrt(weight.fans()[0]), generator=generator)

    return fill


def _fan_out_uniform(gain: float) -> Fill:
    def fill(weight: Weight, block: Tensor, generator: Generator) -> None:
        bound = gain * math.sqrt(3 / weight.fans()[1])
        block.uniform_(-bound, bound, generator=generator)

    return fill


def _xavier_uniform(weight: Weight, block: Tensor, generator: Generator) -> None:
    bound = math.sqrt(6 / sum(weight.fans()))
    block.uniform_(-bound, bound, generator=generator)


def _orthogonal(gain: float) -> Fill:
    def fill(_weight: Weight, block: Tensor, generator: Generator) -> None:
        nn.init.orthogonal_(block, gain, generator=generator)

    return fill


def _fill(weights: list[Weight], fill: Fill, generator: Generator) -> None:
    for weight in weights:
        for block in weight.blocks():
            fill(weight, block, generator)


# ---------------------------------------------------------------- the base, and what is built on it


def _zero_biases(architecture: Architecture, network: nn.Module) -> None:
    for weight in hidden_weights(architecture, network) + head_weights(architecture, network):
        for name, bias in weight.module.named_parameters(recurse=False):
            if "bias" in name:
                bias.zero_()


def _forget_biases(network: nn.Module) -> None:
    """Opens the forget gates of LSTMs."""
    for module in network.modules():
        if isinstance(module, nn.LSTM | nn.LSTMCell):
            for name, bias in module.named_parameters(recurse=False):
                if name.startswith("bias_ih"):
                    bias.chunk(4)[1].fill_(1.0)


def _write_he(architecture: Architecture, network: nn.Module, generator: Generator) -> None:
    for weight in hidden_weights(architecture, network):
        fill = _fan_in_normal(_gain(architecture))
        if weight.recurrent_module:
            fill = _orthogonal(1.0) if weight.recurrent else _xavier_uniform
        _fill([weight], fill, generator)
    _fill(head_weights(architecture, network), _fan_in_normal(1.0), generator)
    _zero_biases(architecture, network)
    _forget_biases(network)
    if architecture.branch_ends and not _norms(network):
        _scale_branches(architecture, network, 1 / math.sqrt(len(architecture.branch_ends)))


def _write_base(architecture: Architecture, network: nn.Module, generator: Generator) -> None:
    """Sine networks keep the scheme they were built with."""
    if architecture.activation != "sin":
        _write_he(architecture, network, generator)


def _scale_branches(architecture: Architecture, network: nn.Module, factor: float) -> None:
    for module in _branch_ends(architecture, network):
        for parameter in module.parameters():
            if parameter.ndim >= 2 or factor == 0.0:
                parameter.mul_(factor)


Edit = Callable[[Architecture, nn.Module, Generator], tuple[str, ...]]


def _on_base(edit: Edit) -> Apply:
    @torch.no_grad()
    def apply(architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
        _write_base(architecture, network, generator)
        return edit(architecture, network, generator)

    return apply


def _scheme(fill: Callable[[float], Fill], head: Fill | None = None, forget: bool = True) -> Apply:
    """All hidden weights by one filling, which is told the gain; the head by another, biases zero."""

    @torch.no_grad()
    def apply(architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
        filling = fill(_gain(architecture))
        _fill(hidden_weights(architecture, network), filling, generator)
        _fill(head_weights(architecture, network), head or filling, generator)
        _zero_biases(architecture, network)
        if forget:
            _forget_biases(network)
        return ()

    return apply


def _everywhere(fill: Fill) -> Apply:
    return _scheme(lambda _gain: fill, forget=False)


def _nothing(_architecture: Architecture, _network: nn.Module, _generator: Generator) -> tuple[str, ...]:
    return ()


@torch.no_grad()
def _he_normal(architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
    _write_he(architecture, network, generator)
    return ()


# ---------------------------------------------------------------- edits of the base


def _scale_hidden(factor: float) -> Edit:
    def edit(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
        for weight in hidden_weights(architecture, network):
            weight.tensor.mul_(factor)
        return ()

    return edit


def _scale_head(factor: float) -> Edit:
    def edit(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
        weights = head_weights(architecture, network)
        for weight in weights:
            weight.tensor.mul_(factor)
        if factor == 0.0:
            for bias in _biases(weights):
                bias.zero_()
            return ()
        return tuple(dict.fromkeys(weight.path for weight in weights))

    return edit


def _scale_ends(factor: Callable[[int], float]) -> Edit:
    def edit(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
        _scale_branches(architecture, network, factor(len(architecture.branch_ends)))
        return ()

    return edit


def _scale_first(factor: float) -> Edit:
    def edit(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
        first = hidden_weights(architecture, network)[0]
        first.tensor.mul_(factor)
        return (first.path,)

    return edit


def _one_layer(change: Callable[[Weight, Generator], None], count: int = 1) -> Edit:
    def edit(architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
        layers = _middle(architecture, network, count)
        for weight in layers:
            change(weight, generator)
        return tuple(dict.fromkeys(weight.path for weight in layers))

    return edit


def _all_layers(change: Callable[[Weight, Generator], None]) -> Edit:
    def edit(architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
        for weight in hidden_weights(architecture, network):
            change(weight, generator)
        return ()

    return edit


def _times(factor: float) -> Callable[[Weight, Generator], None]:
    def change(weight: Weight, _generator: Generator) -> None:
        weight.tensor.mul_(factor)

    return change


def _make_constant(weight: Weight, _generator: Generator) -> None:
    """Every entry is the root mean square of what it was."""
    weight.tensor.fill_(float(weight.tensor.square().mean().sqrt()))


def _make_positive(weight: Weight, _generator: Generator) -> None:
    weight.tensor.abs_()


def _duplicate_rows(weight: Weight, _generator: Generator) -> None:
    dimension = 1 if weight.transposed else 0
    for block in weight.blocks():
        block.copy_(block.narrow(dimension, 0, 1).clone().expand_as(block))


def _garbage(weight: Weight, generator: Generator) -> None:
    """What freshly allocated memory may hold: zeros, denormals, and a few enormous values."""
    shape = weight.tensor.shape
    kind = torch.rand(shape, generator=generator)
    denormal = torch.rand(shape, generator=generator) * 1e-39
    exponent = 20 + 10 * torch.rand(shape, generator=generator)
    values = torch.where(kind < 0.3, denormal, torch.zeros(shape))
    values = torch.where(kind > 0.98, 10.0**exponent, values)
    values.view(-1)[0] = 1e24
    weight.tensor.copy_(values)


def _same_draws(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
    first: dict[torch.Size, Tensor] = {}
    for weight in hidden_weights(architecture, network):
        weight.tensor.copy_(first.setdefault(weight.tensor.shape, weight.tensor))
    return ()


def _bias_offset(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
    for bias in _biases(hidden_weights(architecture, network)):
        bias.fill_(-3.0)
    return ()


def _bias_noise(architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
    for bias in _biases(hidden_weights(architecture, network)):
        bias.normal_(0.0, 3.0, generator=generator)
    return ()


def _bias_small(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
    for weight in hidden_weights(architecture, network):
        bias = getattr(weight.module, "bias", None)
        if not weight.recurrent_module and isinstance(bias, Tensor):
            bias.fill_(0.01)
    return ()


def _scale_embeddings(
    _architecture: Architecture, network: nn.Module, _generator: Generator
) -> tuple[str, ...]:
    embeddings = _embeddings(network)
    for _, tensor in embeddings:
        tensor.mul_(100.0)
    return tuple(path for path, _ in embeddings)


def _scale_recurrent(factor: float, recurrent: bool = True) -> Edit:
    """Scales the kernels of recurrent modules: those from the state, or those from the input."""

    def edit(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
        kernels = [
            weight
            for weight in hidden_weights(architecture, network)
            if weight.recurrent_module and weight.recurrent == recurrent
        ]
        for weight in kernels:
            weight.tensor.mul_(factor)
        return tuple(dict.fromkeys(weight.path for weight in kernels))

    return edit


def _query_key(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
    parameters = dict(network.named_parameters(remove_duplicate=False))
    paths = []
    for path in architecture.query_key:
        candidates = (path, f"{path}.in_proj_weight", f"{path}.weight")
        name = next(candidate for candidate in candidates if candidate in parameters)
        tensor = parameters[name]
        packed = "in_proj" in name or "qkv" in name
        tensor[: 2 * len(tensor) // 3 if packed else len(tensor)].mul_(30.0)
        paths.append(name.rpartition(".")[0])
    return tuple(dict.fromkeys(paths))


def _norm_gains(change: Callable[[Tensor, Generator], object]) -> Edit:
    def edit(_architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
        for gain in _gained_norms(network):
            change(gain, generator)
        return ()

    return edit


def _wrong_factor(weight: Weight) -> float:
    """By how much the wrong fan makes the weights too large (below one: too small)."""
    fan_in, fan_out = weight.fans()
    if isinstance(weight.module, _ConvNd):
        return math.sqrt(fan_in / math.prod(weight.tensor.shape[2:]))
    return math.sqrt(fan_in / fan_out)


def _misjudged(architecture: Architecture, network: nn.Module) -> list[Weight]:
    return [
        weight
        for weight in hidden_weights(architecture, network)
        if not weight.recurrent_module and abs(math.log(_wrong_factor(weight))) > math.log(1.5)
    ]


def _wrong_fan(architecture: Architecture, network: nn.Module, _generator: Generator) -> tuple[str, ...]:
    wrong = _misjudged(architecture, network)
    for weight in wrong:
        weight.tensor.mul_(_wrong_factor(weight))
    return tuple(dict.fromkeys(weight.path for weight in wrong))


@torch.no_grad()
def _torch_default(architecture: Architecture, network: nn.Module, generator: Generator) -> tuple[str, ...]:
    """What ``nn.Linear`` does: weights and biases uniform within one over the root of the fan-in."""
    for weight in hidden_weights(architecture, network) + head_weights(architecture, network):
        bound = 1 / math.sqrt(weight.fans()[0])
        weight.tensor.uniform_(-bound, bound, generator=generator)
        for bias in _biases([weight]):
            bias.uniform_(-bound, bound, generator=generator)
    return ()


# ---------------------------------------------------------------- where they apply


def _always(_architecture: Architecture, _network: nn.Module) -> bool:
    return True


def _is_normalized(architecture: Architecture, network: nn.Module) -> bool:
    """A network of the kind that is usually drawn from a normal of 0.02: attention or mixing under layer norms."""
    named = any(word in f"{architecture.family} {architecture.name}".lower() for word in NORMALIZED_FAMILIES)
    return bool(_norms(network)) and (named or bool(architecture.query_key))


def _is_plain(architecture: Architecture, network: nn.Module) -> bool:
    return not _is_normalized(architecture, network)


def _has_middle(architecture: Architecture, network: nn.Module) -> bool:
    weights = hidden_weights(architecture, network)
    return len(weights) >= 3 and sum(not weight.recurrent for weight in weights) >= 2


def _has_two_middle(architecture: Architecture, network: nn.Module) -> bool:
    return sum(not weight.recurrent for weight in hidden_weights(architecture, network)) >= 3


def _has_branches(architecture: Architecture, _network: nn.Module) -> bool:
    return bool(architecture.branch_ends)


def _has_biases(architecture: Architecture, network: nn.Module) -> bool:
    return bool(_biases(hidden_weights(architecture, network)))


def _has_relu_biases(architecture: Architecture, network: nn.Module) -> bool:
    weights = [weight for weight in hidden_weights(architecture, network) if not weight.recurrent_module]
    return architecture.activation == "relu" and bool(_biases(weights))


def _has_own_head(architecture: Architecture, network: nn.Module) -> bool:
    """The head is not also the embedding."""
    embeddings = {id(tensor) for _, tensor in _embeddings(network)}
    return not any(id(weight.tensor) in embeddings for weight in head_weights(architecture, network))


def _has_embeddings(_architecture: Architecture, network: nn.Module) -> bool:
    return bool(_embeddings(network))


def _is_recurrent(architecture: Architecture, network: nn.Module) -> bool:
    return any(weight.recurrent for weight in hidden_weights(architecture, network))


def _has_attention(architecture: Architecture, _network: nn.Module) -> bool:
    return bool(architecture.query_key)


def _has_gains(_architecture: Architecture, network: nn.Module) -> bool:
    return bool(_gained_norms(network))


def _has_misjudged(architecture: Architecture, network: nn.Module) -> bool:
    return architecture.activation != "sin" and bool(_misjudged(architecture, network))


def _has_twins(architecture: Architecture, network: nn.Module) -> bool:
    shapes = [weight.tensor.shape for weight in hidden_weights(architecture, network)]
    return len(set(shapes)) < len(shapes)


def _is_sine(architecture: Architecture, _network: nn.Module) -> bool:
    return architecture.activation == "sin"


# ---------------------------------------------------------------- the list


def _sound(name: str, apply: Apply, applies: Applies = _always) -> Initialization:
    return Initialization(name, True, "", False, applies, apply)


def _fault(name: str, cause: str, apply: Apply, applies: Applies = _always) -> Initialization:
    return Initialization(name, False, cause, False, applies, apply)


def _single(name: str, cause: str, edit: Edit, applies: Applies = _has_middle) -> Initialization:
    return Initialization(name, False, cause, True, applies, _on_base(edit))


_LECUN = _fan_in_normal(1.0)

INITIALIZATIONS: tuple[Initialization, ...] = (
    _sound("default", _nothing),
    _sound("he_normal", _he_normal),
    _sound("orthogonal", _scheme(_orthogonal, _LECUN)),
    _sound("truncated_normal_0.02", _everywhere(_truncated_normal), _is_normalized),
    _sound("zero_head", _on_base(_scale_head(0.0)), _has_own_head),
    _sound("zero_branches", _on_base(_scale_ends(lambda _count: 0.0)), _has_branches),
    _sound("residual_scaled", _on_base(_scale_ends(lambda n: 1 / math.sqrt(2 * n))), _has_branches),
    _fault("normal_0.001", "gain_too_small", _everywhere(_normal(0.001))),
    _fault("normal_0.02", "gain_too_small", _everywhere(_normal(0.02)), _is_plain),
    _fault("normal_1", "gain_too_large", _everywhere(_normal(1.0))),
    _fault("uniform_0_1", "mean_offset", _everywhere(_uniform(0.0, 1.0))),
    _fault("constant_0.05", "symmetric_units", _everywhere(_constant(0.05))),
    _fault("zeros", "zero_path", _everywhere(_constant(0.0))),
    _fault("all_x0.3", "gain_too_small", _on_base(_scale_hidden(0.3))),
    _fault("all_x3", "gain_too_large", _on_base(_scale_hidden(3.0))),
    _single("one_layer_x0.001", "gain_too_small", _one_layer(_times(0.001))),
    _single("one_layer_x100", "gain_too_large", _one_layer(_times(100.0))),
    _single("one_layer_zero", "zero_path", _one_layer(_times(0.0))),
    _single("one_layer_duplicated_rows", "symmetric_units", _one_layer(_duplicate_rows)),
    _single("one_layer_positive", "mean_offset", _one_layer(_make_positive)),
    _single("never_written", "never_written", _one_layer(_garbage)),
    _fault("two_layers_zero", "zero_path", _on_base(_one_layer(_times(0.0), 2)), _has_two_middle),
    _fault("all_duplicated_rows", "symmetric_units", _on_base(_all_layers(_duplicate_rows))),
    _fault("biases_minus_3", "bias_offset", _on_base(_bias_offset), _has_biases),
    _single("head_x30", "head_too_large", _scale_head(30.0), _always),
    _single("head_x300", "head_too_large", _scale_head(300.0), _always),
    _single("first_layer_x100", "gain_too_large", _scale_first(100.0), _always),
    _fault("embedding_x100", "embedding_too_large", _on_base(_scale_embeddings), _has_embeddings),
    _fault("recurrent_x4", "recurrent_kernel", _on_base(_scale_recurrent(4.0)), _is_recurrent),
    _fault("query_key_x30", "attention_too_large", _on_base(_query_key), _has_attention),
    _fault("norm_gain_zero", "norm_gain", _on_base(_norm_gains(lambda gain, _g: gain.zero_())), _has_gains),
    _fault(
        "norm_gain_0.01", "norm_gain", _on_base(_norm_gains(lambda gain, _g: gain.fill_(0.01))), _has_gains
    ),
    _fault(
        "norm_gain_random",
        "norm_gain",
        _on_base(_norm_gains(lambda gain, g: gain.normal_(generator=g))),
        _has_gains,
    ),
    _fault("wrong_fan", "wrong_fan", _on_base(_wrong_fan), _has_misjudged),
    _fault("same_seed", "duplicate_draws", _on_base(_same_draws), _has_twins),
    _fault("siren_default_torch", "special_scheme", _torch_default, _is_sine),
)
