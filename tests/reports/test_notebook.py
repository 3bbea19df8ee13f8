"""What a notebook shows, with a kernel that runs it and without."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import replace

import pytest

from fanin.examine import Report, judge
from fanin.repairs import RepairReport
from fanin.synthetic import mlp
from reports.deep import deep
from reports.test_repair import REPAIR
from reports.trials import CASES

pytest.importorskip("altair", reason="needs the extra html")

COMPACT = 120_000
"""Bytes of a display: a notebook holds many."""

NOTEBOOK = """
import fanin
from fanin.synthetic import mlp, normal
trial = mlp(init=normal(0.02), widths=(32,) * 20 + (10,))
trial
#%%
report = fanin.judge(trial)
report
#%%
print(report)
"""


def pictures(html: str) -> list[str]:
    """The SVG documents in a display."""
    return [b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]


@pytest.mark.parametrize("count", [10, 500])
def test_a_report_shows_its_verdict_and_the_chart_that_matters(count: int) -> None:
    trial, diagnosis = deep(count, 2)
    html = Report(trial, diagnosis)._repr_html_()
    assert "POOR" in html
    assert "FAN101 shrinking-signal at decoder.layers." in html
    assert len(pictures(html)) == 1
    assert len(html) < COMPACT


def test_a_trial_shows_what_was_seen_without_a_verdict() -> None:
    html = deep(10, 2)[0]._repr_html_()
    assert "10 of 10 layers ran, 2 steps, 1 rank" in html
    assert len(pictures(html)) == 1
    assert "UNDECIDED" not in html


def test_a_repair_shows_before_and_after_and_the_code() -> None:
    trial, diagnosis = deep(10, 1)
    after = replace(trial, steps=trial.steps[:1])
    html = RepairReport(None, Report(trial, diagnosis), REPAIR, Report(after, diagnosis))._repr_html_()
    assert "block.fc.weight.mul_(2.88)" in html
    assert "repaired" in pictures(html)[0]


@pytest.mark.parametrize("case", ["hostile", "undecided", "empty"])
def test_every_report_has_a_display_without_scripts_or_markup_of_others(case: str) -> None:
    html = Report(*CASES[case]())._repr_html_()
    assert set(re.findall(r"<([a-z]+)", html)) <= {"div", "b", "code", "span", "img", "pre"}
    assert html.isprintable()


def test_without_a_front_end_a_report_is_text() -> None:
    report = judge(mlp())
    assert str(report).startswith("HEALTHY")
    assert "<div" not in repr(report)


def test_a_notebook_runs_and_keeps_what_it_shows() -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient: pip install 'fanin[dev]'")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'fanin[dev]'")
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install 'fanin[dev]'")
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in NOTEBOOK.split("#%%")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbclient.NotebookClient(notebook, timeout=100).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.outputs if "data" in output]
    assert len(shown) == 2
    assert all("text/html" in data and "text/plain" in data for data in shown)
    assert "POOR" in shown[1]["text/html"]
