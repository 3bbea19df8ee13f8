"""What is done about a poor verdict: once, whoever follows, and each whatever becomes of the others."""

from __future__ import annotations

import errno
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jsonschema
import pytest

from fanin.actions import notice_of, take
from fanin.actions.base import Action, Notice
from fanin.actions.command import Command
from fanin.actions.message import Message
from fanin.actions.stop import Stop
from fanin.actions.webhook import Webhook
from fanin.beside import STOP, Beside
from fanin.config import parse_actions
from fanin.configured import mapped
from fanin.errors import ActionError, UsageError
from fanin.follow import Following, follow
from fanin.pulse import parsed
from fanin.status import Done, Standing
from fanin.stores.parquet import ParquetStore

from .growing import Growing, poor, receiver
from .test_pulse import soon
from .test_status import SCHEMA

with_apprise = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""Of modules that Python will drop and Apprise imports."""

SECRET = "s3cret-of-the-hook"  # made up, and looked for where it must not be


class Noted(Action):
    """Notes what it is given."""

    def __init__(self, name: str = "noted", fault: Exception | None = None) -> None:
        self.name, self.fault = name, fault
        self.got: list[Notice] = []

    def do(self, notice: Notice) -> str:
        self.got.append(notice)
        if self.fault is not None:
            raise self.fault
        return "noted"


@pytest.fixture
def standing(tmp_path: Path) -> Standing:
    """A poor trial's."""
    growing = Growing(tmp_path / "trial", poor())
    growing.step(0)
    return list(follow(growing.uri, Following(timeout=60.0)))[-1].standing


def taken(actions: Sequence[Action], standing: Standing) -> list[Done]:
    return list(take(actions, standing, [Beside.at(standing.trial)]))


def notice(text: str = "{}") -> Notice:
    return Notice("runs/exp1", "8d3f0c2a9be14f76", "runs/exp1: poor initialization", "why", text)


# ── once ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_action_is_done_once_however_often_a_follower_is_restarted(standing: Standing) -> None:
    noted = Noted()
    assert [done.outcome for _ in range(3) for done in taken([noted], standing)] == [
        "done",
        "before",
        "before",
    ]
    assert len(noted.got) == 1
    said = json.loads(noted.got[0].json)
    assert said["status"] == "IssuesFound"
    assert "actions" not in said


