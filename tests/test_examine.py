"""check: it says what is there, leaves no trace, and its errors lead on."""

from __future__ import annotations

import copy
import random
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import getsourcelines
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fanin.adapters.torch import restore, tracing
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import BatchError, LossError, UsageError
from fanin.examine import Report, check
from fanin.finding import Verdict
from fanin.trial import Role, SourceLine
from no_trace import Untouched, bits

INPUTS, HIDDEN, CLASSES, BATCH = 6, 8, 3, 16

cross_entropy = nn.functional.cross_entropy


class Net(nn.Module):
    """A network with all that a pass can change: running statistics, random numbers, attributes, lists."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.history: list[float] = []
        self.recent: deque[int] = deque(maxlen=3)
        self.known: dict[str, int] = {"a": 1}
        self.cache = torch.zeros(HIDDEN)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.calls += 1
        self.history.append(float(x.detach().sum()))
        self.recent.append(self.calls)
        self.known["b"] = self.calls
        self.last_input = x
        hidden = self.drop(self.relu(self.norm(self.fc1(x))))
        self.cache += hidden.detach()[0]
        random.random()
        np.random.rand()
        out: Tensor = self.fc2(hidden)
        return out


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(width: int = INPUTS) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, width, generator=made), torch.randint(CLASSES, (BATCH,), generator=made)


# ── no trace ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def with_gradients(model: Net) -> None:
    for p in model.fc1.parameters():
        p.grad = torch.full_like(p, 3.0)


def in_eval_mode(model: Net) -> None:
    model.eval()


def with_a_frozen_norm(model: Net) -> None:
    model.norm.eval()


def with_frozen_parameters(model: Net) -> None:
    model.fc1.requires_grad_(False)


def with_hooks(model: Net) -> None:
    model.fc1.register_forward_hook(lambda module, args, output: output * 1.5)
    model.fc2.register_full_backward_hook(lambda module, inputs, outputs: None)


def with_nan_statistics(model: Net) -> None:
    model.norm.running_mean[0] = float("nan")  # type: ignore[index]


def as_it_is(model: Net) -> None:
    pass


PREPARATIONS = [
    as_it_is,
    with_gradients,
    in_eval_mode,
    with_a_frozen_norm,
    with_frozen_parameters,
    with_hooks,
    with_nan_statistics,
]


@pytest.mark.parametrize("prepare", PREPARATIONS)
def test_a_check_leaves_no_trace(prepare: Callable[[Net], None]) -> None:
    model, (x, y) = net(), batch()
    prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Untouched(model, x, y, optimizer.state, optimizer.param_groups):
        report = check(model, (x, y), cross_entropy)
    assert report.trial.start is not None


class Stop(BaseException):
    """Raised by nobody but these tests."""


class RaisingBackward(torch.autograd.Function):
    """Raises in backward."""

    error: BaseException = RuntimeError()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Raises."""
        raise RaisingBackward.error


class Raising(Net):
    """Raises in its forward pass, after most of it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        """Raises."""
        super().forward(x)
        raise self.error


class Graph(nn.Module):
    """A graph convolution whose sparse adjacency decays as it is used."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each node."""
        values = self.adjacency.values() if self.adjacency.layout is not torch.sparse_coo else None
        (self.adjacency._values() if values is None else values).mul_(0.5)
        out: Tensor = self.fc2(torch.relu(self.adjacency @ self.fc1(x)))
        return out


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_buffers_go_back_too(layout: torch.layout) -> None:
    dense = torch.eye(BATCH) + torch.eye(BATCH).roll(1, 0)
    model = Graph(dense.to_sparse(layout=layout))
    before = model.adjacency
    report = check(model, batch(), cross_entropy)
    assert model.adjacency is before
    assert before.layout is layout
    assert torch.equal(before.to_dense(), dense)
    assert report.verdict is Verdict.HEALTHY


def in_forward(error: BaseException) -> tuple[Net, Any]:
    return Raising(error), cross_entropy


def in_the_loss(error: BaseException) -> tuple[Net, Any]:
    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        raise error

    return net(), loss_fn


def in_backward(error: BaseException) -> tuple[Net, Any]:
    RaisingBackward.error = error
    return net(), lambda output, target: RaisingBackward.apply(cross_entropy(output, target))


