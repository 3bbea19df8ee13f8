"""A repair in text: everything that a reader needs to decide, and code that can be copied."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fanin.change import Change, Effect, Reach, Repair, Safety, Treatment, Values
from fanin.examine import judge
from fanin.finding import Verdict
from fanin.race import Heat, Race
from fanin.reports import render_repair
from fanin.reports.repair import render
from fanin.summary import Interval
from fanin.synthetic import mlp

RACE = Race((Heat(1e-3, (1.0,) * 60, (1.0, *[0.1] * 59)),), uninformed=1.0)
FAMILY = tuple(f"blocks.{i}.fc.weight" for i in range(3))
CHANGES = tuple(
    Change(
        name,
        Treatment.SCALE,
        "he_normal",
        "kept",
        factor=2.0 + i,
        before=Values(0.1, 0.0),
        after=Values(0.2 + i / 10, 0.0),
        family=FAMILY,
    )
    for i, name in enumerate(FAMILY)
)
BIAS = Change(
    "head.bias", Treatment.RESET, "zeros", "constant", before=Values(3.0, -3.0), after=Values(0.0, 0.0)
)
TIED = replace(
    BIAS, parameter="emb.weight", treatment=Treatment.REDRAW, scheme="normal", tied_to=("head.weight",)
)
CODE = (
    "with torch.no_grad():\n    for block in model.blocks:\n        block.fc.weight.mul_(2.88)"
    + "  # long" * 20
)
REPAIR = Repair(
    changes=(*CHANGES, BIAS, TIED),
    safety=Safety.SAFE,
    reach=Reach.BLAMED,
    effects=(Effect("FAN411", "blocks.0.fc", "log10(q)", Interval(-0.3, 0.3), Interval(-2, -2)),),
    losses=(2.3, 2.4),
    verdict=Verdict.HEALTHY,
    proof=RACE,
    code=CODE,
    diff="--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-bad\n+good\n",
    elsewhere=("x.py:3: insert the code after the model is built",),
    passes=121,
    seconds=1.25,
)


def test_a_safe_repair_says_what_why_and_how() -> None:
    text = render(REPAIR)
    for said in (
        "REPAIR  safe, 5 parameters in 5 layers",
        "blocks.0.fc.weight and 2 like it: scaled by 2..4; rms 0.1 -> 0.2..0.4",
        "head.bias: reset to zeros",
        "(tied to head.weight): drawn anew, normal",
        "FAN411 log10(q) at blocks.0.fc: -2 -> within -0.3..0.3",
        "first loss 2.3 -> 2.4; verdict healthy",
        "as given it gets 0%",
        "121 passes",
    ):
        assert said in " ".join(text.split()).replace("REPAIR safe", "REPAIR  safe"), said


def test_code_keeps_its_lines_whatever_the_width() -> None:
    lines = render(REPAIR, width=60).splitlines()
    start = lines.index("Code   after the model is built:") + 1
    assert [line[4:] for line in lines[start:]] == CODE.splitlines()
    prose = lines[: start - 1]
    assert max(map(len, prose)) <= 60


def test_the_diff_is_shown_where_it_is_asked_for() -> None:
    assert "-bad" not in render(REPAIR)
    text = render(REPAIR, diff=True)
    assert "-bad\n+good" in text
    assert "x.py:3: insert the code" in text


UNPROVEN = replace(REPAIR, proof=None, repeats=(), safety=Safety.UNSAFE, reasons=("the budget is spent",))


@pytest.mark.parametrize(
    ("repair", "discarded", "said"),
    [
        (None, (), "none: there is nothing to repair"),
        (None, (REPAIR,), "none: what was tried did not win"),
        (Repair(advice=("standardize the inputs",)), (), "none: the cause is not in the initialization"),
        (Repair(advice=("normalize",)), (REPAIR,), "none: what was tried did not win"),
        (Repair(advice=("normalize",), reasons=("it is frozen",)), (), "none: it is frozen"),
        (None, (UNPROVEN,), "none: no fault was found, and no race has confirmed it"),
        (None, (UNPROVEN,), "(5 parameters): the budget is spent"),
        (
            replace(REPAIR, safety=Safety.UNSAFE, reasons=("it was not proven",)),
            (),
            "Unsafe It was not proven",
        ),
        (Repair(advice=("standardize the inputs",)), (), "Advice Standardize the inputs"),
        (None, (REPAIR,), "Tried  only what is at fault (5 parameters): trained for 60 steps"),
    ],
)
def test_what_is_not_proposed_is_said_too(repair: Any, discarded: Any, said: str) -> None:
    assert said in render(repair, discarded)


def test_names_cannot_harm_a_terminal() -> None:
    text = render(replace(REPAIR, changes=(replace(BIAS, parameter="a\x1b[2J.bias"),), code="x\x1b[2J = 1"))
    assert "\x1b" not in text


def test_colour_adds_nothing_but_colour() -> None:
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", render(REPAIR, diff=True, color=True))
    assert [line.rstrip() for line in plain.splitlines()] == render(REPAIR, diff=True).splitlines()


def test_below_the_report_and_in_json() -> None:
    trial = mlp((64,) * 4 + (10,))
    diagnosis = judge(trial).diagnosis
    text = render_repair("terminal", trial, diagnosis, REPAIR)
    assert text.index("HEALTHY") < text.index("REPAIR")
    read = json.loads(render_repair("json", trial, diagnosis, REPAIR, (REPAIR,), applied=True))
    assert read["repair"]["changes"][0]["factor"] == 2.0
    assert read["repair"]["effects"][0]["after"] is None
    assert (len(read["discarded"]), read["applied"]) == (1, True)
    assert json.loads(render_repair("json", trial, diagnosis, None))["repair"] is None
