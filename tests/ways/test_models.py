"""Several models, copies of them, and what people do with a model while or after it is watched."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from fanin.examine import load_trial
from fanin.trial import Role

from .nets import (
    INPUTS,
    batch,
    hooks_on,
    loss_of,
    losses,
    net,
    observe,
    of,
    parameters_of,
    same,
    sgd,
    step_of_another,
    train,
)

ORIGINAL_BACKWARD = torch.autograd.backward


def test_two_models_that_train_in_turns_are_two_trials() -> None:
    """A generator and its critic: each has its optimizer, and the loss of one runs through the other."""
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, INPUTS))
    critic = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 1))
    first, second, expected = sgd(maker), sgd(critic), []
    with observe(maker) as seen_maker, observe(critic) as seen_critic:
        for step in range(3):
            noise = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
            second.zero_grad()
            critic_loss = critic(maker(noise).detach()).mean() - critic(batch(step)[0]).mean()
            critic_loss.backward()
            second.step()
            first.zero_grad()
            maker_loss = -critic(maker(noise)).mean()
            maker_loss.backward()
            first.step()
            expected.append((maker_loss.item(), critic_loss.item()))
    assert losses(seen_maker) == pytest.approx([maker for maker, _ in expected])
    assert losses(seen_critic)[0] == pytest.approx(expected[0][1])
    assert len(seen_maker.trial.steps) == len(seen_critic.trial.steps) == 3


def test_a_watch_that_ends_within_a_step_of_the_optimizer_leaves_others_hooks_alone() -> None:
    """Torch walks through the hooks of optimizers, and fails when one leaves meanwhile."""
    model, called = net(), []
    with observe(model, steps=1) as seen:
        theirs = register_optimizer_step_post_hook(lambda *args: called.append(args))
        try:
            train(model, 3)
        finally:
            theirs.remove()
    assert len(seen.trial.steps) == 1
    assert len(called) == 3
    with observe(model, steps=1):
        train(model, 1)
    assert not _global_optimizer_post_hooks


def test_a_watch_that_is_forgotten_within_a_step_of_another_optimizer_harms_nobody() -> None:
    """A garbage collection may come anywhere, also while torch walks through its hooks."""
    kept, called = [observe(net())], []
    assert _global_optimizer_pre_hooks

    def collect(*args: object) -> None:
        kept.clear()
        gc.collect()

    theirs = [register_optimizer_step_pre_hook(hook) for hook in (collect, lambda *args: called.append(args))]
    try:
        train(net(), 2)
    finally:
        for one in theirs:
            one.remove()
    assert len(called) == 2
    step_of_another()
    assert not _global_optimizer_pre_hooks
    assert not _global_optimizer_post_hooks
    assert torch.autograd.backward is ORIGINAL_BACKWARD


def test_a_watch_that_is_freed_waits_for_no_lock(tmp_path: Path) -> None:
    """Whoever holds one is in the midst of something, and may be the very thread in which the collection comes."""
    seen = observe(net(), trial=tmp_path / "trial")
    writer, held, free = seen._writer, threading.Event(), threading.Event()

    def hold() -> None:
        with writer._changed:
            held.set()
            free.wait(30)

    holder, freed = threading.Thread(target=hold), threading.Event()
    kept = [seen]
    del seen
    holder.start()
    assert held.wait(10)
    freer = threading.Thread(target=lambda: (kept.clear(), gc.collect(), freed.set()))
    freer.start()
    try:
        assert freed.wait(10)
    finally:
        free.set()
        holder.join()
        freer.join()
    writer._thread.join(10)
    assert load_trial(tmp_path / "trial").complete


def test_an_average_of_the_weights_is_another_model() -> None:
    plain, model = net(), net()
    with observe(model) as seen:
        averages = []
        for one in (plain, model):
            average = AveragedModel(one, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            for step in range(4):
                train(one, 1, first=step)
                average.update_parameters(one)
                average.module(batch()[0])
            averages.append(average)
    assert len(seen.trial.steps) == 3
    assert same(parameters_of(averages[0]), parameters_of(averages[1]))
    assert {type(hook).__module__ for m in averages[1].modules() for hook in m._forward_hooks.values()} == {
        "builtins"
    }  # in place of ours a function that does nothing


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy.deepcopy": copy.deepcopy,
    "torch.save": saved,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_made_in_the_midst_of_a_step_and_trains_by_itself(way: str) -> None:
    model = net()
    optimizer = sgd(model)
    with observe(model) as seen:
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            twin = COPIES[way](model)
            loss.backward()
            optimizer.step()
            train(twin, 2)
    assert len(seen.trial.steps) == 3
    assert hooks_on(model) == []


def test_state_dict_and_its_load_are_as_ever() -> None:
    model, other = net(), net(1)
    with observe(model) as seen:
        train(model, 1)
        assert list(model.state_dict()) == list(other.state_dict())
        model.load_state_dict(other.state_dict())
        train(model, 2, first=1)
    assert len(seen.trial.steps) == 3


def test_a_model_is_exported_after_the_watch_as_if_there_had_been_none() -> None:
    plain, model = net(), net()
    with observe(model):
        train(model, 3)
    train(plain, 3)
    exported = [torch.export.export(one.eval(), (batch()[0],)) for one in (plain, model)]
    assert str(exported[0].graph) == str(exported[1].graph)
    assert torch.equal(*(one.module()(batch()[0]) for one in exported))


def test_a_model_is_exported_in_the_midst_of_a_watch() -> None:
    plain, model = net(), net()
    with observe(model) as seen:
        train(model, 1)
        exported = torch.export.export(model, (batch()[0],))
        train(model, 2, first=1)
    assert str(exported.graph) == str(torch.export.export(plain, (batch()[0],)).graph)
    assert len(seen.trial.steps) == 3


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_data_loader_with_worker_processes_feeds_a_watched_model(start: str, tmp_path: Path) -> None:
    data = TensorDataset(*batch(size=48))
    loader = DataLoader(data, batch_size=16, num_workers=1, multiprocessing_context=start)
    model = net()
    optimizer, expected = sgd(model), []
    with observe(model, trial=tmp_path / "trial"):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    trial = load_trial(tmp_path / "trial")
    assert trial.complete
    assert [step.loss for step in trial.steps] == pytest.approx(expected)


# ── notebooks ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_that_builds_and_watches_a_model_can_run_again() -> None:
    """In the midst of the first run: the second is a new model with a trial of its own."""
    runs = []
    for seed in (0, 1):
        model = net(seed)
        seen = observe(model)
        expected = train(model, 2 if seed == 0 else 3)
        runs.append((seen, expected))
    for seen, expected in runs:
        seen.close()
        assert losses(seen) == pytest.approx(expected)


def test_a_cell_that_watches_the_same_model_again_starts_where_it_is_now() -> None:
    model = net()
    first = observe(model)
    train(model, 2)
    second = observe(model)
    train(model, 3, first=2)
    first.close()
    second.close()
    assert len(first.trial.steps) == len(second.trial.steps) == 3
    assert losses(first)[2] == losses(second)[0]
    assert hooks_on(model) == []


def test_a_model_that_is_built_anew_leaves_the_old_one_to_be_freed(tmp_path: Path) -> None:
    """Nothing that outlives the cell holds on to a watched model, nor to its trial's thread."""
    threads = set(threading.enumerate())
    model = net()
    seen = observe(model, trial=tmp_path / "trial")
    train(model, 2)
    alive = [ref(model), ref(seen), ref(seen.watching)]
    del model, seen
    gc.collect()
    assert [one() for one in alive] == [None] * 3
    step_of_another()
    assert torch.autograd.backward is ORIGINAL_BACKWARD
    assert not _global_optimizer_post_hooks
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    trial = load_trial(tmp_path / "trial")
    assert (len(trial.steps), trial.complete) == (1, True)  # the second was in the making


