"""Timing two things against each other on a noisy machine: in turns, so that both meet the same weather."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(
    first: Callable[[], object], second: Callable[[], object], count: int, begin: int = 0
) -> Iterator[tuple[float, float]]:
    """Seconds of each, pair by pair; who begins alternates, so that neither always finds the caches warm. An odd
    `begin` lets the second begin."""
    for pair in range(begin, begin + count):
        if pair % 2:
            late, early = seconds(second), seconds(first)
            yield early, late
        else:
            yield seconds(first), seconds(second)
