"""What a forward pass tells, and who is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from fanin.trial import ActivationSpec, LayerSpec, Role


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a tensor comes from: the layers whose output it is made of, how they met, the activation since (None
    where they differ)."""

    layers: frozenset[str]
    joins: str = ""
    activation: str | None = "identity"


@dataclass(frozen=True, slots=True)
class KnownParameter:
    """A parameter and its place; of tied ones the first. `layer` is the module's, or the one that it is by itself;
    `is_bare` says whether only its uses tell."""

    path: str
    name: str
    tensor: nn.Parameter
    role: Role
    unit_axis: int | None
    layer: str
    is_bare: bool

    @property
    def full_name(self) -> str:
        """E.g. `blocks.0.fc.weight`."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def gradient_name(self) -> str:
        """By the original's convention."""
        return f"gradient/{self.full_name}"


class Listener(Protocol):
    """Who is told what happens during a pass."""

    def layer_ran(
        self, path: str, module: nn.Module, call: int, inputs: tuple[Any, ...], output: Any
    ) -> None:
        """A layer has returned, for the call-th time in this pass, counted from 0."""

    def weight_used(
        self, path: str, taken: Tensor, axis: int | None, made: Tensor, made_axis: int | None
    ) -> None:
        """A bare weight has made `made` of `taken`, for the first time in this pass; the axes count units."""

    def effective_weight(self, path: str, name: str, value: Tensor, unit_axis: int | None) -> None:
        """A layer's weight has been computed from its parts."""

    def activation_runs(self, tensor: str, path: str, value: Tensor, unit_axis: int | None) -> None:
        """An activation is about to run on this value."""

    def attention_runs(self, path: str, call: int, entropy: Callable[[], Tensor | None]) -> None:
        """Attention may be about to run; `entropy` says how sharp it is, or that this is none."""


@dataclass(slots=True)
class Pass:
    """What one forward pass has shown so far.

    Attributes:
        ran: The layers that ran, in order of their first run, with inputs and activation filled in.
        calls: How often each layer ran.
        activations: In order.
        outputs: Layers that reach the model's output.
    """

    ran: dict[str, LayerSpec] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    activations: list[ActivationSpec] = field(default_factory=list)
    outputs: tuple[str, ...] = ()
