"""Trials of SageMaker Debugger in an object store: an S3 server of its own process, faults included."""

from __future__ import annotations

import time
from pathlib import Path

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

from .smdebug_trial import unlike_scales
from .smdebug_writer import TrialWriter


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A poor trial, on the local disk."""
    return unlike_scales(tmp_path / "trial")


@pytest.fixture
def uri(endpoint: str, place: Path, bucket_uri: str) -> str:
    """The same trial in the store."""
    fs.copy_files(str(place), bucket_uri.removeprefix("s3://"), fs.LocalFileSystem(), s3_filesystem())
    return bucket_uri


def test_a_trial_in_a_bucket_is_judged_as_on_a_disk(uri: str, place: Path) -> None:
    rule = PoorWeightInitialization()
    here, there = judge(place, rules=[rule]), judge(uri, rules=[rule])
    assert there.verdict is here.verdict is Verdict.POOR
    assert [f.evidence for f in there.findings] == [f.evidence for f in here.findings]
    assert (there.trial.uri, there.trial.complete) == (uri, True)


def test_a_slash_at_the_end_changes_nothing(uri: str) -> None:
    assert len(load_trial(f"{uri}/").steps) == 10


def test_an_address_may_name_its_endpoint(uri: str, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    trial = load_trial(f"{uri}?endpoint_override=127.0.0.1:{s3_port}&scheme=http&region=us-east-1")
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


@pytest.mark.parametrize("address", ["s3://no-such-bucket-here/job", "s3://trials/no-such-job"])
def test_where_there_is_nothing_that_is_said(address: str, endpoint: str) -> None:
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


def test_it_is_not_written_to(uri: str) -> None:
    with pytest.raises(UsageError, match="are read and not written"):
        open_store(uri).begin()
