"""Text that stays within its columns and cannot harm a terminal, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isfinite, isnan

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fanin.errors import escape as escape

LABEL = 7
"""Columns of the labels at the left: `Maybe` and `cover` with two blanks."""

GAP = "..."
"""What stands for text left out: ASCII, so that it survives any encoding."""


WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*(?=[\s,;:.!?]*(?:\s|$))")
"""A word of prose: letters alone, up to a blank. With digits, dots, slashes or brackets it is a name or a formula."""


def capitalized(text: str, names: Iterable[str] = ()) -> str:
    """A text as the beginning of a sentence; a name or a formula that it begins with stays as it is.

    Args:
        text: A message.
        names: Layers and tensors that it may begin with, which can look like any word.

    >>> capitalized("weights are small"), capitalized("log10(v) = 3"), capitalized("blocks.0.weight is small")
    ('Weights are small', 'log10(v) = 3', 'blocks.0.weight is small')
    >>> capitalized("head is too large", ["head"])
    'head is too large'
    """
    word = WORD.match(text)
    named = any(_begins_with(text, name) for name in names)
    if named or word is None or not word.group().islower():
        return text
    return text[:1].upper() + text[1:]


def _begins_with(text: str, name: str) -> bool:
    after = text[len(name) : len(name) + 1]
    return bool(name) and text.startswith(name) and not (after.isalnum() or after == "_")


def elide(text: str, width: int) -> str:
    """Text in at most `width` columns: as many components at its end as fit, and of its beginning what still fits.

    >>> elide("encoder.layers.11.attention.query", 24)
    'enc...11.attention.query'
    >>> elide("a_single_component_of_great_length", 20)
    'a_single_...t_length'
    """
    if cell_len(text) <= width:
        return text
    components = text.split(".")
    for place in range(1, len(components)):
        last = ".".join(components[place:])
        room = width - len(GAP) - cell_len(last)
        if room >= 0:
            return _fit(text, room) + GAP + last
    if width <= len(GAP):
        return GAP[:width]
    tail = (width - len(GAP)) // 2
    return _fit(text, width - len(GAP) - tail) + GAP + _fit(text[::-1], tail)[::-1]


def _fit(text: str, width: int) -> str:
    """The longest beginning of a text that fits."""
    used = 0
    for place, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return text[:place]
    return text


def pad(text: str, width: int) -> str:
    """Text in exactly `width` columns, counting wide characters as two."""
    short = elide(text, width)
    return short + " " * (width - cell_len(short))


def paragraph(label: str, text: str, width: int, *, hang: int = LABEL) -> list[Text]:
    """A label, then text wrapped beside it; nothing where there is no text. A long label pushes the first line in."""
    if not text:
        return []
    room, head = width - hang, label.ljust(hang)
    words = " ".join(elide(word, room) for word in escape(text).split(" "))
    reserved = "_" * (len(head) - hang)  # one word without blanks, so that wrapping cannot break it
    wrapped = Text(reserved + words).wrap(Console(width=room), room, overflow="fold")
    # Assembled, since the sum of two texts has the style of the first one throughout.
    first = Text.assemble((head, "bold"), wrapped[0][len(reserved) :])
    return [first, *(Text(" " * hang) + line for line in wrapped[1:])]


def banner(left: Text, right: str, width: int) -> list[Text]:
    """One line with a text at either side; two where they do not fit on one."""
    aside = elide(escape(right), width)
    blank = width - left.cell_len - cell_len(aside)
    if not aside:
        return [left]
    if blank >= 2:
        return [Text.assemble(left, " " * blank, (aside, "cyan"))]
    return [left, Text(" " * (width - cell_len(aside))) + Text(aside, style="cyan")]


def number(value: float) -> str:
    """A number for prose: three digits, a power of ten only where it is shorter than the zeros.

    >>> number(0.0021), number(280000.0), number(float("nan")), number(4.0)
    ('0.0021', '2.8e5', 'NaN', '4')
    """
    if not isfinite(value):
        return "NaN" if isnan(value) else "Inf" if value > 0 else "-Inf"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    return short(value, 2)


def short(value: float, digits: int = 1) -> str:
    """A number for a column: always a power of ten, without padding zeros.

    >>> short(0.0031), short(17.0), short(0.0)
    ('3.1e-3', '1.7e1', '0')
    """
    if not isfinite(value) or value == 0:
        return number(value)
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if digits > 1 else mantissa
    return f"{mantissa}e{int(exponent)}"


def counted(count: int, noun: str) -> str:
    """A count and its noun.

    >>> counted(1, "layer"), counted(2, "layer")
    ('1 layer', '2 layers')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def to_string(lines: Iterable[Text], width: int, color: bool) -> str:
    """Lines as text: plain, or with the sixteen colours that every terminal theme defines."""
    if not color:
        return "\n".join(line.plain.rstrip() for line in lines)
    console = Console(
        width=width,
        force_terminal=True,
        color_system="standard",
        no_color=False,
        legacy_windows=False,
        emoji=False,
        markup=False,
        highlight=False,
    )
    with console.capture() as captured:
        for line in lines:
            line.rstrip()
            console.print(line, soft_wrap=True)
    return captured.get().rstrip("\n")
