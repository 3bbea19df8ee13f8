"""The command line. Results go to stdout, everything else to stderr; the exit code is the verdict."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fanin.cli_follow import follow as follow_command
from fanin.cli_options import (
    EXITS,
    color_option,
    config_option,
    fail_on_option,
    reporting,
    rule_option,
    set_option,
)
from fanin.cli_trial import trial as trial_commands
from fanin.errors import FaninError, TrialNotFoundError
from fanin.errors import UsageError as FaninUsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fanin.examine import Report
    from fanin.repairs import RepairReport
    from fanin.rule import Rule
    from fanin.target import Target

BROKEN, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
"""Exit codes besides the verdict's; the last two are a shell's for a command ended by SIGINT and SIGPIPE."""


class Commands(click.Group):
    """The group; every way to fail ends in one block on stderr and the right exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command and exit."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as error:
            error.show()
            code = BROKEN
        except FaninError as error:
            code = fail(error)
        except (KeyboardInterrupt, click.Abort):
            code = INTERRUPTED
        except Exception:  # noqa: BLE001 - an exit code of 1 would read as a verdict
            traceback.print_exc()
            click.echo("error: this is a fault in fanin; please report it with the lines above", err=True)
            code = BROKEN
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a reader that leaves early ends it, with another exit code than click's 1: that is poor."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it ends
            ctx.exit(PIPE_CLOSED)


def fail(error: FaninError) -> int:
    """Say what is wrong, with a traceback where FANIN_DEBUG asks for one."""
    if os.environ.get("FANIN_DEBUG"):
        traceback.print_exception(error)
    from fanin.output import Output

    out = Output(to_stderr=True)
    out.write(out.complaint(str(error)))
    return BROKEN


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fanin")
def main() -> None:
    """Know before step one whether a network was initialized well: which layer, why, and what to do.

    \b
    Examples:
      fanin demo                               see it at work, in a minute
      fanin check model.py:build               before any training
      fanin check model.py:build --fix         and with a repair that is proven
      fanin run -- python train.py --lr 0.1    any training script, unchanged
      fanin judge runs/train-20260301-093000   again, later, elsewhere
      fanin follow runs/exp1                   while it trains, and act when it is poor
      fanin explain FAN101                     what a code means

    Exit codes: 0 healthy, 1 poor, 2 usage or broken input, 3 undecided, 4 timed out, 130
    interrupted.
    """


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────


@main.command()
@click.argument("target")
@click.option(
    "--race", is_flag=True, help="Also train copies of the model against a sound re-draw, some steps each."
)
@click.option(
    "--fix", is_flag=True, help="Propose a repair, prove it by training copies, and print the code to paste."
)
@click.option("--diff", is_flag=True, help="As --fix, and show the repair as a change of your files.")
@click.option(
    "--budget",
    metavar="N|TIME",
    help="Most passes (a number) or time (90s, 5m) of the proof that --fix takes.  [default: three whole races]",
)
@click.option("--force", is_flag=True, help="Propose a repair for a model that was trained or loaded too.")
@fail_on_option
@reporting
def check(
    target: str,
    race: bool,
    fix: bool,
    diff: bool,
    budget: str | None,
    force: bool,
    fail_on: str,
    form: str | None,
    color: bool | None,
    path: str | None,
) -> int:
    """Judge a model before any training.

    TARGET is MODULE:BUILD. BUILD takes no arguments and returns a model, a batch (inputs, targets), a loss function
    (None where the model returns its own loss), and, if it likes, the optimizer: then five of its steps are looked at
    too. The model is not changed.

    \b
    Examples:
      fanin check model.py:build               a file
      fanin check app.models:build             a module, from here
      fanin check app.models:build -o init.html
      fanin check model.py:build --race        and train copies beside sound ones
      fanin check model.py:build --fix         and propose a repair that is proven
      fanin check model.py:build --diff        and as a change of your files

    The model and your files are never changed. For --race and --fix the batch is a DataLoader, a list of batches, or
    one batch of 64 examples or more.
    """
    from fanin.budget import Budget
    from fanin.examine import check as examine
    from fanin.race import MOST
    from fanin.target import load_target

    if (budget is not None or force) and not (fix or diff):
        raise click.UsageError(
            "--budget and --force are for --fix or --diff; add one of them, or leave them out."
        )
    Budget.of(budget)  # refused now, and not after the check
    with redirect_stdout(sys.stderr):  # what their code prints is not the result
        given = load_target(target)
        if isinstance(given.batch, Iterator):  # check, repair and race look at the same batches
            given = replace(given, batch=list(islice(given.batch, MOST)))
        report = examine(*given, optimizer=given.optimizer)
        fixed, refused = None, None
        try:
            report = _raced(report, given) if race else report
            fixed = _fixed(report, given, budget, force) if fix or diff else None
        except FaninError as error:  # the verdict stands all the same
            refused = error
    if fixed is not None:
        return _show_fixed(fixed, diff, fail_on, form, color, path)
    code = _show(report, fail_on, form, color, path)
    return fail(refused) if refused is not None else code


