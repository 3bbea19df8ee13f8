"""The browser that is installed: Playwright drives it, and downloads none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

SANDBOX = "--no-sandbox"
"""Chromium's own sandbox refuses to run as root, which containers are; the pages are ours."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; skips the test where none is found."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'fanin[dev]'")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            f"no browser is installed: none of {', '.join(NAMES)} is on the PATH (apt-get install chromium)"
        )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[SANDBOX])
        yield browser
        browser.close()


class Opened:
    """A page, and all that it said and asked for while it was open.

    Attributes:
        page: Playwright's page, drawn.
        said: Console messages and errors.
        asked: Addresses that it asked for, but for the file itself.
    """

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        options = {"viewport": {"width": 1280, "height": 900}} | options
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on(
            "dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            self.page.wait_for_selector("html[data-drawn]", timeout=60_000)
        self.asked.remove(path.as_uri())

    def chart(self, name: str) -> Any:
        """The drawing of a chart."""
        return self.page.locator(f"[data-chart={name}] svg")

    def at(self, name: str, x: float, y: float = 0.5) -> tuple[float, float]:
        """A place in a chart, from 0 to 1 of its size, in the window."""
        self.chart(name).scroll_into_view_if_needed()
        box = self.chart(name).bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def marked(self, name: str) -> float:
        """Where the vertical line through the chosen layer stands in a chart, in the window; none is an error."""
        line = self.page.locator(f"[data-chart={name}] svg .mark-rule line[opacity='0.9']")
        box = line.first.bounding_box()
        return float(box["x"] + box["width"] / 2)
