"""Assembly: what several workers wrote, as one trial. Pure; the same for every store.

Order of steps: that of the lowest worker; a step that only others have follows the one that it followed there.
Order within a step: by worker, then as each worker appended. Of two losses of one worker the later one counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeVar

from fanin.trial import ActivationSpec, LayerSpec, Mode, ModelSpec, Step, Trial

K = TypeVar("K", bound=Hashable)

NOT_DESCRIBED = ModelSpec("unknown", "unknown", notes=("The model was never described.",))
"""The spec of a trial whose writers died before they could state it."""


@dataclass(frozen=True, slots=True)
class Record:
    """All that one worker wrote.

    Attributes:
        worker: Its rank.
        steps: As it appended them.
        spec: The model as it saw it; None when it never said.
        about: What it knew of the run.
        ended: Whether it closed its writer.
    """

    worker: int
    steps: tuple[Step, ...] = ()
    spec: ModelSpec | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    ended: bool = False


def assemble(records: Iterable[Record], uri: str) -> Trial:
    """The trial of one or more workers. What can be said only once (the model, the run) the lowest one says."""
    ordered = sorted(records, key=lambda record: record.worker)
    specs = [record.spec for record in ordered if record.spec is not None]
    return Trial(
        spec=reduce(combined, specs) if specs else NOT_DESCRIBED,
        steps=_steps(ordered),
        uri=uri,
        complete=all(record.ended for record in ordered),
        about=dict(ordered[0].about),
    )


def _steps(records: Iterable[Record]) -> tuple[Step, ...]:
    order: list[tuple[Mode, int]] = []
    pieces: dict[tuple[Mode, int], list[Step]] = defaultdict(list)
    for record in records:
        order = woven(order, [(step.mode, step.index) for step in record.steps])
        for step in record.steps:
            pieces[step.mode, step.index].append(step)
    return tuple(_joined(pieces[key]) for key in order)


def _joined(pieces: Sequence[Step]) -> Step:
    return replace(
        pieces[0],
        observations=tuple(seen for piece in pieces for seen in piece.observations),
        losses={worker: loss for piece in pieces for worker, loss in piece.losses.items()},
    )


def woven(order: Sequence[K], other: Sequence[K]) -> list[K]:
    """`order` with the keys that only `other` has, each behind the one that it follows there; without a key in
    common, all of them last.

    >>> woven(["train 0", "train 1"], ["train 0", "eval 0", "train 1", "train 2"])
    ['train 0', 'eval 0', 'train 1', 'train 2']
    """
    known = set(order)
    last = None if known & set(other) or not order else order[-1]
    following: dict[K | None, list[K]] = defaultdict(list)
    for key in dict.fromkeys(other):
        if key in known:
            last = key
        else:
            following[last].append(key)
    return following[None] + [key for known_key in order for key in (known_key, *following[known_key])]


def restated(earlier: ModelSpec | None, later: ModelSpec) -> ModelSpec:
    """What a worker knows after a second statement: one that covers the first replaces it, order and all; one that
    names only what is new adds to it."""
    if earlier is None or _names(earlier) <= _names(later):
        return later
    return combined(earlier, later)


def _names(spec: ModelSpec) -> set[tuple[str, str]]:
    return {("layer", path) for path in _by_path(spec)} | {("activation", name) for name in _by_tensor(spec)}


def combined(base: ModelSpec, other: ModelSpec) -> ModelSpec:
    """`base` with the layers and activations that only `other` saw; a layer that never ran in `base` is taken from
    where it did."""
    here, there = _by_path(base), _by_path(other)
    layers = there | here
    layers |= {path: layer for path, layer in there.items() if layer.calls and not layers[path].calls}
    here_active, there_active = _by_tensor(base), _by_tensor(other)
    activations = there_active | here_active
    return replace(
        base,
        layers=tuple(layers[path] for path in woven([*here], [*there])),
        activations=tuple(activations[tensor] for tensor in woven([*here_active], [*there_active])),
        outputs=base.outputs or other.outputs,
        notes=tuple(dict.fromkeys((*base.notes, *other.notes))),
        optimizer=base.optimizer or other.optimizer,
    )


def _by_path(spec: ModelSpec) -> dict[str, LayerSpec]:
    return {layer.path: layer for layer in spec.layers}


def _by_tensor(spec: ModelSpec) -> dict[str, ActivationSpec]:
    return {activation.tensor: activation for activation in spec.activations}
