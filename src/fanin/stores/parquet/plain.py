"""Frozen records from plain JSON values, checked against their annotations.

The way there is `dataclasses.asdict`; this is the way back. What a record has no field for is passed over, and
fields that are not there take their default, so that a field can be added without a new format.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def restore(hint: Any, value: Any) -> Any:
    """The value of type `hint` that became `value` on its way through `dataclasses.asdict` and JSON.

    Args:
        hint: A dataclass, StrEnum, str, int or bool; `tuple[X, ...]` and `X | None` of these.
        value: What `json.loads` gave.

    Raises:
        ValueError: The value is not of that type.
        TypeError: A field without a default is missing.
    """
    if is_dataclass(hint):
        return _record(hint, _checked(dict, value))
    if get_origin(hint) is tuple:
        return tuple(restore(get_args(hint)[0], item) for item in _checked(list, value))
    if isinstance(hint, UnionType):
        return None if value is None else restore(get_args(hint)[0], value)
    if issubclass(hint, StrEnum):
        return hint(_checked(str, value))
    return _checked(hint, value)


def _record(record: Any, plain: dict[str, Any]) -> Any:
    return record(
        **{name: restore(hint, plain[name]) for name, hint in _fields(record).items() if name in plain}
    )


@cache
def _fields(record: Any) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in fields(record)}


def _checked(kind: type, value: Any) -> Any:
    # Not isinstance: True is an int, and `calls: true` is not a number of calls.
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, got {value!r:.60}")
    return value
