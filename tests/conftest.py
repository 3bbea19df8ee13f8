"""Signals as a terminal leaves them: in the background a shell has SIGINT ignored and nohup SIGHUP, and so would all
processes that tests start and interrupt."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Before any test."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
