"""The report for machines: strict, complete, and true to the diagnosis."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fanin.finding import Verdict
from fanin.race import Heat, Race
from fanin.reports import render
from reports.trials import CASES, HOSTILE

KEYS = [
    "schema_version", "tool", "verdict", "confidence", "decided_by", "not_looked_at", "why", "next", "findings",
    "missing", "documented", "layers", "coverage", "steps", "losses", "race", "environment",
]  # fmt: skip


def report(case: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads(render("json", *CASES[case]()), parse_constant=refuse)
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_report_is_strict_ascii_and_has_all_fields(case: str) -> None:
    assert list(report(case)) == KEYS
    assert render("json", *CASES[case]()).isascii()


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_the_diagnosis_says(case: str) -> None:
    _, diagnosis = CASES[case]()
    found = report(case)
    assert found["verdict"] == diagnosis.verdict
    assert [f["layer"] for f in found["findings"]] == [f.layer for f in diagnosis.findings]
    assert [m["code"] for m in found["missing"]] == [m.code for m in diagnosis.missing]


def test_a_finding_holds_all_that_is_known_of_it() -> None:
    first, symptom = report("cliff")["findings"]
    assert first == {
        "code": "FAN101",
        "name": "shrinking-signal",
        "cause": "gain_too_small",
        "is_initialization": True,
        "layer": "blocks.7.fc1",
        "layers": ["blocks.7.fc1"],
        "severity": "fault",
        "standing": "origin",
        "scope": "layer",
        "step": 0,
        "quantity": "Var[out]/Var[in]",
        "measured": [0.0021, 0.0021],
        "expected": [0.4, 2.5],
        "message": "Weight std is 0.0044, he_normal draws 0.088.",
        "tensor": None,
        "source": {"file": "/home/me/model.py", "line": 41},
        "workers": [0],
        "symptom_of": None,
        "downstream": [f"blocks.{i}.fc1" for i in range(8, 17)],
    }
    assert symptom["symptom_of"] == 0


def test_it_says_how_sure_it_is_what_settled_it_and_what_was_left_out() -> None:
    found, unknown = report("cliff"), report("empty")
    assert (found["confidence"], found["decided_by"]) == (0.953, "one batch")
    assert found["not_looked_at"] == [
        "five steps of training (give check the optimizer)",
        "a race (--race)",
    ]
    assert (unknown["confidence"], unknown["decided_by"], unknown["not_looked_at"]) == (0.0, None, [])


def test_a_race_is_told_by_how_it_ended() -> None:
    trial, diagnosis = CASES["cliff"]()
    losses = (2.0, *[1.0] * 7)
    ran = Race((Heat(1e-3, (2.0,) * 8, losses),), uninformed=2.0, batches=4)
    found = json.loads(render("json", replace(trial, race=ran), diagnosis))["race"]
    assert (found["outcome"], found["steps"], found["learning_rates"]) == ("poor", 8, [1e-3])
    assert (found["progress"], found["reference_progress"], found["uninformed_loss"]) == (0.0, 0.5, 2.0)
    assert report("cliff")["race"] is None


def test_values_that_json_lacks_are_strings() -> None:
    found = report("broken")
    assert [layer["output_variance"] for layer in found["layers"]] == pytest.approx(
        [1.0, 0.0, "Infinity", "NaN", "NaN"]
    )
    assert found["findings"][0]["measured"] == ["NaN", "NaN"]
    assert report("cliff")["documented"]["findings"][0]["expected"] == ["-Infinity", 10.0]


@pytest.mark.parametrize(
    ("case", "verdict", "status"),
    [
        ("cliff", Verdict.POOR, "IssuesFound"),
        ("single", Verdict.HEALTHY, "NoIssuesFound"),
        ("undecided", Verdict.UNDECIDED, "Undecided"),
    ],
)
def test_the_documented_rule_answers_in_its_own_words(case: str, verdict: Verdict, status: str) -> None:
    documented = report(case)["documented"]
    assert (documented["verdict"], documented["status"]) == (verdict, status)


def test_a_rule_that_was_not_asked_says_nothing() -> None:
    assert report("broken")["documented"] is None


def test_layers_have_their_parameters_and_readings() -> None:
    layer = report("cliff")["layers"][7]
    assert layer["parameters"][0]["fan_in"] == layer["parameters"][0]["fan_out"] == 256
    assert layer["output_variance"] == pytest.approx(3.0e-3)
    assert layer["gradient_spread"] == pytest.approx(4.6e-3, rel=0.05)


def test_coverage_tells_what_never_ran_and_where_the_trial_broke_off() -> None:
    assert report("deep")["coverage"]["never_ran"] == ["auxiliary.head"]
    assert report("undecided")["coverage"]["complete"] is False


def test_names_come_back_as_they_were() -> None:
    assert [layer["path"] for layer in report("hostile")["layers"]] == list(HOSTILE)
