"""PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fanin.adapters.base import Adapter, Interruption, Treated, Watching, WatchPlan
from fanin.adapters.torch import gathered, repairing
from fanin.adapters.torch.awaiting import Awaited
from fanin.adapters.torch.batches import batches
from fanin.adapters.torch.describe import model_spec, uncompiled
from fanin.adapters.torch.examining import examine, trace
from fanin.adapters.torch.interrupting import Interrupt
from fanin.adapters.torch.racing import race
from fanin.adapters.torch.restore import beside_untouched
from fanin.adapters.torch.sources import recording
from fanin.adapters.torch.statistics import summarize
from fanin.adapters.torch.watching import TorchWatching
from fanin.change import Plan
from fanin.race import MOST, Race, RaceOptions
from fanin.rule import Need
from fanin.summary import TensorSummary
from fanin.trial import ModelSpec, Trial


class TorchAdapter(Adapter):
    """PyTorch in neutral words."""

    name = "torch"

    def recognizes(self, model: object) -> bool:
        """Whether the model is a `torch.nn.Module` that still runs as Python; a scripted one takes no hooks."""
        return isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)

    def describe(self, model: nn.Module) -> ModelSpec:
        """See Adapter."""
        return model_spec(model)

    def summarize(
        self, tensor: Tensor, *, histogram: bool = False, unit_axis: int | None = None, offset: int = 0
    ) -> TensorSummary:
        """See Adapter."""
        return summarize(tensor, histogram=histogram, unit_axis=unit_axis, offset=offset)

    def watch(self, model: nn.Module, plan: WatchPlan) -> Watching:
        """See Adapter."""
        return TorchWatching(model, plan)

    def examine(
        self, model: nn.Module, batch: Any, loss_fn: Any, needs: frozenset[Need], optimizer: Any = None
    ) -> Trial:
        """See Adapter."""
        model, optimizer = gathered.whole(model, optimizer)
        return examine(model, batch, loss_fn, needs, optimizer)

    def race(
        self,
        model: nn.Module,
        batch: Any,
        loss_fn: Any,
        spec: ModelSpec,
        options: RaceOptions,
        optimizer: Any = None,
        reference: nn.Module | None = None,
    ) -> Race:
        """See Adapter."""
        model, optimizer = gathered.whole(model, optimizer)
        return race(
            model,
            batch,
            loss_fn,
            spec,
            learning_rates=options.learning_rates,
            optimizer=optimizer,
            steps=options.steps,
            most=options.most,
            seed=options.seed,
            on_progress=options.on_progress,
            seconds=options.seconds,
            factors=options.factors,
            reference=reference,
        )

    def trace(self, model: nn.Module, batch: Any, loss_fn: Any) -> Trial:
        """See Adapter."""
        return trace(gathered.whole(model)[0], batch, loss_fn)

    def interruption(self, model: nn.Module, watching: Watching) -> Interruption:
        """See Adapter."""
        return Interrupt(model, watching)

    def is_spread(self, model: nn.Module) -> bool:
        """See Adapter."""
        return gathered.is_sharded(uncompiled(model))

    def shared(self, model: nn.Module, batch: Any) -> Any:
        """See Adapter."""
        with beside_untouched(model, None, batch):
            found = batches(batch, MOST)
        return gathered.shared(uncompiled(model), found)

    def copy(self, model: nn.Module, optimizer: Any = None) -> tuple[nn.Module, Any]:
        """See Adapter."""
        return repairing.copied(model, optimizer)

    def treat(
        self, model: nn.Module, batch: Any, loss_fn: Any, spec: ModelSpec, plan: Plan, seed: int
    ) -> Treated:
        """See Adapter."""
        return repairing.treat(model, batch, loss_fn, spec, plan, seed)

    def adopt(self, model: nn.Module, repaired: nn.Module, parameters: Sequence[str]) -> Callable[[], None]:
        """See Adapter."""
        return repairing.adopt(model, repaired, parameters)

    def history(self, model: nn.Module, optimizer: Any = None) -> tuple[str, ...]:
        """See Adapter."""
        return repairing.history(model, optimizer)

    def await_training(self, start: Callable[[Any], Any]) -> None:
        """See Adapter."""
        Awaited(start)

    def recording_sources(self) -> AbstractContextManager[None]:
        """See Adapter."""
        return recording()


adapter = TorchAdapter()
