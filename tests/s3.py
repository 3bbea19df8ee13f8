"""A server that speaks S3 in a process of its own, and a proxy before it that has faults when told."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "trials"
SECONDS = 60
"""To start a server on a busy machine."""


@contextmanager
def s3_server() -> Iterator[int]:
    """The server, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        yield port
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


def environment(port: int) -> dict[str, str]:
    """What a user sets who has a store of his own."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "unspeakable",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


Fault = Callable[["Handler"], bool]
"""Looks at a request; True where it has dealt with it."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server, unless a fault deals with them.

    Attributes:
        faults: In force.
        hides: Whether listings lack the object of this name.
        seen: Method and path of every request.
        release: Set when those that hang may go.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = port
        self.release = threading.Event()
        self.reset()

    def reset(self) -> None:
        """As without a fault; what hangs is let go."""
        self.release.set()
        self.faults: list[Fault] = []
        self.hides: Callable[[str], bool] = lambda key: False
        self.seen: list[tuple[str, str]] = []
        self.release = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that went away."""


class Handler(BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def answer(self) -> None:
        """Deal with a request."""
        self.server.seen.append((self.command, self.path))
        if any(fault(self) for fault in list(self.server.faults)):
            return
        self.reply(*self.forward(self.body()))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def body(self, share: float = 1.0) -> bytes:
        """What was sent; of a write in chunks, as clients of S3 make them, only the first where less is wanted."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(share * int(self.headers.get("Content-Length") or 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(int(share * size)))
            if share < 1:
                break
            self.rfile.readline()
        else:
            self.rfile.readline()
        return b"".join(chunks)

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server."""
        there = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        sent = {name: value for name, value in self.headers.items() if name.lower() not in (*HOPS, "expect")}
        there.request(self.command, self.path, body, sent)
        said = there.getresponse()
        content = said.read()
        if self.command == "GET" and "list-type=2" in self.path:
            content = re.sub(rb"<Contents>.*?</Contents>", self._listed, content, flags=re.DOTALL)
        headers = [(name, value) for name, value in said.getheaders() if name.lower() not in HOPS]
        if self.command != "HEAD":
            headers.append(("Content-Length", str(len(content))))
        else:
            headers += [("Content-Length", said.getheader("Content-Length", "0"))]
        there.close()
        return said.status, headers, content

    def _listed(self, found: re.Match[bytes]) -> bytes:
        key = re.search(rb"<Key>(.*?)</Key>", found[0])
        assert key is not None
        return b"" if self.server.hides(key[1].decode()) else found[0]

    def reply(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        """Say something."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        """As S3 says no."""
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
        self.reply(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)

    def drop(self) -> None:
        """Be gone."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


HOPS = ("content-length", "transfer-encoding", "connection", "server", "date")


def writes(handler: Handler, key: str = "") -> bool:
    """Whether this puts an object, of such a name."""
    return handler.command in ("PUT", "POST") and key in handler.path


def times(count: int, fault: Fault) -> Fault:
    """A fault that happens so often."""
    left = [count]
    guard = threading.Lock()

    def sometimes(handler: Handler) -> bool:
        with guard:
            if left[0] <= 0 or not fault(handler):
                return False
            left[0] -= 1
            return True

    return sometimes


def cut_amid_a_write(handler: Handler) -> bool:
    """The connection breaks when half of an object has come."""
    if not writes(handler):
        return False
    handler.body(0.5)
    handler.drop()
    return True


def lose_the_answer(handler: Handler) -> bool:
    """The object is there, and nobody says so."""
    if not writes(handler):
        return False
    handler.forward(handler.body())
    handler.drop()
    return True


def throttle(handler: Handler) -> bool:
    """503 SlowDown for writes."""
    if not writes(handler):
        return False
    handler.body()
    handler.refuse(503, "SlowDown")
    return True


def let_nobody_in(handler: Handler) -> bool:
    """Wrong credentials."""
    handler.body()
    handler.refuse(403, "InvalidAccessKeyId")
    return True


def hang(handler: Handler) -> bool:
    """Take the request, and say nothing until released."""
    handler.body()
    handler.server.release.wait(60)
    handler.drop()
    return True


def hang_on_writes(handler: Handler) -> bool:
    """The same for what is put."""
    return writes(handler) and hang(handler)


@contextmanager
def proxy_before(port: int) -> Iterator[Proxy]:
    """A proxy, as long as it is needed."""
    proxy = Proxy(port)
    # It looks whether it shall end so often: 0.5 s otherwise, which every test would wait for.
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def without_aws(variables: os._Environ[str]) -> list[str]:
    """Names of what this machine says of AWS, which no test may depend on."""
    return [name for name in variables if name.startswith("AWS_")]
