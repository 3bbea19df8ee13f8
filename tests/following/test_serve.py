"""The live page's server: for whom it is, and what it says."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fanin.errors import UsageError
from fanin.examine import judge
from fanin.serve import Address, LivePage

from .growing import poor

pytest.importorskip("jinja2", reason="needs the extra html")
pytest.importorskip("vl_convert", reason="needs the extra html")


@pytest.fixture
def page() -> Iterator[LivePage]:
    made = LivePage(Address("127.0.0.1", 0), "runs/exp1")
    yield made
    made.close()


@pytest.fixture
def elsewhere() -> Iterator[LivePage]:
    """Bound to all interfaces."""
    made = LivePage(Address("0.0.0.0", 0), "runs/exp1")  # what the test is about
    yield made
    made.close()


def port(page: LivePage) -> int:
    return int(page.url.split("?")[0].rstrip("/").rsplit(":", 1)[1])


def ask(page: LivePage, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    line = http.client.HTTPConnection("127.0.0.1", port(page), timeout=20)
    line.request("GET", path, headers=headers)
    answer = line.getresponse()
    text = answer.read().decode()
    line.close()
    return answer, text


def events(page: LivePage, **headers: str) -> Any:
    """The stream, open."""
    line = http.client.HTTPConnection("127.0.0.1", port(page), timeout=20)
    line.request("GET", "/events", headers=headers)
    return line.getresponse()


def told(stream: Any) -> str:
    """The next thing that it says."""
    while True:
        line = stream.readline().decode().strip()
        if line.startswith(("data:", "event:")):
            return str(line)


def test_before_there_is_a_report_the_page_says_so(page: LivePage) -> None:
    answer, text = ask(page)
    assert answer.status == 200
    assert "No step of runs/exp1 is there yet" in text
    assert "connect-src &#39;self&#39;" in text or "connect-src 'self'" in text


def test_each_report_is_another_page_and_the_stream_says_so_until_the_end(page: LivePage) -> None:
    stream = events(page)
    first = told(stream)
    page.show(judge(poor()))
    second = told(stream)
    assert first != second
    _, text = ask(page)
    version, state = second.removeprefix("data: ").split()
    assert version in text
    assert (first.split()[-1], state) == ("waiting", "live")
    assert "blocks.3.fc" in text
    ender = threading.Thread(target=page.close)
    ender.start()
    assert told(stream) == "event: over"
    ender.join()


def test_a_trial_that_is_over_is_said_to_be(page: LivePage) -> None:
    page.show(judge(poor()))
    stream = events(page)
    version = told(stream).split()[1]
    page.end("the trial is over")
    assert told(stream) == f"data: {version} ended"
    assert "blocks.3.fc" in ask(page)[1]


def test_a_trial_that_never_showed_anything_is_said_to_be_over(page: LivePage) -> None:
    stream = events(page)
    first = told(stream).split()[1]
    page.end("there is no trial at this address")
    _, version, state = told(stream).split()
    assert (version != first, state) == (True, "ended")
    text = ask(page)[1]
    assert "There was nothing to show of runs/exp1" in text
    assert "there is no trial at this address" in text
    assert "is there yet" not in text


def test_a_report_that_cannot_be_drawn_leaves_the_page_which_says_so(
    page: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.show(judge(poor()))
    stream = events(page)
    version = told(stream).split()[1]
    monkeypatch.setattr("fanin.serve.live_page", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.show(judge(poor()))
    monkeypatch.undo()
    assert told(stream) == f"data: {version} not-drawn"
    page.end("the trial is over")
    assert page.news == f"{version} not-drawn"
    page.show(judge(poor()))
    assert told(stream).endswith(" live")


def test_who_asks_only_whether_it_may_gets_no_events(page: LivePage, elsewhere: LivePage) -> None:
    """A stream that is refused does not tell a browser why."""
    assert [asked_only(one) for one in (page, elsewhere)] == [200, 401]


def asked_only(page: LivePage) -> int:
    line = http.client.HTTPConnection("127.0.0.1", port(page), timeout=20)
    line.request("HEAD", "/events")
    answer = line.getresponse()
    assert answer.status == 401 or not answer.fp.read(), "and it is over"
    line.close()
    return answer.status


def test_two_pages_of_one_host_keep_their_tokens_apart(elsewhere: LivePage) -> None:
    """A browser sends a host's cookies to all its ports, and keeps one of each name."""
    other = LivePage(Address("0.0.0.0", 0), "runs/exp2")
    kept = {}
    for one in (elsewhere, other):
        answer, _ = ask(one, f"/?token={one.token}")
        name, _, value = answer.headers["Set-Cookie"].split(";")[0].partition("=")
        kept[name] = value
    both = "; ".join(f"{name}={value}" for name, value in kept.items())
    assert [ask(one, Cookie=both)[0].status for one in (elsewhere, other)] == [200, 200]
    other.close()


