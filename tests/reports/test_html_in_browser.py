"""The HTML report as a browser shows it: everything drawn, nothing said, nothing asked for, and all of it usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fanin.change import Repair
from reports.browser import Opened, chromium
from reports.deep import deep
from reports.test_repair import REPAIR
from reports.trials import CASES

pytest.importorskip("altair", reason="needs the extra html")
pytest.importorskip("vl_convert", reason="needs the extra html")

from fanin.reports.charts.look import DARK, LIGHT
from fanin.reports.html import page, render

PAPER = "getComputedStyle(document.querySelector('.chart')).backgroundColor"

HOSTILE = (
    "<script>alert('layer')</script>",
    "</script><img src=x onerror=alert('image')>",
    "\"><svg onload=alert('svg')>",
    "{{ 7 * 7 }}{% raw %}",
    "'+alert('quote')+'",
    "a\u202eb\x1b[31m\u2028c",
    "__proto__",
    "http://elsewhere.example/x.png",
)
"""Names of layers that would do something in a page that trusts them."""

Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pages by name, each written once."""
    folder = tmp_path_factory.mktemp("pages")

    def make(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            path.write_text(_text(name), encoding="utf-8")
        return path

    return make


def _text(name: str) -> str:
    if name.isdigit():
        return render(*deep(int(name)))
    if name == "names":
        return render(*deep(8, paths=HOSTILE))
    if name == "ranks":
        return render(*deep(12, 2, workers=(0, 1, 2)))
    if name == "repair":
        trial, diagnosis = deep(12, 3)
        return page(trial, diagnosis, _repair(), after=trial)
    return render(*CASES[name]())


def _repair() -> Repair:
    return REPAIR


@pytest.fixture
def opened(browser: Any, written: Callable[[str], Path]) -> Iterator[Open]:
    """Opens a page by its name."""
    pages: list[Opened] = []

    def make(name: str, **options: Any) -> Opened:
        pages.append(Opened(browser, written(name), **options))
        return pages[-1]

    yield make
    for one in pages:
        one.page.close()


# ── it is drawn ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("10", "light"),
        ("500", "dark"),
        *((name, "light") for name in ("ranks", "repair", "undecided", "broken", "foreign", "empty")),
    ],
)
def test_a_page_draws_every_chart_says_nothing_and_asks_for_nothing(
    opened: Open, name: str, scheme: str
) -> None:
    shown = opened(name, color_scheme=scheme)
    charts = shown.page.locator("[data-chart]")
    assert shown.page.locator("[data-chart] > svg").count() == charts.count()
    assert (shown.said, shown.asked) == ([], [])


def test_what_a_page_says_and_asks_for_would_be_noticed(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "loud.html"
    path.write_text(
        "<script>console.error('no'); document.documentElement.dataset.drawn = 1</script><img src='x.png'>"
    )
    shown = Opened(browser, path)
    assert "no" in shown.said
    assert [Path(address).name for address in shown.asked] == ["x.png"]
    shown.page.close()


@pytest.mark.parametrize(
    ("name", "charts"),
    [
        ("10", ["variance", "gradient", "heat", "loss"]),
        ("ranks", ["variance", "gradient", "heat", "ranks", "loss"]),
        ("repair", ["variance", "comparison", "gradient", "heat", "loss"]),
        ("empty", []),
    ],
)
def test_a_chart_is_there_where_there_is_something_to_show(
    opened: Open, name: str, charts: list[str]
) -> None:
    found = opened(name).page.locator("[data-chart]")
    assert [found.nth(i).get_attribute("data-chart") for i in range(found.count())] == charts


def test_the_heat_map_has_a_cell_for_each_layer_and_step_that_was_watched(opened: Open) -> None:
    groups = "[...document.querySelectorAll('[data-chart=heat] g.mark-rect')].map((group) => group.children.length)"
    assert max(opened("500").page.evaluate(groups)) == 500 + 9 * 499


def test_a_policy_violation_is_refused(opened: Open) -> None:
    """That the policy is in force: a script that is not ours does not run, though it is in the page."""
    shown = opened("10")
    shown.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert shown.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in shown.said)


