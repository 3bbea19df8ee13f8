"""Waiting for the training of a script that knows nothing of us: the first model that trains is the one.

Until then the lines that write parameters are noted. The model is the outermost module that is called in train mode
with parameters to train; it is handed over before its first forward pass.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fanin.adapters.torch.describe import WRAPPERS
from fanin.adapters.torch.sources import Recorder
from fanin.adapters.torch.watching import TorchWatching

log = logging.getLogger("fanin")


class Awaited:
    """The model that is going to train."""

    def __init__(self, start: Callable[[Any], TorchWatching]) -> None:
        self._start = start
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._recorder = Recorder()
        self._recorder.start()
        self._handle = register_module_forward_pre_hook(self._called)

    def _called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called. Of a model's modules the outermost is called first, so the first to train is it."""
        if torch.compiler.is_compiling():
            return
        try:
            if self._is_elsewhere() or isinstance(module, WRAPPERS) or not _trains(module):
                return
            self._handle.remove()
            self._recorder.stop()
            watching = self._start(module)
            if not watching.detached:
                watching.joins(module, args)
        except Exception as fault:  # noqa: BLE001  # the script must not suffer from us
            self._handle.remove()
            log.warning("fanin cannot watch %s: %s", type(module).__name__, fault)

    def _is_elsewhere(self) -> bool:
        return os.getpid() != self._process or threading.get_ident() != self._thread


def _trains(module: nn.Module) -> bool:
    """Whether this call belongs to a training: train mode, gradients on, and something to train."""
    return module.training and torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
