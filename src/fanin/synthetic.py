r"""A multilayer perceptron in NumPy, trained for a few steps and seen as a trial: what rules are tested with.

With h₀ = x and pre-activations z, the plain network and the residual one are, for block i,

    plain:       z = W h + b             h ← φ(z)
    residual:    z = W₁ h + b₁           h ← h + W₂ φ(z) + b₂

then logits = W_head h + b_head, softmax cross-entropy, the exact gradient, and W ← W - lr ∂L/∂W. Everything
is float64; what overflows becomes infinite without a word, as it does on an accelerator.

Layers are called `blocks.0.fc` (`fc1` and `fc2` when residual) and `head`, and activation inputs
`blocks.0.relu_input_0`, as SageMaker Debugger would call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from fanin.scheme import ACTIVATIONS, GLOROT_UNIFORM, HE_NORMAL, LECUN_NORMAL, InitScheme
from fanin.summary import Floats, Ints, summarize
from fanin.trial import (
    NETWORK_INPUT,
    ActivationSpec,
    Kind,
    LayerSpec,
    Mode,
    ModelSpec,
    Observation,
    ParameterSpec,
    Role,
    Step,
    Trial,
)

Init = Callable[[np.random.Generator, tuple[int, ...]], Floats]
"""Draws a parameter of a shape: [fan_out, fan_in] for a weight, [fan_out] for a bias."""

Batch = tuple[Floats, Ints]
"""Inputs [batch, features] and labels [batch]."""

NOISE = 0.5
"""Standard deviation of a cluster around its centre: far enough apart that ten steps show progress."""

SLOPES: dict[str, Callable[[Floats], Floats]] = {
    "identity": np.ones_like,
    "relu": lambda z: np.where(
        z > 0, 1.0, 0.0
    ),  # 0 at 0, as every framework has it: a zero layer then stays put
    "tanh": lambda z: 1 - np.tanh(z) ** 2,
    "sigmoid": lambda z: ACTIVATIONS["sigmoid"](z) * (1 - ACTIVATIONS["sigmoid"](z)),
}
"""φ′ of the activations that these networks can have."""


def normal(std: float) -> Init:
    """N(0, std²), whatever the fans."""
    return lambda rng, shape: rng.normal(0.0, std, shape)


def constant(value: float) -> Init:
    """The same value everywhere."""
    return lambda rng, shape: np.full(shape, value)


def scaled(scheme: InitScheme, factor: float = 1.0) -> Init:
    """Draws a weight by a scheme (normal or uniform, as its name says), times a factor."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        std = factor * scheme.std(fan_in=shape[1], fan_out=shape[0])
        if scheme.name.endswith("uniform"):
            return rng.uniform(-sqrt(3) * std, sqrt(3) * std, shape)
        return rng.normal(0.0, std, shape)

    return draw


def tiled(init: Init, rows: int = 1) -> Init:
    """Draws this many rows and repeats them in turn: a weight whose units have twins."""
    return lambda rng, shape: np.resize(init(rng, (rows, *shape[1:])), shape)


INITS: dict[str, Init] = {
    **{scheme.name: scaled(scheme) for scheme in (HE_NORMAL, LECUN_NORMAL, GLOROT_UNIFORM)},
    "zeros": constant(0.0),
    "ones": constant(1.0),
}
"""Initializers by name."""


