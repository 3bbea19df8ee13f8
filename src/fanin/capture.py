"""watch(): observe the first steps of a training, summarize, append to a store, detach."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from threading import Thread
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args
from weakref import finalize, ref

from fanin.adapters import adapter_for
from fanin.adapters.base import Adapter, Interruption, OnError, Watching, WatchPlan, brief
from fanin.errors import (
    FaninError,
    StoreError,
    TrainingStoppedError,
    TrialExistsError,
    TrialFormatError,
    UsageError,
)
from fanin.judgement import load_rules, needs
from fanin.pulse import Pulse, Request
from fanin.rule import Rule
from fanin.stores import open_store
from fanin.stores.base import Store, Writer
from fanin.stores.memory import MemoryStore
from fanin.trial import ModelSpec, Step, Trial

T = TypeVar("T")

log = logging.getLogger("fanin")

OnStop = Literal["raise", "flag", "terminate"]

BEGIN_S = 10.0
"""How long a watch waits for the place of its trial; a local disk takes 5 ms, an object store less than a second."""

LAST_S = 0.5
"""How long training waits, once, for its trial to be complete on the disk. A local disk takes 10 ms."""

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
    on_stop: OnStop = "raise",
) -> Watch:
    """Watch a model's first training steps; hooks remove themselves after the last.

    Works as a context manager, or by itself with `close()`. The training loop stays as it is: steps and loss are
    found without being told.

    Args:
        model: A model of a known framework, before or while it trains.
        optimizer: Noted in the trial by class and settings; may be left out, capture does not need it.
        trial: Directory for the trial, or `s3://bucket/...`, which must not hold one yet; None keeps it in memory.
        steps: Training steps 0 to steps - 1 are captured.
        rules: What will judge the trial, so that no more is captured than they need; None for all.
        on_error: What to do about a fault of fanin itself, or a place that cannot be written: report it once and go
            on without capture, or with the trial in memory; or raise.
        on_stop: How to obey somebody who follows the trial and asks the training to stop (`fanin follow --stop`):
            raise TrainingStoppedError in its next step, only set `should_stop` of what this returns, or end the
            process by SIGTERM. Requests are heard until LISTEN_S after the last captured step, or until `close()`, or
            until the model is gone; so long a hook stays where torch tells of all optimizers' steps, for "raise".

    Raises:
        UsageError: The model is of no known framework, steps is not a positive number, or `on_stop` is none of these.
        TrialExistsError: There is a trial already.
    """
    if steps < 1:
        raise UsageError("steps must be positive", got=str(steps), expected="1 or more", next_step="try 10")
    if on_stop not in get_args(OnStop):
        raise UsageError(
            "on_stop is none of its values", got=repr(on_stop), expected=", ".join(get_args(OnStop))
        )
    return Watch(model, optimizer, trial, steps, None if rules is None else tuple(rules), on_error, on_stop)


class _Unwatched:
    """In place of a hand on the model, where a fault of ours has kept us from it."""

    spec = ModelSpec("", "")
    detached = True

    def loss(self, value: Any) -> None:
        pass

    def detach(self) -> None:
        pass


class Watch:
    """A model under watch, and the trial that comes of it.

    Attributes:
        watching: The adapter's hand on the model.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        trial: str | os.PathLike[str] | None,
        steps: int,
        rules: tuple[Rule, ...] | None,
        on_error: OnError,
        on_stop: OnStop,
    ) -> None:
        self._pulse: Pulse | None = None
        self._interrupt: Callable[[], Interruption | None] = lambda: None
        self._described: ModelSpec | None = None
        self._steps = steps
        self._on_error = on_error
        self._closed = False
        self._process = os.getpid()
        self._store, self._writer = _in_memory(0, {})
        self.watching: Watching = _Unwatched()
        try:
            self._begin(model, optimizer, trial, rules, on_stop)
        except FaninError:
            raise  # a mistake of the caller's, which the next run would repeat
        except Exception as fault:
            if on_error == "raise":
                raise
            what = "fanin does not watch %s because of a fault of its own; training goes on"
            log.warning(what, type(model).__name__, exc_info=fault)
        # Weakly, or the end of the process would be the first moment at which the model's memory can be freed.
        self._at_exit = partial(_close, ref(self))
        atexit.register(self._at_exit)
        finalize(self, _forget, self._at_exit, self._writer, self._pulse, self._process).atexit = False

    def _begin(
        self,
        model: Any,
        optimizer: Any,
        trial: str | os.PathLike[str] | None,
        rules: tuple[Rule, ...] | None,
        on_stop: OnStop,
    ) -> None:
        adapter, worker = adapter_for(model), _rank()
        known = about(adapter.describe(model).framework)
        if optimizer is not None:
            known["optimizer"] = brief(optimizer)
        needed = needs(load_rules() if rules is None else rules)
        self._store, self._writer = _begun(trial, worker, known, self._on_error)
        self.watching = adapter.watch(
            model, WatchPlan(needed, self._steps, self._keep, self._on_error, worker)
        )
        if trial is not None and not isinstance(self._store, MemoryStore):
            self._listen(os.fspath(trial), worker, model, adapter, on_stop)

    def _listen(self, trial: str, worker: int, model: Any, adapter: Adapter, on_stop: OnStop) -> None:
        """Have a pulse, which alone keeps what can interrupt the training: it knows for how long that may come."""
        interrupt = adapter.interruption(model, self.watching) if on_stop == "raise" else None
        if interrupt is not None:
            self._interrupt = ref(interrupt)
        heard = partial(_obey, on_stop, interrupt, ref(model))
        self._pulse = Pulse(trial, worker, self._writer.is_of, heard)
        finalize(model, self._pulse.leave).atexit = False  # who trained it needs no longer be stopped

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
    def should_stop(self) -> bool:
        """Whether somebody who follows the trial has asked the training to stop; costs nothing to ask."""
        return self._pulse is not None and self._pulse.request is not None

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
        atexit.unregister(self._at_exit)
        if self._pulse is not None:
            self._pulse.close()
        try:
            if (interrupt := self._interrupt()) is not None:
                interrupt.leave()
            self.watching.detach()
            if os.getpid() == self._process:
                self._writer.close()
        except Exception as fault:
            if self._on_error == "raise":
                raise
            what = "fanin could not write the whole trial; training is not affected\n%s"
            log.warning(what, fault, exc_info=None if isinstance(fault, StoreError) else fault)

    def _keep(self, step: Step, spec: ModelSpec) -> None:
        if spec != self._described:
            self._writer.describe(spec)
            self._described = spec
        self._writer.append(step)
        if step.index == self._steps - 1:
            # Now, rather than when the training ends, which may be days later or by a signal.
            self._writer.end(LAST_S)
            if self._pulse is not None:
                self._pulse.captured()


