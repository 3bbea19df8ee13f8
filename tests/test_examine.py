"""check: it says what is there and leaves no trace."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examined import BATCH, CLASSES, HIDDEN, INPUTS, Named, Net, X, Y, batch, cross_entropy, net
from fanin.adapters.torch import restore
from fanin.errors import BatchError, LossError, UsageError
from fanin.examine import Report, check
from fanin.finding import Verdict
from fanin.trial import Role
from no_trace import Untouched, bits

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
