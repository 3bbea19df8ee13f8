"""The command line: exit codes, streams, errors, and what `--help` teaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fanin import destination, exports, reports
from fanin.cli import main
from fanin.cli_options import EXITS, FORMATS
from fanin.finding import Verdict
from fanin.stores import open_store
from fanin.synthetic import mlp
from fanin.target import load_target
from fanin.trial import Trial

COMMANDS = sorted(main.commands)

TARGETS = """
import collections
Named = collections.namedtuple("Named", "model batch loss_fn")
def named(): return Named(1, 2, 3)
def mapping(): return {"model": 1, "batch": 2, "loss": 3}
def pair(): return 1, 2
def raises(): return 1 / 0
def leaves(): raise SystemExit(4)
def wants(depth, *, width): ...
def nothing(): ...
def five(): return 1, 2, 3, 4, 5
def four(): return 1, 2, 3, 4
def optimizer(): return {"model": 1, "batch": 2, "optimizer": 3}
THING = 3
"""


def fanin(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fanin", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def stored(trial: Trial, place: Path) -> str:
    writer = open_store(place).begin()
    writer.describe(trial.spec)
    for step in trial.steps:
        writer.append(step)
    writer.close()
    return str(place)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("trials")
    healthy = mlp()
    poor = mlp(overrides={"blocks.3.fc.weight": "zeros"})
    return {
        "healthy": stored(healthy, root / "healthy"),
        "poor": stored(poor, root / "poor"),
        "undecided": stored(Trial(healthy.spec), root / "undecided"),
    }


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "fanin_cli_targets.py").write_text(TARGETS)
    return tmp_path


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=["fanin", *COMMANDS])
def test_help_teaches_by_example(command: list[str]) -> None:
    result = fanin(*command, "--help")
    assert result.exit_code == 0
    assert "Examples:\n  " in result.output
    assert "..." not in result.output.partition("Commands:")[2], "a summary was cut"


def test_help_loads_nothing_heavy() -> None:
    heavy = ("numpy", "pyarrow", "rich", "torch")
    code = f"from fanin.cli import main\nimport sys\nprint(*sys.modules.keys() & set({heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_formats_are_those_of_the_reports() -> None:
    assert list(FORMATS) == list(reports.FORMATS)


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("fail_on", EXITS)
def test_the_exit_code_is_the_verdict(verdict: str, fail_on: str, trials: dict[str, str]) -> None:
    result = fanin("judge", trials[verdict], "--fail-on", fail_on)
    assert result.exit_code == EXITS[fail_on][verdict], result.output
    assert result.stdout.startswith(verdict.upper())
    assert result.stderr == ""


@pytest.mark.parametrize("verdict", Verdict)
def test_report_shows_the_same_and_exits_with_0(verdict: str, trials: dict[str, str]) -> None:
    result = fanin("report", trials[verdict])
    assert result.exit_code == 0
    assert result.stdout == fanin("judge", trials[verdict]).stdout


def test_json_goes_to_a_file_and_then_stdout_is_empty(trials: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    result = fanin("judge", trials["poor"], "--format", "json", "-o", str(place))
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(place.read_text())["verdict"] == "poor"


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("command", ["judge", "report"])
def test_what_goes_to_a_file_is_told_on_stderr_with_verdict_and_place(
    command: str, verdict: str, trials: dict[str, str], tmp_path: Path
) -> None:
    place = tmp_path / "report.md"
    said = fanin(command, trials[verdict], "-o", str(place)).stderr.splitlines()
    assert said[0].startswith(f"{verdict.upper()}  ")
    assert said[1:] == [f"report {place}"]


def test_of_a_fault_the_code_and_the_layer_are_told_too(trials: dict[str, str], tmp_path: Path) -> None:
    said = fanin("judge", trials["poor"], "-o", str(tmp_path / "report.md")).stderr
    assert said.startswith("POOR  FAN402 zero-path at blocks.3.fc")


# ── files that cannot be written ────────────────────────────────────────────────────────────────────────────

NO_WORK = ["judge", "report", "check"]
"""Commands whose argument leads nowhere: where that is not said, the work had not begun."""


def refused(command: str, *options: str) -> str:
    result = fanin(command, "nowhere.py:build", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nowhere" not in result.stderr
    for label in ("where", "got", "expected", "next"):
        assert f"\n  {label:<9} " in result.stderr
    return result.stderr


@pytest.mark.parametrize("command", NO_WORK)
def test_a_directory_that_is_missing_is_told_before_the_work_begins(command: str, tmp_path: Path) -> None:
    assert f"there is no directory {tmp_path / 'no'}" in refused(command, "-o", str(tmp_path / "no/a.json"))


def test_so_is_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    assert "got       a directory" in refused("judge", "--format", "json", "-o", str(tmp_path))


def test_so_is_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is no directory" in refused("judge", "-o", str(tmp_path / "file/a.json"))


def test_so_is_a_place_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = {str(tmp_path / "locked.json"), str(tmp_path / "dir")}
    (tmp_path / "locked.json").write_text("")
    (tmp_path / "dir").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in locked)
    for name in ("locked.json", "dir/new.json"):
        assert "no permission" in refused("judge", "-o", str(tmp_path / name))


def test_run_refuses_such_a_file_before_the_command_starts(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    result = fanin("run", "-o", str(tmp_path / "no/a.json"), "--", "touch", str(mark))
    assert (result.exit_code, mark.exists()) == (2, False)


@pytest.mark.parametrize(("name", "got"), [("a.pdf", "'.pdf'"), ("report", "a name without an end")])
@pytest.mark.parametrize("command", NO_WORK)
def test_a_name_that_stands_for_no_form_is_refused_with_those_that_do(
    command: str, name: str, got: str, tmp_path: Path
) -> None:
    said = refused(command, "-o", str(tmp_path / name))
    assert f"got       {got}" in said
    assert ".txt (terminal), .json (json), .html (html)" in said
    assert "--format" in said
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_where_the_form_is_asked_for(trials: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "report"
    assert fanin("report", trials["poor"], "-o", str(place), "--format", "terminal").exit_code == 0
    assert place.read_text().startswith("POOR")


def test_the_ends_stand_for_forms_that_there_are() -> None:
    assert set(destination.REPORTS.values()) == set(FORMATS) - {"github"}
    assert set(destination.EXPORTS.values()) < set(exports.EXPORTS)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.md", "## POOR"),
        ("a.sarif", "{"),
        ("a.xml", "<?xml"),
        ("a.txt", "POOR"),
        ("a.html", "<!doctype html>"),
    ],
)
def test_the_name_of_a_file_chooses_the_form(
    name: str, start: str, trials: dict[str, str], tmp_path: Path
) -> None:
    if name.endswith("html"):
        pytest.importorskip("altair", reason="needs the extra html")
    result = fanin("report", trials["poor"], "-o", str(tmp_path / name))
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_a_format_that_is_asked_for_wins_over_the_name(trials: dict[str, str], tmp_path: Path) -> None:
    fanin("report", trials["poor"], "--format", "json", "-o", str(tmp_path / "a.md"))
    assert json.loads((tmp_path / "a.md").read_text())["verdict"] == "poor"


def test_one_rule_with_parameters(trials: dict[str, str]) -> None:
    asked = ("judge", trials["poor"], "--rule", "PoorWeightInitialization", "--format", "json")
    strict = json.loads(fanin(*asked, "--set", "threshold=2").stdout)
    assert {f["code"] for f in strict["findings"]} == {"FAN001"}
    assert strict["findings"][0]["expected"][1] == 2.0


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["judge", "nowhere"], "nowhere"),
        (["judge", "nowhere", "--rule", "FAN1"], "run `fanin rules`"),
        (["explain", "FAN999"], "run `fanin rules`"),
        (["explain", "fan-101"], "run `fanin rules`"),
        (["explain", "thin-evidense"], "did you mean thin-evidence?"),
        (["judge", "nowhere", "--rule", "FAN001", "--set", "treshold=1"], "did you mean threshold?"),
        (["judge", "nowhere", "--rule", "FAN001", "--set", "threshold"], "key=value"),
        (["judge", "nowhere", "--rule", "FAN001", "--set", "threshold=many"], "threshold"),
        (["judge", "nowhere", "--set", "threshold=1"], "--rule"),
        (["judge"], "Missing argument 'TRIAL'"),
        (["explain", "gain_too_smal"], "did you mean gain_too_small?"),
        (["explain", "shrinking-signl"], "did you mean shrinking-signal?"),
        (["check", "no_colon"], "add a colon"),
        (["check", "fanin_cli_target:pair"], "did you mean fanin_cli_targets?"),
        (["check", "fanin_cli_target.py:pair"], "did you mean fanin_cli_targets.py?"),
        (["check", "fanin_cli_targets.py:paar"], "did you mean 'pair'?"),
        (["check", "fanin_cli_targets:THING"], "'THING' cannot be called"),
        (["check", "fanin_cli_targets:wants"], "wants(depth, width)"),
        (["check", "fanin_cli_targets:raises"], "ZeroDivisionError: division by zero"),
        (["check", "fanin_cli_targets.py:raises"], "fanin_cli_targets.py:7"),
        (["check", "fanin_cli_targets:leaves"], "SystemExit: 4"),
        (["check", "fanin_cli_targets:nothing"], "got       None"),
        (["check", "fanin_cli_targets:five"], "a tuple of 5: int, int, int, int, int"),
        (["check", "fanin_cli_targets:named"], "this is not a model that fanin knows"),
        (["check", "fanin_cli_targets:four"], "this is not a model that fanin knows"),
        (["check", "fanin_cli_targets:mapping"], "this is not a model that fanin knows"),
    ],
)
def test_what_cannot_be_is_said_on_stderr_with_exit_code_2(
    arguments: list[str], said: str, targets: Path
) -> None:
    result = fanin(*arguments)
    assert said in result.stderr
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("code", ["FAN999", "FAN1", "FAN10", "fan4011"])
def test_no_code_is_suggested_for_another(code: str) -> None:
    assert "did you mean" not in fanin("explain", code).stderr


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("x = 1\nimport fanin_there_is_no_such_module\n", "ModuleNotFoundError: No module named", 2),
        ("x = 1\ny = (\n", "SyntaxError: '(' was never closed", 2),
        ("def f(): raise OSError('disk')\n\nf()\n", "OSError: disk", 1),
    ],
)
@pytest.mark.parametrize("place", ["fanin_cli_broken.py", "fanin_cli_broken"])
def test_a_module_that_raises_is_told_by_its_line(
    place: str, text: str, said: str, line: int, targets: Path
) -> None:
    (targets / "fanin_cli_broken.py").write_text(text)
    result = fanin("check", f"{place}:build")
    assert result.exit_code == 2
    assert said in result.stderr
    assert f"fanin_cli_broken.py:{line}\n" in result.stderr


def test_fanin_debug_shows_the_traceback(targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANIN_DEBUG", "1")
    result = fanin("check", "fanin_cli_targets:raises")
    assert "Traceback" in result.stderr
    assert result.exit_code == 2


def test_a_fault_of_ours_never_reads_as_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanin.examine.judge", lambda *_, **__: {}["a fault of ours"])
    result = fanin("judge", "anything")
    assert result.exit_code == 2
    assert "please report it" in result.stderr


def test_an_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fanin.examine.judge", interrupt)
    assert fanin("judge", "anything").exit_code == 130


def test_what_the_target_prints_is_not_the_result(targets: Path) -> None:
    (targets / "fanin_cli_chatty.py").write_text(
        "print('hello')\ndef build(): print('building'); return 1, 2"
    )
    result = fanin("check", "fanin_cli_chatty.py:build")
    assert result.stdout == ""
    assert result.stderr.startswith("hello\nbuilding\nerror: ")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("pair", (1, 2, None, None)),
        ("named", (1, 2, 3, None)),
        ("mapping", (1, 2, 3, None)),
        ("four", (1, 2, 3, 4)),
        ("optimizer", (1, 2, None, 3)),
    ],
)
def test_a_target_may_come_with_its_optimizer(name: str, parts: tuple[Any, ...], targets: Path) -> None:
    made = load_target(f"fanin_cli_targets:{name}")
    assert (*made, made.optimizer) == parts
    assert (made.model, made.batch, made.loss_fn, made.optimizer) == parts


# ── pages and colours ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["FAN001", "fan001", "poor-weight-initialization", "PoorWeightInitialization"]
)
def test_a_rule_is_explained_by_any_of_its_names(name: str) -> None:
    result = fanin("explain", name)
    assert result.stdout.startswith("# FAN001 poor-weight-initialization\n")
    assert "When it is wrong" in result.stdout


def test_a_cause_is_explained() -> None:
    assert "he_normal for ReLU" in fanin("explain", "gain_too_small").stdout
    assert "It does not lie in the initialization." in fanin("explain", "non-finite-input").stdout


def test_rules_are_listed_with_one_line_each() -> None:
    lines = fanin("rules").stdout.splitlines()
    assert lines == sorted(lines)
    assert all(line.startswith("FAN") for line in lines)


@pytest.mark.parametrize(
    ("options", "environment", "colored"),
    [
        ([], {}, False),
        ([], {"FORCE_COLOR": "1"}, True),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (["--color"], {"NO_COLOR": "1"}, True),
        (["--no-color"], {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colours_follow_the_option_then_the_environment(
    options: list[str], environment: dict[str, str], colored: bool, trials: dict[str, str]
) -> None:
    unset = {"NO_COLOR": "", "FORCE_COLOR": ""}
    result = CliRunner().invoke(main, ["judge", trials["poor"], *options], env=unset | environment)
    assert ("\x1b[" in result.stdout) == colored


def test_a_stream_that_cannot_encode_a_character_gets_another() -> None:
    done = process("explain", "FAN001", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_is_no_verdict() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fanin", "explain", "FAN001"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
