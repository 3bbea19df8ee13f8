"""A repair is safe or says why not, leaves no trace until it is applied, and leads on where it cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin import attempts
from fanin.adapters.torch import TorchAdapter
from fanin.change import Safety, Treatment
from fanin.errors import BatchError, LossError, UsageError
from fanin.finding import Verdict
from fanin.race import Heat, Race
from faults import CLASSES, WIDTH, Net, batches, built, loss_fn
from no_trace import Untouched
from proofs import races, sgd, values


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ── safety ──────────────────────────────────────────────────────────────────────────────────────────────────


def trained_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters())
    loss_fn(model(batches(1)[0][0]), batches(1)[0][1]).backward()
    optimizer.step()
    return optimizer


def test_a_trained_model_is_refused_unless_forced() -> None:
    model = built("tiny everywhere")
    optimizer = trained_optimizer(model)
    with Untouched(model), pytest.raises(UsageError, match="no fresh initialization") as refused:
        fanin.repair(model, batches(), loss_fn, optimizer=optimizer)
    assert "Adam holds state for blocks.0.weight" in str(refused.value)
    forced = fanin.repair(model, batches(), loss_fn, optimizer=optimizer, force=True, prove=False)
    assert forced.repair is not None
    assert forced.repair.safety is Safety.UNSAFE
    assert "holds state" in forced.repair.reasons[0]


def test_many_steps_show_without_the_optimizer() -> None:
    model = built("tiny everywhere")
    optimizer = sgd(model.parameters())
    for _ in range(12):
        optimizer.zero_grad()
        loss_fn(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        optimizer.step()
    with pytest.raises(UsageError, match="written to at least"):
        fanin.repair(model, batches(), loss_fn)
    with pytest.raises(UsageError, match="written to at least"):
        fanin.initialize(model, batches())


def test_a_loaded_checkpoint_is_refused() -> None:
    def build() -> nn.Module:
        model = built("tiny everywhere")
        model.load_state_dict(Net().state_dict())
        return model

    with pytest.raises(UsageError, match=r"no fresh initialization[\s\S]*loaded from a checkpoint"):
        fanin.repair(build, batches(), loss_fn)


def test_an_optimizer_that_has_not_stepped_is_fine_and_stays_as_it_is() -> None:
    model = built("a layer of zeros")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Untouched(model, optimizer.state, optimizer.param_groups):
        result = fanin.repair(model, batches(), loss_fn, optimizer=optimizer, prove=False)
    assert result.repair is not None


def test_causes_outside_the_initialization_get_advice_alone() -> None:
    given = [(1e4 * x, y) for x, y in batches()]
    model = Net(activation=torch.tanh)
    with Untouched(model):
        result = fanin.repair(model, given, loss_fn, apply=True, prove=False)
    assert not result.applied
    if result.report.diagnosis.origins:
        assert result.repair is not None
        assert result.repair.safety is Safety.ADVICE
        assert "standardize the inputs" in result.repair.advice[0]


# ── applying, and leaving no trace ──────────────────────────────────────────────────────────────────────────


def test_applied_and_undone_bit_for_bit(quick: None) -> None:
    model = built("a layer of NaN")
    before, identities = values(model), [id(p) for p in model.parameters()]
    result = fanin.repair(model, batches(), loss_fn, apply=True)
    assert result.applied
    assert torch.isfinite(model.blocks[2].weight).all()
    assert [id(p) for p in model.parameters()] == identities
    assert fanin.check(model, batches(), loss_fn).verdict is Verdict.HEALTHY
    result.undo()
    assert values(model) == before
    assert not result.applied
    result.undo()
    assert values(model) == before


def test_what_is_not_safe_is_applied_only_by_force() -> None:
    model = built("a layer of zeros")
    with Untouched(model):
        result = fanin.repair(model, batches(), loss_fn, apply=True, prove=False)
    assert not result.applied
    assert fanin.repair(model, batches(), loss_fn, apply=True, prove=False, force=True).applied


def test_without_apply_nothing_changes(quick: None) -> None:
    model = built("a layer of zeros")
    with Untouched(model):
        fanin.repair(model, batches(), loss_fn, optimizer=sgd)


PHASES: dict[str, tuple[Any, str]] = {
    "check": (TorchAdapter, "examine"),
    "copy": (TorchAdapter, "copy"),
    "draw": (TorchAdapter, "treat"),
    "judge": (attempts, "judge"),
    "proof": (TorchAdapter, "race"),
    "apply": (TorchAdapter, "adopt"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupt_leaves_the_model_as_it_was(
    phase: str, when: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name = PHASES[phase]
    original = getattr(home, name)

    def interrupted(*given: Any, **named: Any) -> Any:
        if when == "after" and phase != "apply":
            original(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(home, name, interrupted)
    model = built("a layer of zeros")
    with Untouched(model), pytest.raises(KeyboardInterrupt):
        fanin.repair(model, batches(), loss_fn, apply=True)


def test_an_interrupt_between_two_parameters_puts_the_first_one_back(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built("tiny everywhere")
    before, copies = values(model), []
    original = Tensor.copy_

    def interrupted(self: Tensor, *given: Any, **named: Any) -> Tensor:
        if any(self is p for p in model.parameters()):
            copies.append(self)
            if len(copies) == 3:
                raise KeyboardInterrupt
        return original(self, *given, **named)

    monkeypatch.setattr(Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fanin.repair(model, batches(), loss_fn, apply=True, prove=False, force=True)
    assert len(copies) == 3
    assert values(model) == before


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────


def _unknown_layer(model: nn.Module) -> None:
    fanin.repair(model, batches(), loss_fn, layers=["blocks.99"])


def _unknown_budget(model: nn.Module) -> None:
    fanin.repair(model, batches(), loss_fn, budget="soon")


def _no_loss(model: nn.Module) -> None:
    fanin.repair(model, batches(), None)


def _wrong_batch(model: nn.Module) -> None:
    fanin.repair(model, (torch.zeros(64, 3), torch.zeros(64, dtype=torch.long)), loss_fn)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (_unknown_layer, UsageError, r"no layer of this name to repair[\s\S]*blocks\.99[\s\S]*blocks\.0"),
        (_unknown_budget, UsageError, "this is no budget"),
        (_no_loss, LossError, "no loss function"),
        (_wrong_batch, BatchError, "cannot run this batch"),
    ],
)
def test_errors_lead_on_and_leave_the_model(
    call: Callable[[nn.Module], None], kind: type[Exception], text: str
) -> None:
    model = built("a layer of zeros")
    with Untouched(model), pytest.raises(kind, match=text):
        call(model)


def test_nan_in_the_batch_is_no_fault_of_the_weights() -> None:
    model = built("a layer of zeros")
    given = [(x.clone().index_fill_(0, torch.tensor([0]), float("nan")), y) for x, y in batches()]
    with Untouched(model):
        result = fanin.repair(model, given, loss_fn, apply=True, prove=False)
    assert not result.applied
    assert "clean the data" in str(result)


def test_batches_from_a_generator_are_used_once_and_kept(quick: None) -> None:
    def stream() -> Iterator[Any]:
        yield from batches()

    result = fanin.repair(built("a layer of zeros"), stream(), loss_fn)
    assert result.repair is not None
    assert result.repair.is_proven


def test_a_compiled_model_is_repaired_as_it_was_written() -> None:
    model = built("a layer of zeros")
    result = fanin.repair(
        torch.compile(model, backend="eager"), batches(), loss_fn, prove=False, apply=True, force=True
    )
    assert result.repair is not None
    assert result.repair.parameters == ("blocks.2.weight",)
    assert model.blocks[2].weight.any()


# ── what other code may have done with the model ────────────────────────────────────────────────────────────


def test_what_was_applied_is_undone_in_a_model_that_was_cast_since(quick: None) -> None:
    model = built("a layer of zeros")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = fanin.repair(model, batches(), loss_fn, apply=True, optimizer=sgd)
    assert result.applied
    model.double()
    result.undo()
    assert all(torch.equal(p, before[name].double()) for name, p in model.named_parameters())


def learned() -> Net:
    """A network that knows its classes by heart."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(10):
        for x, y in batches():
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
    return model


