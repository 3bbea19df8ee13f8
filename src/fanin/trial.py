"""The trial: one model watched for some steps. Immutable, without I/O, the same for every framework."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import reduce
from hashlib import sha256
from importlib import import_module
from math import nan, prod
from pathlib import PurePath

from fanin.race import Race
from fanin.summary import TensorSummary

NETWORK_INPUT = ""
"""In `LayerSpec.inputs`: the batch itself, rather than a layer."""

RECHECK = 5
"""The training step at which the signal is looked at again. Zero heads and zero branches look dead at step 0 and cure
themselves with the first updates; after five steps the gradient's size separates sound starts from poor ones better
(AUC 0.93 against 0.86 at step 0, 414 networks labelled by training)."""

SMDEBUG = "SageMaker Debugger"
"""`Trial.about["written_by"]` of a trial that it wrote: tensors by name, and no graph."""

IDENTITY = "identity"
"""Key of `Trial.about`: what tells this run from every other, also from a later one at the same address."""

DRAWN = re.compile(r"[0-9A-Za-z._-]{1,64}")
"""What can be an identity; anybody may have written the trial, and it is copied into files and messages."""


class Role(StrEnum):
    """What a tensor is to its layer."""

    WEIGHT = "weight"
    BIAS = "bias"
    INPUT = "input"
    OUTPUT = "output"
    ACTIVATION_INPUT = "activation_input"
    OUTPUT_GRAD = "output_grad"
    WEIGHT_GRAD = "weight_grad"
    ATTENTION_ENTROPY = "attention_entropy"
    """Entropy of each query's attention over what it may attend to, divided by the logarithm of their number: 1 is
    uniform, 0 is a single one (values [batch, heads, queries]; a sample of the batch)."""
    UPDATE = "update"
    """What training has changed of a weight since step 0."""
    TARGET = "target"
    """What the loss compares the network's output with; layer NETWORK_INPUT."""
    UNINFORMED_LOSS = "uninformed_loss"
    """The loss of the best output that does not depend on the input, one value; layer NETWORK_INPUT."""


class Mode(StrEnum):
    """Whether the model was training or evaluating; REFERENCE is the same architecture on the same batch, its weights
    drawn anew by a sound scheme: the yardstick that needs no theory."""

    TRAIN = "train"
    EVAL = "eval"
    REFERENCE = "reference"


class Kind(StrEnum):
    """What a layer does, in words that every framework shares; OTHER is whatever is not known."""

    LINEAR = "linear"
    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    EMBEDDING = "embedding"
    NORM = "norm"
    RECURRENT = "recurrent"
    ATTENTION = "attention"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of somebody's code."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A parameter of a layer.

    Attributes:
        name: Within its layer, e.g. `weight`; empty where the parameter is the layer.
        role: WEIGHT or BIAS; a normalization's gain is a WEIGHT of a NORM layer.
        shape: As the framework stores it.
        dtype: E.g. `float32`.
        fan_in, fan_out: Terms summed into one output, and outputs that one input reaches (Glorot and Bengio 2010),
            groups and packed projections counted right; None where not known.
        unit_axis: The axis that counts output units; None where not known.
        trainable: Whether gradients reach it.
        tied_to: Full name of an earlier parameter that shares its memory, or of the weight that is computed from it
            and others (weight_norm, spectral_norm).
        source: The line that last wrote it; None where that cannot be known.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    dtype: str = "float32"
    fan_in: int | None = None
    fan_out: int | None = None
    unit_axis: int | None = None
    trainable: bool = True
    tied_to: str | None = None
    source: SourceLine | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer: whatever owns parameters of its own.

    Attributes:
        path: Where it is in the model, e.g. `blocks.7.fc1`; of a bare parameter that is used like a layer's weight the
            parameter's own.
        kind: What it does.
        type_name: The framework's name for it, e.g. `Linear`.
        parameters: Its own parameters.
        inputs: Paths of the layers that feed it, NETWORK_INPUT for the batch; empty where not known.
        joins: How several inputs meet: `sum`, `product` (a gate), `concatenation` or `other`; empty for a single input.
        activation: The activation that consumes its output, e.g. `relu`; None where not known.
        input_activation: The activation that its input last passed since `inputs`, `identity` for none; None where
            not known.
        calls: How often it ran in the first watched step.
    """

    path: str
    kind: Kind
    type_name: str
    parameters: tuple[ParameterSpec, ...] = ()
    inputs: tuple[str, ...] = ()
    joins: str = ""
    activation: str | None = None
    input_activation: str | None = None
    calls: int = 0

    @property
    def weights(self) -> tuple[ParameterSpec, ...]:
        """Its parameters with the role WEIGHT."""
        return tuple(p for p in self.parameters if p.role is Role.WEIGHT)

    def parameter_path(self, parameter: ParameterSpec) -> str:
        """The parameter's full name, e.g. `blocks.7.fc1.weight`."""
        return ".".join(part for part in (self.path, parameter.name) if part)


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """An activation that ran.

    Attributes:
        tensor: Name of its input, e.g. `blocks.0.relu_input_0`.
        function: E.g. `relu`.
        inputs: Paths of the layers whose output it takes.
    """

    tensor: str
    function: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model in words that every framework shares.

    Attributes:
        name: The model's class.
        framework: E.g. `torch 2.13.0`.
        layers: In forward order; layers that never ran come last, in the order of construction.
        activations: In forward order.
        outputs: Paths of the layers whose output reaches the model's output; empty where not known.
        notes: What could not be watched, and why, one sentence each.
        optimizer: What was seen to step, by class and settings (`SGD lr=0.05`); empty where none was.
    """

    name: str
    framework: str
    layers: tuple[LayerSpec, ...] = ()
    activations: tuple[ActivationSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    optimizer: str = ""

    def layer(self, path: str) -> LayerSpec:
        """The layer at this path.

        Raises:
            KeyError: There is none.
        """
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(f"no layer {path!r} in {self.name}")

    def readers(self) -> dict[str, list[LayerSpec]]:
        """The layers that are given each layer's output, by its path. Made anew each time."""
        found: defaultdict[str, list[LayerSpec]] = defaultdict(list)
        for layer in self.layers:
            for path in dict.fromkeys(layer.inputs):
                found[path].append(layer)
        return dict(found)

    @property
    def entrances(self) -> tuple[str, ...]:
        """Paths of the layers that are given the batch and nothing else; the first one where that is not known. What
        the batch reaches in a sum with other layers' outputs does not count: theirs may be the fault."""
        alone = tuple(layer.path for layer in self.layers if layer.inputs == (NETWORK_INPUT,))
        return alone or tuple(layer.path for layer in self.layers[:1])

    @property
    def weight_layers(self) -> tuple[LayerSpec, ...]:
        """The layers that mix their inputs with weights: not norms, not bare gains and biases."""
        return tuple(layer for layer in self.layers if layer.kind is not Kind.NORM and layer.weights)


