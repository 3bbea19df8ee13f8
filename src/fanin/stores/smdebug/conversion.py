"""From what SageMaker Debugger saved to a trial of ours: summaries by role, and what is missing as notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from math import nan
from typing import Any

from numpy.typing import NDArray

from fanin.stores.assembly import Record, assemble
from fanin.stores.smdebug.archive import Archive
from fanin.stores.smdebug.index import Location, Saved
from fanin.stores.smdebug.naming import Named, is_loss, is_path, meaning, reduction
from fanin.stores.smdebug.summaries import loss_of, of_reductions, of_tensor
from fanin.summary import TensorSummary
from fanin.trial import (
    IDENTITY,
    RECHECK,
    SMDEBUG,
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

ONCE = frozenset({Role.WEIGHT, Role.BIAS})
"""Roles that rules look at in training steps 0 and RECHECK only."""

FROM_REDUCTIONS = frozenset({Role.ACTIVATION_INPUT, Role.WEIGHT_GRAD})
"""Roles that are of use without the values: their variance, which the documented rule compares."""

SAMPLE = 1000
"""Names that are looked at to tell the framework; one network's names are alike."""

OVERWRITTEN = 0.05
"""Share of exact zeros from which an activation's input without any negative value is taken for its output: a ReLU
gives some half of zeros, 42 % in a ResNet-18 at its start; the inputs of activations hardly hold one."""


def trial_of(archive: Archive) -> Trial:
    """Everything that the archive holds by now, one tensor in memory at a time.

    Raises:
        TrialFormatError: A record is damaged.
        StoreError: It cannot be reached.
    """
    ranks = ranks_of(archive.workers)
    about = {"written_by": SMDEBUG, IDENTITY: archive.identity} | _sizes(archive)
    records = [_record(archive, worker, rank, about) for worker, rank in ranks.items()]
    return assemble(records, archive.folder.uri)


def ranks_of(workers: Sequence[str]) -> dict[str, int]:
    """Each worker's rank: the number in `worker_<rank>`, else its place among the names."""
    ranks = [int(w[7:]) if w.startswith("worker_") and w[7:].isdecimal() else -1 for w in workers]
    if len(set(ranks)) < len(ranks) or min(ranks, default=0) < 0:
        ranks = list(range(len(workers)))
    return dict(sorted(zip(workers, ranks, strict=True), key=lambda pair: pair[1]))


def _record(archive: Archive, worker: str, rank: int, about: Mapping[str, str]) -> Record:
    saved = [by_worker[worker] for _, by_worker in sorted(archive.saved.items()) if worker in by_worker]
    steps = [step for one in saved if (step := step_of(archive, one, rank))]
    spec = _spec(archive, saved, steps)
    return Record(rank, tuple(steps), spec, about, archive.ended)


def _sizes(archive: Archive) -> dict[str, str]:
    workers = archive.expected_workers
    return {"world_size": str(workers)} if workers > 1 else {}


# ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────


def mode_of(archive: Archive, saved: Saved) -> Mode | None:
    """What the model was doing; None where that is not known, or nobody's question.

    A script that never names a mode trains. One that names TRAIN somewhere did something else before.
    """
    if saved.mode == "GLOBAL":
        return None if archive.names_train else Mode.TRAIN
    return {"TRAIN": Mode.TRAIN, "EVAL": Mode.EVAL}.get(saved.mode)


def step_of(archive: Archive, saved: Saved, rank: int) -> Step | None:
    """One worker's view of a step; None where it is no step of training or evaluation.

    Raises:
        TrialFormatError: A record is damaged.
        StoreError: It cannot be reached.
    """
    mode = mode_of(archive, saved)
    if mode is None:
        return None
    losses = {name: place for name, place in saved.tensors.items() if is_loss(name, _losses(archive))}
    wanted = {} if mode is not Mode.TRAIN else _wanted(saved)
    seen: list[Observation] = []
    found: dict[str, float] = {}
    for name, values in archive.values((losses | wanted).items()):
        if name in losses:
            found[name] = loss_of(values)
        elif observation := _observation(name, values, rank):
            seen.append(observation)
    if mode is Mode.TRAIN:
        seen += _reduced(archive, saved, rank)
    loss = _loss(found)
    return Step(saved.mode_step, mode, tuple(seen), {} if loss is None else {rank: loss})


def _losses(archive: Archive) -> frozenset[str]:
    known = archive.collections.by_name.get("losses") if archive.collections else None
    return frozenset(known.tensor_names) if known else frozenset()


def _wanted(saved: Saved) -> dict[str, Location]:
    """The tensors that rules look at in this training step."""
    return {
        name: place
        for name, place in saved.tensors.items()
        if reduction(name) is None and (named := meaning(name)) and _is_wanted(named, saved.mode_step)
    }


def _is_wanted(named: Named, step: int) -> bool:
    if named.role in ONCE:
        return step in (0, RECHECK)
    return named.role in FROM_REDUCTIONS


def _observation(name: str, values: NDArray[Any], rank: int) -> Observation | None:
    named = meaning(name)
    summary = of_tensor(values, histogram=bool(named and named.role is Role.WEIGHT_GRAD))
    if named is None or summary is None:
        return None
    return _seen(named, name, summary, values.shape, values.dtype.name, rank)


def _seen(
    named: Named, name: str, summary: TensorSummary, shape: tuple[int, ...], dtype: str, rank: int
) -> Observation:
    return Observation(named.layer, named.role, name, summary, shape, dtype, rank)


