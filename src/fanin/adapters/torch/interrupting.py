"""An error that is raised in a training from outside, between two steps."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

from fanin.adapters.torch.describe import unwrapped
from fanin.adapters.torch.hooks import Hook
from fanin.adapters.torch.optimizing import audience


class Interrupt:
    """Raises at the next forward pass in train mode or the next step of the model's optimizer, whichever comes first:
    a compiled model may pass over hooks that come later than its compilation. Then, and with the model, it is gone.

    It is hung up by another thread than the one that trains. Torch copies a module's hooks before it calls them, and
    the hook is the only thing here that keeps this object.
    """

    def __init__(self, model: nn.Module, error: Exception) -> None:
        self._error = error
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._handle = unwrapped(model).register_forward_pre_hook(Hook(self._begins))
        audience.add(self)

    def _begins(self, module: nn.Module, args: Any) -> None:
        if module.training:
            self._raise()

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        """Torch: it is about to step."""
        if any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"]):
            self._raise()

    def optimizer_ended(self, optimizer: Optimizer) -> None:
        """Torch: it has stepped."""

    def _raise(self) -> None:
        self._handle.remove()
        audience.remove(self)
        raise self._error
