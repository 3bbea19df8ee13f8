"""The report as JUnit XML, which every CI reads: one test for the verdict, and one for each layer that was judged.

A layer fails where a fault lies in it, and an undecided verdict is an error: never a silent pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from fanin.finding import Diagnosis, Finding, Verdict
from fanin.reports import outline
from fanin.reports.base import fired
from fanin.reports.sarif import message
from fanin.reports.typeset import escape
from fanin.trial import LayerSpec, Trial

CLASS = "fanin.initialization"


def render(trial: Trial, diagnosis: Diagnosis, *, width: int = 80, color: bool = False) -> str:
    """The report as XML; width and colour have no meaning here."""
    suite = ElementTree.Element("testsuite", name="fanin")
    suite.extend([_verdict(trial, diagnosis), *_layers(trial, diagnosis)])
    for kind, name in (
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        suite.set(kind, str(sum(1 for _ in suite.iter(name))))
    suites = ElementTree.Element("testsuites", name="fanin")
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


def _verdict(trial: Trial, diagnosis: Diagnosis) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=CLASS, name=escape(trial.spec.name or "model"))
    if diagnosis.verdict is not Verdict.HEALTHY:
        kind = "failure" if diagnosis.verdict is Verdict.POOR else "error"
        told = ElementTree.SubElement(case, kind, type=diagnosis.verdict.value)
        told.set("message", escape(outline.headline(trial, diagnosis)))
        told.text = "\n".join(escape(line) for line in _told(trial, diagnosis))
    if diagnosis.notes:
        ElementTree.SubElement(case, "system-out").text = "\n".join(
            message(trial, note) for note in diagnosis.notes
        )
    return case


def _told(trial: Trial, diagnosis: Diagnosis) -> Iterator[str]:
    yield outline.why(trial, diagnosis)
    if diagnosis.next_step:
        yield f"Next: {outline.sentence(diagnosis.next_step)}"
    yield from (f"{missing.code}: {outline.lack(trial, missing)}" for missing in diagnosis.missing)


def _layers(trial: Trial, diagnosis: Diagnosis) -> Iterator[ElementTree.Element]:
    """The layers with weights that ran, and whatever else is blamed."""
    at_fault: dict[str, list[Finding]] = {}
    for origin in diagnosis.origins:
        for path in dict.fromkeys((origin.finding.layer, *origin.finding.layers)):
            at_fault.setdefault(path, []).append(origin.finding)
    ran, weighty = set(fired(trial)), set(trial.spec.weight_layers)
    for layer in trial.spec.layers:
        if layer.path in at_fault or layer in ran & weighty:
            yield _layer(trial, layer.path, layer, at_fault.pop(layer.path, []))
    for path, findings in at_fault.items():
        yield _layer(trial, path or "the model", None, findings)


def _layer(trial: Trial, path: str, layer: LayerSpec | None, findings: list[Finding]) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"{CLASS}.layers", name=escape(path))
    source = next((p.source for p in layer.parameters if p.source), None) if layer else None
    if source:
        case.set("file", escape(source.file))
        case.set("line", str(source.line))
    for finding in findings:
        told = ElementTree.SubElement(
            case, "failure", type=finding.code, message=f"{finding.code} {finding.name}"
        )
        told.text = message(trial, finding)
    return case
