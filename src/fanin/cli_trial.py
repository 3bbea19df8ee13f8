"""`fanin trial`: the trials that are kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fanin.destination import EXPORTS, format_of, require_new

if TYPE_CHECKING:
    from fanin.errors import FaninError
    from fanin.shelf import Kept
    from fanin.trial import Step, Trial

FORMS = ("csv", "json", "tensorboard")
"""As in `fanin.exports`, which is not imported for `--help`; a test compares them."""


@click.group(short_help="List, show, export, verify and remove trials.")
def trial() -> None:
    """List, show, export, verify and remove the trials that are kept.

    \b
    Examples:
      fanin trial ls                       those under runs/
      fanin trial show runs/exp1
      fanin trial export runs/exp1 -o exp1.csv
    """


@trial.command(short_help="List trials with their verdicts.")
@click.argument("place", default="runs")
@click.option("--no-verdict", is_flag=True, help="Do not judge them, which is faster.")
def ls(place: str, no_verdict: bool) -> None:
    """List the trials under a directory, with their verdicts.

    \b
    Examples:
      fanin trial ls
      fanin trial ls /data/experiments --no-verdict
    """
    from fanin.output import Output
    from fanin.shelf import kept
    from fanin.stores.place import shown

    found = [_line(one, no_verdict) for one in kept(place)]
    out = Output()
    out.write(out.table(found) if found else f"no trials under {shown(place)}")


def _line(one: Kept, no_verdict: bool) -> tuple[str, str, str]:
    from fanin.examine import judge
    from fanin.reports.typeset import counted, escape

    if one.trial is None:
        return escape(one.uri), "cannot be read", escape(_reason(one.error))
    diagnosis = None if no_verdict else judge(one.trial).diagnosis
    said = diagnosis.verdict.value if diagnosis else ""
    documented = diagnosis.documented if diagnosis and one.trial.is_foreign else None
    state = "" if one.trial.complete else ", not closed"
    rule = f", SageMaker's rule: {documented.value}" if documented else ""
    return (
        escape(one.uri),
        said,
        f"{escape(one.trial.spec.name)}, {counted(len(one.trial.steps), 'step')}{rule}{state}",
    )


def _reason(error: FaninError | None) -> str:
    if error is None:
        return ""
    return error.what + (f": {error.got}" if error.got else "")


@trial.command(short_help="Show what a trial holds.")
@click.argument("uri")
def show(uri: str) -> None:
    """Show what a trial holds: steps, tensors by role, and what of the model was seen.

    \b
    Examples:
      fanin trial show runs/exp1
      fanin trial show s3://bucket/job/debug-output
    """
    from fanin.examine import load_trial
    from fanin.output import Output

    out = Output()
    out.write(out.table(_contents(load_trial(uri))))


def _contents(found: Trial) -> list[tuple[str, str, str]]:
    from fanin.reports.typeset import counted, escape

    spec = found.spec
    ran = sum(1 for layer in spec.layers if layer.calls)
    rows = [
        ("model", escape(spec.name), f"{escape(spec.framework)}; {ran} of {len(spec.layers)} layers ran"),
        ("state", "closed" if found.complete else "not closed", counted(len(found.workers) or 1, "worker")),
    ]
    for mode in dict.fromkeys(step.mode for step in found.steps):
        steps = [step for step in found.steps if step.mode is mode]
        rows.append((mode.value, counted(len(steps), "step"), f"{steps[0].index} to {steps[-1].index}"))
        rows += _roles(steps)
    return rows + [("note", "", escape(note)) for note in spec.notes]


def _roles(steps: Sequence[Step]) -> list[tuple[str, str, str]]:
    """How many tensors of each role there are, and in how many steps."""
    from fanin.reports.typeset import counted

    numbers: dict[str, list[int]] = {}
    for step in steps:
        for role in {seen.role for seen in step.observations}:
            numbers.setdefault(role.value, []).append(len(step.of(role)))
    rows = [
        (f"  {role}", counted(max(found), "tensor"), f"in {counted(len(found), 'step')}")
        for role, found in sorted(numbers.items())
    ]
    return [*rows, ("  loss", "", f"in {counted(sum(1 for step in steps if step.losses), 'step')}")]


@trial.command(short_help="Write a trial for other tools.")
@click.argument("uri")
@click.option("--to", "form", type=click.Choice(FORMS), help="Form.  [default: as the name of -o FILE ends]")
@click.option(
    "-o",
    "--output",
    "path",
    required=True,
    type=click.Path(),
    help="A new file, .csv or .json, or for tensorboard a new folder.",
)
def export(uri: str, form: str | None, path: str) -> None:
    """Write a trial for other tools: every statistic of every tensor at every step.

    \b
    Examples:
      fanin trial export runs/exp1 -o exp1.csv     or .json
      fanin trial export runs/exp1 --to tensorboard -o logs/exp1
    """
    from fanin.errors import UsageError
    from fanin.examine import load_trial
    from fanin.exports import export as files_of

    form = form or format_of(path, EXPORTS, asking="--to, as in --to tensorboard for a folder")
    require_new(path)
    files, target = files_of(form, load_trial(uri)), Path(path)
    try:
        for name, data in files.items():
            # A form of one file is that file; one of several is a folder of them.
            file = target / name if form == "tensorboard" else target
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    except OSError as error:
        raise UsageError("the export cannot be written", where=path, got=str(error)) from error
    click.echo(f"{sum(map(len, files.values()))} bytes in {path}", err=True)


@trial.command(short_help="Read everything; say whether it is whole.")
@click.argument("uri")
def verify(uri: str) -> None:
    """Read everything that a trial holds and say whether it is whole; exit code 2 where it is not.

    \b
    Examples:
      fanin trial verify runs/exp1
    """
    from fanin.shelf import verify as verified

    click.echo(f"whole: {verified(uri)}")


@trial.command(short_help="Remove a trial, after asking.")
@click.argument("uri")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(uri: str, yes: bool) -> None:
    """Remove a trial that fanin wrote, after asking; without a terminal, where nobody can be asked, pass --yes.

    \b
    Examples:
      fanin trial rm runs/exp1
      fanin trial rm runs/exp1 --yes
    """
    from fanin.shelf import removable, remove

    removable(uri)  # whether there is anything to ask about
    if not yes:
        _ask(uri)
    click.echo(f"removed {remove(uri)} files", err=True)


def _ask(uri: str) -> None:
    """Go on only where somebody says so."""
    from fanin.errors import UsageError
    from fanin.stores.place import shown

    if not on_terminal():
        raise UsageError(
            "nothing was removed: nobody can be asked without a terminal",
            where=shown(uri),
            next_step="pass --yes to remove it without asking",
        )
    if not click.confirm(f"Remove the trial {shown(uri)}?", err=True):
        raise click.UsageError("nothing was removed.")


def on_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()
