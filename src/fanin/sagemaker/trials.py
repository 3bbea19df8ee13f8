"""Trials as the original opens them: tensors by name and step, refreshed while the training writes them."""

from __future__ import annotations

import logging
import os
import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from fanin.errors import StoreError, UsageError
from fanin.sagemaker.exceptions import (
    IndexReaderException,
    InvalidCollectionConfiguration,
    MissingCollectionFiles,
    NoMoreData,
    StepUnavailable,
    TensorUnavailable,
)
from fanin.sagemaker.modes import ModeKeys
from fanin.sagemaker.tensor import StepState, Tensor
from fanin.stores.smdebug.archive import Archive
from fanin.stores.smdebug.collection import Collection
from fanin.stores.smdebug.index import Location, Saved
from fanin.stores.smdebug.naming import reduction

log = logging.getLogger("fanin")

TIMEOUT = 600.0
"""Seconds without any new file after which a training without end mark is taken as broken off. The original waits for
ever; its default interval of 500 steps takes minutes, hardly ten."""

POLL = {True: 0.5, False: 0.1}
"""Seconds between two looks at a trial; longer where each look is a request to an object store."""


def create_trial(
    path: str | os.PathLike[str],
    name: str | None = None,
    profiler: bool = False,
    output_dir: str | None = None,
    *,
    range_steps: tuple[int | None, int | None] | None = None,
    cache: bool = False,
    timeout: float | None = None,
    **ignored: object,
) -> Trial:
    """Open a trial, waiting until its first step is written.

    Args:
        path: What smdebug calls `out_dir`, local or `s3://`.
        name: What to call it; the last part of the path by default.
        profiler: Refused: system profiles are not read.
        output_dir: Not used, as in the original.
        range_steps: Look at global steps from the first to before the second only.
        cache: Keep the values that were read.
        timeout: Seconds without a new file after which a training that has not marked its end is taken as broken off;
            FANIN_TRIAL_TIMEOUT or 600 by default.
        ignored: `parallel`, `check` and `index_mode` of the original, which change nothing here.

    Raises:
        TrialNotFoundError: Nothing appeared in time.
        MissingCollectionFiles: The training has ended, and nothing says what it saved.
        IndexReaderException: A file of it is damaged, or cannot be reached.
    """
    if profiler:
        raise UsageError("profiler trials are not read", got="profiler=True", next_step="leave it out")
    unknown = ignored.keys() - {"parallel", "check", "index_mode"}
    if unknown:
        raise TypeError(f"create_trial() got an unexpected keyword argument {min(unknown)!r}")
    trial = Trial(os.fspath(path), name, range_steps, cache, timeout)
    trial.wait_for_start()
    return trial


