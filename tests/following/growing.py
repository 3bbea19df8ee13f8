"""Trials that grow, step by step, for tests of who follows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fanin.stores import open_store
from fanin.stores.base import Writer
from fanin.synthetic import mlp
from fanin.trial import Step, Trial


@cache
def healthy() -> Trial:
    """A sound network's first step."""
    return mlp()


@cache
def poor() -> Trial:
    """The same with a layer of zeros."""
    return mlp(overrides={"blocks.3.fc.weight": "zeros"})


class Growing:
    """A trial that is written by hand.

    Attributes:
        uri: Where.
    """

    def __init__(self, place: Path | str, trial: Trial) -> None:
        self.uri = str(place)
        self._start = next(step for step in trial.steps if step.index == 0)
        self._spec = trial.spec
        self._writer: Writer | None = None

    def begin(self) -> None:
        """The writer's first part."""
        self._writer = open_store(self.uri).begin()

    def step(self, index: int = 0) -> Step:
        """Write one step, the same each time but for its number, and wait until it is visible."""
        if self._writer is None:
            self.begin()
        assert self._writer is not None
        step = replace(self._start, index=index)
        self._writer.describe(self._spec)
        self._writer.append(step)
        self._writer.flush()
        return step

    def close(self) -> None:
        """Its end."""
        if self._writer is not None:
            self._writer.close()


class Receiver:
    """A server that takes POSTs and answers as told.

    Attributes:
        url: Its address.
        got: Headers, by their names in lower case, and body of each request.
    """

    def __init__(self, *answers: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver, left = self, list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                receiver.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
                status = left.pop(0) if left else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listen no longer."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receiver(*answers: int) -> Iterator[Receiver]:
    """A receiver for as long as it is needed."""
    made = Receiver(*answers)
    try:
        yield made
    finally:
        made.close()
