"""How much a proof may cost: passes or seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import inf
from time import monotonic

from fanin.errors import UsageError
from fanin.race import RaceOptions

RACES = 3
"""Whole races that a proof may take where nothing else is said: as many plans as there are, or as many draws of one as
make a majority."""

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(slots=True)
class Budget:
    """What is left.

    Attributes:
        passes: Forward and backward passes that may still be taken.
        until: Time at which it ends, by `time.monotonic`.
    """

    passes: int
    until: float = inf

    @classmethod
    def of(cls, given: int | str | None) -> Budget:
        """A number of passes, a time such as `90s`, `5m` or `1h`, or None for what RACES whole races take.

        >>> Budget.of("500").passes
        500

        Raises:
            UsageError: It is neither.
        """
        if given is None:
            return cls(RACES * RaceOptions().most_passes)
        text = str(given).strip()
        timed = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text)
        if timed:
            return cls(RACES * RaceOptions().most_passes, monotonic() + float(timed[1]) * UNITS[timed[2]])
        if not text.isdecimal() or isinstance(given, bool):
            raise UsageError(
                "this is no budget",
                where="budget",
                got=repr(given),
                expected="a number of passes (500), or a time (90s, 5m, 1h)",
                next_step="leave it out for the default",
            )
        return cls(int(text))

    def race(self, options: RaceOptions) -> RaceOptions | None:
        """The same race as far as it fits; None where it is too short to show anything."""
        seconds = self.until - monotonic()
        return None if seconds <= 0 else _timed(options.within(self.passes), seconds)

    def spend(self, passes: int) -> None:
        """Take passes off what is left."""
        self.passes = max(0, self.passes - passes)


def _timed(options: RaceOptions | None, seconds: float) -> RaceOptions | None:
    return None if options is None else replace(options, seconds=seconds)