def _loss(found: Mapping[str, float]) -> float | None:
    """The total where there is one by that name, else the sum: each loss module of a network saves its own."""
    if not found:
        return None
    return found["loss"] if "loss" in found else sum(found.values())


def _reduced(archive: Archive, saved: Saved, rank: int) -> Iterator[Observation]:
    """Observations of tensors of which only reductions were saved."""
    places: dict[str, dict[tuple[str, bool], str]] = {}
    unbiased = framework_of(archive) == "PyTorch"
    for name in saved.tensors:
        parts = reduction(name)
        if parts is None or parts[0] in saved.tensors:
            continue
        named = meaning(parts[0])
        if named and named.role in FROM_REDUCTIONS:
            places.setdefault(parts[0], {})[parts[1], parts[2]] = name
    asked = [(name, saved.tensors[name]) for by in places.values() for name in by.values()]
    values = {name: _scalar(value) for name, value in archive.values(asked)}
    for tensor, by in places.items():
        named, shape = meaning(tensor), saved.shapes.get(tensor)
        size = shape.shape if shape else None
        found = {key: values[name] for key, name in by.items()}
        summary = of_reductions(found, size, unbiased=unbiased)
        if named and summary:
            yield _seen(named, tensor, summary, size or (), "", rank)


def _scalar(value: NDArray[Any]) -> float:
    return float(value.reshape(-1)[0]) if value.size == 1 and value.dtype.kind in "fiub" else nan


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────


def framework_of(archive: Archive) -> str:
    """The framework, by the names of its tensors."""
    if archive.collections and archive.collections.is_xgboost:
        return "XGBoost"
    every = (name for by in archive.saved.values() for one in by.values() for name in one.tensors)
    names = list(islice(every, SAMPLE))
    tensors = [reduced[0] if (reduced := reduction(name)) else name for name in names]
    if any("/inputs" in n or "/outputs" in n or "kernel:" in n or n.startswith("weights/") for n in tensors):
        return "TensorFlow"
    if any(is_path(n.removeprefix("gradient/")) for n in tensors):
        return "PyTorch"
    return "MXNet" if any("_weight" in n or "_input_" in n for n in tensors) else "unknown"


def _spec(archive: Archive, saved: Sequence[Saved], steps: Sequence[Step]) -> ModelSpec:
    framework, layers = framework_of(archive), tuple(_layers(steps))
    # PyTorch's names of parameters begin with the class of the model.
    root = layers[0].path.partition("_")[0] if layers and framework == "PyTorch" else ""
    return ModelSpec(
        name=root or "trial",
        framework=f"{framework}, by SageMaker Debugger",
        layers=layers,
        notes=tuple(_notes(archive, saved, steps)),
    )


def _layers(steps: Sequence[Step]) -> Iterator[LayerSpec]:
    """The layers whose parameters or gradients were saved, in the order of the parameters."""
    first = next((step for step in steps if step.mode is Mode.TRAIN), None)
    seen = first.observations if first else ()
    parameters: dict[str, dict[str, ParameterSpec]] = {}
    trained = {o.layer for o in seen if o.role is Role.WEIGHT_GRAD}
    for o in seen:
        if (named := meaning(o.tensor)) and named.parameter:
            role = Role.BIAS if o.role is Role.BIAS else Role.WEIGHT
            name = named.parameter.rpartition(".")[2] if is_path(named.parameter) else ""
            known = parameters.setdefault(o.layer, {})
            known.setdefault(name, ParameterSpec(name, role, o.shape, o.dtype))
    for path, by_name in parameters.items():
        yield LayerSpec(path, Kind.OTHER, "", tuple(by_name.values()), calls=int(path in trained))


def _notes(archive: Archive, saved: Sequence[Saved], steps: Sequence[Step]) -> Iterator[str]:
    """What is not as it would be in a trial of ours, one sentence each."""
    yield from _unread_modes(archive, saved)
    train = [step for step in steps if step.mode is Mode.TRAIN]
    indices = [step.index for step in train]
    if indices and (indices[0] > 0 or any(b - a > 1 for a, b in pairwise(indices))):
        some = ", ".join(map(str, indices[:3])) + (", ..." if len(indices) > 3 else "")
        yield f"Only training steps {some} were saved."
    yield from _overwritten(train)
    reduced = {o.role for s in train for o in s.observations if not o.dtype}
    if reduced:
        what = " and ".join(
            role.value.replace("_grad", " gradient").replace("_", " ") for role in sorted(reduced)
        )
        yield f"Of each {what} reductions were saved, which hold no percentiles."
    missing = archive.expected_workers - len({w for by in archive.saved.values() for w in by})
    if missing > 0:
        yield f"Of {archive.expected_workers} workers {missing} saved nothing."


def _overwritten(train: Sequence[Step]) -> Iterator[str]:
    """Activations that work in place: smdebug saves their inputs after they ran."""
    seen = train[0].of(Role.ACTIVATION_INPUT).values() if train else ()
    spoiled = [o.tensor for o in seen if o.dtype and _is_output_of_relu(o.summary)]
    if spoiled:
        some = ", ".join(spoiled[:3]) + (", ..." if len(spoiled) > 3 else "")
        yield f"Activations that work in place had overwritten {some} before they were saved."


def _is_output_of_relu(summary: TensorSummary) -> bool:
    return summary.minimum == 0 and summary.maximum > 0 and summary.zeros > OVERWRITTEN * summary.count


def _unread_modes(archive: Archive, saved: Sequence[Saved]) -> Iterator[str]:
    unread = sorted({one.mode for one in saved if mode_of(archive, one) is None})
    if unread:
        yield f"Steps in mode {' and '.join(unread)} were passed over."
