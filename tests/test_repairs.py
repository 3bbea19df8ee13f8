"""A repair cures, is proven or discarded, is safe or says why not, and leaves no trace until it is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin import attempts
from fanin import race as racing
from fanin.adapters.torch import TorchAdapter
from fanin.change import Reach, Safety, Treatment
from fanin.errors import BatchError, LossError, UsageError
from fanin.finding import Verdict
from fanin.race import Heat, Race
from fanin.testing import assert_well_initialized
from faults import CLASSES, FAULTS, MENDED_BY_TRAINING, WIDTH, Net, batches, batches_for, built, loss_fn
from no_trace import Untouched, bits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def values(model: nn.Module) -> dict[str, Any]:
    return {name: bits(p) for name, p in model.named_parameters()}


def paste(code: str, model: nn.Module) -> nn.Module:
    exec(code, {"model": model, "torch": torch, "nn": nn})
    return model


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Races as short as they may be."""
    monkeypatch.setattr(racing.RaceOptions, "within", lambda self, _: racing.replace(self, steps=20, most=20))


def races(monkeypatch: pytest.MonkeyPatch, *results: tuple[float, float]) -> list[int]:
    """Races that end as they are told: progress as given and repaired, the last one again and again."""
    seeds: list[int] = []

    def race(self: Any, model: Any, batch: Any, loss: Any, spec: Any, options: Any, *_: Any) -> Race:
        given, repaired = results[min(len(seeds), len(results) - 1)]
        seeds.append(options.seed)
        options.on_progress(60, 60)
        return Race((Heat(1e-3, (1.0, *[1 - given] * 59), (1.0, *[1 - repaired] * 59)),), uninformed=1.0)

    monkeypatch.setattr(TorchAdapter, "race", race)
    return seeds


# ── it cures ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in MENDED_BY_TRAINING])
def test_a_repair_cures_and_its_code_does_too(fault: str) -> None:
    given = batches_for(fault)
    result = fanin.repair(built(fault), given, loss_fn, prove=False)
    assert result.verdict is Verdict.POOR
    assert result.repair is not None
    assert result.repair.verdict is Verdict.HEALTHY
    assert result.repair.effects
    assert all(effect.is_cured for effect in result.repair.effects)
    assert fanin.check(paste(result.code, built(fault)), given, loss_fn).verdict is Verdict.HEALTHY


@pytest.mark.parametrize("fault", MENDED_BY_TRAINING)
def test_layers_that_are_named_are_drawn_anew_and_the_code_does_so_too(fault: str) -> None:
    given, layers = batches_for(fault), MENDED_BY_TRAINING[fault]
    result = fanin.repair(built(fault), given, loss_fn, prove=False, layers=layers)
    assert result.repair is not None
    assert result.repair.reach is Reach.NAMED
    assert all(change.parameter.startswith(layers[0]) for change in result.repair.changes)
    pasted = dict(paste(result.code, built(fault)).named_parameters())
    assert fanin.check(paste(result.code, built(fault)), given, loss_fn).verdict is result.repair.verdict
    for change in result.repair.changes:
        rms = float(pasted[change.parameter].detach().square().mean().sqrt())
        assert rms == pytest.approx(change.after.rms, rel=0.5)


def test_the_smallest_change_comes_first() -> None:
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn, prove=False)
    assert result.repair is not None
    assert result.repair.parameters == ("blocks.2.weight",)
    assert result.repair.changes[0].treatment is Treatment.REDRAW
    assert result.repair.reach is Reach.BLAMED


def test_scaling_keeps_directions() -> None:
    model = built("tiny everywhere")
    before = deepcopy(model)
    result = fanin.repair(model, batches(), loss_fn, prove=False, apply=True, force=True)
    assert result.repair is not None
    assert {change.treatment for change in result.repair.changes} == {Treatment.SCALE}
    for change in result.repair.changes:
        old, new = before.get_parameter(change.parameter), model.get_parameter(change.parameter)
        assert torch.allclose(new, old * change.factor, rtol=1e-4)


def test_deep_and_narrow_networks_get_orthogonal_weights() -> None:
    result = fanin.repair(built("PyTorch's default, deep and narrow"), batches(), loss_fn, prove=False)
    assert result.repair is not None
    hidden = [change for change in result.repair.changes if change.parameter.endswith("weight")]
    assert {change.scheme for change in hidden} == {"orthogonal"}
    assert "nn.init.orthogonal_" in result.code


# ── proof ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repair_that_wins_is_safe(quick: None) -> None:
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn)
    assert result.repair is not None
    assert result.repair.safety is Safety.SAFE
    assert result.repair.reasons == ()
    assert result.repair.is_proven
    assert result.repair.proof is not None
    assert result.repair.proof.given < 0.05 < result.repair.proof.reference
    assert result.repair.passes >= result.repair.proof.passes


def test_a_repair_that_does_not_win_is_discarded_and_the_next_larger_one_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    races(monkeypatch, (0.5, 0.4), (0.5, 0.9))
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn)
    assert [tried.reach for tried in result.discarded] == [Reach.BLAMED]
    assert result.repair is not None
    assert len(result.repair.changes) > 1
    assert result.repair.safety is Safety.SAFE


