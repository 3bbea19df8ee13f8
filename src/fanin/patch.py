"""A repair as a change of the user's own files: the call that drew a parameter, replaced by one that draws it soundly.

Only calls of `torch.nn.init` are rewritten, and only where all that the line draws is to be drawn alike. Whatever else
wrote the parameter (a constructor, a loop of assignments) stays; then the report says where to insert code.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from fanin.trial import ModelSpec, SourceLine

ALIKE = 1.4
"""Factor within which scales count as one: narrow layers scatter that much by themselves (Hanin and Nica 2019), and the
mean over a family keeps the product."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `nn.init` in text.

    Attributes:
        template: With `{w}` for the parameter and `{s}` for a number; empty where no single call would do.
        scale: The number; 1 where there is none.
    """

    template: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Patch:
    """What can be rewritten, and what cannot.

    Attributes:
        diff: A unified diff; empty where no line can be rewritten.
        elsewhere: One sentence for each line that cannot, and for parameters without a line.
    """

    diff: str = ""
    elsewhere: tuple[str, ...] = ()


def patch(spec: ModelSpec, calls: Mapping[str, Call]) -> Patch:
    """The change of the user's files that does what these calls do.

    Args:
        spec: Knows the lines that wrote the parameters.
        calls: By full name of the parameter.
    """
    drawn: dict[SourceLine, list[str]] = {}
    for layer in spec.layers:
        for parameter in layer.parameters:
            if parameter.source is not None and parameter.tied_to is None:
                drawn.setdefault(parameter.source, []).append(layer.parameter_path(parameter))
    diffs: dict[str, list[tuple[int, Call]]] = {}
    elsewhere: list[str] = []
    known = {name for names in drawn.values() for name in names}
    for line, names in drawn.items():
        concerned = [name for name in names if name in calls]
        call, why_not = _one_call(line, names, concerned, calls) if concerned else (None, "")
        if call is not None:
            diffs.setdefault(line.file, []).append((line.line, call))
        elif why_not:
            elsewhere.append(why_not)
    if any(name not in known for name in calls):
        elsewhere.append(
            "where the weights are drawn was not recorded: insert the code after the model is built"
        )
    return Patch("".join(_diff(file, edits) for file, edits in diffs.items()), tuple(elsewhere))


def _one_call(
    line: SourceLine, names: Sequence[str], concerned: Sequence[str], calls: Mapping[str, Call]
) -> tuple[Call | None, str]:
    """What could stand on the line, or why nothing can."""
    insert = f"{line}: insert the code after the model is built, for "
    wanted = [calls[name] for name in concerned]
    node = _call_at(line)
    if node is None:
        return None, f"{insert}this line is no call of nn.init that could be rewritten"
    if len(concerned) < len(names):
        other = next(name for name in names if name not in calls)
        return None, f"{insert}this line draws {other} too, which stays as it is"
    if not wanted[0].template or not _are_alike(wanted):
        return None, f"{insert}what this line draws needs more than one scheme"
    return Call(wanted[0].template, _mean(call.scale for call in wanted)), ""


def _are_alike(calls: Sequence[Call]) -> bool:
    scales = [call.scale for call in calls]
    return len({call.template for call in calls}) == 1 and max(scales) < ALIKE**2 * min(scales)


def _mean(scales: Iterable[float]) -> float:
    known = list(scales)
    return exp(sum(map(log, known)) / len(known)) if min(known) > 0 else known[0]


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────


def _call_at(line: SourceLine) -> ast.Call | None:
    """The call of `nn.init` on a line; None where there is none, or several."""
    text = _read(line.file)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and node.lineno <= line.line <= (node.end_lineno or node.lineno)
        and _prefix(node, text)
        and node.args
    ]
    return found[0] if len(found) == 1 else None


def _prefix(node: ast.Call, text: str) -> str:
    """`nn.init` in whatever way the file says it; empty for every other call."""
    if not isinstance(node.func, ast.Attribute) or not node.func.attr.endswith("_"):
        return ""
    owner = ast.get_source_segment(text, node.func.value) or ""
    return owner if owner == "init" or owner.endswith("nn.init") else ""


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _diff(file: str, edits: Sequence[tuple[int, Call]]) -> str:
    before = _read(file)
    after = before
    for number, call in sorted(
        edits, reverse=True, key=lambda edit: edit[0]
    ):  # from below: lines above stay put
        after = _rewritten(after, SourceLine(file, number), call)
    name = _shown(file)
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    return "".join(_ended(lines))


def _rewritten(text: str, line: SourceLine, call: Call) -> str:
    node = _call_at(line)
    if node is None or node.end_lineno is None or node.end_col_offset is None:
        return text
    prefix = _prefix(node, text)
    target = ast.get_source_segment(text, node.args[0]) or ""
    made = call.template.replace("{w}", target).replace("{s}", f"{call.scale:.3g}")
    made = f"{prefix}." + made.removeprefix("nn.init.")
    lines = text.splitlines(keepends=True)
    first, last = lines[node.lineno - 1].encode(), lines[node.end_lineno - 1].encode()
    joined = first[: node.col_offset] + made.encode() + last[node.end_col_offset :]
    return "".join([*lines[: node.lineno - 1], joined.decode(), *lines[node.end_lineno :]])


def _shown(file: str) -> str:
    """Relative to where one is, as `git apply` and `patch -p1` want it."""
    path = Path(file)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path).lstrip("/")


def _ended(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
