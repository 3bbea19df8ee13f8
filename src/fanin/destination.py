"""Files that a command line names: which form their names stand for, and whether they can be written at all.

Known before the work begins, so that minutes of it are not lost to a slip; light, since `fanin run` asks it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from fanin.errors import UsageError

REPORTS = {
    ".txt": "terminal",
    ".json": "json",
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".sarif.json": "sarif",
    ".sarif": "sarif",
    ".xml": "junit",
}
"""End of a file's name -> the format of `fanin.reports` that it stands for."""

EXPORTS = {".csv": "csv", ".json": "json"}
"""End of a file's name -> the form of `fanin.exports` that it stands for; a folder has no end of its own."""


def format_of(path: str, ends: Mapping[str, str] = REPORTS, asking: str = "--format") -> str:
    """The form that a file's name stands for.

    >>> format_of("init.html"), format_of("out/FANIN.SARIF.json")
    ('html', 'sarif')

    Raises:
        UsageError: It stands for none.
    """
    name = path.lower()
    fitting = [end for end in ends if name.endswith(end)]
    if fitting:
        return ends[max(fitting, key=len)]
    raise UsageError(
        "the end of this name stands for no form",
        where=f"-o {path}",
        got=repr(Path(path).suffix) if Path(path).suffix else "a name without an end",
        expected=_listed(ends),
        next_step=f"give the file one of these ends, or name the form with {asking}",
    )


def _listed(ends: Mapping[str, str]) -> str:
    return ", ".join(f"{end} ({form})" for end, form in ends.items())


def require_writable(path: str) -> None:
    """Refuse a file that cannot be written.

    Raises:
        UsageError: Its directory is missing, or it is a directory, or it may not be written.
    """
    target = Path(path)
    folder = target.parent
    if not folder.exists():
        _refuse(path, f"there is no directory {folder}", "create it, or name another file")
    if target.is_dir():
        _refuse(path, "a directory", f"name a file in it, e.g. -o {target / 'init.html'}")
    if not folder.is_dir():
        _refuse(path, f"{folder} is no directory", "name another file")
    if not os.access(target if target.exists() else folder, os.W_OK):
        _refuse(path, "no permission to write there", "name a file in a directory of your own")


def require_new(path: str) -> None:
    """Refuse a file or a folder that exists, or cannot be made with the folders above it.

    Raises:
        UsageError: It exists, or cannot be made.
    """
    target = Path(path)
    if os.path.lexists(target):
        raise UsageError(
            "there is something at this path already",
            where=path,
            next_step="name a new file, or remove that one",
        )
    above = next(folder for folder in _above(target) if folder.exists())
    if not above.is_dir():
        _refuse(path, f"{above} is no directory", "name another file")
    if not os.access(above, os.W_OK):
        _refuse(path, f"no permission to write in {above}", "name a file in a directory of your own")


def _above(target: Path) -> Iterable[Path]:
    return target.absolute().parents


def _refuse(path: str, got: str, next_step: str) -> NoReturn:
    raise UsageError(
        "this file cannot be written",
        where=f"-o {path}",
        got=got,
        expected="a file in a directory that exists and may be written",
        next_step=next_step,
    )