def test_of_followers_that_come_at_once_one_acts(standing: Standing) -> None:
    for turn in range(20):
        noted, together = Noted(f"noted {turn}"), threading.Barrier(4)

        def act(noted: Noted = noted, together: threading.Barrier = together) -> None:
            together.wait()
            taken([noted], standing)

        threads = [threading.Thread(target=act) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = [
            found["code"] + found["layer"]
            for given in noted.got
            for found in json.loads(given.json)["findings"]
        ]
        assert sorted(told) == sorted({f.code + f.layer for f in standing.findings})


def test_another_finding_is_another_reason_to_act_but_not_to_stop_again(standing: Standing) -> None:
    other = replace(standing, findings=(replace(standing.findings[0], layer="elsewhere"),))
    noted = Noted()
    outcomes = [[done.outcome for done in taken([noted, Stop(one.trial)], one)] for one in (standing, other)]
    assert outcomes == [["done", "done"], ["done", "before"]]


def test_one_that_fails_is_reported_and_the_others_are_done(standing: Standing) -> None:
    broken = Noted("broken", ActionError("no", got="answer 500"))
    worse = Noted("worse", RuntimeError(f"https://host/{SECRET}"))
    after = Noted("after")
    done = taken([broken, worse, after], standing)
    assert [(one.action, one.outcome) for one in done] == [
        ("broken", "failed"),
        ("worse", "failed"),
        ("after", "done"),
    ]
    assert "answer 500" in done[0].detail
    assert SECRET not in repr(done)


@pytest.mark.parametrize("way", ["a link", "another mount"])
def test_one_trial_by_two_addresses_is_acted_upon_once(standing: Standing, tmp_path: Path, way: str) -> None:
    """A mount by another path cannot be made in a test: a directory with the same claims stands for it."""
    noted, elsewhere = Noted(), tmp_path / "elsewhere"
    assert taken([noted], standing)[0].outcome == "done"
    if way == "a link":
        elsewhere.symlink_to(standing.trial)
    else:
        shutil.copytree(standing.trial, elsewhere)
    growing = list(follow(str(elsewhere), Following(timeout=60.0)))[-1].standing
    assert growing.trial != standing.trial
    assert [done.outcome for done in taken([noted], growing)] == ["before"]


def test_the_next_run_at_an_address_is_acted_upon_anew(standing: Standing) -> None:
    noted = Noted()
    outcomes = [taken([noted], replace(standing, run=run))[0].outcome for run in ("a", "b", "a")]
    assert outcomes == ["done", "done", "before"]


def test_what_is_claimed_is_done_whatever_becomes_of_the_next_finding(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = standing.findings[0]
    several = replace(standing, findings=tuple(replace(first, layer=layer) for layer in ("a", "b", "c")))
    real, asked = Beside.claim, iter([False, True, False])

    def sometimes(beside: Beside, name: str, data: bytes) -> bool:
        if next(asked):
            raise OSError(errno.EIO, "Input/output error")
        return real(beside, name, data)

    monkeypatch.setattr(Beside, "claim", sometimes)
    noted = Noted()
    done = taken([noted], several)
    assert [one.outcome for one in done] == ["done", "failed"]
    assert [found["layer"] for found in json.loads(noted.got[0].json)["findings"]] == ["a", "c"]


def closing(monkeypatch: pytest.MonkeyPatch, place: str, code: int) -> None:
    """From now on nobody can write there."""
    real = Beside.claim

    def refuse(beside: Beside, name: str, data: bytes) -> bool:
        if beside.directory.path == place:
            raise OSError(code, os.strerror(code))
        return real(beside, name, data)

    monkeypatch.setattr(Beside, "claim", refuse)


@pytest.fixture
def places(standing: Standing, tmp_path: Path) -> list[Beside]:
    """Beside the trial, and beside a status file."""
    (tmp_path / "state").mkdir()
    return [Beside.at(standing.trial), Beside.at(str(tmp_path / "state"))]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_where_nothing_can_be_noted_nothing_is_done_and_the_way_out_is_named(
    standing: Standing, monkeypatch: pytest.MonkeyPatch, places: list[Beside], code: int
) -> None:
    closing(monkeypatch, standing.trial, code)
    noted = Noted()
    failed = taken([noted], standing)[0]
    assert (failed.outcome, noted.got) == ("failed", [])
    assert "--status FILE" in failed.detail
    outcomes = [done.outcome for _ in range(2) for done in take([noted], standing, places)]
    assert outcomes == ["done", "before"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE])
def test_where_it_is_not_known_whether_it_was_noted_nothing_is_done(
    standing: Standing, monkeypatch: pytest.MonkeyPatch, places: list[Beside], code: int
) -> None:
    closing(monkeypatch, standing.trial, code)
    noted = Noted()
    assert [done.outcome for done in take([noted], standing, places)] == ["failed"]
    assert noted.got == []


@pytest.mark.parametrize("first", ["may write", "may not write"])
def test_of_two_followers_of_which_one_may_not_write_one_acts_if_they_share_a_status_file(
    standing: Standing, places: list[Beside], first: str
) -> None:
    outcomes = []
    for may_write in (first == "may write", first != "may write"):
        with pytest.MonkeyPatch.context() as patch:
            if not may_write:
                closing(patch, standing.trial, errno.EROFS)
            outcomes += [done.outcome for done in take([Noted()], standing, places)]
    assert outcomes == ["done", "before"]


def test_one_that_may_not_write_sees_what_is_noted_beside_the_trial(
    standing: Standing, monkeypatch: pytest.MonkeyPatch, places: list[Beside]
) -> None:
    noted = Noted()
    assert taken([noted], standing)[0].outcome == "done"
    closing(monkeypatch, standing.trial, errno.EROFS)
    assert [done.outcome for done in take([noted], standing, places)] == ["before"]


def test_a_status_file_in_the_trial_itself_is_no_second_claim(standing: Standing, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(standing.trial)
    places = [Beside.at(standing.trial), Beside.at(str(tmp_path / "link"))]
    assert [done.outcome for _ in range(2) for done in take([Noted()], standing, places)] == [
        "done",
        "before",
    ]


def test_what_a_trial_says_cannot_harm_whoever_reads_a_message(standing: Standing) -> None:
    evil = replace(standing.findings[0], layer="fc\x1b[2J", name="n\x07")
    given = notice_of(replace(standing, why="w\x9b", findings=(evil,)))
    assert (given.title + given.text.replace("\n", "") + given.json.replace("\n", "")).isprintable()


# ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_to_stop_lies_beside_the_trial(standing: Standing) -> None:
    assert taken([Stop(standing.trial)], standing)[0].outcome == "done"
    request = parsed(Beside.at(standing.trial).read(STOP))
    assert standing.findings[0].code in request.why
    assert request.run == standing.run == ParquetStore(standing.trial).load().identity


def test_whatever_lies_there_can_be_read_and_names_no_run() -> None:
    assert [parsed(text).why for text in (None, b"", b"[]", b"\xff", b"[" * 5000, b'{"why": 3}')] == [
        ""
    ] * 5 + ["3"]


def test_a_training_under_smdebug_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "collections").mkdir()
    with pytest.raises(ActionError, match="does not hear us"):
        Stop(str(tmp_path)).do(notice())


# ── command ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_command_is_given_the_verdict_on_its_stdin(standing: Standing, tmp_path: Path) -> None:
    assert taken([Command(f"cat > {tmp_path}/got.json")], standing)[0].outcome == "done"
    said = json.loads((tmp_path / "got.json").read_text())
    jsonschema.validate(said | {"actions": []}, SCHEMA)
    assert said["verdict"] == "poor"


def test_a_command_that_reads_nothing_is_content() -> None:
    assert Command("true").do(notice("x" * 10_000_000)) == "the command ended with code 0"


def test_a_command_that_fails_says_with_which_code() -> None:
    with pytest.raises(ActionError) as raised:
        Command("exit 7").do(notice())
    assert raised.value.got == "exit code 7"


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    line = f'({sys.executable} -c \'import time; time.sleep(1); open("{tmp_path}/late", "w")\' & wait)'
    with pytest.raises(ActionError) as raised:
        Command(line, seconds=0.3).do(notice())
    assert "still running" in raised.value.got
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


def test_ctrl_c_ends_the_command_with_what_it_started(tmp_path: Path) -> None:
    """In a process of its own, which gets the signal as from a terminal: the command is in another session."""
    late = f'{sys.executable} -c \'import time; time.sleep(2); open("{tmp_path}/late", "w")\''
    line = f"echo > {tmp_path}/began; ({late} & wait)"
    script = (
        "from fanin.actions.base import Notice; from fanin.actions.command import Command; "
        f"Command({line!r}).do(Notice('', '', '', '', '{{}}'))"
    )
    follower = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert soon((tmp_path / "began").exists)
    time.sleep(0.2)
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


# ── webhook ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_webhook_signs_its_body_and_the_secret_appears_nowhere(standing: Standing) -> None:
    with receiver() as server:
        hook = Webhook(f"{server.url}/{SECRET}", SECRET)
        done = taken([hook], standing)
        headers, body = server.got[0]
    stamp = headers["x-fanin-timestamp"].encode()
    expected = hmac.new(SECRET.encode(), stamp + b"." + body, sha256).hexdigest()
    assert headers["x-fanin-signature"] == f"sha256={expected}"
    assert json.loads(body)["verdict"] == "poor"
    beside = b"".join(path.read_bytes() for path in Path(standing.trial).glob("_*"))
    assert SECRET not in repr(done) + hook.name + body.decode() + beside.decode()


def test_all_tries_of_a_delivery_carry_one_id_and_the_next_delivery_another() -> None:
    with receiver(503, 503, 200) as server:
        hook = Webhook(server.url, sleep=lambda _: None)
        hook.do(notice())
        hook.do(notice())
        ids = [headers["x-fanin-delivery"] for headers, _ in server.got]
    assert len(ids) == 4
    assert len(set(ids[:3])) == 1
    assert ids[3] != ids[0]


@contextmanager
def dripping() -> Iterator[str]:
    """The address of a server that answers a byte in a while, for ever, which no limit on a read would notice."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with suppress(OSError):  # whoever asked has gone, or nobody has come
                connection, _ = server.accept()
                with connection:
                    while True:
                        connection.sendall(b"H")
                        time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for() -> None:
    began = time.monotonic()
    with dripping() as url, pytest.raises(ActionError) as raised:
        Webhook(url, seconds=0.6).do(notice())
    assert time.monotonic() - began < 10.0
    assert raised.value.got == "no whole answer in time"
    assert "0.6 s with all tries" in raised.value.expected


def test_no_try_begins_after_the_deadline_of_all() -> None:
    waits: list[float] = []
    with receiver(503, 503, 503, 503) as server:
        with pytest.raises(ActionError) as raised:
            Webhook(server.url, sleep=waits.append, seconds=1.9).do(notice())
        assert len(server.got) == len(waits) + 1 <= 2
    assert raised.value.got == "answer 503"


@pytest.mark.parametrize(
    "host", ["hooks.example.com", "10.0.0.1", "localhost.example.com", "0x7f.1", "[2001:db8::1]"]
)
def test_a_bearer_is_not_sent_in_the_clear_to_another_machine(host: str) -> None:
    with pytest.raises(UsageError, match="not sent over plain http") as raised:
        Webhook(f"http://{host}/{SECRET}", SECRET, "bearer")
    assert "--webhook-auth hmac" in raised.value.next_step
    assert SECRET not in str(raised.value)
    Webhook(f"https://{host}/", SECRET, "bearer")
    Webhook(f"http://{host}/", SECRET)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_to_this_machine_a_bearer_may_go_over_plain_http(host: str) -> None:
    Webhook(f"http://{host}:8000/", SECRET, "bearer")


def test_a_bearer_for_this_machine_goes_by_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        Webhook(server.url, SECRET, "bearer").do(notice())
        assert (len(proxy.got), len(server.got)) == (0, 1)


def test_a_bearer_is_sent_as_it_is() -> None:
    with receiver() as server:
        Webhook(server.url, SECRET, "bearer").do(notice())
        assert server.got[0][0]["authorization"] == f"Bearer {SECRET}"


def test_a_webhook_tries_again_with_growing_pauses_where_that_may_help() -> None:
    waits: list[float] = []
    with receiver(503, 429, 200) as server:
        said = Webhook(server.url, sleep=waits.append).do(notice())
        assert len(server.got) == 3
    assert "try 3" in said
    assert 0.5 <= waits[0] <= 1.5 < 2.0 <= waits[1] <= 6.0


@pytest.mark.parametrize("answer", [400, 401, 404, 302])
def test_a_webhook_that_is_refused_or_sent_elsewhere_is_not_tried_again(answer: int) -> None:
    with receiver(answer) as server:
        with pytest.raises(ActionError) as raised:
            Webhook(f"{server.url}/{SECRET}", SECRET, sleep=lambda _: None).do(notice())
        assert len(server.got) == 1
    assert raised.value.got == f"answer {answer}"
    assert SECRET not in str(raised.value)


def test_a_webhook_that_nobody_answers_gives_up_after_four_tries() -> None:
    waits: list[float] = []
    with receiver() as server:
        url = f"{server.url}/{SECRET}"
    with pytest.raises(ActionError) as raised:
        Webhook(url, SECRET, sleep=waits.append).do(notice())
    assert len(waits) == 3
    assert "ConnectionRefusedError" in raised.value.got
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "no http"),
        ("{}/path", "no http"),
        ("ftp://{}", "no http"),
        ("file:///{}", "no http"),
        ("{}://host", "no http"),
        ("https:///{}", "no host"),
        ("http://a:{}", "a host or a port"),
        ("https://[{}", "a host or a port"),
    ],
)
def test_what_is_no_address_of_a_webhook_is_refused_and_nothing_of_it_shown(url: str, why: str) -> None:
    secret = "xoxb4tok3n"
    with pytest.raises(UsageError, match="no address of a webhook") as raised:
        Webhook(url.format(secret))
    assert raised.value.got.startswith(why)
    assert not [secret[i : i + 4] for i in range(len(secret) - 3) if secret[i : i + 4] in str(raised.value)]


# ── message ─────────────────────────────────────────────────────────────────────────────────────────────────


@with_apprise
def test_a_message_is_sent_by_apprise(standing: Standing) -> None:
    pytest.importorskip("apprise", reason="needs the extra notify")
    with receiver() as server:
        done = taken([Message(f"{server.url.replace('http', 'json')}/{SECRET}")], standing)
        said = json.loads(server.got[0][1])
    assert done[0].outcome == "done"
    assert standing.findings[0].code in said["title"] + said["message"]
    assert SECRET not in repr(done)


@with_apprise
def test_a_message_that_is_not_taken_fails() -> None:
    pytest.importorskip("apprise", reason="needs the extra notify")
    with receiver(500) as server, pytest.raises(ActionError, match="not sent"):
        Message(server.url.replace("http", "json")).do(notice())


@with_apprise
def test_an_address_that_apprise_does_not_know_is_refused_without_showing_it() -> None:
    pytest.importorskip("apprise", reason="needs the extra notify")
    with pytest.raises(UsageError) as raised:
        Message(f"nonesuch://{SECRET}")
    assert SECRET not in str(raised.value)


def test_without_apprise_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(UsageError) as raised:
        Message("json://localhost")
    assert "fanin[notify]" in raised.value.next_step


# ── the original's actions ──────────────────────────────────────────────────────────────────────────────────


def test_stop_training_is_ours_and_what_nobody_can_send_is_said() -> None:
    wanted = parse_actions(
        [
            {"name": "StopTraining", "parameters": {"training_job_prefix": "job"}},
            {"name": "email", "parameters": {"endpoint": "me@example.com"}},
            {"name": "sms", "parameters": {"endpoint": "+49"}},
        ]
    )
    found = mapped(wanted, "runs/exp1", {})
    assert [type(action) for action in found.actions] == [Stop]
    assert [("training_job_prefix" in n, "FANIN_EMAIL" in n, "FANIN_SMS" in n) for n in found.notes] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


@with_apprise
def test_an_email_goes_through_the_address_in_the_environment() -> None:
    pytest.importorskip("apprise", reason="needs the extra notify")
    wanted = parse_actions('{"name": "email", "parameters": {"endpoint": "me@example.com"}}')
    found = mapped(wanted, "runs/exp1", {"FANIN_EMAIL": "mailtos://user:word@example.com?to={endpoint}"})
    assert [action.target for action in found.actions] == [
        "mailtos://user:word@example.com?to=me@example.com"
    ]
    assert found.notes == ()