def _close(watched: ref[Watch]) -> None:
    if (watch := watched()) is not None:
        watch.close()


def _forget(at_exit: Callable[[], None], writer: Writer, pulse: Pulse | None, process: int) -> None:
    """The model is gone, or the hooks that held the watch; a training may go on, so the pulse listens on.

    A garbage collection may come here, within whatever a thread is doing: nothing in here takes a lock or says
    anything (logging locks)."""
    atexit.unregister(at_exit)
    if os.getpid() == process:
        writer.leave()
        if pulse is not None:
            pulse.captured()


def _obey(on_stop: OnStop, interrupt: Interruption | None, model: ref[Any], request: Request) -> None:
    """Stop the training as it was told to; in the pulse's thread. Where the model is gone so is its training, and what
    the process does by now is something else."""
    trained = model()  # kept until it is done, so that it is not gone meanwhile
    if trained is None:
        return
    log.warning("fanin was asked to stop this training%s", f": {request.why}" if request.why else "")
    if on_stop == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    elif interrupt is not None:
        interrupt.ask(_stopped(request))


def _stopped(request: Request) -> TrainingStoppedError:
    return TrainingStoppedError(
        "this training was asked to stop",
        got=request.why,
        where=f"asked by {request.by}" if request.by else "",
        next_step="`fanin judge` on its trial says more; watch(..., on_stop='flag') leaves stopping to the script",
    )


def _begun(
    trial: str | os.PathLike[str] | None, worker: int, about: dict[str, str], on_error: OnError
) -> tuple[Store, Writer]:
    """The store and a hand on it; in memory where the place cannot be written, since training must begin."""
    if trial is not None:
        try:
            return within(BEGIN_S, lambda: _opened(trial, worker, about), _give_back)
        except (TrialExistsError, TrialFormatError):
            raise  # a mistake in the address, which the next run would repeat
        except StoreError as fault:
            if on_error == "raise":
                raise
            log.warning("fanin keeps the trial in memory, and training goes on\n%s", fault)
    return _in_memory(worker, about)


def _opened(trial: str | os.PathLike[str], worker: int, about: Mapping[str, str]) -> tuple[Store, Writer]:
    store = open_store(trial)  # which asks the place already
    return store, store.begin(worker, about)


def _give_back(begun: tuple[Store, Writer]) -> None:
    """A place that was got too late: its trial is in memory by now, and others may want to begin there."""
    try:
        begun[1].withdraw()
    except Exception as fault:  # noqa: BLE001  # nobody waits for this thread
        what = (
            "fanin claimed %s too late to use it, and could not give it back; remove it (fanin trial rm)\n%s"
        )
        log.warning(what, begun[0].uri, fault)


def _in_memory(worker: int, about: dict[str, str]) -> tuple[Store, Writer]:
    memory = MemoryStore()
    return memory, memory.begin(worker, about)


def _rank() -> int:
    """What torchrun calls this process; others use the name too, for what is no number."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def within(seconds: float, begin: Callable[[], T], undo: Callable[[T], None]) -> T:
    """What `begin` returns or raises, unless it takes too long; what it returns after that is undone.

    Raises:
        StoreError: It does.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            begun = begin()
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that asked
            if done.set_running_or_notify_cancel():
                done.set_exception(error)
            return
        if done.set_running_or_notify_cancel():
            done.set_result(begun)
        else:
            undo(begun)

    Thread(target=run, name="fanin-begin", daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        if done.done() or not done.cancel():
            return done.result()  # it was ready in the same moment
        raise StoreError(
            "the place of the trial does not answer",
            got=f"nothing for {seconds:g} s",
            expected="a place that can be written",
            next_step="check the disk or the network that it lies on",
        ) from None


def _own_version() -> str:
    """Empty where fanin runs from a folder that nobody installed: no reason to stop a training."""
    try:
        return version("fanin")
    except PackageNotFoundError:
        return ""


def about(framework: str) -> dict[str, str]:
    """What is worth knowing of a run besides its tensors."""
    return {
        "fanin": _own_version(),
        "framework": framework,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": " ".join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
