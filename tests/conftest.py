"""Signals as a terminal leaves them (in the background a shell has SIGINT ignored and nohup SIGHUP, and so would all
processes that tests start and interrupt), races short enough for tests, and an object store."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from collections.abc import Iterator

import pytest

import s3
from fanin import race as racing


def pytest_configure() -> None:
    """Before any test."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Races as short as they may be."""
    monkeypatch.setattr(racing.RaceOptions, "within", lambda self, _: racing.replace(self, steps=20, most=20))


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """A server that speaks S3; the only one of these tests, with a bucket."""
    if not all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors")):
        pytest.skip("moto's server is not installed")
    from fanin.stores.place import s3_filesystem

    with s3.s3_server() as port:
        known = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1"}
        maker = s3_filesystem(access_key="a", secret_key="b", allow_bucket_creation=True, **known)
        maker.create_dir(s3.BUCKET)
        yield port


@pytest.fixture
def endpoint(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, in the environment as users have it."""
    return _known(monkeypatch, s3_port)


@pytest.fixture
def proxy(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Proxy]:
    """The same by way of a proxy, which has no fault as yet."""
    with s3.proxy_before(s3_port) as before:
        _known(monkeypatch, before.server_address[1])
        yield before


def _known(monkeypatch: pytest.MonkeyPatch, port: int) -> str:
    for name in s3.without_aws(os.environ):
        monkeypatch.delenv(name)
    for name, value in s3.environment(port).items():
        monkeypatch.setenv(name, value)
    return s3.environment(port)["AWS_ENDPOINT_URL"]


@pytest.fixture
def bucket_uri(request: pytest.FixtureRequest) -> str:
    """An address of this test's own."""
    name = re.sub(r"[^\w-]+", "-", request.node.name)
    return f"s3://{s3.BUCKET}/{name}/exp1"