# ── pointing and choosing ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "layer"), [("10", "decoder.layers.1.attn.out"), ("500", "decoder.layers.6")]
)
def test_pointing_at_a_chart_names_the_layer(opened: Open, name: str, layer: str) -> None:
    shown = opened(name)
    shown.page.mouse.move(*shown.at("variance", 0.55, 0.4))
    tip = shown.page.locator("#tip")
    assert tip.inner_text().startswith(layer)
    assert "expected" in tip.inner_text()
    shown.page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_pointing_at_a_cell_names_its_step(opened: Open) -> None:
    shown = opened("10")
    shown.page.mouse.move(*shown.at("heat", 0.7, 0.5))
    assert "step 4: ÷" in shown.page.locator("#tip").inner_text()


@pytest.mark.parametrize(("name", "chart"), [("10", "variance"), ("10", "gradient"), ("500", "heat")])
def test_a_layer_chosen_in_one_chart_is_marked_in_all_and_in_the_table(
    opened: Open, name: str, chart: str
) -> None:
    shown = opened(name)
    shown.page.mouse.click(*shown.at(chart, 0.55))
    row = shown.page.locator("#table tr.chosen")
    name_of_layer = row.locator("th button").inner_text()
    assert row.count() == 1
    assert shown.page.locator("#inspector").inner_text().startswith(name_of_layer)
    places = [shown.marked(other) for other in ("variance", "gradient", "heat")]
    assert max(places) - min(places) < 1.0
    width = shown.chart("variance").bounding_box()["width"]
    assert abs(places[0] - shown.at(chart, 0.55)[0]) <= width / int(name)


def test_choosing_a_layer_again_lets_it_go(opened: Open) -> None:
    shown = opened("10")
    for expected in (1, 0):
        shown.page.mouse.click(*shown.at("variance", 0.55))
        assert shown.page.locator("#table tr.chosen").count() == expected


def test_a_layer_is_chosen_in_the_table(opened: Open) -> None:
    shown = opened("10")
    button = shown.page.get_by_role("button", name="decoder.layers.1.mlp.fc1")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert shown.marked("heat") == pytest.approx(shown.marked("variance"), abs=1.0)
    assert "decoder.layers.1.mlp.fc1" in shown.page.locator("#inspector").inner_text()


def test_keys_alone_choose_layers(opened: Open) -> None:
    shown = opened("10")
    chart = shown.page.get_by_role("slider").first
    chart.focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "Home", "Escape"):
        shown.page.keyboard.press(key)
        said.append(chart.get_attribute("aria-valuenow"))
    assert said == ["1", "2", "10", "10", "1", "0"]
    shown.page.keyboard.press("End")
    assert (chart.get_attribute("aria-valuetext") or "").startswith("head, ")


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────


def _names(shown: Opened) -> list[str]:
    return [text for text in shown.page.locator("#table tbody tr:visible th").all_inner_texts() if text]


def test_search_and_filter_leave_the_rows_that_match(opened: Open) -> None:
    shown = opened("500")
    shown.page.get_by_role("searchbox").fill("layers.62. fc1")
    assert _names(shown) == ["decoder.layers.62.mlp.fc1"]
    assert shown.page.locator("#count").inner_text() == "1 of 500 layers"
    shown.page.get_by_role("searchbox").fill("")
    shown.page.locator("#filter").select_option("downstream")
    assert len(_names(shown)) == 249


