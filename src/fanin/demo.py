"""`fanin demo`: judge three real networks before training, repair the poor ones, then train them as they were and as
repaired, so that the reader sees who was right."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from fanin.adapters import recording_sources
from fanin.errors import UsageError
from fanin.examine import Report, check
from fanin.repairs import repaired

BUILDERS = ("default_weights", "he_normal", "one_bad_layer")
"""Functions of examples/digits.py."""


PASSES = 400
"""Budget of each proof: one race of the usual length, so that the demo takes a minute."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A network of the demo.

    Attributes:
        name: Its builder.
        report: Of the check.
        accuracy: After training, as given.
        repaired: The same, repaired; None where nothing was proposed.
    """

    name: str
    report: Report
    accuracy: float
    repaired: float | None


def main() -> int:
    """Show the three networks; the exit code is 0."""
    examples = _examples()
    console = Console(highlight=False)
    shown = []
    for name in BUILDERS:
        console.rule(f"fanin check examples/digits.py:{name} --fix", characters="─", align="left")
        shown.append(_judged_and_trained(examples, name, console))
    console.print(_summary(shown, examples.EPOCHS))
    return 0


def _judged_and_trained(examples: ModuleType, name: str, console: Console) -> Shown:
    with recording_sources():
        model, batch, loss_fn, optimizer = getattr(examples, name)()
    report = check(model, batch, loss_fn, optimizer=optimizer)
    with console.status(f"looking for a repair of {name}, and proving it"):
        fixed = repaired(report, model, batch, loss_fn, optimizer=optimizer, budget=PASSES)
    width = min(max(console.width, 80), 120)
    click.echo(fixed.render(width=width, color=console.is_terminal and not console.no_color))
    accuracy = _trained(examples, name, "", console)
    better = _trained(examples, name, fixed.code, console) if fixed.code else None
    as_repaired = f", and with that code {better:.1%}" if better is not None else ""
    console.print(
        f"Trained for {examples.EPOCHS} epochs, it gets {accuracy:.1%} of the test digits right{as_repaired}.\n"
    )
    return Shown(name, report, accuracy, better)


def _trained(examples: ModuleType, name: str, code: str, console: Console) -> float:
    """The accuracy of the network, built anew, with the code pasted in."""
    model, _, loss_fn, optimizer = getattr(examples, name)()
    examples.paste(code, model)
    with console.status(f"training {name} for {examples.EPOCHS} epochs"):
        return float(examples.train(model, loss_fn, optimizer))


def _summary(shown: list[Shown], epochs: int) -> Table:
    title = f"The verdict before step one, and the accuracy after {epochs} epochs"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for heading in ("network", "verdict", "layer", "cause", "accuracy", "repaired"):
        table.add_column(heading, no_wrap=True)
    for one in shown:
        after = "" if one.repaired is None else f"{one.repaired:.1%}"
        table.add_row(one.name, one.report.verdict.value, *_blame(one.report), f"{one.accuracy:.1%}", after)
    return table


def _blame(report: Report) -> tuple[str, str]:
    """Layer and cause of the first origin; empty for a healthy network."""
    if not report.diagnosis.origins:
        return "", ""
    first: Any = report.diagnosis.origins[0].finding
    layer = first.layer if len(first.layers) <= 1 else f"{first.layer} +{len(first.layers) - 1}"
    return layer, first.cause.value if first.cause else ""


def _examples() -> ModuleType:
    """examples/digits.py, beside the package when installed, at the root of a checkout otherwise.

    Raises:
        UsageError: It is not there, or something that it needs is not installed.
    """
    here = Path(__file__).parent
    places = (here / "examples" / "digits.py", here.parents[1] / "examples" / "digits.py")
    file = next((place for place in places if place.exists()), None)
    spec = spec_from_file_location("digits", file) if file else None
    if spec is None or spec.loader is None:
        raise UsageError(
            "the demo's example is missing", expected=str(places[0]), next_step="reinstall fanin"
        )
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            "the demo needs PyTorch and scikit-learn",
            got=f"no module named {error.name}",
            next_step="pip install 'fanin[demo]'",
        ) from error
    return module
