"""Whether output is what a page shows: the same words, and numbers as close as two machines draw and add them."""

from __future__ import annotations

import re
from itertools import zip_longest
from math import isclose

NUMBER = re.compile(r"\d+\.?\d*(?:e[+-]?\d+)?")
TIME = re.compile(r"\d+\.?\d* ?s\b")
CLOSE = 0.05
"""Relative: a last digit, and what another processor's order of summation makes of a small gradient."""

ANY = "..."


def alike(shown: str, printed: str) -> bool:
    """Whether a line is what was printed.

    >>> alike("loss 2.303, 5.5 s", "loss  2.31, 17 s"), alike("2 faults", "3 faults"), alike("a 1", "b 1")
    (True, False, False)
    """
    shown, printed = (TIME.sub("0 s", text) for text in (shown, printed))
    if _words(shown) != _words(printed):
        return False
    pairs = zip_longest(NUMBER.findall(shown), NUMBER.findall(printed), fillvalue="nan")
    return all(isclose(float(one), float(other), rel_tol=CLOSE, abs_tol=1e-12) for one, other in pairs)


def _words(text: str) -> list[str]:
    return NUMBER.sub("#", text).split()


def unlike(shown: list[str], printed: list[str]) -> str:
    """The first line that a page shows and nobody printed; empty where all were. `...` stands for any lines.

    >>> unlike(["a", "...", "d"], ["a", "b", "c", "d"]), unlike(["b"], ["a", "b"])
    ('', 'b')
    """
    place, free = 0, False
    shown, printed = _full(shown), _full(printed)
    for line in shown:
        if line.strip() == ANY:
            free = True
            continue
        ahead = range(place, len(printed)) if free else range(place, min(place + 1, len(printed)))
        found = next((i for i in ahead if alike(line, printed[i])), None)
        if found is None:
            return line
        place, free = found + 1, False
    return "" if free or place == len(printed) else f"(the page leaves out {printed[place]!r})"


def _full(lines: list[str]) -> list[str]:
    """Without blank lines, which a reader does not miss."""
    return [line.rstrip() for line in lines if line.strip()]
