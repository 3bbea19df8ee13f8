"""Following a trial in an object store: status and claims lie beside it as on a disk."""

from __future__ import annotations

import json
import random
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from pyarrow.fs import FileInfo
from torch import nn

import s3
from fanin.beside import STATUS, Beside
from fanin.capture import watch
from fanin.cli import main
from fanin.errors import TrainingStoppedError
from fanin.examine import load_trial
from fanin.follow import Following, follow
from fanin.shelf import remove
from fanin.status import Ended, Status
from fanin.stores.place import s3_filesystem
from stores.test_smdebug_s3 import place, uri  # noqa: F401  # fixtures

from .growing import Growing, healthy

CLAIM = "_done-0123456789abcdef"


def test_of_those_who_claim_at_once_one_is_told_so_and_later_nobody(endpoint: str, bucket_uri: str) -> None:
    beside = Beside.at(f"{bucket_uri}/claims")
    beside.write("part-w00000-000000.parquet", b"")
    assert sorted(at_once(beside, 4)) == [False, False, False, True]
    assert not beside.claim(CLAIM, b"{}")
    assert beside.claim("_done-fedcba9876543210", b"{}")


def test_a_claim_that_nobody_contests_waits_for_nothing(
    proxy: s3.Proxy, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: pytest.fail("it waited"))
    monkeypatch.setattr("fanin.beside.time", clock)  # of that module alone: servers of other tests sleep too
    beside = Beside.at(bucket_uri)
    assert beside.claim(CLAIM, b"{}")
    asked = len(proxy.seen)
    assert asked == 4  # look, put, look, say so
    assert not beside.claim(CLAIM, b"{}")
    assert len(proxy.seen) == asked + 1
    assert [info.size for info in beside.files()] == [2]


def test_whatever_the_moment_one_of_two_claims_is_won(proxy: s3.Proxy, bucket_uri: str) -> None:
    """Requests are held up by chance, so that their order is another one each time."""
    chance = random.Random(0)

    def late(handler: s3.Handler) -> bool:
        time.sleep(chance.choice([0.0, 0.0, 0.01, 0.05]))
        return False

    proxy.faults = [late]
    for turn in range(12):
        beside = Beside.at(f"{bucket_uri}/{turn}")
        assert sorted(at_once(beside, 3)) == [False, False, True], turn
        assert [info.size for info in beside.files()] == [2]


def at_once(beside: Beside, count: int) -> list[bool]:
    """What so many are told who claim at the same moment."""
    told: list[bool] = []
    threads = [threading.Thread(target=lambda: told.append(beside.claim(CLAIM, b"{}"))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_a_claim_of_one_who_was_killed_before_it_was_said_counts(
    endpoint: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanin.beside.PATIENCE_S", 0.3)
    beside = Beside.at(bucket_uri)
    claims = beside._claims
    seen: list[str] = []

    def late(self: Beside, name: str) -> list[FileInfo]:
        if not seen:
            seen.append(name)
            self.write(f"{name}-ffffffff.json", b"")  # after our first look
            return []
        return claims(name)

    monkeypatch.setattr(Beside, "_claims", late)
    assert not beside.claim(CLAIM, b"{}")
    assert [info.base_name for info in beside.files()] == [f"{CLAIM}-ffffffff.json"]


def test_a_claim_that_cannot_be_made_is_in_nobodys_way(proxy: s3.Proxy, bucket_uri: str) -> None:
    proxy.faults = [lambda handler: s3.writes(handler) and s3.lose_the_answer(handler)]
    beside = Beside.at(bucket_uri)
    with pytest.raises(OSError, match="_done"):
        beside.claim(CLAIM, b"{}")
    proxy.reset()
    assert beside.claim(CLAIM, b"{}")


def test_a_trial_that_is_removed_from_a_bucket_while_it_is_followed_is_not_waited_for(
    endpoint: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanin.follow.PATIENCE_S", 0.5)
    growing = Growing(bucket_uri, healthy())
    growing.step(0)
    looks = follow(bucket_uri, Following(timeout=60.0))
    next(look for look in looks if look.standing.steps == 1)
    remove(bucket_uri)
    end = list(looks)[-1].standing
    assert (end.ended, end.status, end.why) == (
        Ended.BROKEN,
        Status.ERROR,
        "the trial was removed while it was followed",
    )


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
