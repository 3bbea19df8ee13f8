"""`fanin follow`: exit codes, streams, what is kept, and a training that it stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fanin.beside import STOP
from fanin.cli import main
from fanin.errors import RuleParameterError
from fanin.rules.poor_weight_initialization import PoorWeightInitialization
from fanin.status import StatusFile
from stores.smdebug_trial import pytorch
from stores.smdebug_writer import TrialWriter

from .growing import Growing, healthy, poor
from .test_status import read

CONFIG = {
    "DebugRuleConfiguration": {
        "RuleParameters": {
            "rule_to_invoke": "PoorWeightInitialization",
            "threshold": "10.0",
            "action_json": json.dumps(
                [
                    {"name": "stoptraining", "parameters": {}},
                    {"name": "sms", "parameters": {"endpoint": "+49"}},
                ]
            ),
        }
    }
}

TRAINING = """
import sys, time, torch, fanin
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(16, 16), nn.ReLU())), nn.Linear(16, 4))
for p in model.parameters(): nn.init.normal_(p, std=1e-4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x, y = torch.randn(32, 16), torch.randint(4, (32,))
for step in range(3000):
    optimizer.zero_grad(); nn.functional.cross_entropy(model(x), y).backward(); optimizer.step()
    time.sleep(0.02)
print("trained to the end", flush=True)
"""


def fanin(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["follow", *arguments])


def written(place: Path, kind: str) -> str:
    growing = Growing(place, poor() if kind == "poor" else healthy())
    if kind == "undecided":
        growing.begin()
    else:
        growing.step(0)
    growing.close()
    return growing.uri


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [("healthy", 0, "NoIssuesFound"), ("poor", 1, "IssuesFound"), ("undecided", 3, "Error")],
)
def test_the_exit_code_is_the_verdicts_as_of_judge(tmp_path: Path, kind: str, code: int, status: str) -> None:
    place = tmp_path / "trial"
    done = fanin(written(place, kind), "--timeout", "60s")
    judged = CliRunner().invoke(main, ["judge", str(place)])
    assert done.exit_code == code == judged.exit_code
    assert done.stdout == judged.stdout
    assert read(place)["status"] == status
    assert status in done.stderr


def test_fail_on_counts_here_too(tmp_path: Path) -> None:
    assert fanin(written(tmp_path / "trial", "undecided"), "--fail-on", "poor").exit_code == 0


def test_a_timeout_has_a_code_of_its_own_and_shows_what_there_is(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "trial", healthy())
    growing.step(0)
    done = fanin(growing.uri, "--timeout", "0.5")
    assert done.exit_code == 4
    assert "HEALTHY" in done.stdout
    said = read(tmp_path / "trial")
    assert (said["status"], said["ended"]) == ("Error", "timed out")


def test_what_never_comes_times_out_and_leaves_nothing(tmp_path: Path) -> None:
    done = fanin(str(tmp_path / "none"), "--timeout", "0.3s")
    assert (done.exit_code, done.stdout) == (4, "")
    assert not (tmp_path / "none").exists()


def test_a_broken_trial_is_broken_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanin.follow.PATIENCE_S", 0.3)
    uri = written(tmp_path / "trial", "healthy")
    (tmp_path / "trial" / "part-w00000-000001.parquet").write_bytes(b"no")
    done = fanin(uri)
    assert done.exit_code == 2
    assert "error: a part of this trial is damaged" in done.stderr
    assert read(tmp_path / "trial")["status"] == "Error"


def test_a_rule_that_cannot_apply_is_an_error_in_the_status_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(rule: object, trial: object) -> None:
        raise RuleParameterError("this rule is not for trees", got="XGBoost")

    monkeypatch.setattr(PoorWeightInitialization, "require_applicable", refuse)
    uri = written(tmp_path / "trial", "healthy")
    done = fanin(uri, "--rule", "PoorWeightInitialization")
    assert (done.exit_code, "error: this rule is not for trees" in done.stderr) == (2, True)
    assert read(tmp_path / "trial")["why"] == "this rule is not for trees"


@pytest.mark.parametrize("time_", ["0", "-3", "soon", "5d", "inf", ""])
def test_what_is_no_time_is_refused(tmp_path: Path, time_: str) -> None:
    done = fanin(str(tmp_path), "--timeout", time_)
    assert done.exit_code == 2
    assert "is no time" in done.stderr


def test_several_followers_and_a_restarted_one_act_once(tmp_path: Path) -> None:
    uri, log = written(tmp_path / "trial", "poor"), tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "fanin",
        "follow",
        uri,
        "--run",
        f"echo acted >> {log}",
        "--timeout",
        "100s",
    ]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    assert [one.wait() for one in both] == [1, 1]
    for one in both:
        assert one.stderr is not None
        one.stderr.close()
    assert fanin(uri, "--run", f"echo acted >> {log}").exit_code == 1
    assert log.read_text() == "acted\n"


def test_a_failing_action_is_reported_and_the_next_is_done(tmp_path: Path) -> None:
    uri = written(tmp_path / "trial", "poor")
    done = fanin(uri, "--run", "exit 9", "--run", "true", "--stop")
    assert done.exit_code == 1
    assert "command: failed" in done.stderr
    said = read(tmp_path / "trial")
    assert [(one["action"], one["outcome"]) for one in said["actions"]] == [
        ("stop", "done"),
        ("command", "failed"),
        ("command", "done"),
    ]


def test_a_follower_by_one_rule_leaves_the_verdict_of_one_by_all_and_says_whose_it_is(tmp_path: Path) -> None:
    uri = written(tmp_path / "trial", "poor")
    assert fanin(uri).exit_code == 1
    before = read(tmp_path / "trial")
    done = fanin(uri, "--rule", "FAN404")
    assert done.exit_code == 0
    assert f"status: stays IssuesFound by {before['follower']['host']}:" in done.stderr
    assert "all rules" in done.stderr
    assert read(tmp_path / "trial") == before


def test_a_status_file_tells_the_runs_at_one_address_apart(tmp_path: Path) -> None:
    place, state = tmp_path / "trial", tmp_path / "state.json"
    poor_one = written(place, "poor")
    assert fanin(poor_one, "--status", str(state)).exit_code == 1
    first = json.loads(state.read_text())
    shutil.rmtree(place)
    fanin(str(place), "--status", str(state), "--timeout", "0.3")
    assert json.loads(state.read_text())["status"] == "Error", "of the wait, and no verdict of the run before"
    written(place, "healthy")
    assert fanin(str(place), "--status", str(state)).exit_code == 0
    second = json.loads(state.read_text())
    assert (first["status"], second["status"]) == ("IssuesFound", "NoIssuesFound")
    assert first["run"] != second["run"]


def test_what_lies_in_a_status_cannot_harm_a_terminal(tmp_path: Path) -> None:
    uri = written(tmp_path / "trial", "poor")
    assert fanin(uri).exit_code == 1
    said = read(tmp_path / "trial")
    said |= {"follower": {"host": "\x1b[2J", "pid": 1}, "rules": ["\x07"]}
    (tmp_path / "trial" / "_status.json").write_text(json.dumps(said))
    done = fanin(uri, "--rule", "FAN404")
    assert r"status: stays IssuesFound by \x1b[2J:1, \x07" in done.stderr
    assert done.stderr.replace("\n", "").isprintable()


def test_a_healthy_trial_sets_nothing_off(tmp_path: Path) -> None:
    uri = written(tmp_path / "trial", "healthy")
    assert fanin(uri, "--stop", "--run", f"touch {tmp_path}/acted").exit_code == 0
    assert not (tmp_path / "acted").exists()
    assert not (tmp_path / "trial" / STOP).exists()


def test_a_place_that_cannot_be_written_is_said_once_and_status_file_is_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = written(tmp_path / "trial", "poor")
    real = StatusFile.write

    def refuse(file: StatusFile, standing: object) -> bool:
        if file.beside.directory.path == uri:
            raise OSError(30, "Read-only file system")
        return real(file, standing)  # type: ignore[arg-type]

    monkeypatch.setattr(StatusFile, "write", refuse)
    done = fanin(uri)
    assert (done.exit_code, done.stderr.count("--status FILE keeps it elsewhere")) == (1, 1)
    assert fanin(uri, "--status", str(tmp_path / "state.json")).exit_code == 1
    assert json.loads((tmp_path / "state.json").read_text())["status"] == "IssuesFound"


def test_a_rule_configuration_brings_rules_and_actions_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text(json.dumps(CONFIG))
    place = tmp_path / "trial"
    done = fanin(written(place, "poor"), "--config", str(tmp_path / "rule.json"))
    assert done.exit_code == 1
    assert "config: sms to +49: not sent; set FANIN_SMS" in done.stderr
    assert read(place)["rules"] == ["FAN001"]
    assert (place / STOP).exists()


def test_a_trial_of_smdebug_is_judged_and_its_training_cannot_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text(json.dumps(CONFIG))
    writer = TrialWriter(tmp_path / "trial").collections()
    writer.step(0, pytorch(0, scale=1e-5))
    done = fanin(str(tmp_path / "trial"), "--config", str(tmp_path / "rule.json"))
    assert "stop: failed" in done.stderr
    assert "aws sagemaker stop-training-job" in done.stderr


def fanin_run(script: Path, place: Path) -> list[str]:
    """A command that trains by a script that knows nothing of us."""
    ours = [sys.executable, "-m", "fanin", "run", "--trial", str(place), "--no-report"]
    return [*ours, "--", sys.executable, str(script)]


def test_an_unwatched_script_that_starts_poorly_is_stopped_by_a_follower(tmp_path: Path) -> None:
    """From the first to the last: `fanin run` writes, another process judges and asks, SIGTERM ends the script."""
    script, place = tmp_path / "train.py", tmp_path / "trial"
    script.write_text(TRAINING)
    run = fanin_run(script, place)
    training = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done = fanin(str(place), "--stop", "--timeout", "100s")
    assert done.exit_code == 1
    out, errors = training.communicate(timeout=60)
    assert training.returncode == -signal.SIGTERM
    assert "asked to stop" in errors
    assert "trained to the end" not in out


def test_a_script_may_be_kept_from_obeying(tmp_path: Path) -> None:
    script, place = tmp_path / "train.py", tmp_path / "trial"
    script.write_text(TRAINING.replace("range(3000)", "range(40)").replace("0.02", "0.1"))
    run = fanin_run(script, place)
    environment = os.environ | {"FANIN_ON_STOP": "ignore"}
    training = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert fanin(str(place), "--stop", "--timeout", "100s").exit_code == 1
    out, _ = training.communicate(timeout=60)
    assert (training.returncode, out) == (0, "trained to the end\n")


def test_ctrl_c_is_an_interruption(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fanin", "follow", str(tmp_path / "none")]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stderr is not None
    assert "no trial at this address yet" in follower.stderr.readline()
    time.sleep(0.2)
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=30)
    assert follower.returncode == 130


def ended_by_hand(place: Path, seen: str) -> tuple[int, str, str]:
    """Code, output and what was said of a follower with a page that gets Ctrl-C once it has said something."""
    command = [sys.executable, "-m", "fanin", "follow", str(place), "--serve=127.0.0.1:0", "--timeout", "60s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stderr
        said = ""
        while seen not in said:
            line = follower.stderr.readline()
            assert line, said
            said += line
        follower.send_signal(signal.SIGINT)
        out, rest = follower.communicate(timeout=60)
    return follower.returncode, out, said + rest


def test_ctrl_c_amid_a_training_is_an_interruption_with_a_page_too(tmp_path: Path) -> None:
    """Healthy so far is no verdict: the steps that are to come may show more."""
    growing = Growing(tmp_path / "trial", healthy())
    growing.step(0)
    code, out, _ = ended_by_hand(tmp_path / "trial", "1 step")
    assert (code, out) == (130, "")
    growing.close()


def test_ctrl_c_before_there_is_a_trial_is_an_interruption_with_a_page_too(tmp_path: Path) -> None:
    assert ended_by_hand(tmp_path / "trial", "no trial at this address yet")[:2] == (130, "")


def test_ctrl_c_after_the_verdict_has_its_code_and_shows_it(tmp_path: Path) -> None:
    place = tmp_path / "trial"
    Growing(place, poor()).step(0)
    code, out, _ = ended_by_hand(place, "IssuesFound")
    assert code == 1
    assert "POOR" in out
    written(tmp_path / "sound", "healthy")
    code, out, _ = ended_by_hand(tmp_path / "sound", "until Ctrl-C")
    assert code == 0
    assert "HEALTHY" in out


def test_a_page_that_cannot_be_drawn_is_told_once_and_following_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("fanin.serve.live_page", fail)
    monkeypatch.setattr("fanin.cli_follow._stay", lambda *args: None)
    growing = Growing(tmp_path / "trial", healthy())
    growing.step(0)
    later = threading.Timer(4.0, lambda: (growing.step(1), growing.close()))
    later.start()
    done = fanin(growing.uri, "--serve=127.0.0.1:0", "--timeout", "60s")
    later.join()
    assert done.exit_code == 0
    assert done.stderr.count("could not be drawn") == 1
    assert "ZeroDivisionError: a fault of ours" in done.stderr
    assert "2 steps" in done.stderr
    assert read(Path(growing.uri))["status"] == "NoIssuesFound"
