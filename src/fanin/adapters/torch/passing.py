"""Hooks at every module. Most of what watching costs a small network is spent in them, so that on a way that is known
they do no more than note that a pass goes by."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

from fanin.adapters.torch.hooks import Hook
from fanin.adapters.torch.tracing import Tracer


def entering(tracer: Tracer, path: str, sees: Callable[..., None]) -> Hook:
    """Before a module runs: `sees` is told, unless there is nothing to see. In other threads than this one
    (DataParallel's replicas) it does nothing."""
    thread = get_ident()

    def run(module: Any, args: Any) -> None:
        if tracer.awake and get_ident() == thread and not tracer.goes_into(path):
            sees(path, module, args)

    return Hook(run)


def leaving(tracer: Tracer, path: str, sees: Callable[..., None]) -> Hook:
    """After it has run, or raised: then its output is None."""
    thread = get_ident()

    def run(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if not tracer.awake or get_ident() != thread:
            return
        if output is None or not tracer.comes_out_of(path):
            sees(path, module, args, kwargs, output)

    return Hook(run)