@dataclass(frozen=True, slots=True)
class Observation:
    """One tensor, seen once.

    Attributes:
        layer: Path of the layer that it belongs to.
        role: What it is to that layer.
        tensor: Its name, in the convention of SageMaker Debugger where there is one (`gradient/fc.weight`).
        summary: Its statistics.
        shape, dtype: As it was.
        worker: The rank that saw it.
        halves: Statistics of its first and second half by examples, of which `summary` is the merger; empty where it
            was not taken by halves. A check knows them of step 0; no store keeps them.
        offset: Of a tensor that all ranks share, the index of the first value that this one holds, of which `summary`
            is; `shape` is that of the whole. What has the same offset is meant to be the same. None where the tensor
            is the rank's own.
    """

    layer: str
    role: Role
    tensor: str
    summary: TensorSummary
    shape: tuple[int, ...] = ()
    dtype: str = ""
    worker: int = 0
    halves: tuple[TensorSummary, ...] = ()
    offset: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass and its backward pass, if any.

    Attributes:
        index: From 0, counted per mode; step 0 in TRAIN mode precedes any update.
        mode: TRAIN or EVAL.
        observations: In the order in which they were made.
        losses: Loss by worker; a worker that ran no backward pass has none.
    """

    index: int
    mode: Mode = Mode.TRAIN
    observations: tuple[Observation, ...] = ()
    losses: Mapping[int, float] = field(default_factory=dict)

    _found: dict[tuple[str, Role], dict[str, Observation]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What `of` and `first` return, once one of them was asked: rules ask for each layer, and to look through all
    observations each time makes judging quadratic in the layers."""

    def of(self, role: Role) -> dict[str, Observation]:
        """Observations of one role by tensor name, in order; of equal names the first. Not to be changed."""
        return self._sorted().get(("tensor", role), {})

    def first(self, role: Role) -> dict[str, Observation]:
        """Each layer's first observation of one role, by the layer's path. Not to be changed."""
        return self._sorted().get(("layer", role), {})

    def _sorted(self) -> dict[tuple[str, Role], dict[str, Observation]]:
        if not self._found:
            found: dict[tuple[str, Role], dict[str, Observation]] = {}
            for seen in self.observations:
                found.setdefault(("tensor", seen.role), {}).setdefault(seen.tensor, seen)
                found.setdefault(("layer", seen.role), {}).setdefault(seen.layer, seen)
            self._found.update(found)  # at once: another thread may ask
        return self._found

    @property
    def loss(self) -> float:
        """Mean loss over workers; nan when none was seen."""
        return sum(self.losses.values()) / len(self.losses) if self.losses else nan


