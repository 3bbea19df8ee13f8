"""In what mode torch runs just now: function modes that come and go in any order, and the recording of graphs."""

from __future__ import annotations

import torch
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode


def take_away(mode: TorchFunctionMode) -> None:
    """Take a mode off the stack, also from beneath those of others, who may leave later than we do.

    A mode that is handling a function right now is not on the stack and cannot be taken away.
    """
    above: list[TorchFunctionMode] = []
    while _len_torch_function_stack():
        top = _pop_mode()
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        _push_mode(other)


def is_recording() -> bool:
    """Whether what runs now is recorded into a CUDA graph: what we add would be replayed for ever, and a question to
    the device would end the recording."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
