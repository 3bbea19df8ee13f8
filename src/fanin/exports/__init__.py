"""The table of exports: a trial in the forms of other tools. Each is a pure function from a trial to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from fanin.errors import UsageError
from fanin.trial import Trial

EXPORTS = {
    "csv": "fanin.exports.csv:export",
    "json": "fanin.exports.json:export",
    "tensorboard": "fanin.exports.tensorboard:export",
}
"""Name -> module and function, which makes the files of a trial: path within a folder -> content."""


def export(form: str, trial: Trial) -> Mapping[str, bytes]:
    """The files of a trial in a form.

    Raises:
        UsageError: There is no such form.
    """
    if form not in EXPORTS:
        raise UsageError("there is no such form", got=repr(form), expected=f"one of {', '.join(EXPORTS)}")
    module, name = EXPORTS[form].split(":")
    function: Callable[[Trial], Mapping[str, bytes]] = getattr(import_module(module), name)
    return function(trial)