def test_only_the_live_page_may_ask_its_server(page: LivePage) -> None:
    page.show(judge(poor()))
    assert "connect-src" in ask(page)[1]
    assert "connect-src" not in judge(poor()).render("html")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "0.0.0.0"]
)
def test_a_page_on_the_web_that_resolves_to_us_reads_nothing(page: LivePage, host: str) -> None:
    for path in ("/", "/events"):
        answer, text = ask(page, path, Host=host)
        assert answer.status == 403
        assert "exp1" not in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:80"])
def test_our_own_names_are_served(page: LivePage, host: str) -> None:
    assert ask(page, Host=host)[0].status == 200


def test_nobody_may_keep_the_page_or_frame_it(page: LivePage) -> None:
    answer, _ = ask(page)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_there_is_nothing_else(page: LivePage) -> None:
    assert [ask(page, path)[0].status for path in ("/etc/passwd", "/../x", "/events/x", "/?x=1")] == [404] * 4


def test_elsewhere_a_token_is_needed_that_moves_from_the_address_to_a_cookie(elsewhere: LivePage) -> None:
    assert ask(elsewhere)[0].status == 401
    assert ask(elsewhere, "/events")[0].status == 401
    assert ask(elsewhere, "/?token=wrong")[0].status == 401
    assert ask(elsewhere, Cookie=f"{elsewhere.cookie}=wrong")[0].status == 401
    answer, _ = ask(elsewhere, f"/?token={elsewhere.token}")
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask(elsewhere, Cookie=cookie.split(";")[0])[0].status == 200
    assert elsewhere.token in elsewhere.url


def test_elsewhere_a_strange_name_is_refused_even_with_the_token(elsewhere: LivePage) -> None:
    cookie = f"{elsewhere.cookie}={elsewhere.token}"
    assert ask(elsewhere, Host="evil.example", Cookie=cookie)[0].status == 403
    assert ask(elsewhere, Host=socket.gethostname(), Cookie=cookie)[0].status == 200
    assert ask(elsewhere, Host="192.0.2.7:80", Cookie=cookie)[0].status == 200


@pytest.mark.parametrize(
    ("text", "host", "port_", "is_loopback"),
    [
        ("127.0.0.1:8642", "127.0.0.1", 8642, True),
        ("localhost", "localhost", 8642, True),
        (":0", "127.0.0.1", 0, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("box.example:1", "box.example", 1, False),
    ],
)
def test_where_it_is_served(text: str, host: str, port_: int, is_loopback: bool) -> None:
    found = Address.parsed(text)
    assert (found.host, found.port, found.is_loopback) == (host, port_, is_loopback)


@pytest.mark.parametrize("text", ["runs/exp1", "a:b", "a:99999", "", "http://x"])
def test_what_is_no_place_to_serve_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        Address.parsed(text)
    assert "--serve=HOST:PORT" in raised.value.next_step


def test_a_port_that_is_taken_is_another_by_default_and_an_error_where_it_was_chosen(page: LivePage) -> None:
    taken = port(page)
    other = LivePage(Address("127.0.0.1", taken, is_chosen=False), "runs/exp2")
    assert port(other) != taken
    other.close()
    with pytest.raises(UsageError, match="cannot be served there"):
        LivePage(Address("127.0.0.1", taken), "runs/exp2")