def copied(model: nn.Module) -> nn.Module:
    return deepcopy(model)


def loaded(model: nn.Module) -> nn.Module:
    other = Net()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("again", [copied, loaded])
def test_what_has_learned_is_no_fresh_model_though_nobody_saw_it_train(
    again: Callable[[nn.Module], nn.Module],
) -> None:
    model = again(learned())
    with Untouched(model), pytest.raises(UsageError, match="it has learned"):
        fanin.repair(model, batches(), loss_fn, apply=True)
    with Untouched(model), pytest.raises(UsageError, match="it has learned"):
        fanin.initialize(model, batches()[0], loss_fn)
    forced = fanin.repair(model, batches(), loss_fn, layers=["head"], prove=False, force=True)
    assert forced.repair is not None
    assert "it has learned" in forced.repair.reasons[0]


def test_a_model_made_under_inference_mode_is_refused_and_one_made_before_is_not() -> None:
    with torch.inference_mode():
        untrainable = Net()
    with pytest.raises(UsageError, match="made under torch"):
        fanin.repair(untrainable, batches(), loss_fn)
    model = Net()
    with torch.inference_mode():
        fanin.initialize(model, batches()[0])
    assert not any(p.is_inference() for p in model.parameters())


# ── batches, losses and optimizers of all kinds ─────────────────────────────────────────────────────────────


