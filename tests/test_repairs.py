"""A repair cures, and is proven or discarded."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

import fanin
from fanin.budget import Budget
from fanin.change import Reach, Safety, Treatment
from fanin.finding import Verdict
from fanin.race import RaceOptions
from faults import FAULTS, MENDED_BY_TRAINING, Net, batches, batches_for, built, loss_fn
from no_trace import Untouched
from proofs import paste, races


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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


def test_a_repair_that_wins_but_falls_far_behind_a_wider_one_is_replaced_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    races(monkeypatch, (0.0, 0.3), (0.0, 0.9))
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn)
    assert result.repair is not None
    assert len(result.repair.changes) > 1
    assert result.repair.safety is Safety.SAFE
    assert [tried.reach for tried in result.discarded] == [Reach.BLAMED]
    assert "a wider repair gets further" in " ".join(str(result).split())


def test_the_smaller_of_two_repairs_that_get_about_as_far_is_proposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    races(monkeypatch, (0.0, 0.5), (0.0, 0.6))
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn)
    assert result.repair is not None
    assert result.repair.reach is Reach.BLAMED
    assert result.discarded
    assert all("gets about as far" in tried.reasons[-1] for tried in result.discarded)


def test_what_has_learned_nearly_all_there_is_needs_no_wider_repair_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = races(monkeypatch, (0.0, 0.8), (0.0, 1.0))
    result = fanin.repair(built("a layer of zeros"), batches(), loss_fn)
    assert len(seeds) == 1
    assert result.repair is not None
    assert result.repair.reach is Reach.BLAMED


def test_a_wider_repair_is_not_taken_without_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    races(monkeypatch, (0.0, 0.3), (0.0, 0.9))
    with pytest.MonkeyPatch.context() as patch:
        left = [RaceOptions()]
        patch.setattr(Budget, "race", lambda self, options: options if left and left.pop() else None)
        result = fanin.repair(built("a layer of zeros"), batches(), loss_fn)
    assert result.repair is not None
    assert result.repair.reach is Reach.BLAMED
    assert result.discarded == ()


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
