"""The terminal's report against golden files; `FANIN_GOLDENS=write pytest tests/reports` writes them anew."""

from __future__ import annotations

import os
import re
from math import inf, nan
from pathlib import Path

import pytest
from rich.cells import cell_len

from fanin.errors import UsageError
from fanin.finding import Diagnosis, Origin, Scope, Verdict
from fanin.reports import FORMATS, render
from fanin.reports.chart import Axis
from fanin.reports.typeset import elide, number, paragraph
from reports.trials import CASES, finding, trial_of

GOLDENS = Path(__file__).parent / "goldens"
WIDTHS = (60, 80, 100, 120)

every_case = pytest.mark.parametrize("case", CASES)


def shown(case: str, width: int = 80, color: bool = False) -> str:
    return render("terminal", *CASES[case](), width=width, color=color)


@every_case
def test_the_report_is_the_golden_one(case: str) -> None:
    golden = GOLDENS / f"{case}.txt"
    if os.environ.get("FANIN_GOLDENS") == "write":
        golden.write_text(shown(case) + "\n", encoding="utf-8")
    assert shown(case) + "\n" == golden.read_text(encoding="utf-8")


@every_case
@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_asked(case: str, width: int) -> None:
    widest = max(shown(case, width).splitlines(), key=cell_len)
    assert cell_len(widest) <= width, widest


@every_case
def test_nothing_reaches_the_terminal_but_text(case: str) -> None:
    assert all(character.isprintable() or character == "\n" for character in shown(case))


@every_case
def test_color_changes_the_look_and_not_a_character(case: str) -> None:
    colored = shown(case, color=True)
    plain = "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", colored).splitlines())
    assert "\x1b[" in colored
    assert plain == shown(case)


def test_a_label_is_bold_and_its_text_is_not() -> None:
    lines = shown("cliff", color=True).splitlines()
    why = next(line for line in lines if "Why" in line)
    assert re.fullmatch(r"\x1b\[1mWhy *\x1b\[0m[^\x1b]+", why)


def test_a_layer_at_fault_stands_out_and_its_axis_does_not() -> None:
    row = next(line for line in shown("cliff", color=True).splitlines() if ">>" in line)
    styles = dict(re.findall(r"\x1b\[([\d;]+)m *(X|\.|>>)", row))
    assert styles["1;31"] in {"X", ">>"}
    assert styles["2"] == "."


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR", "COLUMNS"])
def test_the_report_depends_on_its_arguments_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [shown("cliff", color=color) for color in (False, True)]
    monkeypatch.setenv(variable, "20")
    assert [shown("cliff", color=color) for color in (False, True)] == before


def test_markup_in_names_is_text() -> None:
    assert "[bold red]markup[/bold red] :smile:" in shown("hostile", 120)


def test_the_last_component_of_a_name_is_kept() -> None:
    assert all(elide("encoder.layers.11.attention.query", width).endswith("query") for width in range(8, 40))


@pytest.mark.parametrize("width", range(12))
def test_elided_text_fits_any_width(width: int) -> None:
    assert all(
        cell_len(elide(text, width)) <= width for text in ("a.bc" * 9, "層" * 9, "層.層層層層層層", "")
    )


def test_a_fault_of_several_layers_is_not_said_to_be_in_every_layer() -> None:
    found = finding("blocks.1.fc1")
    values = {name: getattr(found, name) for name in found.__slots__}
    some = type(found)(**values | {"scope": Scope.EVERYWHERE, "layers": ("blocks.1.fc1", "blocks.2.fc1")})
    text = render("terminal", trial_of([1.0] * 8), Diagnosis(Verdict.POOR, (Origin(some),)))
    assert "in 2 layers from blocks.1.fc1 on" in text.splitlines()[0]


def test_a_slope_of_500_layers_stays_on_a_screen() -> None:
    found = finding("blocks.0.fc1")
    values = {name: getattr(found, name) for name in found.__slots__}
    trial = trial_of([10.0 ** (-i / 4) for i in range(500)])
    paths = tuple(layer.path for layer in trial.spec.layers)
    everywhere = type(found)(**values | {"scope": Scope.EVERYWHERE, "layers": paths})
    text = render("terminal", trial, Diagnosis(Verdict.POOR, (Origin(everywhere),)))
    assert text.count(">>") == 5
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("values", [[], [0.0], [nan, inf], [1.0], [5e-324, 1e308], [1e-300] * 3, [0.9, 1.1]])
@pytest.mark.parametrize("width", [6, 9, 24, 48])
def test_every_value_has_a_place_on_the_axis(values: list[float], width: int) -> None:
    axis = Axis.over(values, width)
    assert len(axis.header()) == width
    for value in [*values, 0.0, nan, inf]:
        strip = axis.strip(value, "X", "").plain
        assert len(strip) == width
        assert sum(strip.count(sign) for sign in "X<>?") == 1


def test_numbers_are_short_and_never_lie_about_being_finite() -> None:
    values = [0.0, 4.0, 0.0021, 820.0, 5024.4, 2.8e5, 4.4e-7, nan, inf, -inf, -3.25e-9]
    assert [number(value) for value in values] == [
        "0", "4", "0.0021", "820", "5024", "2.8e5", "4.4e-7", "NaN", "Inf", "-Inf", "-3.25e-9",
    ]  # fmt: skip


def test_a_label_without_text_is_not_shown() -> None:
    assert paragraph("Next", "", 80) == []


def test_an_unknown_format_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        render("pdf", *CASES["single"]())
    assert caught.value.expected == f"one of {', '.join(FORMATS)}"
