"""`fanin run` with a trial in an object store: what is wrong with its place is known before the script begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import s3
from fanin import launch
from fanin.stores.parquet import ParquetStore

RAN = "print('ran')"


def fanin_run(trial: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """As a user would start it."""
    command = [sys.executable, "-m", "fanin", "run", "--no-report", "--trial", trial, "--"]
    source = str(Path(launch.__file__).parents[1])
    without = {"TORCHELASTIC_RUN_ID": "", "MASTER_ADDR": ""}
    environment = os.environ | {"PYTHONPATH": source} | without | variables
    command += [sys.executable, "-c", RAN]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_a_trial_that_exists_is_refused_before_anything_runs_as_on_a_disk(
    endpoint: str, bucket_uri: str, tmp_path: Path
) -> None:
    ParquetStore(bucket_uri).begin().close()
    refused = fanin_run(bucket_uri)
    here = fanin_run(str(tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "") == (here.returncode, here.stdout)
    assert refused.stderr == here.stderr.replace(str(tmp_path), bucket_uri)
    assert "there is something already where the trial should go" in refused.stderr


def test_where_there_is_none_the_script_runs(endpoint: str, bucket_uri: str) -> None:
    assert fanin_run(bucket_uri).stdout == "ran\n"


def test_secrets_of_an_address_are_not_shown(endpoint: str, bucket_uri: str) -> None:
    ParquetStore(bucket_uri).begin().close()
    refused = fanin_run(bucket_uri.replace("s3://", "s3://testing:unspeakable@"))
    assert refused.returncode == 2
    assert "unspeakable" not in refused.stderr
    assert bucket_uri in refused.stderr


@pytest.mark.parametrize("launcher", [{"MASTER_ADDR": "h"}, {"TORCHELASTIC_RUN_ID": "job7"}], ids=str)
def test_another_process_of_a_launcher_may_have_begun_this_run(
    endpoint: str, bucket_uri: str, launcher: dict[str, str]
) -> None:
    ParquetStore(bucket_uri).begin(0, {"run_id": "job7"}).close()
    assert fanin_run(bucket_uri, RANK="1", **launcher).stdout == "ran\n"


def test_a_store_that_nobody_can_enter_does_not_keep_the_script_from_running(
    proxy: s3.Proxy, bucket_uri: str
) -> None:
    proxy.faults.append(s3.let_nobody_in)
    assert fanin_run(bucket_uri).stdout == "ran\n"


LOOKS = """
import os, sys, time
from fanin import launch
launch.LOOK_S = 4.0
began = time.monotonic()
launch.require_free(sys.argv[1])
print(time.monotonic() - began)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left")
"""


def test_a_store_that_hangs_is_not_waited_for_and_leaves_no_child(proxy: s3.Proxy, bucket_uri: str) -> None:
    """In a process of its own: it forks, which this one with its threads should not."""
    proxy.faults.append(s3.hang)
    environment = os.environ | {"PYTHONPATH": str(Path(launch.__file__).parents[1])}
    looks = [sys.executable, "-c", LOOKS, bucket_uri]
    done = subprocess.run(looks, env=environment, capture_output=True, text=True, check=True, timeout=100)
    seconds, left = done.stdout.splitlines()
    assert float(seconds) < 9.0, "a request that hangs takes 12 s, three times"
    assert left == "no child is left"
    assert proxy.seen, "it has asked"


def test_a_file_address_counts_as_a_place_too(tmp_path: Path) -> None:
    ParquetStore(tmp_path / "exp1").begin().close()
    refused = fanin_run((tmp_path / "exp1").as_uri())
    assert (refused.returncode, refused.stdout) == (2, "")
