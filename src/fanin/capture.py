"""watch(): observe the first steps of a training, summarize, append to a store, detach."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any

from fanin.adapters import adapter_for
from fanin.adapters.base import OnError, WatchPlan
from fanin.errors import StoreError, UsageError
from fanin.judgement import load_rules, needs
from fanin.rule import Rule
from fanin.stores import open_store
from fanin.stores.memory import MemoryStore
from fanin.trial import ModelSpec, Step, Trial

log = logging.getLogger("fanin")

DEFAULT_STEPS = 10
"""The documented rule's `steps`: "typically only the first few iterations"."""


def watch(
    model: Any,
    optimizer: Any = None,
    *,
    trial: str | os.PathLike[str] | None = None,
    steps: int = DEFAULT_STEPS,
    rules: Iterable[Rule] | None = None,
    on_error: OnError = "warn",
) -> Watch:
    """Watch a model's first training steps; hooks remove themselves after the last.

    Works as a context manager, or by itself with `close()`. The training loop stays as it is: steps and loss are
    found without being told.

    Args:
        model: A model of a known framework, before or while it trains.
        optimizer: Noted in the trial by class and settings; may be left out, capture does not need it.
        trial: Directory for the trial, which must not hold one yet; None keeps it in memory.
        steps: Training steps 0 to steps - 1 are captured.
        rules: What will judge the trial, so that no more is captured than they need; None for all.
        on_error: What to do about a fault of fanin itself: report it once and go on without capture, or raise.

    Raises:
        UsageError: The model is of no known framework, or steps is not a positive number.
        TrialExistsError: There is a trial already.
    """
    if steps < 1:
        raise UsageError("steps must be positive", got=str(steps), expected="1 or more", next_step="try 10")
    asked = tuple(load_rules() if rules is None else rules)
    return Watch(
        model,
        trial,
        steps,
        asked,
        on_error,
        {"optimizer": _brief(optimizer)} if optimizer is not None else {},
    )


class Watch:
    """A model under watch, and the trial that comes of it.

    Attributes:
        watching: The adapter's hand on the model.
    """

    def __init__(
        self,
        model: Any,
        trial: str | os.PathLike[str] | None,
        steps: int,
        rules: tuple[Rule, ...],
        on_error: OnError,
        notes: dict[str, str],
    ) -> None:
        adapter = adapter_for(model)
        worker = int(os.environ.get("RANK", "0"))
        self._store = MemoryStore() if trial is None else open_store(trial)
        self._writer = self._store.begin(worker, about(adapter.describe(model).framework) | notes)
        self._described: ModelSpec | None = None
        self._steps = steps
        self._on_error = on_error
        self._closed = self._written = False
        self._process = os.getpid()
        self.watching = adapter.watch(model, WatchPlan(needs(rules), steps, self._keep, on_error, worker))
        atexit.register(self.close)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def attached(self) -> bool:
        """Whether hooks hang on the model still."""
        return not self.watching.detached

    @property
    def trial(self) -> Trial:
        """The trial as captured so far.

        Raises:
            StoreError: It could not be written.
        """
        self._writer.flush()
        return self._store.load()

    def loss(self, value: Any) -> None:
        """State the loss of the current step, before the optimizer's step, where it cannot be found: no `backward` is
        called on it, or on a multiple of it."""
        self.watching.loss(value)

    def close(self) -> None:
        """Take the hooks away and mark the trial complete; idempotent. A forked child leaves the trial alone."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self.watching.detach()
        if os.getpid() == self._process:
            self._complete()

    def _keep(self, step: Step, spec: ModelSpec) -> None:
        if spec != self._described:
            self._writer.describe(spec)
            self._described = spec
        self._writer.append(step)
        if step.index == self._steps - 1:
            self._complete()  # now, rather than when the training ends, which may be days later or by a signal

    def _complete(self) -> None:
        """Mark the trial complete, once."""
        if self._written:
            return
        self._written = True
        try:
            self._writer.close()
        except StoreError as fault:
            if self._on_error == "raise":
                raise
            log.warning("fanin could not write the whole trial; training is not affected\n%s", fault)


def _brief(optimizer: Any) -> str:
    """An optimizer in a line: `SGD lr=0.05 momentum=0.9`."""
    settings = {
        k: v for k, v in getattr(optimizer, "defaults", {}).items() if v and isinstance(v, int | float)
    }
    return " ".join([type(optimizer).__name__, *(f"{k}={v}" for k, v in settings.items())])


def about(framework: str) -> dict[str, str]:
    """What is worth knowing of a run besides its tensors."""
    return {
        "fanin": version("fanin"),
        "framework": framework,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": " ".join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