@pytest.mark.parametrize("where", [in_forward, in_the_loss, in_backward])
@pytest.mark.parametrize(
    "error", [RuntimeError("no"), ValueError("no"), KeyboardInterrupt(), Stop()], ids=repr
)
def test_after_an_exception_there_is_no_trace_either(
    where: Callable[[BaseException], tuple[Net, Any]], error: BaseException
) -> None:
    model, loss_fn = where(error)
    with_gradients(model)
    x, y = batch()
    expected = (BatchError, LossError) if isinstance(error, Exception) else type(error)
    with Untouched(model, x, y), pytest.raises(expected):
        check(model, (x, y), loss_fn)


class WritesIntoItsInput(nn.Module):
    """Changes the batch in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.fc(x.mul_(2).relu_())
        return out


@pytest.mark.parametrize(
    "wrap", [lambda x, y: (x, y), lambda x, y: {"x": x, "labels": y}, lambda x, y: ((x,), y)]
)
def test_the_batch_stays_as_it_is(wrap: Callable[[Tensor, Tensor], Any]) -> None:
    (x, y), model = batch(), WritesIntoItsInput()
    given = wrap(x, y)
    with Untouched(model, x, y, given):
        check(model, given, cross_entropy)


class WritesIntoItsParameters(nn.Module):
    """Normalizes its weight in place, in its own forward pass, and moves another elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, CLASSES)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        with torch.no_grad():
            self.fc.weight.div_(self.fc.weight.norm())
        self.scale.data *= 2
        out: Tensor = self.fc(x) * self.scale
        return out


def test_a_model_that_writes_into_its_parameters_gets_them_back() -> None:
    model = WritesIntoItsParameters()
    before = [bits(p) for p in model.parameters()]
    check(model, batch(), cross_entropy)
    assert [bits(p) for p in model.parameters()] == before


def test_a_model_that_does_so_and_is_too_large_to_be_copied_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore, "COPY_LIMIT", 0)
    with pytest.raises(UsageError, match="changes its parameters, and it is too large to be copied"):
        check(WritesIntoItsParameters(), batch(), cross_entropy)


def test_a_large_model_is_not_copied_and_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "COPY_LIMIT", 0)
    model = net()
    with Untouched(model):
        check(model, batch(), cross_entropy)


class Unfreezing(Net):
    """Changes which of its parameters train."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.fc2.bias.requires_grad_(False)
        return super().forward(x)


def test_what_trains_stays() -> None:
    model = Unfreezing()
    with Untouched(model):
        check(model, batch(), cross_entropy)


def test_a_lazy_model_stays_lazy_and_works_afterwards() -> None:
    model = nn.Sequential(nn.LazyLinear(HIDDEN), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(CLASSES))
    report = check(model, batch(), cross_entropy)
    assert report.trial.spec.layer("0").parameters[0].fan_in == INPUTS
    assert [type(m).__name__ for m in model] == ["LazyLinear", "LazyBatchNorm1d", "ReLU", "LazyLinear"]
    assert all(nn.parameter.is_lazy(p) for p in model.parameters())
    out = model(batch(width=4)[0])
    assert out.shape == (BATCH, CLASSES)
    assert isinstance(model[0], nn.Linear)
    assert model[0].in_features == 4
    out.sum().backward()


def test_training_after_a_check_is_training_without_one() -> None:
    def trained(checked: bool) -> list[Any]:
        model = net()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            if checked:
                check(model, batch(), cross_entropy)
            optimizer.zero_grad()
            cross_entropy(model(batch()[0]), batch()[1]).backward()
            optimizer.step()
        return [bits(t) for t in model.state_dict().values()]

    assert trained(checked=True) == trained(checked=False)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_a_check_works_within_other_contexts(context: Callable[[], Any]) -> None:
    model = net()
    with context(), Untouched(model):
        report = check(model, batch(), cross_entropy)
    assert report.trial.start is not None
    assert report.trial.start.of(Role.WEIGHT_GRAD)


def test_a_model_is_judged_as_it_trains() -> None:
    model = net().eval()
    seen: list[tuple[bool, bool]] = []
    model.fc1.register_forward_hook(lambda *args: seen.append((model.training, model.norm.training)))
    check(model, batch(), cross_entropy)
    assert (model.training, model.norm.training) == (False, False)
    model.train()
    model.norm.eval()
    check(model, batch(), cross_entropy)
    assert seen == 2 * [(True, True)] + 2 * [(True, False)]  # as it is, and drawn anew


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["wrapped", "in place", "child"])
def test_a_compiled_model_is_seen_as_it_was_written(how: str) -> None:
    torch._dynamo.reset()
    model: Any = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    if how == "in place":
        model.compile(backend="eager")
    elif how == "child":
        model[0] = torch.compile(model[0], backend="eager")
    given = torch.compile(model, backend="eager") if how == "wrapped" else model
    with Untouched(model):
        report = check(given, batch(), cross_entropy)
    assert report.trial.start is not None
    assert len(report.trial.start.of(Role.OUTPUT)) == 2
    assert len(report.trial.start.of(Role.ACTIVATION_INPUT)) == 1


# ── what is seen ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_says_what_is_there() -> None:
    report = check(net(), batch(), cross_entropy)
    assert isinstance(report, Report)
    assert isinstance(report.verdict, Verdict)
    assert [layer.path for layer in report.trial.spec.layers] == ["fc1", "norm", "fc2"]
    assert report.trial.spec.name == "Net"
    assert report.trial.start is not None
    assert report.trial.start.loss > 0
    assert report.trial.complete
    assert report.trial.about["framework"].startswith("torch ")
    assert "Net" in str(report)


def test_a_model_far_from_its_scale_is_poor() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(32, 32, bias=False), nn.ReLU())))
        for p in model.parameters():
            nn.init.normal_(p, std=1e-3)
        return model

    report = check(build, (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss)
    assert report.verdict is Verdict.POOR


class Named(nn.Module):
    """Takes named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, CLASSES)

    def forward(self, x: Tensor, second: Tensor | None = None) -> Tensor:
        """Logits."""
        out: Tensor = self.fc(x if second is None else x + second)
        return out