@dataclass(frozen=True, slots=True)
class Trial:
    """One model watched for some steps.

    Attributes:
        spec: The model.
        steps: In order of time.
        uri: Where it is kept; `memory` when nowhere.
        complete: Whether its writers closed it; False while it runs, and after a crash.
        about: What else is known of the run: versions, command, date.
        race: How the model trained against its sound re-draw; None where they did not race.
    """

    spec: ModelSpec
    steps: tuple[Step, ...] = ()
    uri: str = "memory"
    complete: bool = True
    about: Mapping[str, str] = field(default_factory=dict)
    race: Race | None = None

    @property
    def train_steps(self) -> tuple[Step, ...]:
        """The steps in TRAIN mode."""
        return tuple(step for step in self.steps if step.mode is Mode.TRAIN)

    @property
    def start(self) -> Step | None:
        """Training step 0, the initialization itself; None when it was not watched."""
        return next((step for step in self.train_steps if step.index == 0), None)

    @property
    def reference(self) -> Step | None:
        """The same batch through the same architecture with soundly drawn weights; None when it was not tried."""
        return next((step for step in self.steps if step.mode is Mode.REFERENCE), None)

    @property
    def identity(self) -> str:
        """What tells its run from every other, see `identity_of`."""
        return identity_of(self.about)

    @property
    def is_foreign(self) -> bool:
        """Whether SageMaker Debugger wrote it, so that how its layers are connected is not known."""
        return self.about.get("written_by") == SMDEBUG

    @property
    def adapts(self) -> bool:
        """Whether the optimizer, where it is known, scales each weight's step by its own gradients (Adam and its kin),
        so that small gradients count as much as large ones; True where it is not known."""
        known = self.about.get("optimizer") or self.spec.optimizer or "Adam"
        name = known.split(" ")[0].lower()
        return not name.endswith(("sgd", "lbfgs"))

    def looks(self, role: Role) -> tuple[Step, ...]:
        """Training steps 0 and RECHECK, as far as this role was observed there: a symptom that is gone at the later
        one was none."""
        seen = (step for step in self.train_steps if step.index in (0, RECHECK))
        return tuple(step for step in seen if any(o.role is role for o in step.observations))

    @property
    def workers(self) -> tuple[int, ...]:
        """The ranks that wrote it."""
        seen = {o.worker for step in self.steps for o in step.observations}
        return tuple(sorted(seen | {w for step in self.steps for w in step.losses}))

    @property
    def is_halved(self) -> bool:
        """Whether its start was taken by halves of the batch."""
        return self.start is not None and any(seen.halves for seen in self.start.observations)

    def half(self, which: int) -> Trial:
        """What one half of the batch shows: its observations in place of those of the whole, where they were taken.

        Args:
            which: 0 or 1.
        """
        return replace(self, steps=tuple(_half_of(step, which) for step in self.steps))

    def of_worker(self, worker: int) -> Trial:
        """What one rank saw; of tensors that are spread over ranks the whole."""
        return replace(self, steps=tuple(_steps_of(self.joined().steps, worker)))

    def joined(self) -> Trial:
        """The trial with whole tensors in place of the blocks that single ranks hold."""
        return replace(self, steps=tuple(map(_joined, self.steps)))

    def _repr_html_(self) -> str:
        # By name: a notebook asks the object itself, and a noun knows nothing of the reports above it.
        return str(import_module("fanin.reports.notebook").of_trial(self))


def _half_of(step: Step, which: int) -> Step:
    if not any(seen.halves for seen in step.observations):
        return step
    seen = (replace(o, summary=o.halves[which], halves=()) if o.halves else o for o in step.observations)
    return replace(step, observations=tuple(seen))


def _joined(step: Step) -> Step:
    blocks: dict[tuple[Role, str], dict[tuple[int, ...], Observation]] = {}
    for seen in step.observations:
        if seen.offset is not None:
            blocks.setdefault((seen.role, seen.tensor), {}).setdefault(seen.offset, seen)
    wholes = {key: _whole(list(found.values())) for key, found in blocks.items()}
    joined: list[Observation] = []
    for seen in step.observations:
        key = seen.role, seen.tensor
        whole = wholes[key] if seen.offset is not None else seen.summary
        if whole is not None:  # of replicas each is a whole, and may differ from the others
            own = seen.offset is None or len(blocks[key]) == 1
            joined.append(replace(seen, summary=seen.summary if own else whole, offset=None))
    return replace(step, observations=tuple(joined)) if blocks else step


def _whole(blocks: list[Observation]) -> TensorSummary | None:
    """The summary of the tensor that the blocks make up; None where one is missing (a rank that died), since a part
    would be judged as if it were all."""
    merged = reduce(TensorSummary.merge, (block.summary for block in blocks))
    return merged if merged.count + merged.non_finite == prod(blocks[0].shape) else None


def _steps_of(steps: tuple[Step, ...], worker: int) -> Iterator[Step]:
    for step in steps:
        yield Step(
            step.index,
            step.mode,
            tuple(o for o in step.observations if o.worker == worker),
            {w: loss for w, loss in step.losses.items() if w == worker},
        )


def identity_of(about: Mapping[str, str]) -> str:
    """What tells a run from every other, by what is known of it. Whoever begins to write a trial draws it by chance;
    one of an older fanin is known by all that it says of itself: when it began, its command, its machine.

    >>> identity_of({"identity": "8d3f0c2a9be14f76", "command": "train.py"})
    '8d3f0c2a9be14f76'
    >>> identity_of({"started": "2026-03-01T09:30:00+00:00", "command": "train.py"})
    'a98ed91c47651d3d'
    """
    said = about.get(IDENTITY, "")
    if DRAWN.fullmatch(said):
        return said
    return sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()[:16]
