"""The live page in a real browser, on a training that runs: it follows the steps, and stays as it was left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fanin.examine import Report
from fanin.serve import Address, LivePage
from following.growing import Growing, poor
from reports.browser import chromium
from reports.deep import deep

pytest.importorskip("altair", reason="needs the extra html")
pytest.importorskip("vl_convert", reason="needs the extra html")

TRAINING = """
import sys, time, torch, fanin
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(16, 16), nn.ReLU())), nn.Linear(16, 4))
for p in model.parameters(): nn.init.normal_(p, std=1e-4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x, y = torch.randn(32, 16), torch.randint(4, (32,))
with fanin.watch(model, optimizer, trial=sys.argv[1], steps=4):
    for step in range(4):
        optimizer.zero_grad(); nn.functional.cross_entropy(model(x), y).backward(); optimizer.step()
        sys.stdin.readline()
"""

LIVE = "html[data-live][data-drawn]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Visit:
    """A page, and what it said and asked for elsewhere."""

    def __init__(self, browser: Any, url: str) -> None:
        self.url, self.said, self.asked = url, [], []
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def version(self) -> str:
        return str(self.page.evaluate("document.documentElement.dataset.version"))

    def after(self, version: str) -> None:
        """Wait until the page is another, and drawn."""
        self.page.wait_for_selector(f"{LIVE}:not([data-version='{version}'])", timeout=60_000)


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive its test."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *command], text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def wait_for(page: Any, state: str, sign: str) -> None:
    """Until the page says so of itself."""
    page.wait_for_selector(f"#live[data-state='{state}']", timeout=60_000)
    assert page.inner_text("#live") == sign


def followed(place: Path, port: str = "0") -> AbstractContextManager[subprocess.Popen[str]]:
    """A follower with a page."""
    return running("-m", "fanin", "follow", str(place), f"--serve=127.0.0.1:{port}", "--timeout", "110s")


@pytest.fixture
def served() -> Iterator[LivePage]:
    made = LivePage(Address("127.0.0.1", 0), "runs/exp1")
    yield made
    made.close()


def test_a_page_follows_a_training_that_runs(browser: Any, tmp_path: Path) -> None:
    """A step is over when the next one begins, so of four steps the first is seen after the second line."""
    place, script = tmp_path / "trial", tmp_path / "train.py"
    script.write_text(TRAINING)
    with followed(place) as follower, running(str(script), str(place)) as training:
        url = follower.stderr.readline().split()[-1]
        visit = Visit(browser, url)
        assert "No step of" in visit.page.inner_text("h1")
        wait_for(visit.page, "waiting", "waiting for the first step")
        print(file=training.stdin, flush=True)
        visit.page.wait_for_selector("section.verdict.poor", timeout=90_000)
        visit.page.wait_for_selector(LIVE, timeout=60_000)
        assert "FAN101" in visit.page.inner_text("#headline")
        version = visit.version()
        wait_for(visit.page, "live", "live")
        print(file=training.stdin, flush=True)
        visit.after(version)
        assert "step 1" in visit.page.inner_text(".facts")
        training.communicate("\n\n", timeout=60)
        visit.page.wait_for_selector(".facts:has-text('step 3')", timeout=60_000)
        assert visit.said == []
        elsewhere = {address for address in visit.asked if not address.startswith((url, "data:"))}
        assert elsewhere == set()
        wait_for(visit.page, "ended", "ended, nothing more comes")
        follower.send_signal(signal.SIGINT)
        out, _ = follower.communicate(timeout=60)
        assert follower.returncode == 1
        assert "POOR" in out
    wait_for(visit.page, "over", "no longer served")
    visit.page.close()


def test_what_was_searched_sorted_chosen_unfolded_and_scrolled_to_survives(
    browser: Any, served: LivePage
) -> None:
    served.show(_report(2))
    visit = Visit(browser, served.url)
    page = visit.page
    page.wait_for_selector(LIVE)
    page.fill("#search", "mlp")
    page.select_option("#filter", "downstream")
    head = page.locator("#table thead button", has_text="Layer")
    head.click()
    head.click()
    page.locator("#table tbody tr:visible button").first.click()
    chosen = page.inner_text("#table tr.chosen button")
    page.click("#theme")
    page.locator("details.page summary").first.click()
    page.focus("#search")
    page.evaluate("document.getElementById('search').setSelectionRange(1, 2)")
    page.evaluate("scrollTo({top: 700, behavior: 'instant'})")
    before = _state(page)
    version = visit.version()
    served.show(_report(3))
    visit.after(version)
    after = _state(page)
    assert after == before
    assert after["chosen"] == chosen
    assert page.inner_text("#inspector").startswith(chosen)
    assert visit.said == []
    page.close()


def _report(steps: int) -> Report:
    return Report(*deep(40, steps))


def _state(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        """() => ({
          search: document.getElementById("search").value,
          filter: document.getElementById("filter").value,
          shown: document.querySelectorAll("#table tbody tr:not([hidden])").length,
          sorted: document.querySelector("[aria-sort]").dataset.key + document.querySelector("[aria-sort]").ariaSort,
          chosen: document.querySelector("#table tr.chosen button").textContent,
          theme: document.documentElement.dataset.theme,
          open: [...document.querySelectorAll("details[open]")].map((one) => one.id),
          field: document.activeElement.id,
          cursor: [document.getElementById("search").selectionStart, document.getElementById("search").selectionEnd],
          top: Math.round(scrollY / 20),
        })"""
    )
    return found


def test_a_page_that_was_open_finds_its_follower_again(browser: Any, tmp_path: Path) -> None:
    place = tmp_path / "trial"
    Growing(place, poor()).step(0)
    with followed(place) as first:
        url = first.stderr.readline().split()[-1]
        visit = Visit(browser, url)
        visit.page.wait_for_selector(f"{LIVE}:has(section.poor)", timeout=60_000)
        version = visit.version()
        first.kill()  # it says no farewell
    wait_for(visit.page, "lost", "connection lost, trying again")
    with followed(place, url.rstrip("/").rsplit(":", 1)[1]):
        visit.page.wait_for_selector(
            f"{LIVE}:has(section.poor):not([data-version='{version}'])", timeout=60_000
        )
        assert "blocks.3.fc" in visit.page.inner_text("#headline")
    visit.page.close()


def test_hostile_names_are_text_on_the_waiting_page(browser: Any) -> None:
    name = "</h1><script>document.documentElement.dataset.hacked = 1</script>"
    page = LivePage(Address("127.0.0.1", 0), name)
    visit = Visit(browser, page.url)
    visit.page.wait_for_selector("html[data-live]")
    assert name in visit.page.inner_text("h1")
    assert visit.page.evaluate("document.documentElement.dataset.hacked") is None
    visit.page.close()
    page.close()


def test_without_its_script_the_page_claims_no_connection(browser: Any, served: LivePage) -> None:
    served.show(_report(2))
    page = browser.new_page(java_script_enabled=False)
    page.goto(served.url)
    assert page.inner_text("#live") == "not connected yet"
    page.close()


def test_a_page_whose_token_is_no_longer_one_says_so_and_goes_on_when_it_has_the_new_one(
    browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower that is started again at this port has another token; the page is as it was."""
    first = LivePage(Address("0.0.0.0", 0), "runs/exp1")
    context = browser.new_context()
    page = context.new_page()
    page.goto(here(first))
    wait_for(page, "waiting", "waiting for the first step")
    with monkeypatch.context() as broken:
        broken.setattr(first, "after", without_a_word)
        first.token = "another"
        first._become("live")
        wait_for(page, "refused", "not allowed: open the printed address")
    other = context.new_page()
    other.goto(here(first))
    wait_for(page, "live", "live")
    first.close()
    context.close()


def without_a_word(news: str) -> str:
    """The connection breaks."""
    raise OSError(news)


def here(page: LivePage) -> str:
    """Its address by number."""
    return f"http://127.0.0.1:{page.cookie.rpartition('-')[2]}/?token={page.token}"


def test_a_report_that_could_not_be_drawn_and_the_end_of_an_empty_trial_are_said(
    browser: Any, served: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit(browser, served.url)
    served.end("there is no trial at this address")
    visit.page.wait_for_selector("h1:has-text('There was nothing to show')")
    wait_for(visit.page, "ended", "ended, nothing more comes")
    monkeypatch.setattr("fanin.serve.live_page", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        served.show(_report(2))
    wait_for(visit.page, "not-drawn", "out of date: not drawn, see the terminal")
    assert visit.said == []
    visit.page.close()
