"""A trial in an object store: training is the same, and goes on whatever the store does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fanin
import s3
from fanin import capture, judge, load_trial
from fanin.cli import main
from fanin.stores import open_store
from fanin.stores.parquet import delivery, writing
from fanin.stores.parquet.directory import Directory

from .nets import hooks_on, net, observe, train

STEPS = 4

SCRIPT = """
import torch
from torch import nn
import fanin
from fanin.stores.parquet import writing

writing.PATIENCE_S = 0.5
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
{watch}
for step in range(20):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.randint(4, (16,)))
    loss.backward()
    optimizer.step()
    print("step", step, flush=True)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits that tests can wait for, and a place for what stays here."""
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(writing, "PATIENCE_S", 0.5)
    (tmp_path / "spill").mkdir()
    monkeypatch.setenv(delivery.SPILL, str(tmp_path / "spill"))


def command(*arguments: str) -> Result:
    """Run the command line."""
    return CliRunner().invoke(main, arguments)


def script(tmp_path: Path, watch: str = "") -> list[str]:
    """A training as users write it, which says each step."""
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(watch=watch))
    return [sys.executable, str(path)]


def done(process: subprocess.Popen[str]) -> tuple[int, int, str]:
    """Exit code, steps done, and what it said."""
    out, err = process.communicate(timeout=90)
    return process.returncode, out.count("step "), err


def started(arguments: list[str]) -> subprocess.Popen[str]:
    """A process that finds this fanin."""
    known = os.environ | {"PYTHONPATH": str(Path(fanin.__file__).parents[1])}
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, env=known, stdout=pipe, stderr=pipe, text=True)


def test_a_trial_in_a_bucket_is_judged_shown_and_removed_as_on_a_disk(
    endpoint: str, bucket_uri: str, tmp_path: Path
) -> None:
    losses = []
    for place in (bucket_uri, str(tmp_path / "exp1")):
        model = net()
        seen = observe(model, trial=place, steps=STEPS, on_error="warn")
        losses.append(train(model, STEPS))
        seen.close()
    assert losses[0] == losses[1]
    here, there = judge(tmp_path / "exp1"), judge(bucket_uri)
    assert there.trial.complete
    assert there.verdict is here.verdict
    assert [(f.code, f.layer, f.evidence) for f in there.findings] == [
        (f.code, f.layer, f.evidence) for f in here.findings
    ]
    assert command("judge", bucket_uri).stdout == command("judge", str(tmp_path / "exp1")).stdout
    page = tmp_path / "report.json"
    assert command("report", bucket_uri, "-o", str(page)).exit_code == 0
    assert json.loads(page.read_text())["verdict"] == here.verdict.value
    for verb in ("show", "verify"):
        said = command("trial", verb, bucket_uri).stdout
        assert said == command("trial", verb, str(tmp_path / "exp1")).stdout
        assert "4 steps" in said
    assert command("trial", "export", bucket_uri, "-o", str(tmp_path / "t.csv")).exit_code == 0
    parent = bucket_uri.rpartition("/")[0]
    assert bucket_uri in command("trial", "ls", parent).stdout
    Directory.at(bucket_uri).publish("mine.txt", b"stays")
    assert command("trial", "rm", bucket_uri, "--yes").exit_code == 0
    assert [info.base_name for info in Directory.at(bucket_uri).entries()] == ["mine.txt"]
    assert "no trials under" in command("trial", "ls", parent).stdout


def test_ls_finds_trials_below_a_prefix_and_their_faults(endpoint: str, bucket_uri: str) -> None:
    for name in ("a/one", "two"):
        open_store(f"{bucket_uri}/{name}").begin().close()
    Directory.at(f"{bucket_uri}/bad").publish("part-w00000-000000-00000000.parquet", b"nothing")
    said = command("trial", "ls", f"{bucket_uri}/", "--no-verdict").stdout
    assert [line.split()[0] for line in said.splitlines()] == [
        f"{bucket_uri}/{name}" for name in ("a/one", "bad", "two")
    ]
    assert "cannot be read" in said
    assert command("trial", "ls", f"{bucket_uri}/nowhere").exit_code == 2


@pytest.mark.parametrize("verb", [("ls",), ("show",), ("verify",), ("rm", "--yes")], ids=lambda v: v[0])
def test_commands_say_what_credentials_to_set(
    proxy: s3.Proxy, bucket_uri: str, verb: tuple[str, ...]
) -> None:
    proxy.faults = [s3.let_nobody_in]
    result = command("trial", verb[0], bucket_uri, *verb[1:])
    assert result.exit_code == 2
    assert "AWS_ACCESS_KEY_ID" in result.output
    assert "unspeakable" not in result.output
    assert "Traceback" not in result.output


def test_run_writes_into_a_bucket(endpoint: str, bucket_uri: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "fanin", "run", "--trial", bucket_uri, "--steps", "5", "--"]
    code, steps, said = done(started([*arguments, *script(tmp_path)]))
    assert (code, steps) == (0, 20), said
    trial = load_trial(bucket_uri)
    assert [step.index for step in trial.train_steps] == list(range(5))
    assert trial.complete


def test_a_store_that_hangs_holds_up_no_step(
    proxy: s3.Proxy, bucket_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    seen = observe(model, trial=bucket_uri, steps=STEPS, on_error="warn")
    proxy.faults = [s3.hang_on_writes]
    before = len(proxy.seen)
    losses = train(model, STEPS)
    assert losses == train(net(), STEPS)
    while len(proxy.seen) == before:
        time.sleep(0.01)
    assert not proxy.release.is_set()  # all steps are done, and the store has not answered yet
    seen.close()
    assert [record.name for record in caplog.records] == ["fanin"]
    assert "the rest is kept on this machine" in caplog.text
    assert hooks_on(model) == []
    proxy.reset()
    for path in (tmp_path / "spill").glob("*/part-*"):
        Directory.at(bucket_uri).publish(path.name, path.read_bytes())
    trial = load_trial(bucket_uri)
    assert [step.index for step in trial.train_steps] == list(range(STEPS))
    assert trial.complete


Fault = Callable[[s3.Handler], bool]


@pytest.mark.parametrize(
    ("fault", "said"),
    [(s3.hang, "does not answer"), (s3.let_nobody_in, "AWS_ACCESS_KEY_ID"), (None, "create the bucket")],
    ids=["hangs", "lets nobody in", "no bucket"],
)
def test_a_store_that_cannot_be_begun_leaves_the_trial_in_memory(
    proxy: s3.Proxy,
    bucket_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Fault | None,
    said: str,
) -> None:
    if fault is s3.hang:
        monkeypatch.setattr(capture, "BEGIN_S", 0.5)
    proxy.faults = [fault] if fault else []
    model = net()
    seen = observe(
        model, trial=bucket_uri if fault else "s3://no-such-bucket/exp1", steps=STEPS, on_error="warn"
    )
    assert train(model, STEPS) == train(net(), STEPS)
    assert len(seen.trial.train_steps) == STEPS
    seen.close()
    assert said in caplog.text
    assert "unspeakable" not in caplog.text


def test_a_place_that_a_store_gives_too_late_is_given_back(
    proxy: s3.Proxy, bucket_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def late(handler: s3.Handler) -> bool:
        if s3.writes(handler):
            handler.server.release.wait(60)
        return False

    monkeypatch.setattr(capture, "BEGIN_S", 0.5)
    proxy.faults = [late]
    seen = observe(net(), trial=bucket_uri, steps=STEPS, on_error="warn")
    assert "does not answer" in caplog.text
    (waiting,) = (thread for thread in threading.enumerate() if thread.name == "fanin-begin")
    proxy.release.set()
    waiting.join(60)
    assert not waiting.is_alive()
    seen.close()
    open_store(bucket_uri).begin().close()
    assert load_trial(bucket_uri).complete


def test_a_process_whose_store_hangs_ends_with_its_own_exit_code(
    proxy: s3.Proxy, bucket_uri: str, tmp_path: Path
) -> None:
    def hang_on_steps(handler: s3.Handler) -> bool:
        return "-000000-" not in handler.path and s3.hang_on_writes(handler)

    proxy.faults = [hang_on_steps]
    process = started(script(tmp_path, f"watch = fanin.watch(model, trial={bucket_uri!r}, steps=5)"))
    code, steps, said = done(process)
    assert not proxy.release.is_set()
    assert (code, steps) == (0, 20), said
    assert said.count("the rest is kept on this machine") == 1
    proxy.reset()
    for path in (tmp_path / "spill").glob("*/part-*"):
        Directory.at(bucket_uri).publish(path.name, path.read_bytes())
    assert [step.index for step in load_trial(bucket_uri).train_steps] == list(range(5))
