"""Following a trial in an object store: status and claims lie beside it as on a disk."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fanin.beside import STATUS, Beside
from fanin.capture import watch
from fanin.cli import main
from fanin.errors import TrainingStoppedError
from fanin.examine import load_trial
from fanin.stores.place import s3_filesystem
from stores.test_smdebug_s3 import place, uri  # noqa: F401  # fixtures


def test_of_those_who_claim_at_once_one_is_told_so_and_later_nobody(endpoint: str, bucket_uri: str) -> None:
    beside, told = Beside.at(f"{bucket_uri}/claims"), []
    beside.write("part-w00000-000000.parquet", b"")

    def claim() -> None:
        told.append(beside.claim("_done-0123456789abcdef", b"{}"))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False, False, False, True]
    assert not beside.claim("_done-0123456789abcdef", b"{}")
    assert beside.claim("_done-fedcba9876543210", b"{}")


def test_a_trial_of_smdebug_in_a_bucket_is_followed_to_its_verdict_and_acted_upon_once(uri: str) -> None:  # noqa: F811
    arguments = ["follow", uri, "--rule", "PoorWeightInitialization", "--run", "cat >&2", "--timeout", "60s"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1, done.stderr
    assert "command: done" in done.stderr
    store, path = s3_filesystem(), uri.removeprefix("s3://")
    with store.open_input_stream(f"{path}/{STATUS}") as file:
        assert json.loads(file.read())["status"] == "IssuesFound"
    again = CliRunner().invoke(main, arguments)
    assert "command: before" in again.stderr


def test_a_training_that_writes_to_a_bucket_is_followed_and_stopped(endpoint: str, bucket_uri: str) -> None:
    ours, outcome = f"{bucket_uri}/ours", []

    def follow() -> None:
        outcome.append(CliRunner().invoke(main, ["follow", ours, "--stop", "--timeout", "60s"]))

    torch.manual_seed(0)
    model = nn.Sequential(
        *[layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4)
    )
    inputs, targets = torch.randn(64, 32), torch.randint(4, (64,))

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model, trial=ours):
            for _ in range(2000):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                time.sleep(0.02)

    follower = threading.Thread(target=follow)
    follower.start()
    with pytest.raises(TrainingStoppedError):
        train()
    follower.join()
    (done,) = outcome
    assert done.exit_code == 1, done.stderr
    assert "stop: done" in done.stderr
    assert len(load_trial(ours).steps) == 10
