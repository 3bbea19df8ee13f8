"""Whether a call is still running: torch calls no hook after a KeyboardInterrupt, the stack never lies."""

from __future__ import annotations

import sys
from types import FrameType


def calling_frame() -> FrameType | None:
    """The innermost frame that is not ours: it runs as long as what called us does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fanin."):
        frame = frame.f_back
    return frame


def is_running(wanted: FrameType) -> bool:
    """Whether a frame is on this thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is wanted
