"""Our own trials in an object store: what differs from a disk, and what happens when it fails."""

from __future__ import annotations

import gc
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

import s3
from fanin import load_trial
from fanin.errors import StoreError, TrialExistsError, TrialFormatError, TrialNotFoundError, UsageError
from fanin.stores import open_store
from fanin.stores.parquet import ParquetStore, delivery, writing
from fanin.stores.parquet.directory import Directory
from fanin.stores.parquet.part import Part
from fanin.stores.parquet.writing import ParquetWriter
from fanin.stores.place import s3_filesystem

from .parquet_trial import child, require_success
from .samples import SPEC, plain, step

RUN = {"run_id": "r1", "world_size": "2"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pauses that tests can wait for, and a place for what stays here."""
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(writing, "REST", 0.02)
    (tmp_path / "spill").mkdir()
    monkeypatch.setenv(delivery.SPILL, str(tmp_path / "spill"))


def names(uri: str) -> list[str]:
    """The objects of a trial, as the server has them."""
    return [info.base_name for info in Directory.at(uri).entries()]


def spills(tmp_path: Path) -> list[Path]:
    """The files of ours that were kept on this machine."""
    return sorted((tmp_path / "spill").glob("*/part-*"))


def bring(uri: str, tmp_path: Path) -> None:
    """Do what the message says: copy them."""
    for path in spills(tmp_path):
        Directory.at(uri).publish(path.name, path.read_bytes())


def written(uri: str, count: int = 3) -> ParquetWriter:
    """A writer that has flushed some steps."""
    writer = ParquetStore(uri).begin()
    writer.describe(SPEC)
    for index in range(count):
        writer.append(step(index))
        writer.flush()
    return writer


def indices(uri: str) -> list[int]:
    """The steps that a reader finds."""
    return [each.index for each in load_trial(uri).steps]


# ── names and claims ────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_is_one_request_and_parts_bear_their_writers_word(proxy: s3.Proxy, bucket_uri: str) -> None:
    writer = written(bucket_uri, 1)
    before = len(proxy.seen)
    writer.append(step(1))
    writer.flush()
    assert [method for method, _ in proxy.seen[before:]] == ["PUT"]
    writer.close()
    words = {re.fullmatch(r"part-w00000-00000[0-3]-([0-9a-f]{8})\.parquet", n) for n in names(bucket_uri)}
    assert None not in words
    assert len({match[1] for match in words if match}) == 1


def test_a_second_run_is_refused(endpoint: str, bucket_uri: str) -> None:
    written(bucket_uri).close()
    before = names(bucket_uri)
    with pytest.raises(TrialExistsError):
        ParquetStore(bucket_uri).begin()
    with pytest.raises(TrialExistsError):
        ParquetStore(bucket_uri).begin(1, {"run_id": "another"})
    assert names(bucket_uri) == before


def test_of_two_that_begin_at_once_at_most_one_goes_on(endpoint: str, bucket_uri: str) -> None:
    gate, outcomes = threading.Barrier(4), []

    def begin() -> None:
        gate.wait()
        try:
            outcomes.append(ParquetStore(bucket_uri).begin())
        except TrialExistsError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begun = [one for one in outcomes if isinstance(one, ParquetWriter)]
    assert len(outcomes) == 4
    assert len(begun) <= 1
    assert len(names(bucket_uri)) == len(begun)  # the others have withdrawn
    for writer in begun:
        writer.close()


def test_where_listings_lag_two_may_go_on_and_nothing_is_lost(proxy: s3.Proxy, bucket_uri: str) -> None:
    first = written(bucket_uri, 2)
    known = set(names(bucket_uri))
    proxy.hides = lambda key: key.rpartition("/")[2] in known
    second = written(bucket_uri, 3)
    proxy.reset()
    first.close()
    second.close()
    with pytest.raises(TrialFormatError, match="two runs wrote here as one worker") as caught:
        load_trial(bucket_uri)
    one, other = re.findall(r"[0-9a-f]{8}", caught.value.got)
    for word, elsewhere in ((one, f"{bucket_uri}-a"), (other, f"{bucket_uri}-b")):
        for name in names(bucket_uri):
            if word in name:
                Directory.at(elsewhere).publish(name, Directory.at(bucket_uri).read(name))
    assert sorted([len(indices(f"{bucket_uri}-a")), len(indices(f"{bucket_uri}-b"))]) == [2, 3]


def test_a_claim_of_one_who_was_killed_before_withdrawing_hides_nothing(
    endpoint: str, bucket_uri: str
) -> None:
    written(bucket_uri, 2).close()
    first = next(name for name in names(bucket_uri) if "-000000-" in name)
    left = re.sub(r"-[0-9a-f]{8}\.", "-00000000.", first)
    Directory.at(bucket_uri).publish(left, Directory.at(bucket_uri).read(first))
    assert indices(bucket_uri) == [0, 1]


def test_a_reader_sees_a_beginning_where_listings_lag(proxy: s3.Proxy, bucket_uri: str) -> None:
    written(bucket_uri, 3).close()
    proxy.hides = lambda key: "-000003-" in key or "-000004-" in key
    assert indices(bucket_uri) == [0, 1]
    proxy.hides = lambda key: (
        "-000001-" in key or "-000002-" in key
    )  # what was put before is asked for by name
    assert indices(bucket_uri) == [0, 1, 2]


def test_two_ranks_write_one_trial(endpoint: str, bucket_uri: str) -> None:
    known = {"TORCHELASTIC_RUN_ID": "job7", "MASTER_ADDR": "h", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    mine = s3.environment(int(endpoint.rpartition(":")[2]))
    children = [child("write", bucket_uri, str(worker), "4", **known, **mine) for worker in range(2)]
    for process in children:
        require_success(process)
    trial = load_trial(bucket_uri)
    assert trial.complete
    assert trial.workers == (0, 1)
    assert all(each.losses == {0: each.index, 1: each.index} for each in trial.steps)
    assert len(trial.steps) == 4


def test_a_reader_beside_a_writer_sees_a_growing_beginning(endpoint: str, bucket_uri: str) -> None:
    writer = written(bucket_uri, 0)
    over, lengths = threading.Event(), []

    def read() -> None:
        while not over.is_set():
            found = indices(bucket_uri)
            assert found == list(range(len(found)))
            lengths.append(len(found))

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(12):
        writer.append(step(index))
        writer.flush()
        assert len(indices(bucket_uri)) == index + 1  # acknowledged is readable
    over.set()
    reader.join()
    writer.close()
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_writer_that_is_killed_leaves_what_it_acknowledged(
    endpoint: str, bucket_uri: str, steps: int
) -> None:
    process = child("endless", bucket_uri, **s3.environment(int(endpoint.rpartition(":")[2])))
    assert process.stdout is not None
    process.stdout.readline()
    said = [int(process.stdout.readline()) for _ in range(steps)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.communicate()[0].splitlines()]
    try:
        found = indices(bucket_uri)
    except TrialNotFoundError:
        assert not said
        return
    assert found == list(range(len(found)))
    assert len(found) >= len(said)
    assert not load_trial(bucket_uri).complete


# ── faults that pass ────────────────────────────────────────────────────────────────────────────────────────

PASSING = {
    "dropped amid a write": s3.cut_amid_a_write,
    "an answer lost": s3.lose_the_answer,
    "throttled": s3.throttle,
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_is_acknowledged_is_there_after_a_fault(
    proxy: s3.Proxy, bucket_uri: str, fault: str, tmp_path: Path
) -> None:
    writer = written(bucket_uri, 1)
    for index in range(1, 3):
        proxy.faults = [s3.times(4, PASSING[fault])]
        writer.append(step(index))
        writer.flush()
        assert plain(load_trial(bucket_uri).steps) == plain(tuple(step(i) for i in range(index + 1)))
    writer.close()
    assert load_trial(bucket_uri).complete
    assert spills(tmp_path) == []


def test_a_large_file_of_which_a_piece_is_refused_does_not_appear(proxy: s3.Proxy, bucket_uri: str) -> None:
    store = s3_filesystem()
    directory = Directory.at(bucket_uri)
    data = bytes(25 * 2**20)
    proxy.faults = [lambda handler: "partNumber=2" in handler.path and s3.throttle(handler)]
    with pytest.raises(OSError, match=r"SlowDown|SLOW_DOWN|reduce|503"):
        directory.publish("part-w00000-000001-0123abcd.parquet", data)
    gc.collect()
    assert names(bucket_uri) == []
    proxy.reset()
    directory.publish("part-w00000-000001-0123abcd.parquet", data)
    assert names(bucket_uri) == ["part-w00000-000001-0123abcd.parquet"]
    (info,) = store.get_file_info([f"{directory.path}/part-w00000-000001-0123abcd.parquet"])
    assert info.size == len(data)


def test_a_fault_while_the_place_is_claimed_leaves_no_claim(proxy: s3.Proxy, bucket_uri: str) -> None:
    proxy.faults = [lambda handler: s3.writes(handler) and s3.lose_the_answer(handler)]
    with pytest.raises(StoreError, match="the trial cannot be written"):
        ParquetStore(bucket_uri).begin()
    proxy.reset()
    written(bucket_uri, 1).close()
    assert indices(bucket_uri) == [0]


# ── faults that do not ──────────────────────────────────────────────────────────────────────────────────────


def test_what_a_store_does_not_take_is_kept_here_and_said_once(
    proxy: s3.Proxy, bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "TRY_FOR", 0.2)
    writer = written(bucket_uri, 2)
    proxy.faults = [s3.throttle]
    for index in range(2, 4):
        writer.append(step(index))
        while len(spills(tmp_path)) < index - 1:
            time.sleep(0.01)
    with pytest.raises(StoreError, match="the rest is kept on this machine") as caught:
        writer.flush()
    assert "SLOW_DOWN" in caught.value.got.upper().replace("SLOWDOWN", "SLOW_DOWN")
    (folder,) = (tmp_path / "spill").iterdir()
    assert f"copy the files of {folder} to {bucket_uri}" in caught.value.next_step
    assert (folder / ".belongs-to").read_text().strip() == bucket_uri
    proxy.reset()  # what comes later stays here all the same, or there would be a gap
    writer.append(step(4))
    writer.close()
    assert indices(bucket_uri) == [0, 1]
    bring(bucket_uri, tmp_path)
    trial = load_trial(bucket_uri)
    assert plain(trial.steps) == plain(tuple(step(index) for index in range(5)))
    assert trial.complete


@pytest.mark.parametrize("fault", [s3.hang_on_writes, s3.throttle], ids=["hangs", "refuses"])
def test_closing_waits_for_no_store_and_loses_nothing(
    proxy: s3.Proxy, bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: s3.Fault
) -> None:
    monkeypatch.setattr(writing, "PATIENCE_S", 0.5)
    writer = written(bucket_uri, 1)
    proxy.faults = [fault]
    before = len(proxy.seen)
    writer.append(step(1))
    while len(proxy.seen) == before:  # until it is on its way
        time.sleep(0.01)
    for index in range(2, 4):
        writer.append(step(index))
    with pytest.raises(StoreError, match="the rest is kept on this machine"):
        writer.close()
    writer.close()
    proxy.release.set()
    proxy.reset()
    assert len(spills(tmp_path)) == 2  # the one that was on its way, and the rest
    bring(bucket_uri, tmp_path)
    assert indices(bucket_uri) == [0, 1, 2, 3]
    assert load_trial(bucket_uri).complete


def test_a_part_that_is_still_being_encoded_when_closing_gives_up_is_kept_here(
    endpoint: str, bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PATIENCE_S", 0.3)
    encode, slow, begun = writing.encode, threading.Event(), threading.Event()

    def slowly(part: Part) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            slow.wait(30)
        return encode(part)

    writer = written(bucket_uri, 1)
    monkeypatch.setattr(writing, "encode", slowly)
    writer.append(step(1))
    assert begun.wait(30)
    writer.append(step(2))
    with pytest.raises(StoreError, match="the rest is kept on this machine"):
        writer.close()
    bring(bucket_uri, tmp_path)
    slow.set()
    assert indices(bucket_uri) == [0, 1, 2]
    assert load_trial(bucket_uri).complete


def test_a_queue_that_is_full_drops_steps_and_the_trial_says_which(
    proxy: s3.Proxy, bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WAITING", 8)  # four steps of two tensors
    writer = written(bucket_uri, 1)
    proxy.faults = [s3.times(1, s3.hang_on_writes)]
    before = len(proxy.seen)
    writer.append(step(1))
    while len(proxy.seen) == before:  # until it hangs in the hands of the server
        time.sleep(0.01)
    for index in range(2, 10):
        writer.append(step(index))
    proxy.release.set()
    with pytest.raises(
        StoreError, match="is kept on this machine"
    ):  # nothing is offered twice while others wait
        writer.flush()
    writer.append(step(10))
    writer.close()
    bring(bucket_uri, tmp_path)
    assert indices(bucket_uri) == [0, 1, 2, 3, 4, 5, 10]
    assert load_trial(bucket_uri).spec.notes[-1].startswith("Not kept: 4 steps from 6 to 9, ")


def test_what_stays_nowhere_is_said(
    proxy: s3.Proxy, bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "TRY_FOR", 0.1)
    monkeypatch.setenv(delivery.SPILL, str(tmp_path / "nowhere"))
    writer = written(bucket_uri, 1)
    proxy.faults = [s3.throttle]
    writer.append(step(1))
    with pytest.raises(StoreError, match="could not be written to its end") as caught:
        writer.flush()
    assert "to keep it on this machine, FileNotFoundError" in caught.value.got
    writer.close()
    proxy.reset()
    assert indices(bucket_uri) == [0]


def test_wrong_credentials_are_said_and_no_secret(proxy: s3.Proxy, bucket_uri: str) -> None:
    proxy.faults = [s3.let_nobody_in]
    for act in (lambda: load_trial(bucket_uri), lambda: ParquetStore(bucket_uri).begin()):
        with pytest.raises(StoreError) as caught:
            act()
        assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in caught.value.next_step
        assert caught.value.where == bucket_uri
        assert "unspeakable" not in str(caught.value)


def test_secrets_in_an_address_are_in_no_message_and_no_trial(s3_port: int, bucket_uri: str) -> None:
    options = f"?endpoint_override=127.0.0.1:{s3_port}&scheme=http&region=us-east-1"
    address = f"{bucket_uri.replace('s3://', 's3://key:unspeak%2Fable@')}{options}"
    writer = ParquetStore(address).begin()
    writer.append(step(0))
    writer.close()
    trial = load_trial(address)
    assert trial.uri == bucket_uri
    with pytest.raises(TrialExistsError) as caught:
        ParquetStore(address).begin()
    assert "unspeak" not in str(caught.value) + str(trial.about)


def test_credentials_that_are_withdrawn_amid_a_run_are_not_waited_for(
    proxy: s3.Proxy, bucket_uri: str, tmp_path: Path
) -> None:
    writer = written(bucket_uri, 1)
    proxy.faults = [s3.let_nobody_in]
    writer.append(step(1))
    with pytest.raises(StoreError, match="is kept on this machine") as caught:
        writer.flush()
    assert "AWS_ACCESS_KEY_ID" in caught.value.next_step
    assert len(spills(tmp_path)) == 1


def test_a_bucket_that_is_not_there_is_said(endpoint: str) -> None:
    with pytest.raises(TrialNotFoundError, match="there is no such bucket"):
        load_trial("s3://no-such-bucket/exp1")
    with pytest.raises(StoreError) as caught:
        ParquetStore("s3://no-such-bucket/exp1").begin()
    assert "create the bucket, or check its name" in caught.value.next_step


@pytest.mark.parametrize("address", ["s3://", "s3:///", "s3://bucket/x?colour=red", "s3://bucket/x?region"])
def test_addresses_that_lead_nowhere_are_refused(address: str, endpoint: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(address)
    assert "s3://bucket/path" in caught.value.expected


def test_a_dead_store_while_a_part_is_read_is_no_damage(proxy: s3.Proxy, bucket_uri: str) -> None:
    written(bucket_uri, 1).close()

    def gone(handler: s3.Handler) -> bool:
        if handler.command != "GET" or ".parquet" not in handler.path:
            return False
        handler.drop()
        return True

    proxy.faults = [gone]
    with pytest.raises(StoreError, match="the trial cannot be read") as caught:
        load_trial(bucket_uri)
    assert "AWS_ENDPOINT_URL" in caught.value.next_step


def test_a_writer_that_waits_for_nothing_waits_for_no_network(proxy: s3.Proxy, bucket_uri: str) -> None:
    """The end of a watch, which a training waits for on a disk."""
    reader, writer = ParquetStore(bucket_uri), written(bucket_uri, 1)
    proxy.faults = [s3.hang_on_writes]
    for index in range(1, 500):
        writer.append(step(index))
    writer.end(wait_s=60.0)
    assert [each.index for each in reader.load().steps] == [0]  # the server still holds the first of them
    proxy.faults = []
    proxy.release.set()
    writer.close()
    assert indices(bucket_uri) == list(range(500))


def test_objects_of_others_are_left_alone(endpoint: str, bucket_uri: str) -> None:
    store, path = s3_filesystem(), bucket_uri.removeprefix("s3://")
    with store.open_output_stream(f"{path}/notes.txt") as stream:
        stream.write(b"mine")
    written(bucket_uri, 1).close()
    assert indices(bucket_uri) == [0]
    assert store.get_file_info(f"{path}/notes.txt").type is fs.FileType.File
