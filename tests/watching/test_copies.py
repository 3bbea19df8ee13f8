"""Copies, threads and processes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fanin.examine import load_trial
from ways.nets import losses, observe

from .loops import (
    loss_of,
    net,
    train,
)


def by_pickle(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_watched_model_trains_unwatched(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    with observe(model) as seen:
        train(model, 1)
        twin = copied(model)
        train(twin, 5)
        assert len(seen.trial.steps) <= 1
        train(model, 2, first=1)
    assert len(seen.trial.steps) == 3


def test_a_watched_model_can_be_loaded_where_fanin_is_not_installed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with observe(model):
        torch.save(model, tmp_path / "model.pt")
    script = (
        "import sys; sys.modules['fanin'] = None; import torch;"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False);"
        "model(torch.ones(1, 2)).sum().backward()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_forward_pass_in_another_thread_is_left_alone() -> None:
    model = net()
    failures = []

    def elsewhere() -> None:
        try:
            for _ in range(5):
                loss_of(model)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def in_a_thread(step: int) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    with observe(model) as seen:
        expected = train(model, 3, in_a_thread)
    assert failures == []
    assert losses(seen) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_nothing(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import os, sys, torch
torch.set_num_threads(1)
from fanin.capture import watch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def train(steps):
    for step in range(steps):
        optimizer.zero_grad(); model(torch.ones(2, 3)).sum().backward(); optimizer.step()
seen = watch(model, trial={str(tmp_path / "trial")!r}, steps=5)
train(1)
child = os.fork()
if not child:
    train(7)
    sys.exit(0)
os.waitpid(child, 0)
train(2)
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    trial = load_trial(tmp_path / "trial")
    assert len(trial.steps) == 3
    assert trial.complete