def clusters(features: int, classes: int = 10, size: int = 128, seed: int = 0) -> Batch:
    """A batch of Gaussian clusters: inputs [size, features] of about unit variance, and labels [size]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    centres = rng.normal(0.0, sqrt(1 - NOISE**2), (classes, features))
    return centres[labels] + rng.normal(0.0, NOISE, (size, features)), labels


def mlp(
    widths: tuple[int, ...] = (32,) * 6 + (10,),
    init: Init | str = "he_normal",
    activation: str = "relu",
    *,
    overrides: Mapping[str, Init | str] | None = None,
    residual: bool = False,
    steps: int = 1,
    lr: float = 0.05,
    batch: Batch | None = None,
    reference: bool = False,
    seed: int = 0,
) -> Trial:
    """A trial of a network that is trained on one batch.

    Args:
        widths: Features of the input, of each block's output, and classes; residual blocks need equal widths.
        init: For weights: a function, or a name in INITS. Biases start at zero.
        activation: A name in SLOPES.
        overrides: Other initializers by the parameter's full name, e.g. `{"head.weight": "zeros"}`.
        residual: Whether each block adds a branch of two layers to what it is given.
        steps: How many steps to train and watch.
        lr: Learning rate of plain gradient descent.
        batch: What to train on; `clusters` when not given.
        reference: Whether to show the same network drawn by he_normal (lecun_normal but for ReLU) on the same batch.
        seed: Of the weights and of the clusters.

    >>> trial = mlp((8, 16, 16, 4), steps=2)
    >>> [layer.path for layer in trial.spec.layers], round(trial.start.loss, 2)
    (['blocks.0.fc', 'blocks.1.fc', 'head'], 2.0)
    """
    network = Network(activation, residual, len(widths) - 2)
    network.draw(widths, INITS[init] if isinstance(init, str) else init, overrides or {}, seed)
    x, labels = batch or clusters(widths[0], widths[-1], seed=seed)
    with np.errstate(all="ignore"):
        watched = tuple(network.step(i, x, labels, lr) for i in range(steps))
    if reference:
        sound = Network(activation, residual, len(widths) - 2)
        sound.draw(widths, INITS["he_normal" if activation == "relu" else "lecun_normal"], {}, seed + 1)
        watched += (replace(sound.step(0, x, labels, lr), mode=Mode.REFERENCE),)
    return Trial(network.describe(), watched)


def seen(
    layers: Iterable[LayerSpec],
    values: Mapping[tuple[str, Role], ArrayLike],
    *,
    outputs: tuple[str, ...] = (),
    loss: float = 1.0,
) -> Trial:
    """A trial of one step made by hand, for what these networks do not have: layers, and what was seen of them.

    Args:
        layers: In forward order.
        values: Values by layer and role. Units are the rows of parameters and their gradients, and the last axis of
            all else.
        outputs: Paths of the layers that reach the output.
        loss: At that step.
    """
    kept = tuple(_seen(path, role, np.asarray(x, np.float64)) for (path, role), x in values.items())
    spec = ModelSpec("ByHand", f"numpy {np.__version__}", tuple(layers), outputs=outputs)
    return Trial(spec, (Step(0, observations=kept, losses={0: loss}),))


def _seen(path: str, role: Role, x: Floats) -> Observation:
    parameter = {
        Role.WEIGHT: "weight",
        Role.UPDATE: "weight",
        Role.WEIGHT_GRAD: "weight",
        Role.BIAS: "bias",
    }.get(role)
    name = f"{path}.{parameter}" if parameter else f"{path}_{role.value}_0"
    name = f"gradient/{name}" if role in (Role.WEIGHT_GRAD, Role.OUTPUT_GRAD) else name
    axis = None if x.ndim == 0 else 0 if parameter else x.ndim - 1
    return Observation(path, role, name, summarize(x, histogram=True, unit_axis=axis), x.shape, "float32")


@dataclass(slots=True)
class Network:
    """Parameters by full name, and what the last pass left behind, by layer."""

    activation: str
    residual: bool
    blocks: int
    parameters: dict[str, Floats] = field(default_factory=dict)
    inputs: dict[str, Floats] = field(default_factory=dict)
    outputs: dict[str, Floats] = field(default_factory=dict)
    output_grads: dict[str, Floats] = field(default_factory=dict)
    grads: dict[str, Floats] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        """Layers in forward order."""
        names = ("fc1", "fc2") if self.residual else ("fc",)
        return [f"blocks.{i}.{name}" for i in range(self.blocks) for name in names] + ["head"]

    def draw(self, widths: tuple[int, ...], init: Init, others: Mapping[str, Init | str], seed: int) -> None:
        """Initialize every parameter, each from a stream of its own: an override leaves the others alone."""
        per_block = 2 if self.residual else 1
        for i, path in enumerate(self.paths):
            block = i // per_block
            shapes = {"weight": (widths[block + 1], widths[block]), "bias": (widths[block + 1],)}
            for j, (name, shape) in enumerate(shapes.items()):
                chosen = others.get(f"{path}.{name}", init if name == "weight" else "zeros")
                draw = INITS[chosen] if isinstance(chosen, str) else chosen
                self.parameters[f"{path}.{name}"] = draw(np.random.default_rng([seed, i, j]), shape)

    def forward(self, x: Floats) -> Floats:
        """Logits [batch, classes] of inputs [batch, features]."""
        φ = ACTIVATIONS[self.activation]
        h = x
        for i in range(self.blocks):
            if self.residual:
                h = h + self._apply(f"blocks.{i}.fc2", φ(self._apply(f"blocks.{i}.fc1", h)))
            else:
                h = φ(self._apply(f"blocks.{i}.fc", h))
        return self._apply("head", h)

    def backward(self, δ: Floats) -> Floats:
        """∂L/∂x [batch, features] given ∂L/∂logits [batch, classes]; fills `grads`."""
        slope = SLOPES[self.activation]
        δ = self._pull("head", δ)
        for i in reversed(range(self.blocks)):
            if self.residual:
                inner = self._pull(f"blocks.{i}.fc2", δ) * slope(self.outputs[f"blocks.{i}.fc1"])
                δ = δ + self._pull(f"blocks.{i}.fc1", inner)
            else:
                δ = self._pull(f"blocks.{i}.fc", δ * slope(self.outputs[f"blocks.{i}.fc"]))
        return δ

    def step(self, index: int, x: Floats, labels: Ints, lr: float) -> Step:
        """Forward, backward, and only then the update: what is seen precedes it."""
        loss, δ = cross_entropy(self.forward(x), labels)
        self.backward(δ)
        seen = (*(o for path in self.paths for o in self._observe(path)), *_beside(labels))
        self.parameters = {name: p - lr * self.grads[name] for name, p in self.parameters.items()}
        return Step(index, observations=seen, losses={0: loss})

    def describe(self) -> ModelSpec:
        """The network in neutral words."""
        layers = tuple(self._layer(path) for path in self.paths)
        activations = tuple(
            ActivationSpec(self._activation_input(layer.path), self.activation, (layer.path,))
            for layer in layers
            if layer.activation
        )
        return ModelSpec("MLP", f"numpy {np.__version__}", layers, activations, outputs=("head",))

    def _apply(self, path: str, h: Floats) -> Floats:
        z = h @ self.parameters[f"{path}.weight"].T + self.parameters[f"{path}.bias"]
        self.inputs[path], self.outputs[path] = h, z
        return z

    def _pull(self, path: str, δ: Floats) -> Floats:
        self.output_grads[path] = δ
        self.grads[f"{path}.weight"] = δ.T @ self.inputs[path]
        self.grads[f"{path}.bias"] = δ.sum(axis=0)
        return np.asarray(δ @ self.parameters[f"{path}.weight"])

    def _observe(self, path: str) -> list[Observation]:
        weight = f"{path}.weight"
        seen = [
            (Role.WEIGHT, weight, self.parameters[weight], 0),
            (Role.BIAS, f"{path}.bias", self.parameters[f"{path}.bias"], 0),
            (Role.INPUT, f"{path}_input_0", self.inputs[path], 1),
            (Role.OUTPUT, f"{path}_output_0", self.outputs[path], 1),
            (Role.OUTPUT_GRAD, f"gradient/{path}_output_0", self.output_grads[path], 1),
            (Role.WEIGHT_GRAD, f"gradient/{weight}", self.grads[weight], 0),
        ]
        if self._is_activated(path):
            seen.append((Role.ACTIVATION_INPUT, self._activation_input(path), self.outputs[path], 1))
        return [
            Observation(path, role, name, summarize(x, histogram=True, unit_axis=axis), x.shape, str(x.dtype))
            for role, name, x, axis in seen
        ]

    def _is_activated(self, path: str) -> bool:
        return path.endswith(("fc", "fc1")) and self.activation != "identity"

    def _activation_input(self, path: str) -> str:
        return f"{path.rpartition('.')[0]}.{self.activation}_input_0"

    def _layer(self, path: str) -> LayerSpec:
        weight = self.parameters[f"{path}.weight"]
        fan_out, fan_in = weight.shape
        parameters = (
            ParameterSpec("weight", Role.WEIGHT, weight.shape, "float64", fan_in, fan_out, unit_axis=0),
            ParameterSpec("bias", Role.BIAS, (fan_out,), "float64", unit_axis=0),
        )
        inputs = self._fed_by(path)
        return LayerSpec(
            path,
            Kind.LINEAR,
            "Linear",
            parameters,
            inputs,
            joins="sum" if len(inputs) > 1 else "",
            activation=self.activation if self._is_activated(path) else None,
            input_activation=self.activation if self._is_activated(inputs[-1]) else "identity",
            calls=1,
        )

    def _fed_by(self, path: str) -> tuple[str, ...]:
        before = self.paths[: self.paths.index(path)]
        if not self.residual:
            return (before[-1] if before else NETWORK_INPUT,)
        if path.endswith("fc2"):
            return (before[-1],)
        return (NETWORK_INPUT, *(p for p in before if p.endswith("fc2")))


def _beside(labels: Ints) -> tuple[Observation, ...]:
    """What is known without the network: the loss of always answering with the classes' frequencies."""
    share = np.bincount(labels) / len(labels)
    entropy = -float((share[share > 0] * np.log(share[share > 0])).sum())
    return (_seen(NETWORK_INPUT, Role.UNINFORMED_LOSS, np.asarray([entropy])),)


def cross_entropy(logits: Floats, labels: Ints) -> tuple[float, Floats]:
    """Mean of -log softmax(logits)[label], and its gradient [batch, classes]."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    p = p / p.sum(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
    δ = p.copy()
    δ[rows, labels] -= 1
    return float(loss.mean()), δ / len(labels)
