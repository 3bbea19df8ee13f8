"""The table of frameworks. An adapter is imported only once its framework is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module

from fanin.adapters.base import Adapter
from fanin.errors import UsageError

FRAMEWORKS = {"torch": "fanin.adapters.torch"}
"""Framework module -> adapter module, which holds one object called `adapter`."""


@cache
def load(framework: str) -> Adapter:
    """The adapter of a framework, importing both."""
    found: Adapter = import_module(FRAMEWORKS[framework]).adapter
    return found


def adapter_for(model: object) -> Adapter:
    """The adapter that recognizes a model.

    Raises:
        UsageError: None does.
    """
    for framework in FRAMEWORKS:
        if framework in sys.modules and load(framework).recognizes(model):
            return load(framework)
    raise UsageError(
        "this is not a model that fanin knows",
        got=f"{type(model).__module__}.{type(model).__qualname__}",
        expected=f"a model of {', '.join(FRAMEWORKS)} (for torch: a torch.nn.Module, not scripted)",
        next_step="pass the model itself, not its output, its class or its state_dict",
    )


@contextmanager
def recording_sources() -> Iterator[None]:
    """While open, note which line of the user's code writes each parameter, in every framework imported so far."""
    with ExitStack() as stack:
        for framework in FRAMEWORKS:
            if framework in sys.modules:
                stack.enter_context(load(framework).recording_sources())
        yield
