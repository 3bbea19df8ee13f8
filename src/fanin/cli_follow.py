"""`fanin follow`: judge a trial while it is written, by a process of its own, and act when it is poor."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from fanin.cli_options import EXITS, fail_on_option, reporting, rule_option, set_option
from fanin.errors import FaninError, UsageError

if TYPE_CHECKING:
    from fanin.actions.base import Action
    from fanin.beside import Beside
    from fanin.follow import Following, Look
    from fanin.serve import LivePage
    from fanin.status import Done, Kept, Standing, StatusFile

BROKEN, TIMED_OUT = 2, 4
"""Exit codes besides the verdict's."""


class Seconds(click.ParamType[float]):
    """A time: 90, 90s, 5m, 2h."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In seconds."""
        units = {"s": 1.0, "m": 60.0, "h": 3600.0}
        text = str(value).strip().lower()
        number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
        try:
            found = float(number) * unit
        except ValueError:
            found = -1.0
        if not 0 < found < float("inf"):
            self.fail(f"{value!r} is no time; write e.g. 90s, 5m or 2h", param, ctx)
        return found


@dataclass(slots=True)
class Progress:
    """What happens while a trial is followed: told, kept, served and acted upon.

    Attributes:
        actions: What is to be done when it is poor.
        status: Where the status is kept.
        claims: Where it is noted that something was done, the best place first.
        page: The live page, if it is served.
        taken: What was done.
    """

    actions: Sequence[Action]
    status: StatusFile
    claims: Sequence[Beside]
    page: LivePage | None
    taken: list[Done] = field(default_factory=list)
    is_kept: bool = True
    is_outweighed: bool = False
    _is_undrawn: bool = False
    _acted: set[tuple[str, str, str, str]] = field(default_factory=set)

    def take(self, look: Look, line: Line) -> None:
        """One look at the trial."""
        from fanin.actions import take
        from fanin.status import Status

        standing = look.standing.with_actions(self.taken)
        line.show(standing, look.error)
        self._keep(standing)
        new = [f for f in standing.findings if (standing.run, f.code, f.layer, f.tensor) not in self._acted]
        if standing.status is Status.ISSUES_FOUND and new and self.actions:
            self._acted |= {(standing.run, f.code, f.layer, f.tensor) for f in new}
            for done in take(self.actions, replace(standing, findings=tuple(new)), self.claims):
                self.taken.append(done)
                line.say(f"{done.action}: {done.outcome}" + (f", {done.detail}" if done.detail else ""))
            self._keep(standing.with_actions(self.taken))
        self._draw(look, line)  # last: it takes a second

    def _draw(self, look: Look, line: Line) -> None:
        """A fault in a picture must not end what watches over a training; it is told once."""
        if self.page is None or look.report is None:
            return
        try:
            self.page.show(look.report)
        except Exception as error:  # noqa: BLE001  # told below
            if not self._is_undrawn:
                why = " ".join(f"{type(error).__name__}: {error}".split())
                line.say(f"page: a report could not be drawn ({why}); following goes on")
            self._is_undrawn = True

    def _keep(self, standing: Standing) -> None:
        try:
            if not self.status.write(standing) and standing.ended and standing.status.weight:
                self._say_whose(self.status.kept())
        except OSError as error:
            if self.is_kept:
                why = error.strerror or type(error).__name__
                click.echo(
                    f"status: not kept beside the trial ({why}); --status FILE keeps it elsewhere", err=True
                )
            self.is_kept = False

    def _say_whose(self, kept: Kept | None) -> None:
        """Whose verdict is worse than ours, or of more, and so stays."""
        from fanin.errors import escape

        if kept is not None and not self.is_outweighed:
            click.echo(f"status: stays {escape(str(kept))}", err=True)
        self.is_outweighed = True


