"""Reports for programs: each against its schema or its grammar, and true to the diagnosis."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

from fanin.destination import format_of
from fanin.finding import Diagnosis, Severity
from fanin.reports import FORMATS, render, render_repair
from fanin.reports.json import schema
from fanin.reports.markdown import _code as as_code
from fanin.reports.markdown import plain
from fanin.trial import SourceLine, Trial
from reports.deep import deep
from reports.test_repair import REPAIR
from reports.trials import CASES, HOSTILE

SARIF = json.loads((Path(__file__).parent / "schemas" / "sarif-2.1.0.json").read_text(encoding="utf-8"))

every_case = pytest.mark.parametrize("case", CASES)


def errors(value: Any, wanted: dict[str, Any]) -> list[str]:
    """Where a value breaks a schema."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'fanin[dev]'")
    found = jsonschema.Draft202012Validator(wanted).iter_errors(value)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def closed(wanted: Any) -> Any:
    """The same schema without room for fields that it does not name."""
    if isinstance(wanted, list):
        return [closed(item) for item in wanted]
    if not isinstance(wanted, dict):
        return wanted
    made = {key: closed(value) for key, value in wanted.items()}
    return (
        made | {"additionalProperties": False}
        if "properties" in made and made.get("type") == "object"
        else made
    )


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────


@every_case
def test_json_follows_its_published_schema_and_has_no_field_beside_it(case: str) -> None:
    assert errors(json.loads(render("json", *CASES[case]())), closed(schema())) == []


@pytest.mark.parametrize("repair", [REPAIR, None])
def test_json_with_a_repair_follows_it_too(repair: Any) -> None:
    text = render_repair("json", *CASES["cliff"](), repair, [REPAIR])
    assert errors(json.loads(text), closed(schema())) == []


def test_the_schema_notices_what_is_missing_or_renamed() -> None:
    found = json.loads(render("json", *CASES["cliff"]()))
    found["findings"][0]["colour"] = found["findings"][0].pop("layer")
    assert any("'layer' is a required property" in error for error in errors(found, schema()))
    assert any("'colour' was unexpected" in error for error in errors(found, closed(schema())))


# ── SARIF ───────────────────────────────────────────────────────────────────────────────────────────────────


