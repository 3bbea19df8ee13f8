"""`fanin demo`: judge three real networks before training, then train them, so that the reader sees who was right."""

from __future__ import annotations

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

BUILDERS = ("default_weights", "he_normal", "one_bad_layer")
"""Functions of examples/digits.py."""


def main() -> int:
    """Show the three networks; the exit code is 0."""
    examples = _examples()
    console = Console(highlight=False)
    rows = []
    for name in BUILDERS:
        console.rule(f"fanin check examples/digits.py:{name}", characters="─", align="left")
        report, accuracy = _judged_and_trained(examples, name, console)
        rows.append((name, report, accuracy))
    console.print(_summary(rows, examples.EPOCHS))
    return 0


def _judged_and_trained(examples: ModuleType, name: str, console: Console) -> tuple[Report, float]:
    with recording_sources():
        model, batch, loss_fn, optimizer = getattr(examples, name)()
    report = check(model, batch, loss_fn, optimizer=optimizer)
    width = min(max(console.width, 80), 120)
    click.echo(report.render(width=width, color=console.is_terminal and not console.no_color))
    with console.status(f"training {name} for {examples.EPOCHS} epochs"):
        accuracy = float(examples.train(model, loss_fn, optimizer))
    console.print(f"Trained for {examples.EPOCHS} epochs, it gets {accuracy:.1%} of the test digits right.\n")
    return report, accuracy


def _summary(rows: list[tuple[str, Report, float]], epochs: int) -> Table:
    title = f"The verdict before step one, and the accuracy after {epochs} epochs"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for heading in ("network", "verdict", "layer", "cause", "line", "accuracy"):
        table.add_column(heading, no_wrap=True)
    for name, report, accuracy in rows:
        table.add_row(name, report.verdict.value, *_blame(report), f"{accuracy:.1%}")
    return table


def _blame(report: Report) -> tuple[str, str, str]:
    """Layer, cause and line of the first origin; empty for a healthy network."""
    if not report.diagnosis.origins:
        return "", "", ""
    first: Any = report.diagnosis.origins[0].finding
    layer = first.layer if len(first.layers) <= 1 else f"{first.layer} +{len(first.layers) - 1}"
    return layer, first.cause.value if first.cause else "", str(first.source or "")


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