def test_a_column_sorts_up_and_down_by_number(opened: Open) -> None:
    shown = opened("10")
    head = shown.page.get_by_role("columnheader", name="Var[out]")
    for order in ("ascending", "descending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        cells = shown.page.locator("#table tbody tr td:nth-child(5)").all()
        values = [float(cell.get_attribute("data-v")) for cell in cells]
        assert values == sorted(values, reverse=order == "descending")


# ── somebody else's text ────────────────────────────────────────────────────────────────────────────────────


def test_hostile_names_are_text(opened: Open) -> None:
    shown = opened("names")
    assert _names(shown)[:5] == list(HOSTILE[:5])
    assert _names(shown)[5] == "a\\u202eb\\x1b[31m\\u2028c"
    for row in range(len(HOSTILE)):
        shown.page.locator("#table tbody th button").nth(row).click()
    shown.page.mouse.move(*shown.at("variance", 0.2))
    assert (shown.said, shown.asked) == ([], [])
    assert shown.page.locator("main img, main script, main svg[onload]").count() == 0


def _axe() -> str:
    """The auditor, axe-core 4."""
    module = pytest.importorskip("axe_playwright_python", reason="needs axe-core: pip install 'fanin[dev]'")
    return (Path(module.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


REST = "#table tbody tr:nth-child(n + 40)"
"""Rows that the audit leaves out: they are as those before them, and the 500 would take it a minute."""


# ── for everybody ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("10", "light"),
        ("10", "dark"),
        ("500", "light"),
        ("500", "dark"),
        ("repair", "dark"),
        ("undecided", "light"),
        ("empty", "dark"),
    ],
)
def test_an_audit_of_accessibility_finds_nothing(opened: Open, name: str, scheme: str) -> None:
    axe = _axe()
    shown = opened(name, color_scheme=scheme, bypass_csp=True)
    for details in shown.page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    shown.page.evaluate(axe)
    found = shown.page.evaluate(f"axe.run({{exclude: [['{REST}']]}})")
    assert [
        (v["id"], v["impact"], [n["html"][:120] for n in v["nodes"][:3]]) for v in found["violations"]
    ] == []
    assert len(found["passes"]) > 15


def test_the_audit_can_fail(opened: Open) -> None:
    axe = _axe()
    shown = opened("10", bypass_csp=True)
    shown.page.evaluate(
        "document.querySelector('#search').closest('label').replaceWith(document.querySelector('#search'))"
    )
    shown.page.evaluate("document.querySelector('#search').removeAttribute('placeholder')")
    shown.page.evaluate(axe)
    assert "label" in {v["id"] for v in shown.page.evaluate("axe.run()")["violations"]}


def test_dark_and_light_follow_the_system_and_then_the_button(opened: Open) -> None:
    shown = opened("10", color_scheme="dark")
    line = shown.page.locator("[data-chart=variance] .mark-line path").last

    def colors() -> tuple[str, str]:
        return line.get_attribute("stroke"), shown.page.evaluate(PAPER)

    dark = colors()
    shown.page.get_by_role("button", name="Light").click()
    shown.page.wait_for_selector(f"[data-chart=variance] .mark-line path[stroke='{LIGHT['given']}']")
    light = colors()
    assert dark[1] == "rgb(20, 24, 29)"
    assert (dark[0], light[0]) == (DARK["given"], LIGHT["given"])
    assert light[1] == "rgb(255, 255, 255)"


def test_without_scripts_the_findings_and_the_layers_can_be_read(opened: Open) -> None:
    shown = opened("10", java_script_enabled=False)
    assert "decoder.layers.1.attn.out" in shown.page.locator("#findings").inner_text()
    assert len(_names(shown)) == 10
    assert shown.page.get_by_text("Charts need scripts").is_visible()
    assert shown.page.locator("#search").is_hidden()


def test_a_narrow_window_scrolls_down_only(opened: Open) -> None:
    shown = opened("10", viewport={"width": 380, "height": 800})
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 380


def test_a_print_leaves_out_what_is_for_the_screen(opened: Open) -> None:
    shown = opened("500", color_scheme="dark")
    shown.page.emulate_media(media="print")
    assert shown.page.locator(".top, .tools, #inspector").locator("visible=true").count() == 0
    assert len(_names(shown)) == 250
    assert shown.page.pdf()[:5] == b"%PDF-"


def test_a_code_leads_to_its_page(opened: Open) -> None:
    shown = opened("10")
    shown.page.locator("#findings").get_by_role("link", name="FAN101").click()
    found = shown.page.locator("#page-FAN101[open]")
    found.wait_for()  # the browser tells of the new address a moment after the click
    assert "What it detects" in found.inner_text()
