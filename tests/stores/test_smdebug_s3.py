"""Trials of SageMaker Debugger in an object store: an S3 server of its own process, faults included."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from fanin import judge, load_trial
from fanin.errors import StoreError, TrialFormatError, TrialNotFoundError, UsageError
from fanin.finding import Verdict
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.sagemaker import IndexReaderException, NoMoreData, create_trial, invoke_rule
from fanin.sagemaker import PoorWeightInitialization as InvokedRule
from fanin.stores import open_store
from fanin.stores.place import s3_filesystem

from .smdebug_writer import TrialWriter

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors")),
    reason="moto's server is not installed",
)

BUCKET = "trials"
SECONDS = 60
"""To start a server on a busy machine."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that speaks S3, as long as these tests run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(number)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(number, server)
        yield number
    finally:
        server.terminate()
        server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until somebody answers."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


@pytest.fixture
def endpoint(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, in the environment as users have it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    known = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    return known["AWS_ENDPOINT_URL"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A poor trial, on the local disk."""
    rng = np.random.default_rng(0)
    writer = TrialWriter(tmp_path / "trial").collections()
    for step in range(10):
        tensors = {
            "relu_input_0": rng.normal(size=1000),
            "fc2.relu_input_0": 4 * rng.normal(size=1000),
            "gradient/Net_fc.weight": rng.normal(size=(10, 10)),
            "loss_output_0": 1.0 - 0.05 * step,
        }
        writer.step(step, tensors)
    return writer.end().folder


@pytest.fixture
def uri(endpoint: str, place: Path, request: pytest.FixtureRequest) -> str:
    """The same trial in the store."""
    store = s3_filesystem(allow_bucket_creation=True)
    store.create_dir(BUCKET)
    path = f"{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}/debug-output"
    fs.copy_files(str(place), path, fs.LocalFileSystem(), store)
    return f"s3://{path}"


def test_a_trial_in_a_bucket_is_judged_as_on_a_disk(uri: str, place: Path) -> None:
    rule = PoorWeightInitialization()
    here, there = judge(place, rules=[rule]), judge(uri, rules=[rule])
    assert there.verdict is here.verdict is Verdict.POOR
    assert [f.evidence for f in there.findings] == [f.evidence for f in here.findings]
    assert (there.trial.uri, there.trial.complete) == (uri, True)


def test_a_slash_at_the_end_changes_nothing(uri: str) -> None:
    assert len(load_trial(f"{uri}/").steps) == 10


def test_an_address_may_name_its_endpoint(uri: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    trial = load_trial(f"{uri}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")
    assert len(trial.steps) == 10


def test_rules_of_the_original_run_on_it(uri: str) -> None:
    rule = InvokedRule(create_trial(uri))
    with pytest.raises(NoMoreData):
        invoke_rule(rule)
    assert list(rule.report["Details"]) == list(range(10))


def test_steps_are_seen_as_they_come(uri: str, place: Path) -> None:
    store, path = s3_filesystem(), uri.removeprefix("s3://")
    store.delete_file(f"{path}/training_job_end.ts")
    trial = create_trial(uri)
    assert trial.steps() == list(range(10))
    TrialWriter(place).step(10, {"relu_input_0": [1.0, 2.0]})
    fs.copy_files(str(place), path, fs.LocalFileSystem(), store)
    trial.wait_for_steps([10])
    assert trial.tensor("relu_input_0").value(10).tolist() == [1.0, 2.0]


def test_a_record_that_is_cut_short_is_refused_by_name_and_byte(uri: str) -> None:
    store, path = s3_filesystem(), uri.removeprefix("s3://")
    name = "events/000000000003/000000000003_worker_0.tfevents"
    with store.open_input_file(f"{path}/{name}") as file:
        data = file.read(500)
    with store.open_output_stream(f"{path}/{name}") as stream:
        stream.write(data)
    with pytest.raises(TrialFormatError) as caught:
        load_trial(uri)
    assert f"{uri}/{name}, at byte " in caught.value.where
    with pytest.raises(IndexReaderException, match=name):
        create_trial(uri).tensor("relu_input_0").value(3)


def test_an_event_file_that_is_not_there_yet_is_named(uri: str) -> None:
    """Where listings run ahead of what they list."""
    store, path = s3_filesystem(), uri.removeprefix("s3://")
    store.delete_file(f"{path}/events/000000000003/000000000003_worker_0.tfevents")
    with pytest.raises(TrialFormatError) as caught:
        load_trial(uri)
    assert caught.value.got == "no such file"


@pytest.mark.parametrize("address", ["s3://no-such-bucket-here/job", f"s3://{BUCKET}/no-such-job"])
def test_where_there_is_nothing_that_is_said(address: str, endpoint: str) -> None:
    s3_filesystem(allow_bucket_creation=True).create_dir(BUCKET)
    with pytest.raises((StoreError, TrialNotFoundError)) as caught:
        load_trial(address)
    assert caught.value.where == address
    assert caught.value.next_step


def test_a_dead_endpoint_is_said_and_not_waited_for(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StoreError, match="the trial cannot be read") as caught:
        load_trial("s3://trials/job")
    assert time.monotonic() - started < 60
    assert "AWS_ENDPOINT_URL" in caught.value.next_step


def test_secrets_are_never_part_of_a_message(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unspeakable")
    for address in (
        "s3://trials/job",
        "s3://key:unspeakable@trials/job?scheme=http&endpoint_override=127.0.0.1:9",
    ):
        with pytest.raises(StoreError) as caught:
            load_trial(address)
        assert "unspeakable" not in str(caught.value)
        assert caught.value.where == "s3://trials/job"


def test_our_own_trials_are_not_kept_there_yet(endpoint: str) -> None:
    with pytest.raises(UsageError, match="are read and not written"):
        open_store("s3://trials/new").begin()