def _fixed(report: Report, given: Target, budget: str | None, force: bool) -> RepairReport | None:
    """The report with a repair, or None where Ctrl-C ends it."""
    from rich.console import Console
    from rich.progress import Progress

    from fanin.repairs import repaired

    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("repair", total=None)
            show = partial(_repairing, bar, task)
            return repaired(
                report, *given, optimizer=given.optimizer, budget=budget, force=force, on_progress=show
            )
    except KeyboardInterrupt:
        click.echo("repair: interrupted; the verdict is without it", err=True)
        return None


def _repairing(bar: Progress, task: TaskID, phase: str, done: int, planned: int) -> None:
    """What a proof costs is said before it begins, on a terminal and elsewhere."""
    if phase == "proof" and not done:  # by the bar's console, which puts it above the bar
        said = f"proof: up to {planned} forward and backward passes on copies of the model; Ctrl-C ends it"
        bar.console.print(said, markup=False, highlight=False, soft_wrap=True)
    bar.update(task, description=phase, completed=done, total=planned)


def _show_fixed(
    fixed: RepairReport, diff: bool, fail_on: str, form: str | None, color: bool | None, path: str | None
) -> int:
    from fanin.output import Output, verdict_line

    out = Output(form, color, path)
    text = fixed.render(out.form, diff=diff, width=out.width, color=out.colored)
    out.write(text, verdict_line(fixed.report.trial, fixed.report.diagnosis))
    return EXITS[fail_on][fixed.verdict.value]


def _raced(report: Report, given: Target) -> Report:
    """The report with a race, or without one where Ctrl-C ends it."""
    from rich.console import Console
    from rich.progress import Progress

    from fanin.examine import raced
    from fanin.race import RaceOptions

    options = RaceOptions()
    click.echo(
        f"race: up to {options.passes} forward and backward passes on copies of the model, and"
        f" {options.most / options.steps:.1f} times as many while it lags behind; Ctrl-C ends it",
        err=True,
    )
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("race", total=options.steps)
            show = partial(_advance, bar, task)
            showing = replace(options, on_progress=show)
            return raced(report, *given, options=showing, optimizer=given.optimizer)
    except KeyboardInterrupt:
        click.echo("race: interrupted; the verdict is without it", err=True)
        return report


def _advance(bar: Progress, task: TaskID, done: int, planned: int) -> None:
    bar.update(task, completed=done, total=planned)


@main.command(short_help="Judge a trial that was written before.")
@click.argument("trial")
@rule_option
@set_option
@config_option
@fail_on_option
@reporting
def judge(
    trial: str,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    config: str | None,
    fail_on: str,
    form: str | None,
    color: bool | None,
    path: str | None,
) -> int:
    """Judge a trial that was written before, here or elsewhere; also one of SageMaker Debugger, local or at s3://.

    \b
    Examples:
      fanin judge runs/exp1
      fanin judge s3://bucket/job/debug-output --rule PoorWeightInitialization
      fanin judge runs/exp1 --config rule.json
      fanin judge runs/exp1 --rule PoorWeightInitialization --set threshold=20 --set steps=5
      fanin judge runs/exp1 --fail-on poor     an undecided trial passes
    """
    from fanin.examine import judge as examine
    from fanin.explain import make_rule

    if settings and len(names) != 1:
        raise click.UsageError("--set needs exactly one --rule, whose parameter it sets.")
    if config and names:
        raise click.UsageError("--config names the rules by itself; leave --rule out.")
    rules = _configured(config) if config else [make_rule(name, settings) for name in names]
    return _show(examine(trial, rules=rules or None), fail_on, form, color, path)


def _configured(path: str) -> list[Rule]:
    """The rules of a configuration; what of it has no effect is said."""
    from fanin.config import load_configuration

    found = load_configuration(path)
    if len(found) > 1:
        raise click.UsageError(f"{path} configures this rule {len(found)} times; give one at a time.")
    for one in found:
        actions = ", ".join(action.name for action in one.actions)
        notes = [f"actions {actions}: not run by judge, whose exit code tells the verdict"] if actions else []
        for note in (*one.notes, *notes):
            click.echo(f"config: {note}", err=True)
    return [one.rule for one in found]


