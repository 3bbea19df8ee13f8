"""Index files: which tensors one worker saved at one step, and where in the event file each of them lies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fanin.stores.smdebug.records import FOOTER, HEADER, LARGEST

T = TypeVar("T")

LARGEST_JSON = 16 * 2**20
"""Bytes of an index or collections file: some 200,000 tensors. Parsed it may take twenty times as much memory."""

LARGEST_NUMBER = 2**63 - 1

INDEX_FILE = re.compile(r"(\d{1,18})_(.+)\.json")
"""`<step>_<worker>.json`; unfinished ones end in `.tmp`."""

MODES = ("GLOBAL", "TRAIN", "EVAL", "PREDICT")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a record lies.

    Attributes:
        file: The event file, relative to the trial.
        start, length: Byte range of the whole record.
        step: Mode, and step in that mode, that the record should be of.
    """

    file: str
    start: int
    length: int
    step: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class SavedShape:
    """The shape of a tensor that may itself not have been saved, and the framework's own name for it."""

    shape: tuple[int, ...]
    original_name: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """What one worker saved at one step.

    Attributes:
        step: Counted over all modes.
        worker: Its name, e.g. `worker_0`.
        mode: One of MODES; GLOBAL where the script named none.
        mode_step: The step counted within its mode.
        tensors: By name, in the order of the file; of equal names the last.
        shapes: By name, where shapes were saved.
    """

    step: int
    worker: str
    mode: str
    mode_step: int
    tensors: Mapping[str, Location] = field(default_factory=dict)
    shapes: Mapping[str, SavedShape] = field(default_factory=dict)


def parse(text: bytes, step: int, worker: str) -> Saved:
    """An index file's content.

    Raises:
        ValueError: It is none.
    """
    content = plain(text)
    meta = typed(dict, content.get("meta"), "meta")
    mode = meta.get("mode")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r:.40}")
    return Saved(
        step=step,
        worker=worker,
        mode=mode,
        mode_step=_number(meta, "mode_step"),
        tensors=_tensors(content, meta),
        shapes=_shapes(content),
    )


def plain(text: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: It is none.
    """
    try:
        return typed(dict, json.loads(text), "the file")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def typed(kind: type[T], value: object, name: str) -> T:
    """A value that is of this kind.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{name} is {value!r:.40} where {kind.__name__} belongs")


def _tensors(content: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Location]:
    rows = typed(list, content.get("tensor_payload") or [], "tensor_payload")
    if not rows:
        return {}
    file = typed(str, meta.get("event_file_name"), "event_file_name")
    step = (meta["mode"], _number(meta, "mode_step"))
    found: dict[str, Location] = {}
    for row in rows:
        entry = typed(dict, row, "an entry of tensor_payload")
        name = typed(str, entry.get("tensorname"), "tensorname")
        place = Location(file, _number(entry, "start_idx"), _number(entry, "length"), step)
        if not HEADER + FOOTER <= place.length <= LARGEST:
            raise ValueError(f"the record of {name[:80]!r} has {place.length} bytes")
        found[name] = place
    return found


def _shapes(content: Mapping[str, Any]) -> dict[str, SavedShape]:
    found = {}
    for row in typed(list, content.get("shape_payload") or [], "shape_payload"):
        entry = typed(dict, row, "an entry of shape_payload")
        sizes = typed(list, entry.get("shape"), "shape")
        shape = tuple(_whole(size, "a size") for size in sizes)
        original = typed(str, entry.get("originalname") or "", "originalname")
        found[typed(str, entry.get("tensorname"), "tensorname")] = SavedShape(shape, original)
    return found


def _number(entry: Mapping[str, Any], key: str) -> int:
    return _whole(entry.get(key), key)


def _whole(value: object, name: str) -> int:
    number = typed(int, value, name)
    if 0 <= number <= LARGEST_NUMBER:
        return number
    raise ValueError(f"{name} is {number!r:.40}")
