"""An error that is raised in a training from outside, between two steps."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any
from weakref import ref

from torch import nn
from torch.optim.optimizer import Optimizer

from fanin.adapters.base import Watching
from fanin.adapters.torch.describe import is_compiled, unwrapped
from fanin.adapters.torch.hooks import Handles, Hook
from fanin.adapters.torch.optimizing import audience, trains


class Interrupt:
    """Raises when it was asked to, at the next step of the model's optimizer, once.

    It is hung up by the thread that trains, and asked by another one, which sets an attribute and touches nothing that
    torch may be going through. For loops that update the parameters by themselves it hangs on the model too: until an
    optimizer steps when the capture is over, which is when capture leaves, so that what is compiled is compiled anew
    once; and again when it is asked, where an optimizer steps other tensors than the model's own (master weights).
    There it raises at the next forward pass in train mode. Whoever made it keeps it.
    """

    def __init__(self, model: nn.Module, watching: Watching) -> None:
        self._model = ref(model)
        self._watching = ref(watching)
        self._thread = threading.get_ident()
        self._error: Exception | None = None
        self._handles = Handles()
        self._hang(model)
        audience.add(self)

    def ask(self, error: Exception) -> None:
        """See `fanin.adapters.base.Interruption`."""
        self._error = error

    def leave(self) -> None:
        """See `fanin.adapters.base.Interruption`."""
        self._handles.remove()
        audience.remove(self)

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        """Torch: it is about to step."""
        model = self._model() if self._error is not None else None
        if model is None:
            return
        if trains(optimizer, model.parameters()):
            self._raise()
        if threading.get_ident() == self._thread:
            self._hang(model)

    def optimizer_ended(self, optimizer: Optimizer) -> None:
        """Torch: it has stepped."""
        if self._handles and self._error is None and threading.get_ident() == self._thread:
            watching = self._watching()
            if watching is None or watching.detached:
                self._handles.remove()

    def begins(self, module: nn.Module) -> None:
        """Torch: a forward pass is about to begin."""
        if self._error is not None and module.training and threading.get_ident() == self._thread:
            self._raise()

    def _hang(self, model: nn.Module) -> None:
        """Not on what is compiled, which may pass over a hook, and may be compiled anew for one."""
        if not self._handles and not is_compiled(model):
            hook = Hook(partial(_begins, ref(self), self._handles))
            self._handles.add(unwrapped(model).register_forward_pre_hook(hook))

    def _raise(self) -> None:
        error, self._error = self._error, None
        self.leave()
        if error is not None:
            raise error


def _begins(interrupt: ref[Interrupt], handles: Handles, module: nn.Module, args: Any) -> None:
    """Weakly: whoever keeps the interrupt decides how long it listens, and the model does not."""
    known = interrupt()
    if known is None:
        handles.remove()
    else:
        known.begins(module)