class Line:
    """What is said on stderr: one live line on a terminal, a line for each change elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._last = ""
        self._spinner: Any = None

    @contextmanager
    def shown(self) -> Iterator[Line]:
        """While the trial is followed."""
        if not self._console.is_terminal:
            yield self
            return
        from rich.text import Text

        with self._console.status(Text("looking"), spinner="dots") as self._spinner:
            yield self

    def show(self, standing: Standing, error: FaninError | None = None) -> None:
        """The state of things, where it is another."""
        from fanin.reports.typeset import counted, escape

        steps = counted(standing.steps, "step") if standing.verdict else ""
        said = "" if error is None else f"{error.what}; trying again" if not standing.ended else error.what
        parts = (standing.status.value, steps, standing.verdict, escape(said or standing.why), standing.ended)
        text = "  ".join(filter(None, parts))
        if text == self._last:
            return
        self._last = text
        if self._spinner is None:
            self.say(text)
            return
        from rich.text import Text

        line = Text(text)
        line.truncate(self._console.width - 4, overflow="ellipsis")  # beside the spinner, which would wrap it
        self._spinner.update(line)

    def say(self, text: str) -> None:
        """A line that stays."""
        from fanin.errors import escape
        from fanin.output import encodable

        self._console.print(encodable(escape(text), sys.stderr), soft_wrap=True)


def made_actions(
    trial: str,
    stop: bool,
    commands: Sequence[str],
    webhooks: Sequence[str],
    auth: str,
    messages: Sequence[str],
) -> list[Action]:
    """The actions that were asked for; what is wrong with one is said before anything is followed."""
    from fanin.actions.command import Command
    from fanin.actions.message import Message
    from fanin.actions.stop import Stop
    from fanin.actions.webhook import Webhook

    secret = os.environ.get("FANIN_WEBHOOK_SECRET") or None
    return [
        *([Stop(trial)] if stop else []),
        *(Command(line) for line in commands),
        *(Webhook(url, secret, "bearer" if auth == "bearer" else "hmac") for url in webhooks),
        *(Message(address) for address in messages),
    ]


def configured(path: str, trial: str) -> tuple[list[Any], list[Action]]:
    """The rules and the actions of a configuration; what of it has no effect is said."""
    from fanin.config import load_configuration
    from fanin.configured import mapped
    from fanin.errors import escape

    found = load_configuration(path)
    if len(found) > 1:
        raise click.UsageError(f"{path} configures this rule {len(found)} times; give one at a time.")
    actions: list[Action] = []
    for one in found:
        done = mapped(one.actions, trial)
        actions += done.actions
        for note in (*one.notes, *done.notes):
            click.echo(f"config: {escape(note)}", err=True)
    return [one.rule for one in found], actions


@click.command(short_help="Judge a trial while it is written; act when it is poor.")
@click.argument("trial")
@rule_option
@set_option
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="JSON",
    help="Rules and actions of a SageMaker Debugger rule configuration.",
)
@click.option("--timeout", type=Seconds(), help="Give up after this time, with exit code 4.")
@click.option(
    "--dead-after",
    type=Seconds(),
    help="Without a sign of life for so long the writer is dead.  [default: 20s, 10m without a heartbeat]",
)
@click.option("--stop", is_flag=True, help="When poor, ask the training to stop.")
@click.option(
    "--run", "commands", multiple=True, metavar="COMMAND", help="When poor, run this, JSON on its stdin."
)
@click.option(
    "--webhook",
    "webhooks",
    multiple=True,
    metavar="URL",
    envvar="FANIN_WEBHOOK",
    help="When poor, POST JSON there; also in FANIN_WEBHOOK, its secret in FANIN_WEBHOOK_SECRET.",
)
@click.option(
    "--webhook-auth",
    type=click.Choice(["hmac", "bearer"]),
    default="hmac",
    show_default=True,
    help="What the secret is for: to sign the body, or as it is.",
)
@click.option(
    "--notify",
    "messages",
    multiple=True,
    metavar="URL",
    envvar="FANIN_NOTIFY",
    help="When poor, send a message by Apprise; also in FANIN_NOTIFY.",
)
@click.option("--status", metavar="FILE", help="Keep the status here.  [default: _status.json in the trial]")
@click.option(
    "--serve",
    is_flag=False,
    flag_value="127.0.0.1:8642",
    metavar="[HOST:PORT]",
    help="Serve the report as a page that follows the trial, until Ctrl-C.",
)
@fail_on_option
@reporting
def follow(
    trial: str,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    config: str | None,
    timeout: float | None,
    dead_after: float | None,
    stop: bool,
    commands: tuple[str, ...],
    webhooks: tuple[str, ...],
    webhook_auth: str,
    messages: tuple[str, ...],
    status: str | None,
    serve: str | None,
    fail_on: str,
    form: str | None,
    color: bool | None,
    path: str | None,
) -> int:
    """Judge a trial while it is written, by a process of its own, and act when it is poor.

    TRIAL is what `fanin run`, `fanin.watch` or SageMaker Debugger writes, or will write: one that is not there yet is
    waited for. The verdict is poor as soon as the steps that are in say so, and healthy once all of them are. The end
    is the verdict, that of the trial, the death of its writer, or --timeout.

    \b
    Examples:
      fanin follow runs/exp1
      fanin follow s3://bucket/job/debug-output --config rule.json --timeout 1h
      fanin follow runs/exp1 --stop --run 'mail -s poor me@example.com'
      fanin follow runs/exp1 --serve           and look at it in a browser

    What is thought of the trial by now is kept beside it, in _status.json: InProgress, NoIssuesFound, IssuesFound or
    Error; a verdict on a run gives way to a worse one only. Each action is done at most once for a run and a finding,
    by whoever of those that follow it notes so first, beside the trial and --status FILE. --stop asks the training to
    stop: `fanin run` then sends SIGTERM to the script (unless FANIN_ON_STOP=ignore); `fanin.watch` does what its
    `on_stop` says.

    Exit codes: 0 healthy, 1 poor, 2 usage or broken input, 3 undecided, 4 timed out, 130 interrupted, also by Ctrl-C
    that ends --serve before there is a verdict.
    """
    from fanin.explain import make_rule
    from fanin.follow import Following
    from fanin.output import Output

    if settings and len(names) != 1:
        raise click.UsageError("--set needs exactly one --rule, whose parameter it sets.")
    if config and names:
        raise click.UsageError("--config names the rules by itself; leave --rule out.")
    actions = made_actions(trial, stop, commands, webhooks, webhook_auth, messages)
    rules, wanted = (
        configured(config, trial) if config else ([make_rule(name, settings) for name in names], [])
    )
    actions += [one for one in wanted if (one.name, one.target) not in {(a.name, a.target) for a in actions}]
    look = followed(trial, Following(tuple(rules) or None, timeout, dead_after), actions, status, serve)
    require_report(look)
    if look.report is not None:
        Output(form, color, path).show(look.report.trial, look.report.diagnosis)
    return exit_code(look, EXITS[fail_on])


def followed(
    trial: str,
    how: Following,
    actions: Sequence[Action],
    status: str | None,
    serve: str | None,
) -> Look:
    """Follow a trial to its end, or, where a page is served, until somebody presses Ctrl-C."""
    from fanin.beside import Beside
    from fanin.follow import follow
    from fanin.status import Ended, Status, StatusFile

    kept = StatusFile.at(status) if status else StatusFile.of_trial(trial)
    claims = [Beside.at(trial), *([kept.beside] if status else [])]
    with _served(serve, trial) as page:
        progress = Progress(actions, kept, claims, page)
        if page is not None:
            click.echo(f"page   {page.url}", err=True)
            how = replace(how, to_the_end=True)
        look: Look | None = None
        with Line().shown() as line:
            try:
                for look in follow(trial, how):
                    progress.take(look, line)
            except KeyboardInterrupt:
                # How a page is closed; before there is a verdict it breaks off all the same.
                if page is None or look is None or look.standing.status is Status.IN_PROGRESS:
                    raise
        assert look is not None  # a follower looks at once
        if page is not None and look.standing.ended not in (Ended.NOT, Ended.TIMED_OUT):
            _stay(page, look.standing.why)
    return look


@contextmanager
def _served(serve: str | None, trial: str) -> Iterator[LivePage | None]:
    if serve is None:
        yield None
        return
    from fanin.serve import Address, LivePage
    from fanin.stores.place import shown

    page = LivePage(Address.parsed(serve), shown(trial))
    try:
        yield page
    finally:
        page.close()


def _stay(page: LivePage, why: str) -> None:
    """The page stays when the trial is over, until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        page.end(why)
        click.echo("the page is served until Ctrl-C", err=True)
        while True:
            time.sleep(3600)


def exit_code(look: Look, exits: dict[str, int]) -> int:
    """Of the last look, as `judge` would end; a timeout or a trial that cannot be read have codes of their own.

    Args:
        look: The last one; what a dead writer has left is no clean bill.
        exits: Verdict -> code.
    """
    from fanin.status import Ended, Status

    if look.standing.status is Status.ISSUES_FOUND:
        return exits["poor"]
    if look.standing.ended is Ended.TIMED_OUT:
        return TIMED_OUT
    if look.report is None or look.standing.ended is Ended.BROKEN:
        return BROKEN
    if look.standing.ended is Ended.WRITER_DEAD:
        return exits["undecided"]
    return exits[look.report.verdict.value]


def require_report(look: Look) -> None:
    """Refuse to go on without one.

    Raises:
        FaninError: What kept it from being made.
    """
    from fanin.status import Ended

    if look.standing.ended is Ended.BROKEN and look.error is not None:
        raise look.error
    if look.report is None and look.standing.ended is not Ended.TIMED_OUT:
        raise UsageError("there was nothing to judge", where=look.standing.trial, got=look.standing.why)