def test_a_watch_that_nobody_keeps_goes_on(tmp_path: Path) -> None:
    model = net()
    observe(model, trial=tmp_path / "trial")
    gc.collect()
    train(model, 3)
    trial = load_trial(tmp_path / "trial")
    assert (len(trial.steps), trial.complete) == (3, True)
    assert len(of(trial.steps[0], Role.WEIGHT_GRAD)) == 2


def test_weights_that_are_replaced_between_watch_and_training_are_the_ones_that_count() -> None:
    with torch.device("meta"):
        model = net()
    seen = observe(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    train(model, 3)
    assert of(seen.trial.steps[0], Role.WEIGHT)["fc1.weight"].maximum == 0.5
    assert len(of(seen.trial.steps[0], Role.WEIGHT_GRAD)) == 2
    seen.close()


def test_tensors_stay_resizable_after_they_were_looked_at() -> None:
    """NumPy pins the storage of a tensor that it looks into; FSDP2 and others resize storages."""
    model, kept = net(), []
    model.fc1.register_forward_hook(lambda module, args, output: kept.append(output.detach()))
    with observe(model):
        train(model, 1)
    parameter: Tensor = model.fc1.weight.detach()
    parameter.untyped_storage().resize_(0)
    kept[0].untyped_storage().resize_(0)
