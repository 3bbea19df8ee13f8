"""Take the pictures of the README: `.venv/bin/python docs/screenshots.py`, with a Chromium on the PATH, and Pillow.

They are of real checks: examples/digits.py as PyTorch draws it, in light; and a plain network of 500 layers, in dark.
"""

from __future__ import annotations

import os
import shutil
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import fanin
from fanin.synthetic import mlp, normal
from fanin.target import load_target

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1180, 1300
COLORS = 240
"""Of a palette: text keeps its edges, and a picture stays below 100 kB."""


def digits() -> fanin.Report:
    """The example that does not learn."""
    given = load_target("examples/digits.py:default_weights")
    return fanin.check(*given, optimizer=given.optimizer)


def deep() -> fanin.Report:
    """500 layers, of which four in a row are drawn 30 times too small."""
    overrides = {f"blocks.{i}.fc.weight": normal(0.004) for i in range(250, 254)}
    return fanin.judge(mlp(widths=(128,) * 499 + (10,), overrides=overrides, steps=10))


def shoot(browser: Browser, report: fanin.Report, name: str, scheme: str, folder: Path) -> None:
    """Open a report, point at a layer, and keep what a window shows of it."""
    path = folder / f"{name}.html"
    report.to_html(path)
    page = browser.new_page(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, device_scale_factor=1
    )
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]")
    box = page.locator("[data-chart=variance] svg").bounding_box()
    page.mouse.click(box["x"] + 0.55 * box["width"], box["y"] + 0.4 * box["height"])
    page.wait_for_timeout(300)
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    image.quantize(COLORS).save(HERE / f"{name}.png", optimize=True)


def main() -> None:
    """Write report.png and report-500.png."""
    os.chdir(HERE.parent)  # so that the report names lines as a reader of the repository would
    chromium = shutil.which("chromium") or sys.exit("needs a Chromium on the PATH")
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shoot(browser, digits(), "report", "light", Path(folder))
        shoot(browser, deep(), "report-500", "dark", Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
