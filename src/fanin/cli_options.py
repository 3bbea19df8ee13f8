"""Options that commands of the command line share, and the exit codes of verdicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from fanin.destination import format_of, require_writable

FORMATS = ("terminal", "json", "html", "markdown", "sarif", "junit", "github")
"""As in `fanin.reports`, which is not imported for `--help`; a test compares them."""

EXITS = {
    "undecided": {"healthy": 0, "poor": 1, "undecided": 3},
    "poor": {"healthy": 0, "poor": 1, "undecided": 0},
    "never": {"healthy": 0, "poor": 0, "undecided": 0},
}
"""--fail-on -> verdict -> exit code."""

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Form of the report.  [default: as the name of -o FILE ends, or else terminal]",
)
color_option = click.option("--color/--no-color", default=None, help="Colours; by default on terminals.")
file_option = click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(readable=False),  # `require_writable` says more than click would
    help="Write the report to a file; its form by the end of its name: .html .json .md .sarif .xml .txt.",
)
fail_on_option = click.option(
    "--fail-on",
    type=click.Choice(list(EXITS)),
    default="undecided",
    show_default=True,
    help="The mildest verdict with an exit code of its own: 1 poor, 3 undecided.",
)
rule_option = click.option(
    "--rule", "names", multiple=True, metavar="RULE", help="Ask this rule only; repeatable."
)
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of that rule."
)
config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="JSON",
    help="Ask the rules of a SageMaker Debugger rule configuration.",
)


def reporting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that shows a report. A file that cannot be written ends it before its work begins."""

    @wraps(command)
    def checked(*args: Any, path: str | None, form: str | None, **rest: Any) -> Any:
        if path is not None:
            form = form or format_of(path)
            require_writable(path)
        return command(*args, path=path, form=form, **rest)

    made: Callable[..., Any] = checked
    for option in (file_option, color_option, format_option):
        made = option(made)
    return made
