"""The HTML report as a file: whole, small, and closed to everything but its own scripts."""

from __future__ import annotations

import re
import sys
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from fanin.destination import format_of
from fanin.errors import UsageError
from fanin.examine import Report
from fanin.reports import render
from reports.deep import deep
from reports.trials import CASES

vl_convert = pytest.importorskip("vl_convert", reason="needs the extra html")
pytest.importorskip("altair", reason="needs the extra html")

MOST = 2_000_000
"""Bytes of a page of 500 layers by 10 steps."""


class Parsed(HTMLParser):
    """What a browser would load and run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.policy = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.addresses += [
            v for k, v in attrs if k in ("src", "href", "action", "data") and v and v[0] != "#"
        ]
        self.handlers += [k for k, _ in attrs if k.startswith("on") or k == "style"]
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known.get("content") or ""
        self._inside = tag if tag in self.inline and known.get("type") != "application/json" else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inline[self._inside].append(data)


@pytest.mark.parametrize("case", ["cliff", "hostile", "undecided", "empty"])
def test_a_page_is_whole_and_names_all_that_it_runs(case: str) -> None:
    found = Parsed(render("html", *CASES[case]()))
    assert found.addresses == ["data:,"]
    assert found.handlers == []
    parts = [*found.inline["script"], *found.inline["style"]]
    hashes = [f"'sha256-{b64encode(sha256(part.encode()).digest()).decode()}'" for part in parts]
    assert re.findall(r"'sha256-[^']+'", found.policy) == hashes
    assert "default-src 'none'" in found.policy
    assert "unsafe" not in found.policy


def test_500_layers_by_10_steps_stay_small() -> None:
    assert len(render("html", *deep(500)).encode()) < MOST


def test_the_page_says_what_the_diagnosis_says() -> None:
    text = render("html", *deep(10))
    for said in (
        "decoder.layers.1.attn.out.weight has rms 0.0044",
        "/home/me/model.py:41",
        "95%, settled by one batch.",
        "It compares by absolute numbers, and this fault leaves both in range.",
        "A race against the re-draw (--race).",
        "10 of 10 layers ran, 10 steps, 1 rank",
        "train.py --lr 3e-4",
        "What it detects",
        "5 of 10 layers lie outside of what is expected.",
    ):
        assert said in text, said


def test_vega_is_the_version_that_charts_are_compiled_for() -> None:
    text = files("fanin.reports").joinpath("page", "vega.min.js").read_text(encoding="utf-8")
    assert text.startswith(f"/* Vega {vl_convert.get_vega_version()}, ")


def test_without_the_extra_an_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("altair", "fanin.reports.charts."))]:
        if name not in ("fanin.reports.charts.data", "fanin.reports.charts.blocks"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(UsageError, match=r"pip install 'fanin\[html\]'"):
        render("html", *CASES["cliff"]())
    assert "shrinking-signal" in Report(*CASES["cliff"]())._repr_html_()


def test_a_report_writes_itself(tmp_path: Path) -> None:
    path = tmp_path / "init.html"
    Report(*CASES["cliff"]()).to_html(path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert format_of(str(path)) == "html"