class Normed(nn.Module):
    """With a batch normalization, which takes no single example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)
        for layer in (self.inner, self.head):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(torch.relu(self.norm(self.inner(x))))
        return logits


def test_a_batch_that_the_model_cannot_train_on_leaves_the_repair_unproven() -> None:
    x, y = batches(1)[0]
    result = fanin.repair(Normed(), [(x, y), (x, y), (x[:1], y[:1])], loss_fn)
    assert result.verdict is Verdict.POOR
    assert result.repair is not None
    assert result.repair.safety is Safety.UNSAFE
    assert "does not run one of the batches" in result.repair.reasons[0]


def test_where_a_race_would_decide_and_none_can_be_run_that_is_said() -> None:
    result = fanin.repair(Net(), batches(), loss_fn, budget=2)
    assert (result.verdict, result.repair) == (Verdict.HEALTHY, None)
    said = " ".join(str(result).split())
    assert "no fault was found, and no race has confirmed it" in said
    assert "the budget is spent" in said
    assert "nothing to repair" not in said


def test_a_race_that_the_time_ends_before_it_shows_anything_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(self: Any, *_: Any, **__: Any) -> Race:
        return Race((Heat(1e-3, (1.0, 1.0), (1.0, 0.5)),), uninformed=1.0)

    monkeypatch.setattr(TorchAdapter, "race", race)
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn, budget="90s")
    assert result.repair is not None
    assert result.repair.safety is Safety.UNSAFE
    assert "the budget is spent" in result.repair.reasons[0]


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


def test_an_optimizer_that_wants_a_closure_races_too(quick: None) -> None:
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn, optimizer=lbfgs)
    assert result.repair is not None
    assert result.repair.proof is not None
    assert result.repair.proof.optimizer == "LBFGS"
    assert result.repair.proof.reference > result.repair.proof.given


def test_a_layer_may_be_named_by_itself() -> None:
    result = fanin.repair(Net(), batches(), loss_fn, layers="head", prove=False)
    assert result.repair is not None
    assert set(result.repair.parameters) <= {"head.weight", "head.bias"}


def test_a_wider_plan_that_treats_the_same_parameters_otherwise_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scaling loses; drawing the same tensors anew is another repair. The head is frozen, so none touches it."""
    races(monkeypatch, (1.0, 0.2), (0.2, 1.0))
    torch.manual_seed(0)
    layers = [m for _ in range(8) for m in (nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES, bias=False))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1e-3)
    model[-1].weight.requires_grad_(False)
    result = fanin.repair(model, batches(), loss_fn)
    assert result.repair is not None
    (lost,) = result.discarded
    assert lost.parameters == result.repair.parameters
    assert {change.treatment for change in lost.changes} == {Treatment.SCALE}
    assert {change.treatment for change in result.repair.changes} == {Treatment.REDRAW}