@main.command(short_help="Show what judging a trial says.")
@click.argument("trial")
@reporting
def report(trial: str, form: str | None, color: bool | None, path: str | None) -> int:
    """Show what judging a trial says; the exit code is 0 for every trial that can be read.

    \b
    Examples:
      fanin report runs/exp1
      fanin report runs/exp1 -o exp1.html     a page to look at; also .json .md .sarif .xml
    """
    from fanin.examine import judge as examine

    return _show(examine(trial), "never", form, color, path)


def _show(report: Report, fail_on: str, form: str | None, color: bool | None, path: str | None) -> int:
    from fanin.output import Output

    Output(form, color, path).show(report.trial, report.diagnosis)
    return EXITS[fail_on][report.verdict.value]


@main.command(
    short_help="Watch any training script, unchanged.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--trial", metavar="DIR", help="Where to write the trial.  [default: runs/SCRIPT-TIME]")
@click.option(
    "--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Training steps to watch."
)
@click.option("--no-report", is_flag=True, help="Write the trial, and say nothing.")
@reporting
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    command: Sequence[str],
    trial: str | None,
    steps: int,
    no_report: bool,
    form: str | None,
    color: bool | None,
    path: str | None,
) -> None:
    """Watch the first steps of any training script, unchanged; report on stderr when it ends.

    Works for every COMMAND whose Python trains a torch.nn.Module, also through torchrun, `python -m`, and shell
    scripts. Output, signals and exit code are the command's own.

    \b
    Examples:
      fanin run -- python train.py --lr 0.1
      fanin run --trial runs/exp1 --steps 20 -- torchrun --nproc-per-node=2 train.py
    """
    from fanin import launch  # and nothing more before the child runs: see `launch._waiting`

    trial = trial or launch.default_trial(command, datetime.now())
    try:
        status = launch.launch(command, trial, steps)
    except OSError as error:
        code, text = launch.start_failure(error, command[0])
        click.echo(f"error: {text}", err=True)
        sys.exit(code)
    if not no_report:
        _report_run(trial, status, form, color, path)
    launch.end_like(status)


def _report_run(trial: str, status: int, form: str | None, color: bool | None, path: str | None) -> None:
    """Judge what the child left. Whatever goes wrong here, the exit code stays the child's."""
    from fanin import launch
    from fanin.examine import judge as examine
    from fanin.output import Output

    try:
        report = examine(trial)
        Output(form, color, path, to_stderr=True).show(report.trial, report.diagnosis)
        click.echo(f"trial  {trial}", err=True)
    except TrialNotFoundError:
        click.echo(FAILED.format(how=launch.how_ended(status)) if status else NOTHING_WATCHED, err=True)
    except FaninError as error:
        fail(error)
    except Exception as error:  # noqa: BLE001 - the script has done its work; ours must not spoil its exit code
        fail(
            FaninUsageError("the trial cannot be judged", where=trial, got=f"{type(error).__name__}: {error}")
        )


NOTHING_WATCHED = """\
UNDECIDED  nothing was watched, and no trial was written
Why    One of these: no torch.nn.Module was trained (forward, then backward);
       Python ran with -I, -E or -S, which keep fanin out; the command's Python
       is of another environment, where fanin is not installed (a line above
       says so); or its training runs where PYTHONPATH does not reach.
Next   Use fanin.watch in the script, or fanin check on the model."""
"""What `fanin run` says where there is no trial, and the command has done its work."""

FAILED = """\
UNDECIDED  the command ended {how}, and no trial was written
Why    It ended before a training step was seen. What it said is above.
Next   Have the command run as it is first, then watch it."""
"""What it says where the command has not."""


@main.command(short_help="What a code, a rule or a cause means.")
@click.argument("code")
@color_option
def explain(code: str, color: bool | None) -> None:
    """What a code, a rule or a cause means, why it matters, and when it is wrong.

    \b
    Examples:
      fanin explain FAN101
      fanin explain poor-weight-initialization
      fanin explain gain_too_small
    """
    from fanin.explain import page
    from fanin.output import Output

    out = Output(color=color)
    text = page(code)
    out.write(out.markdown(text) if out.colored or out.on_terminal else text)


@main.command()
def rules() -> None:
    """List all rules: code, name, and what each detects.

    \b
    Examples:
      fanin rules
    """
    from fanin.explain import rows
    from fanin.output import Output

    out = Output()
    out.write(out.table(rows()))


@main.command(short_help="See it at work, in a minute.")
def demo() -> int:
    """Judge three real networks, then train them: who was right?

    \b
    Examples:
      fanin demo
    """
    from fanin.demo import main as show

    return show()


main.add_command(follow_command)
main.add_command(trial_commands)
