"""Store and Writer: where trials are kept, and who adds to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from fanin.trial import ModelSpec, Step, Trial


class Writer(ABC):
    """One worker's hand on a trial: append-only; every call returns before anything reaches the medium."""

    @abstractmethod
    def describe(self, spec: ModelSpec) -> None:
        """State what the model is; later statements add to earlier ones (layers that ran only later)."""

    @abstractmethod
    def append(self, step: Step) -> None:
        """Add a step."""

    @abstractmethod
    def end(self, wait_s: float = 0.0) -> None:
        """State that nothing more comes: once everything is written, this worker's part is complete. Returns then, and
        after `wait_s` at the latest; reports nothing; idempotent."""

    @abstractmethod
    def is_of(self, identity: str) -> bool:
        """Whether that is the run which it writes (see `Trial.identity`); may ask the medium.

        Raises:
            StoreError: It does not answer.
        """

    @abstractmethod
    def leave(self) -> None:
        """As `end`, soon; takes no lock, since it is called where a watch is freed: by a garbage collection, which may
        come anywhere."""

    @abstractmethod
    def flush(self) -> None:
        """Wait until everything appended is readable by others, as long as the medium answers.

        Raises:
            StoreError: Something could not be written; what was written before stays readable.
        """

    @abstractmethod
    def close(self) -> None:
        """End and flush; idempotent.

        Raises:
            StoreError: As flush.
        """

    @abstractmethod
    def withdraw(self) -> None:
        """Give the place back, as if this worker had never begun; for one that has appended nothing.

        Raises:
            OSError: The place cannot be reached.
        """


class Store(ABC):
    """One trial's place: append-only, many writers (ranks), readable while written and after a crash."""

    uri: str

    @abstractmethod
    def begin(self, worker: int = 0, about: Mapping[str, str] | None = None) -> Writer:
        """Start writing as one worker.

        Raises:
            TrialExistsError: This worker, or another run, has written here already.
            StoreError: The place cannot be written.
        """

    @abstractmethod
    def load(self) -> Trial:
        """Read what is there: the steps of all workers, up to the break if a writer died.

        Raises:
            TrialNotFoundError: There is nothing.
            TrialFormatError: It is not a trial that this version can read.
        """