def sarif(case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(render("sarif", *CASES[case]()))
    return found


@every_case
def test_sarif_follows_its_schema(case: str) -> None:
    assert errors(sarif(case), SARIF) == []


def test_a_broken_log_would_be_noticed() -> None:
    found = sarif("cliff")
    found["runs"][0]["results"][0]["level"] = "fatal"
    assert errors(found, SARIF)


def test_sarif_describes_only_the_rules_that_fired_and_points_at_the_line() -> None:
    run = sarif("cliff")["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["FAN101", "FAN201"]
    first = run["results"][0]
    place = first["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "file:///home/me/model.py"
    assert place["physicalLocation"]["region"] == {"startLine": 41}
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "blocks.7.fc1"
    assert (first["level"], run["properties"]["verdict"]) == ("error", "poor")


def test_files_of_the_repository_are_named_from_its_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trial, diagnosis = CASES["cliff"]()
    origin = diagnosis.origins[0]
    moved = replace(origin.finding, source=SourceLine(str(tmp_path / "my nets" / "a.py"), 3))
    made = replace(diagnosis, origins=(replace(origin, finding=moved),))
    found = json.loads(render("sarif", trial, made))["runs"][0]["results"][0]["locations"][0]
    assert found["physicalLocation"]["artifactLocation"]["uri"] == "my%20nets/a.py"
    assert render("github", trial, made).startswith(
        "::error file=my nets/a.py,line=3,title=FAN101 shrinking-signal::"
    )


def test_a_result_is_the_same_when_its_numbers_and_lines_move() -> None:
    trial, diagnosis = CASES["cliff"]()
    origin = diagnosis.origins[0]
    moved = replace(origin.finding, source=SourceLine("/elsewhere.py", 7), message="Other numbers.")
    both = [
        json.loads(render("sarif", trial, d))
        for d in (diagnosis, replace(diagnosis, origins=(replace(origin, finding=moved),)))
    ]
    prints = [log["runs"][0]["results"][0]["partialFingerprints"] for log in both]
    assert prints[0] == prints[1]


# ── JUnit ───────────────────────────────────────────────────────────────────────────────────────────────────


def junit(case: str) -> ElementTree.Element:
    return ElementTree.fromstring(render("junit", *CASES[case]()))


@every_case
def test_junit_is_xml_whose_counts_are_right(case: str) -> None:
    suite = junit(case)[0]
    for kind, name in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        assert int(suite.attrib[kind]) == len(suite.findall(f".//{name}"))


def test_in_junit_the_verdict_and_the_layers_at_fault_fail() -> None:
    failed = {
        test.attrib["name"]: test.find("failure").attrib["type"]
        for test in junit("cliff").iter("testcase")
        if test.find("failure") is not None
    }
    assert failed == {"MLP": "poor", "blocks.7.fc1": "FAN101"}
    assert len(list(junit("cliff").iter("testcase"))) == 18


def test_in_junit_an_undecided_verdict_is_an_error_and_a_healthy_one_passes() -> None:
    assert junit("undecided").find(".//error").attrib["type"] == "undecided"
    assert [e.tag for e in junit("healthy").iter() if e.tag in ("failure", "error")] == []


# ── GitHub ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_annotations_are_one_line_each_with_file_and_line() -> None:
    lines = render("github", *CASES["cliff"]()).splitlines()
    assert re.match(
        r"::error file=/home/me/model\.py,line=41,title=FAN101 shrinking-signal::shrinking-signal at ",
        lines[0],
    )
    assert len(lines) == 3


def test_a_note_is_a_notice() -> None:
    trial, diagnosis = deep(10, 1)
    assert diagnosis.notes[0].severity is Severity.NOTE
    assert [line.split(" ")[0] for line in render("github", trial, diagnosis).splitlines()] == [
        "::error",
        "::warning",
        "::notice",
        "fanin:",
    ]


STANDINGS = {"origin": ("error", "error"), "symptom": ("warning", "warning"), "note": ("note", "notice")}
"""What the verdict makes of a finding -> level in SARIF, command in GitHub."""


def suspected() -> tuple[Trial, Diagnosis]:
    """A cause that is only suspect in itself, a symptom that is a fault in itself, and a note."""
    trial, diagnosis = deep(10, 1)
    origin = diagnosis.origins[0]
    cause = replace(origin.finding, severity=Severity.SUSPECT)
    symptoms = tuple(replace(symptom, severity=Severity.FAULT) for symptom in origin.symptoms)
    made = replace(origin, finding=cause, symptoms=symptoms)
    clued = replace(made, finding=replace(cause, severity=Severity.CLUE, code="FAN404"))
    return trial, replace(diagnosis, origins=(made, clued))


def test_the_cause_is_an_error_and_its_symptoms_are_warnings_whatever_they_are_in_themselves() -> None:
    trial, diagnosis = suspected()
    found = json.loads(render("json", trial, diagnosis))["findings"]
    standings = [finding["standing"] for finding in found]
    assert set(standings) == set(STANDINGS)
    assert errors(json.loads(render("json", trial, diagnosis)), closed(schema())) == []
    results = json.loads(render("sarif", trial, diagnosis))["runs"][0]["results"]
    assert [result["level"] for result in results] == [STANDINGS[s][0] for s in standings]
    lines = render("github", trial, diagnosis).splitlines()[: len(found)]
    assert [line.split(" ")[0] for line in lines] == [f"::{STANDINGS[s][1]}" for s in standings]


def test_markdown_says_the_same_of_each_finding_as_json() -> None:
    trial, diagnosis = suspected()
    words = {"origin": "fault", "symptom": "symptom", "note": "note"}
    rows = re.findall(r"^\| (\w+) \| \*\*(FAN\d+)", render("markdown", trial, diagnosis), re.MULTILINE)
    found = json.loads(render("json", trial, diagnosis))["findings"]
    assert rows == [(words[finding["standing"]], finding["code"]) for finding in found]


def test_hostile_names_make_no_command_of_their_own() -> None:
    path = "a\n::error title=owned::x%0A::set-output name=b::c"
    trial, diagnosis = deep(3, 1, paths=("in", path, "out"))
    for line in render("github", trial, diagnosis).splitlines():
        assert line.startswith(("::error file=", "::warning file=", "::notice file=", "fanin: "))
    assert "%250A" in render("github", trial, diagnosis)


# ── Markdown ────────────────────────────────────────────────────────────────────────────────────────────────


def test_markdown_says_verdict_reason_and_place() -> None:
    text = render("markdown", *CASES["cliff"]())
    assert text.startswith("## POOR: FAN101 shrinking-signal at blocks.7.fc1 (Linear 256->256)\n")
    assert "| fault | **FAN101** shrinking-signal |" in text
    assert "| `model.py:41` |" in text
    assert "What a code means: `fanin explain FAN101`, `fanin explain FAN201`" in text


def test_markdown_names_the_command_for_a_page_and_leaves_the_page_out() -> None:
    text = render("markdown", *deep(9, 1))
    assert "`fanin explain FAN" in text
    assert "When it is wrong" not in text
    assert len(text) < 4000


@every_case
def test_markdown_of_ordinary_names_reads_without_entities(case: str) -> None:
    if case != "hostile":
        assert re.findall(r"&#\d+;", render("markdown", *CASES[case]())) == []


ORDINARY = [
    "blocks.0.fc_in.weight (Linear 256->256): fan_in = 3",
    "log10(fan_in E[w^2] / gain^2) = -0.48, at most 10",
    "Var[out]/Var[in] of conv.3x3",
    "a 'quoted' \"word\", a + b - c! {x}",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_punctuation_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


PIECES = [
    *"\\`*_{}[]<>()#+!|~&@$:\"'-=.;/ a1",
    "&lt;",
    "](",
    "<b>",
    "![",
    "**",
    "__",
    "``",
    "www.",
    "http://",
    "a_b",
]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_text_it_stays_text_within_its_cell(seed: int) -> None:
    parser = (
        pytest.importorskip("markdown_it", reason="rich brings it")
        .MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
    )
    random = Random(seed)
    for _ in range(400):
        text = "x" + "".join(random.choices(PIECES, k=random.randint(1, 12))) + "x"
        page = f"| a | b |\n|---|---|\n| {plain(text)} | {as_code(text)} |\n"
        cells = [token for token in parser.parse(page) if token.type == "inline"]
        assert len(cells) == 4, text
        assert {c.type for c in cells[2].children} <= {"text", "text_special"}, text
        assert "".join(c.content for c in cells[2].children) == text
        kinds = [c.type for c in cells[3].children]
        shown = "".join(c.content for c in cells[3].children if c.type != "html_inline")
        assert (shown, kinds.count("code_inline") + kinds.count("html_inline") / 2) == (text, 1)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("@everyone", "&#64;everyone"),
        ("#1", "&#35;1"),
        ("$x$", "&#36;x&#36;"),
        (":smile:", "&#58;smile:"),
        ("http://e.example", "http&#58;//e.example"),
        ("WWW.e.example", "WWW&#46;e.example"),
        ("[x](y)", "[x]&#40;y)"),
        ("_x_", "&#95;x_"),
    ],
)
def test_what_means_something_to_github_is_written_as_an_entity(text: str, made: str) -> None:
    assert plain(text) == made


@pytest.mark.parametrize(
    "name",
    [*HOSTILE, "</details><script>x</script>", "a | b | c", "![x](http://e.example)", "@everyone #1 `x`"],
)
def test_hostile_names_make_no_markup(name: str) -> None:
    markdown = (
        pytest.importorskip("markdown_it", reason="rich brings it")
        .MarkdownIt("commonmark", {"html": True})
        .enable("table")
    )
    plain, hostile = (
        markdown.render(render("markdown", *deep(3, 1, paths=("in", path, "out"))))
        for path in ("middle", name)
    )
    tags = [re.findall(r"</?([a-z][a-z0-9]*)", text) for text in (plain, hostile)]
    assert tags[0] == tags[1]


def test_markdown_with_a_repair_shows_the_code_to_paste() -> None:
    assert "block.fc.weight.mul_(2.88)" in render_repair("markdown", *CASES["cliff"](), REPAIR)


# ── by the name of the file ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("a.html", "html"), ("a.HTM", "html"), ("a.json", "json"), ("a.sarif", "sarif"), ("a.sarif.json", "sarif"),
        ("a.xml", "junit"), ("a.md", "markdown"), ("a.txt", "terminal"),
    ],
)  # fmt: skip
def test_a_file_s_name_stands_for_a_format(path: str, form: str) -> None:
    assert format_of(path) == form
    assert form in FORMATS
