"""What a check says where it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examined import CLASSES, HIDDEN, INPUTS, Named, X, Y, batch, cross_entropy, net
from fanin.adapters.torch import tracing
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import BatchError, LossError, UsageError
from fanin.examine import check
from no_trace import Untouched


class Deep(nn.Module):
    """A layer some way down."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, HIDDEN)
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN + 1, CLASSES))])

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.blocks[0](self.stem(x))
        return out


def raising(output: Any, target: Any) -> Tensor:
    raise TypeError("unsupported operand")


def detached(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output.detach(), target)


def of_another_model(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(nn.Linear(INPUTS, CLASSES)(X), target)


@dataclass(frozen=True)
class Case:
    """A call that cannot work, and what its message says."""

    error: type[Exception]
    says: tuple[str, ...]
    model: Callable[[], Any] = Named
    batch: Any = (X, Y)
    loss_fn: Any = cross_entropy


CASES: dict[str, Case] = {
    "an input of the wrong width": Case(
        BatchError,
        (
            "the model cannot run this batch",
            "where     fc (Linear(in_features=6, out_features=3, bias=True)), forward",
            "got       model inputs [16, 4] float32; RuntimeError: mat1 and mat2",
            "expected  input [*, 6] float32",
            "next      run model(inputs) by itself",
        ),
        batch=(X[:, :4], Y),
    ),
    "layers that do not fit one another": Case(
        BatchError,
        (
            "where     blocks.0.1 (Linear(in_features=9",
            "model inputs [16, 6] float32",
            "expected  input [*, 9]",
        ),
        model=Deep,
    ),
    "an input of the wrong kind": Case(
        BatchError, ("where     fc (", "int64", "expected  input [*, 6] float32"), batch=(X.long(), Y)
    ),
    "an image without channels": Case(
        BatchError,
        ("where     the model (Conv2d(", "expected  input [batch, 3, height, width] float32"),
        model=lambda: nn.Conv2d(3, 4, 3),
        batch=(torch.zeros(2, 1, 8, 8), Y),
    ),
    "indices beyond the vocabulary": Case(
        BatchError,
        ("where     0 (Embedding(5, 2))", "expected  integer indices below 5"),
        model=lambda: nn.Sequential(nn.Embedding(5, 2)),
        batch=(torch.tensor([[7]]), Y),
    ),
    "an input that the model does not take": Case(
        BatchError, ("where     the model (Named), forward", "TypeError"), batch={"z": X, "labels": Y}
    ),
    "a batch of three": Case(
        BatchError,
        (
            "this is not a batch",
            "got       tuple of 3",
            "(inputs, targets)",
            "next      for several inputs pass ((first",
        ),
        batch=(X, X, Y),
    ),
    "an empty batch": Case(BatchError, ("this is not a batch", "got       tuple of 0"), batch=()),
    "no batch": Case(BatchError, ("this is not a batch", "got       NoneType"), batch=None),
    "an iterable without batches": Case(
        BatchError, ("the iterable of batches is empty", "next      pass one batch"), batch=iter(())
    ),
    "a batch on another device": Case(
        BatchError,
        (
            "the batch is on another device than the model",
            "got       a tensor of shape [16, 6] on meta",
            "expected  cpu",
            "next      move it: batch.to('cpu')",
        ),
        batch=(X.to("meta"), Y),
    ),
    "a target on another device": Case(
        BatchError, ("another device", "shape [16] on meta"), batch=(X, Y.to("meta"))
    ),
    "a model without values": Case(
        BatchError,
        ("the model has no values yet", "got       parameters on the meta device", "to_empty(device=...)"),
        model=lambda: Named().to("meta"),
    ),
    "a loss that is not a scalar": Case(
        LossError,
        (
            "the loss is not a scalar",
            "got       shape [16]",
            "next      reduce it, for example with reduction='mean'",
        ),
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
    ),
    "a loss that is a number": Case(
        LossError, ("the loss is not a scalar", "got       float"), loss_fn=lambda output, target: 1.0
    ),
    "a loss function that raises": Case(
        LossError,
        (
            "the loss function cannot be computed",
            "where     loss_fn(output, target)",
            "got       output [16, 3], target [16] int64; TypeError: unsupported operand",
            "next      wrap it when the output is a record",
        ),
        loss_fn=raising,
    ),
    "a loss without a graph": Case(
        LossError,
        (
            "the loss does not depend on any trainable parameter",
            "got       a loss without grad_fn",
            ".detach()",
        ),
        loss_fn=detached,
    ),
    "a model with nothing to train": Case(
        LossError,
        ("does not depend on any trainable parameter",),
        model=lambda: Named().requires_grad_(False),
    ),
    "a loss of another model": Case(
        LossError,
        (
            "no gradient reaches any of the model's parameters",
            "got       2 parameters without gradient after backward",
            "next      check that the loss uses the output of this very model",
        ),
        loss_fn=of_another_model,
    ),
    "no loss at all": Case(
        LossError,
        (
            "no loss function was given and the model does not return a loss",
            "got       Tensor with tensors of shape [16, 3]",
            "expected  an output with .loss, a scalar, or a loss function",
        ),
        batch=X,
        loss_fn=None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_says_what_where_and_what_next(name: str) -> None:
    case = CASES[name]
    model = case.model()
    with Untouched(model), pytest.raises(case.error) as caught:
        check(model, case.batch, case.loss_fn)
    for part in case.says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [3, "model.py", Named().state_dict(), nn.Linear, torch.zeros(3)],
    ids=["number", "text", "state_dict", "class", "tensor"],
)
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="this is not a model that fanin knows"):
        check(model, (X, Y), cross_entropy)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (tracing.Tracer, "before"),
        (tracing.Tracer, "leaves"),
        (TorchWatching, "_has_gradient"),
        (TorchWatching, "_finish"),
    ],
)
def test_a_fault_of_ours_is_not_blamed_on_the_model(
    where: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("ours")

    model = net()
    monkeypatch.setattr(where, what, broken)
    with Untouched(model), pytest.raises(ZeroDivisionError):
        check(model, batch(), cross_entropy)
