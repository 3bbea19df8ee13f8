"""One call each: check a model, judge a trial. Both end in a Report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from inspect import isroutine
from pathlib import Path
from typing import Any

from fanin import judgement, reports
from fanin.adapters import adapter_for, recording_sources
from fanin.adapters.base import Adapter
from fanin.capture import about
from fanin.diagnosis import diagnose
from fanin.errors import UsageError
from fanin.finding import Diagnosis, Finding, Verdict
from fanin.race import RaceOptions
from fanin.rule import Rule
from fanin.stores import open_store
from fanin.trial import Trial


@dataclass(frozen=True, slots=True)
class Report:
    """A trial and what was made of it. `print(report)` shows it.

    Attributes:
        trial: What was seen.
        diagnosis: The verdict with its causes.
    """

    trial: Trial
    diagnosis: Diagnosis

    @property
    def verdict(self) -> Verdict:
        """healthy, poor or undecided."""
        return self.diagnosis.verdict

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, each origin before its symptoms."""
        return self.diagnosis.findings

    def render(self, form: str = "terminal", *, width: int = 80, color: bool = False) -> str:
        """The report as text, in a format of `fanin.reports`."""
        return reports.render(form, self.trial, self.diagnosis, width=width, color=color)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page that opens from anywhere; needs the extra `html`.

        Raises:
            UsageError: The extra is not installed.
        """
        Path(path).write_text(self.render("html"), encoding="utf-8")

    def __str__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        from fanin.reports import notebook

        return notebook.of_report(self.trial, self.diagnosis)


def check(
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    optimizer: Any = None,
    race: bool | RaceOptions = False,
    rules: Iterable[Rule] | None = None,
) -> Report:
    """Judge a model before any training: one forward and backward pass on the model as it is, one on a sound
    re-draw of it, and with an optimizer five of its steps and another look.

    Leaves no trace: parameters, buffers, gradients, modes, hooks, attributes and random state are afterwards what
    they were, also after an exception.

    Args:
        model: A model of a known framework. A function that builds one is better still: it is called, and findings
            point at the lines that drew the weights.
        batch: (inputs, targets), with several inputs ((first, second), targets); a mapping of named inputs, with
            the target under `labels` or `target`; or an iterable of these, of which the first is taken.
        loss_fn: loss_fn(output, target), a scalar; None when the model returns its own loss.
        optimizer: The optimizer that will train the model, or a function of parameters that makes one. What heals
            in its first steps (zero heads, zero branches) is then told from what does not. Its state stays as it
            is, and so do the parameters.
        race: Whether to train copies of the model against copies of its sound re-draw for some steps, and how (see
            `fanin.race.RaceOptions`). Needs several batches, or a large one.
        rules: Which rules to ask; None for all.

    Raises:
        BatchError: The model cannot run the batch, or a race has too few of them.
        LossError: The loss cannot be computed or differentiated.
        UsageError: The model is of no known framework, or the optimizer is not one of this model.
    """
    asked = tuple(judgement.load_rules() if rules is None else rules)
    model, adapter = built(model)
    seen = adapter.examine(model, batch, loss_fn, judgement.needs(asked), optimizer)
    trial = replace(seen, about={**about(seen.spec.framework), **seen.about})
    if race:
        options = race if isinstance(race, RaceOptions) else RaceOptions()
        trial = replace(trial, race=adapter.race(model, batch, loss_fn, trial.spec, options, optimizer))
    return judge(trial, rules=asked)


def raced(
    report: Report,
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    options: RaceOptions | None = None,
    optimizer: Any = None,
    rules: Iterable[Rule] | None = None,
) -> Report:
    """A report of `check` with the race that was left out, judged anew: the arguments are those of `check`.

    Raises:
        BatchError: There are too few batches.
        LossError: The loss cannot be computed.
        UsageError: The model cannot be copied, or the optimizer is not one of this model.
    """
    spec = report.trial.spec
    ran = adapter_for(model).race(model, batch, loss_fn, spec, options or RaceOptions(), optimizer)
    return judge(replace(report.trial, race=ran), rules=rules)


def judge(trial: Trial | str | os.PathLike[str], *, rules: Iterable[Rule] | None = None) -> Report:
    """Judge a trial, now or later, here or elsewhere.

    Args:
        trial: A trial, or where it is kept; also one of SageMaker Debugger, local or at `s3://`.
        rules: Which rules to ask; None for all. The documented rule decides only when it is asked alone.

    Raises:
        TrialNotFoundError: There is nothing.
        TrialFormatError: It is not a trial that this version can read.
        RuleParameterError: A rule's parameters cannot apply to this trial.
    """
    seen = trial if isinstance(trial, Trial) else load_trial(trial)
    asked = tuple(judgement.load_rules() if rules is None else rules)
    for rule in asked:
        rule.require_applicable(seen)
    return Report(seen, diagnose(seen, judgement.run(asked, seen)))


def load_trial(uri: str | os.PathLike[str]) -> Trial:
    """Read a trial.

    Raises:
        TrialNotFoundError: There is nothing.
        TrialFormatError: It is not a trial that this version can read.
    """
    return open_store(uri).load()


def built(model: Any) -> tuple[Any, Adapter]:
    """The model and its adapter; a function is called first, while the lines that write parameters are noted.

    Raises:
        UsageError: It is, or the function makes, no model of a known framework.
    """
    try:
        return model, adapter_for(model)
    except UsageError:
        if not isroutine(model) and not isinstance(model, partial):
            raise
    return _build(model)


def _build(function: Callable[[], Any]) -> tuple[Any, Adapter]:
    with recording_sources():
        model = function()
    return model, adapter_for(model)
