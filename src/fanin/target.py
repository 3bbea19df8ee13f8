"""MODULE:BUILD on the command line -> a model, a batch, a loss, and the optimizer if it is given."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, isfunction, signature
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from fanin.adapters import recording_sources
from fanin.errors import TargetError

T = TypeVar("T")

EXPECTED = "MODULE:BUILD, as in model.py:build or app.models:build"
RETURNED = "(model, batch[, loss_fn[, optimizer]]), or a dict or named tuple with these names"


@dataclass(frozen=True, slots=True)
class Target:
    """What `check` needs. It unpacks into what `check` takes by position: `check(*target, optimizer=target.optimizer)`.

    Attributes:
        model, batch, loss_fn, optimizer: As `fanin.check` takes them.
    """

    model: Any
    batch: Any
    loss_fn: Any = None
    optimizer: Any = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.batch, self.loss_fn))


def load_target(target: str) -> Target:
    """Import a module, call what it builds with, and take apart what that returns.

    Args:
        target: A dotted module or the path of a file, a colon, and the name of a function without arguments.

    Raises:
        TargetError: It does not lead to a model and a batch, with or without a loss and an optimizer.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise TargetError(
            "the target names no function",
            got=target,
            expected=EXPECTED,
            next_step="add a colon and its name",
        )
    module = _import(place, target)
    build = _callable(module, name, target)
    with recording_sources():  # of the frameworks that the module has imported
        made = _guarded(build, f"{target} raised while it built", target, _file(module))
    return _parts(made, target)


# ── the module ──────────────────────────────────────────────────────────────────────────────────────────────


def _import(place: str, target: str) -> ModuleType:
    if place.endswith(".py") or os.sep in place:
        return _import_file(Path(place), target)
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        return _guarded(lambda: import_module(place), f"cannot import {place}", target, os.getcwd())
    except TargetError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{place}.".startswith(f"{cause.name}."):
            raise _no_module(place, str(cause.name), target) from None
        raise


def _no_module(place: str, missing: str, target: str) -> TargetError:
    known = [path.stem for path in Path.cwd().glob("*.py")] + [
        p.parent.name for p in Path.cwd().glob("*/*.py")
    ]
    close = difflib.get_close_matches(missing.rpartition(".")[2], known, n=1)
    return TargetError(
        "there is no such module",
        where=target,
        got=f"{missing}, looked for from {os.getcwd()}",
        expected=EXPECTED,
        next_step=f"did you mean {close[0]}?"
        if close
        else "run fanin where `python -c 'import ...'` finds it",
    )


def _import_file(path: Path, target: str) -> ModuleType:
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1)
        raise TargetError(
            "there is no such file",
            where=target,
            got=str(path),
            expected=EXPECTED,
            next_step=f"did you mean {path.parent / close[0]}?"
            if close
            else "check the path and where you are",
        )
    sys.path.insert(0, str(path.resolve().parent))  # as `python file.py` does
    # A name that is taken (examples/torch.py) must not replace what has it.
    name = path.stem if path.stem not in sys.modules else f"_fanin_target_{path.stem}"
    spec = spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise TargetError(
            "this file is not a Python module", where=target, got=str(path), expected="a .py file"
        )
    module = module_from_spec(spec)
    sys.modules[name] = module
    run = spec.loader.exec_module
    try:
        _guarded(lambda: run(module), f"cannot import {path}", target, str(path.resolve()))
    except TargetError:
        del sys.modules[name]  # as a failed import does
        raise
    return module


def _file(module: ModuleType) -> str:
    return os.path.dirname(getattr(module, "__file__", None) or os.getcwd())


# ── their code, which may raise ─────────────────────────────────────────────────────────────────────────────


def _guarded(call: Callable[[], T], what: str, target: str, theirs: str) -> T:
    """Call their code; what it raises is said in a line, with the line of theirs where it happened."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise TargetError(
            what,
            where=_where(error, theirs) or target,
            got=_said(error),
            next_step="run it with python to see the whole traceback, or set FANIN_DEBUG=1",
        ) from error


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _where(error: BaseException, theirs: str) -> str:
    """The innermost line within their folder or file."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if f.filename.startswith(theirs) and "site-packages" not in f.filename]
    return f"{inside[-1].filename}:{inside[-1].lineno}" if inside else ""


# ── the function, and what it returns ───────────────────────────────────────────────────────────────────────


def _is_own_function(module: ModuleType, value: object) -> bool:
    """Whether a function was written in this module, rather than imported into it."""
    return isfunction(value) and value.__module__ == module.__name__


def _callable(module: ModuleType, name: str, target: str) -> Callable[[], Any]:
    names = [public for public in vars(module) if not public.startswith("_")]
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, names, n=1)
        functions = [n for n in names if _is_own_function(module, getattr(module, n))]
        raise TargetError(
            f"the module has no {name!r}",
            where=target,
            got=f"functions {', '.join(functions[:8])}" if functions else "no function at all",
            next_step=f"did you mean {close[0]!r}?"
            if close
            else f"write def {name}(): return model, batch, loss_fn",
        )
    build = getattr(module, name)
    if not callable(build):
        raise TargetError(
            f"{name!r} cannot be called",
            where=target,
            got=f"an instance of {type(build).__name__}",
            expected=f"a function without arguments that returns {RETURNED}",
            next_step="wrap it in a function",
        )
    if wanted := _required(build):
        raise TargetError(
            f"{name!r} needs arguments",
            where=target,
            got=f"{name}({', '.join(wanted)})",
            expected="a function without arguments",
            next_step="give them defaults, or write a function that passes them",
        )
    found: Callable[[], Any] = build
    return found


def _required(build: Callable[..., Any]) -> list[str]:
    try:
        parameters = signature(build).parameters.values()
    except (TypeError, ValueError):  # built in, without a signature
        return []
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is Parameter.empty and p.kind not in variadic]


def _parts(made: Any, target: str) -> Target:
    named = made._asdict() if hasattr(made, "_asdict") else made
    if isinstance(named, Mapping) and {"model", "batch"} <= set(named):
        loss_fn = named.get("loss_fn", named.get("loss"))
        return Target(named["model"], named["batch"], loss_fn, named.get("optimizer"))
    if type(made) in (tuple, list) and len(made) in (2, 3, 4):
        return Target(*made)
    raise TargetError(
        "the function returns something else",
        where=target,
        got=_shape(made),
        expected=RETURNED,
        next_step="return model, batch, loss_fn",
    )


def _shape(made: Any) -> str:
    if isinstance(made, Mapping):
        return f"a {type(made).__name__} with {', '.join(map(str, list(made)[:6])) or 'nothing'}"
    if isinstance(made, tuple | list):
        return (
            f"a {type(made).__name__} of {len(made)}: {', '.join(type(part).__name__ for part in made[:6])}"
        )
    return "None" if made is None else f"an instance of {type(made).__name__}"
