"""What takes part in a race: copies of a model, the optimizers that train them, and the batches they train on."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from inspect import Parameter, signature
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fanin.adapters.torch.batches import examples_in, loss_of, one_line, part, parts
from fanin.adapters.torch.examining import put_in_train_mode
from fanin.errors import BatchError, UsageError

ENOUGH = 16
"""Examples in a part of a split batch: with fewer a loss says more about the examples than about the weights."""

PARTS = 4
"""Least parts of a batch that is split: fewer are soon known by heart."""

MOST_PARTS = 8
"""Parts that a large batch is split into; each is large, and seen again after so many steps."""


class Twin:
    """A copy that trains.

    Attributes:
        model: In train mode.
        optimizer: Of its parameters.
        losses: At each step; nan from where it was not finite, and then it trains no more.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.losses: list[float] = []
        closure = signature(optimizer.step).parameters.get("closure")
        self._takes_closure = closure is not None and closure.default is Parameter.empty

    def step(self, batch: Any, loss_fn: Any) -> None:
        """One forward pass, backward pass and update; none once the loss is no longer finite."""
        if self.losses and not isfinite(self.losses[-1]):
            self.losses.append(nan)
            return
        value = (
            float(self._loss(batch, loss_fn).detach()) if self._takes_closure else self._plain(batch, loss_fn)
        )
        self.losses.append(value if isfinite(value) else nan)
        if self._takes_closure and isfinite(value):
            self.optimizer.step(lambda: self._differentiated(batch, loss_fn))

    def _plain(self, batch: Any, loss_fn: Any) -> float:
        loss = self._loss(batch, loss_fn)
        value = float(loss.detach())
        if isfinite(value):
            loss.backward()
            self.optimizer.step()
        return value

    def _differentiated(self, batch: Any, loss_fn: Any) -> float:
        """What LBFGS evaluates as often as it likes within one step."""
        loss = self._loss(batch, loss_fn)
        loss.backward()
        return float(loss.detach())

    def _loss(self, batch: Any, loss_fn: Any) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        args, kwargs, target = parts(batch, loss_fn)
        try:
            output = self.model(*args, **kwargs)
        except Exception as error:
            raise BatchError(
                "the model does not run one of the batches",
                got=f"{type(error).__name__}: {one_line(error)}",
                expected="batches that training could use",
                next_step="leave out what is too small for it: DataLoader(..., drop_last=True)",
            ) from error
        return loss_of(output, target, loss_fn)


def duplicate(model: nn.Module, purpose: str = "a race trains copies") -> nn.Module:
    """Another model like this one; its parameters are leaves without gradients.

    Raises:
        UsageError: It cannot be copied.
    """
    try:
        with torch.inference_mode(False):  # what is made under it can never be trained
            return deepcopy(model)
    except Exception as error:
        raise UsageError(
            f"the model cannot be copied, and {purpose}",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            expected="a model of which copy.deepcopy makes another",
            next_step="check it by itself: fanin.check needs no copy",
        ) from error


def copy_of(model: nn.Module) -> nn.Module:
    """Another model like this one, in train mode, ready for any optimizer.

    Raises:
        UsageError: It cannot be copied.
    """
    copied = duplicate(model)
    for module in copied.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # Adam takes no sparse gradients
    put_in_train_mode(copied)
    return copied


def mapped(optimizer: Optimizer, model: nn.Module, copied: nn.Module) -> Optimizer:
    """The same class and settings on the parameters of a copy, matched by name, without any state.

    Raises:
        UsageError: The optimizer holds none of this model's parameters.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    twins = dict(copied.named_parameters())
    known = {
        id(p): twins[names[id(p)]] for g in optimizer.param_groups for p in g["params"] if id(p) in names
    }
    if not known:
        raise UsageError(
            "the optimizer holds none of this model's parameters",
            got=f"a {type(optimizer).__name__} of other parameters",
            expected="an optimizer made from model.parameters()",
            next_step="make it from the very model that is checked",
        )
    memo: dict[int, Any] = {**known, id(optimizer.state): defaultdict(dict)}
    made: Optimizer = deepcopy(optimizer, memo)  # by its settings: not every class takes its own defaults
    for name, value in vars(optimizer).items():
        if name not in vars(made) and isinstance(value, bool | int | float | str | tuple | None):
            setattr(made, name, value)
    own = {id(p) for p in twins.values()}
    for group in made.param_groups:
        group["params"] = [p for p in group["params"] if id(p) in own]
    return made


def seed_everything(seed: int) -> None:
    """What torch, Python and NumPy draw next; `untouched` puts their state back."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def several(found: Sequence[Any]) -> Sequence[Any]:
    """The batches; a single one split along its first axis.

    Raises:
        BatchError: It is too small for that, or not all of its tensors count examples along their first axis.
    """
    if len(found) != 1:
        return found
    size = examples_in(found[0])
    if size < PARTS * ENOUGH:
        raise BatchError(
            "a race needs several batches",
            got=f"one batch of {size} examples" if size else "one batch that cannot be split",
            expected=f"a list of batches, a DataLoader, or one batch of {PARTS * ENOUGH} examples or more",
            next_step="pass the DataLoader that trains the model",
        )
    each = max(ENOUGH, size // MOST_PARTS)
    return [part(found[0], slice(start, start + each)) for start in range(0, size - each + 1, each)]
