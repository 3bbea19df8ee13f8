"""Adapter: a framework in neutral words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import nan
from typing import Any, Literal, Protocol

from fanin.change import Change, Plan
from fanin.patch import Call
from fanin.race import Race, RaceOptions
from fanin.rule import Need
from fanin.summary import TensorSummary
from fanin.trial import ModelSpec, Step, Trial

OnError = Literal["warn", "raise"]


class Watching(Protocol):
    """A model under observation."""

    @property
    def spec(self) -> ModelSpec:
        """The model, as far as it has been seen to run."""

    @property
    def detached(self) -> bool:
        """Whether all hooks are gone."""

    def loss(self, value: Any) -> None:
        """State the loss of the current step, where it cannot be found through backward."""

    def detach(self) -> None:
        """Finish the current step and take every hook away; idempotent."""


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """What to capture.

    Attributes:
        needs: Roles and details, from the rules.
        steps: Training steps 0 to steps - 1 are captured.
        on_step: Receives each finished step, with the model as known by then.
        on_error: Report a fault of ours once and go on without capture, or raise it.
        worker: The rank to record.
        examples: Examples in the batch, which then is summarized by halves at step 0; 0 where that cannot be told.
    """

    needs: frozenset[Need]
    steps: int
    on_step: Callable[[Step, ModelSpec], None]
    on_error: OnError = "warn"
    worker: int = 0
    examples: int = 0


@dataclass(frozen=True, slots=True)
class Treated:
    """What a plan has done to a model.

    Attributes:
        changes: One for each parameter whose values are others now, in forward order.
        code: Plain initialization code that does the same to a model called `model`.
        calls: By a parameter's full name the one call that draws it soundly.
        loss: Of the batch with the new weights; nan where it cannot be had.
    """

    changes: tuple[Change, ...]
    code: str
    calls: Mapping[str, Call]
    loss: float = nan


class Interruption(Protocol):
    """A hand on a training, by which it can be ended from outside, between two steps. As long as nobody asks it costs
    nothing that can be measured."""

    def ask(self, error: Exception) -> None:
        """Have the training raise this at its next step, once; called from any thread."""

    def leave(self) -> None:
        """Nobody will ask any more; called by who trains; idempotent."""


class Adapter(ABC):
    """A framework in neutral words."""

    name: str

    @abstractmethod
    def recognizes(self, model: object) -> bool:
        """Whether the model belongs to this framework."""

    @abstractmethod
    def describe(self, model: Any) -> ModelSpec:
        """The model without running it: layers in order of construction, inputs and activations unknown."""

    @abstractmethod
    def summarize(
        self, tensor: Any, *, histogram: bool = False, unit_axis: int | None = None, offset: int = 0
    ) -> TensorSummary:
        """As `fanin.summary.summarize`, on the tensor's device, in float32 or better."""

    @abstractmethod
    def watch(self, model: Any, plan: WatchPlan) -> Watching:
        """Attach to a model in training; hooks leave by themselves after the last captured step."""

    @abstractmethod
    def examine(
        self, model: Any, batch: Any, loss_fn: Any, needs: frozenset[Need], optimizer: Any = None
    ) -> Trial:
        """One forward and backward pass on the model as it is, as a trial; leaves no trace.

        Args:
            model, batch, loss_fn: As `fanin.check` takes them.
            needs: Roles and details, from the rules; those with `reference` are looked at in a re-draw too.
            optimizer: Takes RECHECK steps (on parameters that are put back); None for no steps.

        Raises:
            BatchError: The model cannot run the batch.
            LossError: The loss cannot be computed or differentiated.
            UsageError: The optimizer is none, or not of this model.
        """

    @abstractmethod
    def race(
        self,
        model: Any,
        batch: Any,
        loss_fn: Any,
        spec: ModelSpec,
        options: RaceOptions,
        optimizer: Any = None,
        reference: Any = None,
    ) -> Race:
        """Train copies of the model against copies of its sound re-draw; leaves no trace, also when interrupted.

        Args:
            model, loss_fn: As `fanin.check` takes them.
            batch: An iterable of batches, or one that is large enough to be split.
            spec: Of this model, from a pass.
            options: How to race.
            optimizer: Of this model, or a function of parameters that makes one; None for Adam.
            reference: Races instead of the re-draw: the same model, repaired; only read.

        Raises:
            BatchError: There is one batch only, and it is too small to be split.
            LossError: The loss cannot be computed.
            UsageError: The model cannot be copied, or the optimizer is not one of this model.
        """

    @abstractmethod
    def trace(self, model: Any, batch: Any, loss_fn: Any) -> Trial:
        """One forward pass as a trial that holds the parameters, and the loss where it can be had; leaves no trace.

        Raises:
            BatchError: The model cannot run the batch.
        """

    @abstractmethod
    def interruption(self, model: Any, watching: Watching) -> Interruption:
        """A hand on the training of a watched model that can end it, as long as it is kept; called by who trains."""

    def is_spread(self, model: Any) -> bool:
        """Whether other processes hold parts of this model's parameters."""
        return False

    def shared(self, model: Any, batch: Any) -> Any:
        """What one of the processes that hold parts of this model was given, in all of them; they call together."""
        return batch

    @abstractmethod
    def copy(self, model: Any, optimizer: Any = None) -> tuple[Any, Any]:
        """Another model with the same values, and the same optimizer for it, without state; None for None.

        Raises:
            UsageError: It cannot be copied, or its parameters cannot be written (lazy, without memory).
        """

    @abstractmethod
    def treat(self, model: Any, batch: Any, loss_fn: Any, spec: ModelSpec, plan: Plan, seed: int) -> Treated:
        """Carry out a plan on a model, in place, in one forward pass; nothing but parameters changes.

        Args:
            model, batch, loss_fn: As `fanin.check` takes them; the loss is not computed.
            spec: Of this model, from a pass.
            plan: Which parameters get which treatment.
            seed: Of the draw, the only source of randomness: equal seeds give equal bits.

        Raises:
            BatchError: The model does not run the batch with the new values.
            UsageError: Its parameters cannot be written.
        """

    @abstractmethod
    def adopt(self, model: Any, repaired: Any, parameters: Sequence[str]) -> Callable[[], None]:
        """Give a model the values of its repaired copy, all or none; what it returns puts the old ones back."""

    @abstractmethod
    def history(self, model: Any, optimizer: Any = None) -> tuple[str, ...]:
        """What shows that the model is no fresh initialization (optimizer state, a checkpoint, many writes), one
        sentence each; none where nothing does."""

    @abstractmethod
    def await_training(self, start: Callable[[Any], Any]) -> None:
        """Call `start(model)` once, just before the first forward pass of the first model that trains; note until
        then which lines write parameters. What `start` returns is a Watching of this adapter."""

    @abstractmethod
    def recording_sources(self) -> AbstractContextManager[None]:
        """While open, note which line of the user's code last writes each parameter."""


def brief(optimizer: Any) -> str:
    """An optimizer in a line: `SGD lr=0.05 momentum=0.9`."""
    settings = {
        k: v for k, v in getattr(optimizer, "defaults", {}).items() if v and isinstance(v, int | float)
    }
    return " ".join([type(optimizer).__name__, *(f"{k}={v}" for k, v in settings.items())])
