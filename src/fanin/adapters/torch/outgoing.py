"""Steps that are over, while what was measured of them on a device is still under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from fanin.adapters.torch.drafting import Draft
from fanin.trial import ModelSpec, Step


class Outgoing:
    """Steps in order. A step waits for its measurements no longer than until the next one is over: then they are here,
    unless the device is more than a step behind. On a CPU none waits at all."""

    def __init__(self, on_step: Callable[[Step, ModelSpec], None]) -> None:
        self._on_step = on_step
        self._steps: deque[tuple[Draft, ModelSpec]] = deque()

    def add(self, draft: Draft, spec: ModelSpec) -> None:
        """Take a step that is over."""
        draft.leave()
        self._steps.append((draft, spec))
        while len(self._steps) > 1:
            self._hand_over()
        self.offer()

    def offer(self) -> None:
        """Hand over those whose measurements are here."""
        while self._steps and self._steps[0][0].leave().is_here:
            self._hand_over()

    def finish(self) -> None:
        """Hand over all of them, and wait for that."""
        while self._steps:
            self._hand_over()

    def _hand_over(self) -> None:
        draft, spec = self._steps.popleft()
        self._on_step(draft.finished(), spec)