def test_where_none_wins_nothing_is_proposed_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    races(monkeypatch, (0.5, 0.4))
    model = built("a layer of zeros")
    with Untouched(model):
        result = fanin.repair(model, batches(), loss_fn, apply=True)
    assert result.repair is None
    assert not result.applied
    assert [len(tried.changes) for tried in result.discarded] == sorted(
        len(tried.changes) for tried in result.discarded
    )
    assert "none: what was tried did not win" in str(result)
    assert result.code == ""


def test_a_close_race_is_run_again_with_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = races(monkeypatch, (0.7, 1.0), (0.95, 1.0), (0.3, 1.0))
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn, seed=5)
    assert seeds == [5, 6, 7]
    assert result.repair is not None
    assert len(result.repair.proofs) == 3
    assert result.repair.is_proven, "two of three"


def test_a_healthy_network_is_left_alone() -> None:
    model = Net()
    with Untouched(model):
        result = fanin.repair(model, batches(), loss_fn, apply=True)
    assert result.verdict is Verdict.HEALTHY
    assert (result.repair, result.discarded, result.applied) == (None, (), False)
    assert "nothing to repair" in str(result)


def test_a_network_that_only_a_race_calls_poor_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    races(monkeypatch, (0.2, 1.0))
    result = fanin.repair(Net(), batches(), loss_fn)
    assert result.verdict is Verdict.POOR
    assert result.report.findings[0].code == "FAN305"
    assert result.repair is not None
    assert (result.repair.reach, result.repair.safety) == (Reach.EVERYTHING, Safety.SAFE)


def test_a_network_without_a_fault_that_is_merely_behind_in_a_race_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    races(monkeypatch, (0.65, 1.0))
    result = fanin.repair(Net(), batches(), loss_fn)
    assert (result.verdict, result.repair, result.discarded) == (Verdict.HEALTHY, None, ())


def test_a_network_without_a_fault_and_too_small_a_batch_to_race_is_left_alone() -> None:
    few = [(x[:8], y[:8]) for x, y in batches()[:1]]
    result = fanin.repair(Net(), few, loss_fn)
    assert (result.verdict, result.repair) == (Verdict.HEALTHY, None)


def test_a_repair_widens_until_nothing_is_left() -> None:
    """Of a network of ones the blamed layers are not all: the first loss tells."""
    result = fanin.repair(built("constant everywhere"), batches(), loss_fn, prove=False)
    assert result.repair is not None
    assert result.repair.reach is not Reach.BLAMED
    assert "head.weight" in result.repair.parameters


def test_a_batch_too_small_to_race_gives_an_unproven_repair() -> None:
    x, y = batches(1)[0]
    result = fanin.repair(built("a layer of zeros"), (x[:32], y[:32]), loss_fn, apply=True)
    assert result.repair is not None
    assert result.repair.safety is Safety.UNSAFE
    assert "a race needs several batches" in result.repair.reasons[0]
    assert not result.applied


def test_a_budget_bounds_the_proof() -> None:
    told: list[tuple[str, int, int]] = []
    result = fanin.repair(
        built("a layer of zeros"), batches(), loss_fn, budget=60, on_progress=lambda *said: told.append(said)
    )
    assert result.repair is not None
    assert result.repair.proof is not None
    assert result.repair.proof.passes <= 60
    assert next(said for said in told if said[0] == "proof") == ("proof", 0, 60), "the cost comes first"
    spent = fanin.repair(built("a layer of zeros"), batches(), loss_fn, budget=2)
    assert spent.repair is not None
    assert spent.repair.safety is Safety.UNSAFE
    assert "budget" in spent.repair.reasons[0]


def test_the_cost_without_a_proof_is_two_passes_beyond_the_check() -> None:
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn, prove=False)
    assert result.repair is not None
    assert result.repair.passes == 2


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


# ── from scratch, and in tests ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault", ["tiny everywhere", "constant everywhere", "PyTorch's default, deep and narrow"]
)
def test_initialize_gives_a_sound_start(fault: str) -> None:
    model = built(fault)
    made = fanin.initialize(model, batches())
    assert fanin.check(model, batches(), loss_fn).verdict is Verdict.HEALTHY
    assert made.passes == 2
    assert fanin.check(paste(made.code, built(fault)), batches(), loss_fn).verdict is Verdict.HEALTHY


def test_initialize_is_reproducible_whatever_the_global_state() -> None:
    made = []
    for noise in (1, 2):
        model = built("tiny everywhere")
        torch.manual_seed(noise)
        fanin.initialize(model, batches()[0][0], seed=7)
        made.append(values(model))
    assert made[0] == made[1]
    other = built("tiny everywhere")
    fanin.initialize(other, batches()[0][0], seed=8)
    assert values(other) != made[0]


def test_initialize_needs_no_loss_and_leaves_everything_else() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    buffers = {name: bits(b) for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    fanin.initialize(model, batches()[0][0])
    assert {name: bits(b) for name, b in model.named_buffers()} == buffers
    assert torch.equal(torch.get_rng_state(), state)


def test_initialize_keeps_zero_heads_and_priors() -> None:
    model = Net()
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, -4.6)
    fanin.initialize(model, batches())
    assert not model.head.weight.any()
    assert torch.all(model.head.bias == -4.6)


def test_the_assertion_passes_and_fails_with_the_report() -> None:
    assert assert_well_initialized(Net(), batches(), loss_fn).verdict is Verdict.HEALTHY
    with pytest.raises(AssertionError, match=r"not well initialized[\s\S]*POOR  FAN402"):
        assert_well_initialized(built("a layer of zeros"), batches(), loss_fn)
