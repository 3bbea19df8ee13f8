"""Errors on a terminal: a block that fits its columns, with one word in colour; elsewhere as they are."""

from __future__ import annotations

import sys

import pytest

from fanin.output import Output

ERROR = "there is no such form\n  where     -o report.doc\n  expected  " + " ".join(["one of these,"] * 9)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stderr as a terminal of 60 columns."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("fanin.output.shutil.get_terminal_size", lambda *_: _Size(60))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


class _Size:
    def __init__(self, columns: int) -> None:
        self.columns = columns


@pytest.mark.usefixtures("terminal")
def test_a_long_detail_hangs_below_its_start() -> None:
    first, second, *more = Output(to_stderr=True).complaint(ERROR).splitlines()
    assert (first, second) == ("error: there is no such form", "  where     -o report.doc")
    assert all(len(line) <= 60 for line in more)
    assert more[0].startswith("  expected  one of")
    assert all(line.startswith(" " * 12) and line[12] != " " for line in more[1:])


@pytest.mark.usefixtures("terminal")
def test_the_first_word_is_red_where_there_are_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    text = Output(to_stderr=True).complaint(ERROR)
    assert text.startswith("\x1b[31m\x1b[1merror:\x1b[0m there is no such form\n  where")
    assert text.count("\x1b") == 3


def test_a_pipe_gets_an_error_as_it_is() -> None:
    assert Output(to_stderr=True).complaint(ERROR) == f"error: {ERROR}"
