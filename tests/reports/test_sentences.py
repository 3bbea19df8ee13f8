"""How findings begin: a sentence with a capital, a name or a formula as it is, in every format."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import fanin
from fanin.finding import Diagnosis, Missing, Origin, Verdict
from fanin.reports import render
from fanin.reports.typeset import capitalized
from fanin.trial import Trial
from reports.trials import finding, trial_of

FORMATS = ("terminal", "markdown", "sarif", "junit", "github")


def blamed(layer: str, message: str) -> tuple[Trial, Diagnosis]:
    found = replace(
        finding(layer), tensor=f"{layer}.weight", message=message, quantity="log10(fan_in E[w^2])"
    )
    return trial_of([1.0, 1.0], paths=(layer, "last")), Diagnosis(
        Verdict.POOR, (Origin(found),), why="It shrinks."
    )


@pytest.mark.parametrize(
    "text",
    [
        "blocks.0.weight has rms 0.07",
        "gradient/6.weight is the narrowest",
        "log10(fan_in E[w^2] / gain^2) = -0.48",
        "max/min variance of activation inputs",
        "rms(w) is 3",
        "he_normal would draw 0.1",
        "float16, which ends at 65504",
        "xLSTM is no word",
        "",
    ],
)
def test_a_name_or_a_formula_keeps_its_first_letter(text: str) -> None:
    assert capitalized(text) == text


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("weights of zeros", "Weights of zeros"),
        ("signal-to-noise, by layer", "Signal-to-noise, by layer"),
        ("weights: too small", "Weights: too small"),
        ("healthy.", "Healthy."),
    ],
)
def test_a_plain_word_gets_a_capital(text: str, made: str) -> None:
    assert capitalized(text) == made


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("message", ["head.weight has rms 0.1.", "head is drawn too large."])
def test_a_layer_that_looks_like_a_word_keeps_its_name_in_front_of_a_message(form: str, message: str) -> None:
    text = " ".join(render(form, *blamed("head", message)).split())
    assert message[:8] in text
    assert "Head" not in text
    assert "Log10" not in text


@pytest.mark.parametrize("form", FORMATS)
def test_so_does_one_of_which_evidence_is_missing(form: str) -> None:
    trial = trial_of([1.0, 1.0], paths=("stem", "head"))
    gap = Missing("FAN901", "head was not seen", "watch it")
    text = " ".join(render(form, trial, Diagnosis(Verdict.UNDECIDED, missing=(gap,), why=gap.what)).split())
    assert "head was not seen" in text
    assert "Head was" not in text


@pytest.mark.parametrize("form", FORMATS)
def test_a_message_that_is_prose_begins_with_a_capital(form: str) -> None:
    text = " ".join(render(form, *blamed("head", "all values are alike.")).split())
    assert "All values are alike" in text


def test_only_one_function_makes_capitals() -> None:
    """Copies of it have drifted apart before."""
    source = Path(fanin.__file__).parent
    makers = [p.name for p in source.rglob("*.py") if re.search(r"\[:1\]\.upper\(\)", p.read_text("utf-8"))]
    assert makers == ["typeset.py"]