class OwnLoss(Named):
    """Returns its own loss, in one of the usual forms."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        """Loss and logits."""
        logits = self.fc(x)
        loss = logits.square().mean() if labels is None else cross_entropy(logits, labels)
        return self.form(loss, logits)


@dataclass
class Output:
    """As transformers do."""

    loss: Tensor
    logits: Tensor


class Encoding(UserDict):  # type: ignore[type-arg]
    """As tokenizers return it: a mapping, but no dict."""


class Features(dict):  # type: ignore[type-arg]
    """A dict that is more than that."""


def generator() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield batch()


X, Y = batch()
BATCHES: dict[str, Any] = {
    "(x, y)": (X, Y),
    "[x, y]": [X, Y],
    "((a, b), y)": ((X, X), Y),
    "[[a, b], y]": [[X, X], Y],
    "({x}, y)": ({"x": X}, Y),
    "({x, second}, y)": ({"x": X, "second": X}, Y),
    "{x, labels}": {"x": X, "labels": Y},
    "{x, target}": {"x": X, "target": Y},
    "UserDict": Encoding({"x": X, "labels": Y}),
    "dict subclass": Features(x=X, y=Y),
    "DataLoader": DataLoader(TensorDataset(X, Y), batch_size=4),
    "generator": generator(),
    "list of batches in an iterator": iter([(X, Y)]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_every_form(name: str) -> None:
    model = Named()
    with Untouched(model):
        report = check(model, BATCHES[name], cross_entropy)
    assert report.trial.start is not None
    assert report.trial.start.loss > 0
    assert report.trial.spec.layer("fc").inputs == ("",)


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "loss": lambda loss, logits: loss,
    "(loss, logits)": lambda loss, logits: (loss, logits),
    "[loss]": lambda loss, logits: [loss],
    "{loss, logits}": lambda loss, logits: {"loss": loss, "logits": logits},
    "UserDict": lambda loss, logits: Encoding(loss=loss),
    "record": Output,
    "loss of shape [1]": lambda loss, logits: loss[None],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [X, (X,), {"x": X, "labels": Y}, {"x": X}, Encoding({"x": X, "labels": Y})])
def test_models_that_return_their_own_loss(form: str, given: Any) -> None:
    report = check(OwnLoss(FORMS[form]), given)
    assert report.trial.start is not None
    assert report.trial.start.loss > 0


def test_a_tensor_alone_is_the_input_of_a_loss_without_target() -> None:
    report = check(Named(), X, lambda output, target: output.square().mean())
    assert report.trial.start is not None


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── source lines ────────────────────────────────────────────────────────────────────────────────────────────


def line_of(function: Callable[..., Any], text: str) -> SourceLine:
    """Where this text stands in a function."""
    lines, first = getsourcelines(function)
    (offset,) = [i for i, line in enumerate(lines) if text in line]
    return SourceLine(str(Path(__file__)), first + offset)


def sources(build: Any) -> dict[str, SourceLine | None]:
    spec = check(build, (X, Y), cross_entropy).trial.spec
    return {layer.parameter_path(p): p.source for layer in spec.layers for p in layer.parameters}


def by_constructor() -> nn.Module:
    return nn.Sequential(
        nn.Linear(INPUTS, CLASSES),  # here
    )


def by_init() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    nn.init.xavier_normal_(model[0].weight)  # here
    return model


def by_trunc_normal() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    nn.init.trunc_normal_(model[0].weight, std=0.02)  # here
    return model


def by_in_place_write() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    with torch.no_grad():
        model[0].weight.mul_(0.1)  # here
    return model


def by_augmented_assignment() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    with torch.no_grad():
        model[0].weight *= 0.1  # here
    return model


def by_item() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    with torch.no_grad():
        model[0].weight[0] = 0.0  # here
    return model


def by_a_view() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data[1:].zero_()  # here
    return model


def by_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data.normal_(std=0.02)  # here
    return model


def by_new_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data = torch.randn(CLASSES, INPUTS)  # here
    return model


def by_a_write_to_new_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight.data = torch.empty(CLASSES, INPUTS)
    model[0].weight.data.uniform_(-1, 1)  # here
    return model


def by_a_new_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model[0].weight = nn.Parameter(torch.randn(CLASSES, INPUTS))  # here
    return model


def _helper(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)  # here


def by_apply() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, CLASSES)).apply(_helper)


def _loop(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            p.data.fill_(0.5)  # here


def by_a_loop() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    _loop(model)
    return model


def by_init_and_moves() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    nn.init.xavier_normal_(model[0].weight)  # here
    return model.half().to(torch.float64).float().requires_grad_(True)


def by_moves_and_init() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES)).double().float()
    model[0].weight.data.normal_()  # here
    return model


def by_copy() -> nn.Module:
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES))
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})  # here
    return model


BUILDS: dict[Callable[[], nn.Module], Callable[..., Any]] = {
    by_constructor: by_constructor,
    by_init: by_init,
    by_trunc_normal: by_trunc_normal,
    by_in_place_write: by_in_place_write,
    by_augmented_assignment: by_augmented_assignment,
    by_item: by_item,
    by_a_view: by_a_view,
    by_data: by_data,
    by_new_data: by_new_data,
    by_a_write_to_new_data: by_a_write_to_new_data,
    by_a_new_parameter: by_a_new_parameter,
    by_apply: _helper,
    by_a_loop: _loop,
    by_init_and_moves: by_init_and_moves,
    by_moves_and_init: by_moves_and_init,
    by_copy: by_copy,
}


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_a_function_that_builds_the_model_gives_lines(build: Callable[[], nn.Module]) -> None:
    assert sources(build)["0.weight"] == line_of(BUILDS[build], "# here")


def test_a_bias_that_nobody_wrote_to_keeps_its_constructor() -> None:
    found = sources(by_init)
    assert found["0.bias"] == line_of(by_init, "nn.Linear(")
    assert found["0.weight"] != found["0.bias"]


def test_a_model_built_elsewhere_has_no_lines() -> None:
    assert set(sources(by_init()).values()) == {None}


def test_a_copy_of_a_recorded_model_has_no_lines_of_its_own() -> None:
    kept: list[nn.Module] = []

    def build() -> nn.Module:
        kept.append(by_init())
        return kept[0]

    assert sources(build)["0.weight"] is not None
    assert set(sources(copy.deepcopy(kept[0])).values()) == {None}


def test_a_function_that_fails_raises_its_own_error_and_leaves_no_mode() -> None:
    def build() -> nn.Module:
        raise ZeroDivisionError("in build")

    with pytest.raises(ZeroDivisionError, match="in build"):
        check(build, (X, Y), cross_entropy)
    assert torch._C._len_torch_function_stack() == 0


def test_a_function_that_builds_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="not a model that fanin knows"):
        check(lambda: 3, (X, Y), cross_entropy)


def test_a_poor_finding_points_at_its_line() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(32, 32, bias=False), nn.ReLU())))
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1e-3)  # here
        return model

    report = check(build, (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss)
    assert report.verdict is Verdict.POOR
    assert line_of(build, "# here") in {finding.source for finding in report.findings}
