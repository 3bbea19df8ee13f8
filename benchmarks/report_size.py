"""Size and render time of the HTML report at 10, 100 and 500 layers by 10 steps, and how long a browser draws it.

    ./dev bench report_size

Networks are real ones in NumPy (`fanin.synthetic.mlp`, width 16), trained for 10 steps and judged. The first page of a
process also loads Altair and the compiler of its specs; it is timed by itself. A browser has drawn a page when its
charts stand; the time is from the navigation on, by the page's own clock.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from _record import circumstances, keep, quartiles, table, told
from playwright.sync_api import Browser, sync_playwright

from fanin.examine import Report, judge
from fanin.synthetic import mlp

LAYERS = (10, 100, 500)
STEPS = 10


def trained(layers: int) -> Report:
    """A network of so many layers."""
    return judge(mlp(widths=(16,) * (layers - 1) + (10,), steps=STEPS))


def timed(report: Report) -> tuple[str, float]:
    """Its page, and the seconds that it took to write."""
    began = perf_counter()
    text = report.render("html")
    return text, perf_counter() - began


def drawn(browser: Browser, path: Path) -> float:
    """Seconds until a browser has drawn the charts of a page."""
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]")
    elapsed: float = page.evaluate("performance.now() / 1000")
    page.close()
    return elapsed


def measured(browser: Browser, layers: int, rounds: int, folder: Path) -> dict[str, object]:
    """Size and times of one network's page."""
    report, path = trained(layers), folder / f"{layers}.html"
    pages = [timed(report) for _ in range(rounds)]
    path.write_text(pages[0][0], encoding="utf-8")
    return {
        "layers": layers,
        "steps": STEPS,
        "bytes": len(pages[0][0].encode()),
        "seconds": quartiles(seconds for _, seconds in pages),
        "drawn_seconds": quartiles(drawn(browser, path) for _ in range(rounds)),
    }


def main() -> None:
    """Measure, print the table, and keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    record = circumstances("altair", "vl-convert-python", "playwright")
    first = timed(trained(LAYERS[0]))[1]
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        record["browser"] = browser.version
        results = [measured(browser, layers, rounds, Path(folder)) for layers in LAYERS]
        browser.close()
    record |= {
        "load_average_after": circumstances()["load_average"],
        "first_page_seconds": first,
        "results": results,
    }
    rows = [
        (r["layers"], f"{r['bytes'] / 1000:.0f}", told(r["seconds"]), told(r["drawn_seconds"]))
        for r in results
    ]
    print(table(("layers", "kB", "s to write", "s to draw"), rows))
    print(f"first page of a process {first:.2f} s; {keep('report_size', record)}")


if __name__ == "__main__":
    main()
