"""Signals as a terminal leaves them (in the background a shell has SIGINT ignored and nohup SIGHUP, and so would all
processes that tests start and interrupt), and races short enough for tests."""

from __future__ import annotations

import signal

import pytest

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
