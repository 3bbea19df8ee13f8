"""The live page: the report of a trial that grows, in a browser, anew with each step.

Served on the loopback interface unless somebody asks for another; there only to who knows a token, which is in the
address that is printed. Requests that name another host than this are refused: a page on the web can have its own name
resolve to 127.0.0.1 (DNS rebinding), and would read the report as its own.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import threading
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fanin.errors import UsageError
from fanin.examine import Report
from fanin.reports.html import live_page, waiting_page

DEFAULT = "127.0.0.1:8642"
"""Where it is served when nobody says where, or at a free port where that one is taken; the same after a restart, so
that an open page goes on."""

ALIVE_S = 10.0
"""Seconds between two signs of life, which find out that a browser has gone; proxies close what is silent for 60."""

WAITING, LIVE, ENDED, NOT_DRAWN = "waiting", "live", "ended", "not-drawn"
"""What the page says of itself besides what its browser finds out: nothing is there yet, it is up to date, nothing more
comes, or the last report could not be drawn."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    Attributes:
        host: A name or an address of this machine.
        port: 0 for any that is free.
        is_chosen: Whether the user chose the port.
    """

    host: str
    port: int
    is_chosen: bool = True

    @classmethod
    def parsed(cls, text: str) -> Address:
        """HOST:PORT, HOST or :PORT.

        >>> Address.parsed("0.0.0.0:8000"), Address.parsed("[::1]:0").host
        (Address(host='0.0.0.0', port=8000, is_chosen=True), '::1')

        Raises:
            UsageError: It is neither.
        """
        try:
            parts = urlsplit(f"//{text}")
            port, host = parts.port, parts.hostname
        except ValueError:
            port, host = None, None
        if "/" in text or (host is None and port is None):
            raise UsageError(
                "the page cannot be served there",
                where="--serve",
                got=repr(text),
                expected="HOST:PORT, e.g. 127.0.0.1:8642",
                next_step="put --serve last, or write --serve=HOST:PORT",
            )
        default = urlsplit(f"//{DEFAULT}")
        chosen = port is not None and text != DEFAULT
        return cls(
            host or str(default.hostname), port if port is not None else int(default.port or 0), chosen
        )

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class LivePage:
    """The page, served from construction until `close`.

    Attributes:
        url: What to open; with the token, where one is needed.
        cookie: Where a browser keeps the token.
    """

    def __init__(self, address: Address, title: str) -> None:
        self._changed = threading.Condition()
        # Versions of another run of the follower are other ones, though they count from 0 as well.
        self._run, self._version, self._state = secrets.token_hex(4), 0, WAITING
        self._title = title
        self._text = waiting_page(title, self._named(0))
        self.is_closed = False
        self.token = "" if address.is_loopback else secrets.token_urlsafe(24)
        self._server = _listening(address, self)
        port = self._server.server_address[1]
        self.cookie = f"fanin-token-{port}"  # browsers give a host's cookies to all its ports
        self.hosts = _names(address)
        host = f"[{address.host}]" if ":" in address.host else address.host
        shown = socket.gethostname() if address.host in ("0.0.0.0", "::") else host
        self.url = f"http://{shown}:{port}/" + (f"?token={self.token}" if self.token else "")
        self._thread = threading.Thread(target=self._server.serve_forever, name="fanin-serve", daemon=True)
        self._thread.start()

    def show(self, report: Report) -> None:
        """From now on the page is that of this report.

        Raises:
            UsageError: The extra `html` is not installed.
        """
        version = self._version + 1
        try:
            text = live_page(report.trial, report.diagnosis, self._named(version))
        except Exception:
            self._become(NOT_DRAWN)
            raise
        self._become(LIVE, text)

    def end(self, why: str) -> None:
        """Nothing more comes, and the page stays as it is; one that could not be drawn stays out of date."""
        with self._changed:
            is_empty, state = not self._version, self._state
        text = waiting_page(self._title, self._named(1), why) if is_empty else None
        self._become(state if state == NOT_DRAWN else ENDED, text)

    def _become(self, state: str, text: str | None = None) -> None:
        """Another state, and, where there is a text, another page."""
        with self._changed:
            self._state = state
            if text is not None:
                self._text, self._version = text, self._version + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Serve no longer; idempotent."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _named(self, version: int) -> str:
        return f"{self._run}-{version}"

    @property
    def text(self) -> str:
        """The page."""
        with self._changed:
            return self._text

    @property
    def news(self) -> str:
        """What names the page, and its state."""
        with self._changed:
            return f"{self._named(self._version)} {self._state}"

    def after(self, news: str) -> str | None:
        """The news once they are others; the same after ALIVE_S; None when there will be no other."""
        with self._changed:
            self._changed.wait_for(lambda: self.news != news or self.is_closed, ALIVE_S)
            return None if self.is_closed else self.news


def _names(address: Address) -> frozenset[str]:
    """What a browser may call this host; an address by number cannot be rebound."""
    if address.is_loopback:
        return frozenset({"localhost", "127.0.0.1", "::1", address.host})
    return frozenset(
        {socket.gethostname().lower(), socket.getfqdn().lower(), address.host.lower(), "localhost"}
    )


MOST_CONNECTIONS = 64
"""At once; each takes a thread. A browser keeps up to six open to one server."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: LivePage

    def __init__(self, *address: Any) -> None:
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Refuse at once what there is no room for."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make room when it is over."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: the terminal belongs to the verdict, and a browser may go at any moment."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _listening(address: Address, page: LivePage) -> _Server:
    kind = _Server6 if ":" in address.host else _Server
    ports = [address.port] if address.is_chosen or not address.port else [address.port, 0]
    for port in ports:
        try:
            server = kind((address.host, port), _Handler)
        except OSError as error:
            fault = error
            continue
        server.page = page
        return server
    raise UsageError(
        "the page cannot be served there",
        where=f"--serve {address.host}:{address.port}",
        got=fault.strerror or str(fault),
        expected="a free port on an address of this machine",
        next_step="choose another port, or 0 for any that is free",
    )


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "fanin", ""
    protocol_version = "HTTP/1.1"
    timeout = 30.0  # a browser that is asleep must not keep a thread for ever; it comes again

    def do_GET(self) -> None:  # the standard library's name
        """The page, or the events that say that it is another one."""
        if not self._is_for_us():
            self._answer(HTTPStatus.FORBIDDEN, "This page is not served under that name.")
        elif not self._may_see():
            self._answer(
                HTTPStatus.UNAUTHORIZED, "Open the whole address that fanin follow printed, with its token."
            )
        elif "token" in parse_qs(urlsplit(self.path).query):
            self._remember()
        elif self.path == "/":
            self._answer(HTTPStatus.OK, self.server.page.text, "text/html")
        elif urlsplit(self.path).path == "/events":
            self._tell()
        else:
            self._answer(HTTPStatus.NOT_FOUND, "There is nothing here.")

    do_HEAD = do_GET  # noqa: N815  # as above

    def _is_for_us(self) -> bool:
        page = self.server.page
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:
            return False
        return host in page.hosts or (bool(page.token) and _is_number(host))

    def _may_see(self) -> bool:
        token = self.server.page.token
        if not token:
            return True
        given = parse_qs(urlsplit(self.path).query).get("token", [])
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.page.cookie)
        except CookieError:
            cookie = None
        given += [cookie.value] if cookie else []
        return any(hmac.compare_digest(one.encode(), token.encode()) for one in given)

    def _remember(self) -> None:
        """The token moves to a cookie, out of the address that is seen, kept and passed on."""
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        cookie = f"{self.server.page.cookie}={self.server.page.token}; HttpOnly; SameSite=Strict; Path=/"
        self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", "0")
        self._guard()
        self.end_headers()

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self._guard()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _guard(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")

    def _tell(self) -> None:
        """Server-sent events: the name of the page and its state, now and whenever they are others."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self._guard()
        self.end_headers()
        news: str | None = None if self.command == "HEAD" else self.server.page.news
        try:
            while news is not None:
                self.wfile.write(f"retry: 1000\ndata: {news}\n\n".encode())
                news = self.server.page.after(news)
            if self.command != "HEAD":
                self.wfile.write(b"event: over\ndata: \n\n")
        except OSError:
            return  # the browser has gone

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's name
        """Nothing: the terminal belongs to the verdict."""


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
