"""What comes of a watch: a trial, or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fanin
from fanin.capture import watch
from fanin.errors import TrialExistsError, UsageError
from fanin.examine import load_trial
from fanin.stores.memory import MemoryStore
from ways.nets import hooks_on, losses, observe

from .loops import (
    net,
    train,
)


def test_a_trial_on_disk_is_the_one_in_memory(tmp_path: Path) -> None:
    in_memory, on_disk = net(), net()
    with observe(in_memory) as a:
        torch.manual_seed(1)
        train(in_memory, 3)
    with observe(on_disk, trial=tmp_path / "trial") as b:
        torch.manual_seed(1)
        train(on_disk, 3)
    kept = load_trial(tmp_path / "trial")
    assert kept.complete
    assert kept.spec == a.trial.spec == b.trial.spec
    assert losses(a) == losses(b)
    for x, y in zip(a.trial.steps, kept.steps, strict=True):
        assert x.losses == y.losses
        assert [(o.tensor, o.role, o.shape, o.dtype) for o in x.observations] == [
            (o.tensor, o.role, o.shape, o.dtype) for o in y.observations
        ]
        assert [o.summary.m2 for o in x.observations] == [o.summary.m2 for o in y.observations]


def test_an_existing_trial_is_refused_before_any_hook_is_hung(tmp_path: Path) -> None:
    with observe(net(), trial=tmp_path / "trial"):
        pass
    model = net()
    with pytest.raises(TrialExistsError):
        observe(model, trial=tmp_path / "trial")
    assert hooks_on(model) == []


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps must be positive"):
        observe(net(), steps=steps, trial=tmp_path / "trial")
    assert not (tmp_path / "trial").exists()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a model that fanin knows"):
        watch(net().state_dict(), trial=tmp_path / "trial")
    assert not (tmp_path / "trial").exists()


def test_the_trial_knows_its_run() -> None:
    model = net()
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)) as seen:
        pass
    assert seen.trial.about["optimizer"] == "SGD lr=0.05 momentum=0.9"
    assert seen.trial.about["framework"].startswith("torch ")
    assert isinstance(seen._store, MemoryStore)


def test_watch_is_a_public_name() -> None:
    assert fanin.watch is watch
