"""What a step was for."""

from __future__ import annotations

from enum import Enum


class ModeKeys(Enum):
    """The mode of a step; GLOBAL stands for all of them, and for a script that names none."""

    TRAIN = 1
    EVAL = 2
    PREDICT = 3
    GLOBAL = 4


modes = ModeKeys
"""As scripts know it: `modes.TRAIN`."""
