"""Parameters of the documented rule as they come: typed, or as text, which is how SageMaker passes them all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import nan
from numbers import Real

from fanin.errors import RuleParameterError

ANY_COMMA_BUT_A_QUANTIFIERS = re.compile(r",(?!\d*\})")
"""Where a list of regexes may be split: not within `{1,2}`, which would still be a regex, of other meaning."""


def bad_parameter(parameter: str, value: object, expected: str, next_step: str) -> RuleParameterError:
    """The error of a parameter that cannot be what it is."""
    return RuleParameterError(
        f"PoorWeightInitialization cannot use this {parameter}",
        where=f"parameter {parameter}",
        got=repr(value),
        expected=expected,
        next_step=next_step,
    )


def number(parameter: str, value: object, default: float) -> float:
    """A number of at least 0.

    Raises:
        RuleParameterError: It is none.
    """
    parsed = _parsed(value)
    if parsed >= 0:
        return parsed
    raise _bad_number(parameter, value, "a number of at least 0", default)


def whole(parameter: str, value: object, default: int) -> int:
    """A whole number of at least 1; 10.0 and "10.0" are whole, for the documentation calls `steps` a float.

    Raises:
        RuleParameterError: It is none.
    """
    parsed = _parsed(value)
    if parsed >= 1 and parsed.is_integer():
        return int(parsed)
    raise _bad_number(parameter, value, "a whole number of at least 1", default)


def _parsed(value: object) -> float:
    """The number, or nan, which compares with nothing."""
    if isinstance(value, bool) or not isinstance(value, Real | str):
        return nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return nan


def _bad_number(parameter: str, value: object, kind: str, default: float) -> RuleParameterError:
    expected = f"{kind}, or its text, e.g. {default} or '{default}'"
    return bad_parameter(parameter, value, expected, f"pass {parameter}={default}, the documented default")


def patterns(parameter: str, value: object) -> tuple[re.Pattern[str], ...]:
    """One regex, several, or text with commas between them; nothing stands for all.

    Raises:
        RuleParameterError: One of them is no regex.
    """
    regexes = _split(value or "") if value is None or isinstance(value, str) else value
    if not isinstance(regexes, Iterable):
        raise bad_parameter(parameter, value, "a regex, or a list of them", "pass '.*relu_input'")
    return tuple(_compiled(parameter, regex) for regex in regexes) or (re.compile(""),)


def _split(text: str) -> list[str]:
    """At commas, but where the piece before is no regex by itself, as in `(a,b)` or `[,;]`, not there."""
    pieces, open_piece = [], ""
    for part in ANY_COMMA_BUT_A_QUANTIFIERS.split(text):
        open_piece = f"{open_piece},{part}" if open_piece else part
        if _is_regex(open_piece):
            pieces.append(open_piece)
            open_piece = ""
    return [piece.strip() for piece in (*pieces, open_piece) if piece.strip()]


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _compiled(parameter: str, regex: object) -> re.Pattern[str]:
    try:
        return re.compile(regex)  # type: ignore[call-overload,no-any-return]
    except re.error as error:
        expected, next_step = (
            f"a regex; this one has {error}",
            "write '.*relu_input' rather than '*relu_input'",
        )
    except TypeError:
        expected, next_step = "text, e.g. '.*relu_input'", "pass regexes as text"
    raise bad_parameter(parameter, regex, expected, next_step)
