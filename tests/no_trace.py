"""Everything that a check might change, described bit for bit, so that a test can tell that nothing has."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks

ORIGINAL_BACKWARD = torch.autograd.backward


def bits(tensor: Tensor | None) -> Any:
    if tensor is None or tensor.is_meta:
        return None
    return tensor.dtype, tuple(tensor.shape), tensor.detach().numpy().tobytes()


def described(value: Any) -> Any:
    """A value so that it can be compared later, by identity and content."""
    if isinstance(value, Tensor):
        return id(value), bits(value)
    if isinstance(value, Mapping):
        return id(value), [(k, described(v)) for k, v in value.items()]
    if isinstance(value, list | tuple | deque | set):
        return id(value), [described(v) for v in value]
    return id(value)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that a check might change."""
    return {
        "modules": [(n, type(m), described(vars(m))) for n, m in model.named_modules()],
        "training": [m.training for m in model.modules()],
        "parameters": [(id(p), bits(p), p.requires_grad) for p in model.parameters()],
        "gradients": [(id(p.grad), bits(p.grad)) for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "buffers": [(id(b), bits(b)) for b in model.buffers()],
        "hooks": [p._post_accumulate_grad_hooks or {} for p in model.parameters()],
    }


def state_of_the_world() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "modes": torch._C._len_torch_function_stack(),
        "backward": torch.autograd.backward is ORIGINAL_BACKWARD,
        "optimizers": len(_global_optimizer_post_hooks),
    }


class Untouched:
    """A context at whose end everything is what it was at its beginning."""

    def __init__(self, model: nn.Module, *others: Any) -> None:
        self._model, self._others = model, others

    def _now(self) -> dict[str, Any]:
        return state_of(self._model) | state_of_the_world() | {"others": [described(o) for o in self._others]}

    def __enter__(self) -> None:
        self._before = self._now()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for what, now in self._now().items():
            assert now == self._before[what], what