class Trial:
    """A trial of SageMaker Debugger.

    Attributes:
        name, path: What it is called, and where it is.
        last_complete_step: The last global step that is complete; -1 for none.
        loaded_all_steps: Whether it has ended, or broken off, and everything was seen.
        dynamic_refresh: Whether methods look for new steps.
        archive: What was read of it.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        range_steps: tuple[int | None, int | None] | None = None,
        cache: bool = False,
        timeout: float | None = None,
    ) -> None:
        self.path = path
        self.name = name or os.path.basename(path.rstrip("/"))
        self.range_steps = range_steps
        self.cache = cache
        self.logger = log
        self.last_complete_step = -1
        self.loaded_all_steps = False
        self.dynamic_refresh = True
        self.archive = Archive(path)
        self.timeout = float(os.environ.get("FANIN_TRIAL_TIMEOUT", TIMEOUT)) if timeout is None else timeout
        self._first, self._end = _range(range_steps)
        self._changed = time.monotonic()
        self._files = 0
        self._poll = POLL[path.startswith("s3://")]
        self._looked = -self._poll
        self._tensors: dict[str, Tensor] = {}
        self._names: dict[int, dict[str, None]] = {}
        self._workers: dict[int, set[str]] = {}
        self._of_global: dict[int, tuple[ModeKeys, int]] = {}
        self._of_mode: dict[ModeKeys, dict[int, int]] = {}

    def __repr__(self) -> str:
        return f"Trial(name={self.name!r}, path={self.path!r}, steps={self.steps()})"

    # ── tensors ─────────────────────────────────────────────────────────────────────────────────────────────

    def tensor_names(
        self,
        show_prefixed_tensors: bool = False,
        *,
        step: int | None = None,
        mode: ModeKeys = ModeKeys.GLOBAL,
        regex: str | Sequence[str] | None = None,
        collection: str | Collection | None = None,
    ) -> list[str]:
        """Names of the tensors saved, sorted: at a step, in a mode, that a regex finds, or of a collection.

        Raises:
            ValueError: Both regex and collection are given.
        """
        if regex is not None and collection is not None:
            raise ValueError("Only one of `regex` or `collection` can be passed to this method")
        self.maybe_refresh()
        names: Iterable[str] = self._names_at(step, mode)
        if regex is not None:
            names = _matching(names, [regex] if isinstance(regex, str) else list(regex))
        if collection is not None:
            names = set(names) & self._members(collection)
        return sorted(names)

    def _names_at(self, step: int | None, mode: ModeKeys) -> set[str]:
        if step is None and mode is ModeKeys.GLOBAL:
            return set(self._tensors)
        wanted = (
            self._of_mode.get(mode, {}).values() if step is None else [self.known_global_step(mode, step)]
        )
        return {name for one in wanted if one is not None for name in self._names.get(one, ())}

    def _members(self, collection: str | Collection) -> set[str]:
        known = collection if isinstance(collection, Collection) else self.collection(collection)
        try:
            return set(known.tensor_names) | set(_matching(self._tensors, known.include_regex))
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidCollectionConfiguration(f"{known.name} ({error})") from error

    def has_tensor(self, tname: str) -> bool:
        """Whether a tensor of this name was saved by now."""
        if tname not in self._tensors:
            self.maybe_refresh()
        return tname in self._tensors

    def tensor(self, tname: str) -> Tensor:
        """The tensor of this name.

        Raises:
            TensorUnavailable: None was saved by now.
        """
        if self.has_tensor(tname):
            return self._tensors[tname]
        raise TensorUnavailable(tname)

    def fetch(self, location: Location, name: str) -> NDArray[Any]:
        """A value from its place.

        Raises:
            IndexReaderException: Its record is damaged, or cannot be reached.
        """
        try:
            return self.archive.value(location, name)
        except StoreError as error:
            raise IndexReaderException(str(error)) from error

    def inputs(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[NDArray[Any]]:
        """Inputs of the model at a step, where they were saved (TensorFlow)."""
        names = self.tensor_names(step=step, mode=mode, collection="inputs") if self._has("inputs") else []
        return [self.tensor(name).value(step, mode) for name in names]

    def labels(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[NDArray[Any]]:
        """Labels at a step, where they were saved (TensorFlow)."""
        return [
            self.tensor(n).value(step, mode) for n in self.tensor_names(step=step, mode=mode, regex="labels")
        ]

    def predictions(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> list[NDArray[Any]]:
        """Predictions of the model at a step, where they were saved (TensorFlow)."""
        names = self.tensor_names(step=step, mode=mode, regex="predictions")
        return [self.tensor(name).value(step, mode) for name in names]

    # ── collections and workers ─────────────────────────────────────────────────────────────────────────────

    def collections(self) -> dict[str, Collection]:
        """The collections by name, whether or not anything of them was saved."""
        self.maybe_refresh()
        return dict(self.archive.collections.by_name) if self.archive.collections else {}

    def collection(self, coll_name: str) -> Collection:
        """One collection.

        Raises:
            InvalidCollectionConfiguration: There is none of this name.
        """
        known = self.collections()
        if coll_name not in known:
            raise InvalidCollectionConfiguration(coll_name)
        return known[coll_name]

    def _has(self, coll_name: str) -> bool:
        return coll_name in self.collections()

    def workers(self) -> list[str]:
        """Names of the workers, sorted."""
        self.maybe_refresh()
        return list(self.archive.workers)

    @property
    def num_workers(self) -> int:
        """How many workers write each step."""
        return self.archive.expected_workers

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, mode: ModeKeys = ModeKeys.GLOBAL, show_incomplete_steps: bool = False) -> list[int]:
        """The complete steps, counted in this mode: all workers wrote them, or they will not come any more."""
        self.maybe_refresh()
        steps = self._of_global if mode is ModeKeys.GLOBAL else self._of_mode.get(mode, {})
        return sorted(s for s in steps if show_incomplete_steps or self._is_complete(mode, s))

    def _is_complete(self, mode: ModeKeys, step: int) -> bool:
        known = self.known_global_step(mode, step)
        return self.loaded_all_steps or (known is not None and known <= self.last_complete_step)

    def modes(self) -> list[ModeKeys]:
        """The modes that the script named; never GLOBAL."""
        self.maybe_refresh()
        return list(self._of_mode)

    def mode(self, global_step: int) -> ModeKeys | None:
        """The mode of a global step."""
        return self.mode_modestep(global_step)[0]

    def mode_step(self, global_step: int) -> int | None:
        """A global step's number within its mode."""
        return self.mode_modestep(global_step)[1]

    def mode_modestep(self, global_step: int) -> tuple[ModeKeys | None, int | None]:
        """Both; None where there is no such step."""
        if global_step not in self._of_global:
            self.maybe_refresh()
        return self._of_global.get(global_step, (None, None))

    def global_step(self, mode: ModeKeys, mode_step: int) -> int | None:
        """The global step of a step within its mode; None where there is none by now."""
        found = self.known_global_step(mode, mode_step)
        if found is None:
            self.maybe_refresh()
            found = self.known_global_step(mode, mode_step)
        return found

    def known_global_step(self, mode: ModeKeys, mode_step: int) -> int | None:
        """The same without another look at the trial."""
        return mode_step if mode is ModeKeys.GLOBAL else self._of_mode.get(mode, {}).get(mode_step)

    def has_passed_step(self, step: int, mode: ModeKeys = ModeKeys.GLOBAL) -> StepState:
        """Whether a step can be read, may still come, or never will."""
        steps = self.steps(mode, show_incomplete_steps=True)
        place = bisect_left(steps, step)
        if place == len(steps):
            return StepState.UNAVAILABLE if self.loaded_all_steps else StepState.NOT_YET_AVAILABLE
        if not self._is_complete(mode, steps[place]):
            return StepState.NOT_YET_AVAILABLE
        return StepState.AVAILABLE if steps[place] == step else StepState.UNAVAILABLE

    def wait_for_steps(self, required_steps: Iterable[int], mode: ModeKeys = ModeKeys.GLOBAL) -> None:
        """Wait until these steps can be read.

        Raises:
            StepUnavailable: One was not saved.
            NoMoreData: The training ended, or broke off, before it.
        """
        with refresh(self):
            for step in required_steps:
                self._wait_for(step, mode)

    def _wait_for(self, step: int, mode: ModeKeys) -> None:
        while (state := self.has_passed_step(step, mode)) is StepState.NOT_YET_AVAILABLE:
            time.sleep(self._poll)
        if state is StepState.AVAILABLE:
            return
        last = max(self.steps(mode, show_incomplete_steps=True), default=-1)
        if self.loaded_all_steps and step > last:
            raise NoMoreData(step, mode, last)
        raise StepUnavailable(step, mode)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────

    def wait_for_start(self) -> None:
        """Wait until it is known what is saved.

        Raises:
            TrialNotFoundError: Nothing appeared in time.
            MissingCollectionFiles: The training has ended without saying so.
        """
        self.maybe_refresh()
        if not self._knows_collections and not self.loaded_all_steps:
            log.warning("waiting for %s to say what it saves", self.path)
        while not self._knows_collections and not self.loaded_all_steps:
            time.sleep(self._poll)
            self.maybe_refresh()
        if not self._knows_collections and not self._of_global:
            if self.archive.ended:
                raise MissingCollectionFiles
            self.archive.require_steps()

    @property
    def _knows_collections(self) -> bool:
        known = self.archive.collections
        return known is not None and len(self.archive.workers) >= known.workers

    def maybe_refresh(self, name: str | None = None) -> None:
        """Look for new steps, unless that is switched off, everything was seen, or a look was taken just now."""
        now = time.monotonic()
        if self.loaded_all_steps or not self.dynamic_refresh or now - self._looked < self._poll:
            return
        try:
            self.archive.refresh()
        except StoreError as error:
            raise IndexReaderException(str(error)) from error
        self._looked = now
        for step, by_worker in self.archive.saved.items():
            if self._first <= step < self._end and len(by_worker) > len(self._workers.get(step, ())):
                for worker, saved in by_worker.items():
                    self._take(step, worker, saved)
        self.loaded_all_steps = self.archive.ended or self._is_dead(now)
        whole = (s for s, by in self._workers.items() if self.loaded_all_steps or len(by) >= self.num_workers)
        self.last_complete_step = max(whole, default=-1)

    def _is_dead(self, now: float) -> bool:
        """Whether nothing came for so long that nothing will: by the files' time, or, where their clock is ahead, since
        the last new one was seen."""
        if self.archive.files != self._files:
            self._files, self._changed = self.archive.files, now
        watched = now - self._changed
        idle = max(watched, self.archive.idle_for) if self.archive.saved else watched
        if idle < self.timeout:
            return False
        log.warning("%s has no end mark and no new file for %.0f s: taken as broken off", self.path, idle)
        return True

    def _take(self, step: int, worker: str, saved: Saved) -> None:
        if worker in self._workers.get(step, ()):
            return
        self._workers.setdefault(step, set()).add(worker)
        mode = ModeKeys[saved.mode]
        self._of_global.setdefault(step, (mode, saved.mode_step))
        if mode is not ModeKeys.GLOBAL:
            self._of_mode.setdefault(mode, {}).setdefault(saved.mode_step, step)
        names = self._names.setdefault(step, {})
        for name, location in saved.tensors.items():
            parts = reduction(name)
            tensor = self._known(parts[0] if parts else name)
            names[tensor.name] = None
            stored = tensor.stored(step, worker)
            if parts:
                stored.reductions[parts[1], parts[2]] = (name, location)
            else:
                stored.location = location
        for name, shape in saved.shapes.items():
            tensor = self._known(name)
            names[name] = None
            tensor.original_name = shape.original_name or None
            tensor.stored(step, worker).shape = shape.shape

    def _known(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = Tensor(name, self, self.cache)
        return self._tensors[name]


def _range(steps: tuple[int | None, int | None] | None) -> tuple[int, float]:
    first, end = steps or (None, None)
    if (first or 0) < 0 or (end is not None and end <= (first or 0)):
        raise UsageError(
            "range_steps is no range of steps",
            got=repr(steps),
            expected="(begin, end), where begin is less than end",
            next_step="pass e.g. (0, 10)",
        )
    return first or 0, float("inf") if end is None else end


def _matching(names: Iterable[str], regexes: Iterable[str]) -> list[str]:
    patterns = [re.compile(regex) for regex in regexes]
    return [name for name in names if any(pattern.search(name) for pattern in patterns)]


@contextmanager
def _refreshing(trials: Trial | Iterable[Trial], on: bool) -> Iterator[None]:
    asked = [trials] if isinstance(trials, Trial) else list(trials)
    before = [trial.dynamic_refresh for trial in asked]
    for trial in asked:
        trial.dynamic_refresh = on
    try:
        yield
    finally:
        for trial, was in zip(asked, before, strict=True):
            trial.dynamic_refresh = was


def no_refresh(trials: Trial | Iterable[Trial]) -> Any:
    """A context in which trials stay as they are."""
    return _refreshing(trials, False)


def refresh(trials: Trial | Iterable[Trial]) -> Any:
    """A context in which trials look for new steps."""
    return _refreshing(trials, True)
