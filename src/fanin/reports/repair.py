"""A repair for people: what changes, what that does, the proof, and the code, below the report of the check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from rich.text import Text

from fanin.change import Change, Effect, Repair, Safety, Treatment
from fanin.race import Race
from fanin.reports.typeset import (
    LABEL,
    banner,
    capitalized,
    counted,
    elide,
    escape,
    number,
    paragraph,
    to_string,
)
from fanin.summary import Interval

NARROWEST, WIDEST = 60, 120
"""Columns that the layout can do with, and can make use of."""

LISTED = 6
"""Families of parameters listed before the rest is only counted."""

STYLES = {Safety.SAFE: "bold green", Safety.UNSAFE: "bold yellow", Safety.ADVICE: "bold yellow"}

REACHES = {
    "blamed": "only what is at fault",
    "layers": "the layers at fault and those with symptoms",
    "everything": "everything that can be drawn",
    "named": "what was named",
}


def render(
    repair: Repair | None,
    discarded: Sequence[Repair] = (),
    *,
    applied: bool = False,
    diff: bool = False,
    width: int = 80,
    color: bool = False,
) -> str:
    """The repair as text. Code and diff keep their lines whatever the width, so that they can be copied."""
    width = min(max(width, NARROWEST), WIDEST)
    return to_string(_lines(repair, discarded, applied, diff, width), width, color)


def _lines(
    repair: Repair | None, discarded: Sequence[Repair], applied: bool, diff: bool, width: int
) -> Iterator[Text]:
    yield from _head(repair, discarded, applied, width)
    if repair is not None and repair.changes:
        yield from _what(repair, width)
        yield from _effects(repair, width)
        yield from _proof(repair, width)
        for reason in repair.reasons:
            yield from paragraph("Unsafe", capitalized(reason), width)
    for tried in discarded:
        yield from paragraph("Tried", _tried(tried), width)
    for text in repair.advice if repair is not None else ():
        yield from paragraph("Advice", capitalized(text), width)
    if repair is not None and repair.changes:
        yield from paragraph(
            "Cost", f"{repair.passes} passes, {repair.seconds:.1f} s, seed {repair.seed}", width
        )
        yield from _code(repair, diff, width)


def _head(repair: Repair | None, discarded: Sequence[Repair], applied: bool, width: int) -> list[Text]:
    if repair is None or not repair.changes:
        why = "there is nothing to repair"
        if any(tried.proofs for tried in discarded):
            why = "what was tried did not win"
        elif discarded:
            why = "no fault was found, and no race has confirmed it"
        elif repair is not None:
            why = repair.reasons[0] if repair.reasons else "the cause is not in the initialization"
        return [Text("REPAIR", style="bold") + Text(f"  none: {why}")]
    word = Text("REPAIR", style="bold") + Text("  ") + Text(repair.safety.value, style=STYLES[repair.safety])
    layers = len({change.parameter.rpartition(".")[0] for change in repair.changes})
    said = f", {counted(len(repair.changes), 'parameter')} in {counted(layers, 'layer')}"
    state = "applied" if applied else "not applied"
    return banner(word + Text(said), f"{REACHES[repair.reach.value]}; {state}", width)


# ── what changes ────────────────────────────────────────────────────────────────────────────────────────────


def _what(repair: Repair, width: int) -> Iterator[Text]:
    families: dict[tuple[str, ...], list[Change]] = {}
    for change in repair.changes:
        families.setdefault(change.family or (change.parameter,), []).append(change)
    shown = list(families.values())
    for place, family in enumerate(shown[:LISTED]):
        yield from paragraph("" if place else "What", _family(family, width - LABEL), width)
    if len(shown) > LISTED:
        rest = sum(len(family) for family in shown[LISTED:])
        yield from paragraph("", f"and {counted(rest, 'further parameter')}", width)


def _family(family: Sequence[Change], room: int) -> str:
    first = family[0]
    name = elide(escape(first.parameter), room // 2)
    more = f" and {len(family) - 1} like it" if len(family) > 1 else ""
    tied = f" (tied to {escape(', '.join(first.tied_to))})" if first.tied_to else ""
    before, after = _span(c.before.rms for c in family), _span(c.after.rms for c in family)
    return f"{name}{more}{tied}: {_how(family)}; rms {before} -> {after}"


def _how(family: Sequence[Change]) -> str:
    first = family[0]
    if first.treatment is Treatment.SCALE:
        return f"scaled by {_span(c.factor for c in family)}"
    if first.treatment is Treatment.RESET:
        return f"reset to {first.scheme}"
    return f"drawn anew, {first.scheme}"


def _span(values: Iterable[float]) -> str:
    known = list(values)
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low}..{high}"


# ── what that does ──────────────────────────────────────────────────────────────────────────────────────────


def _effects(repair: Repair, width: int) -> Iterator[Text]:
    for place, effect in enumerate(repair.effects[:LISTED]):
        yield from paragraph("" if place else "Effect", _effect(effect), width)
    before, after = repair.losses
    if isfinite(before) or isfinite(after):
        verdict = f"; verdict {repair.verdict.value}" if repair.verdict is not None else ""
        text = f"first loss {number(before)} -> {number(after)}{verdict}"
        yield from paragraph("" if repair.effects else "Effect", text, width)


def _effect(effect: Effect) -> str:
    now = f"within {_interval(effect.expected)}" if effect.after is None else _interval(effect.after)
    where = f" at {escape(effect.layer)}" if effect.layer else ""
    return f"{effect.code} {effect.quantity}{where}: {_interval(effect.before)} -> {now}"


def _interval(interval: Interval) -> str:
    low, high = number(interval.low), number(interval.high)
    if isfinite(interval.low) and not isfinite(interval.high):
        return f"{low} or more"
    if isfinite(interval.high) and not isfinite(interval.low):
        return f"{high} or less"
    return low if low == high else f"{low}..{high}"


def _proof(repair: Repair, width: int) -> Iterator[Text]:
    for place, race in enumerate(repair.proofs):
        yield from paragraph("" if place else "Proof", _race(race), width)


def _race(race: Race) -> str:
    """How both did, in shares of the uninformed loss."""
    end = "wins" if race.reference_wins else "does not win"
    return (
        f"trained for {race.steps} steps of {race.optimizer} at {counted(len(race.heats), 'learning rate')}, as given "
        f"it gets {race.given:.0%} of the way from the uninformed loss to 0, repaired {race.reference:.0%}: the repair "
        f"{end}"
    )


def _tried(repair: Repair) -> str:
    races = "; ".join([*(_race(race) for race in repair.proofs), *repair.reasons])
    return f"{REACHES[repair.reach.value]} ({counted(len(repair.changes), 'parameter')}): {races}"


# ── the code ────────────────────────────────────────────────────────────────────────────────────────────────


def _code(repair: Repair, diff: bool, width: int) -> Iterator[Text]:
    yield Text()
    yield Text("Code", style="bold") + Text("   after the model is built:")
    yield from (Text(f"    {escape(line)}", style="cyan", no_wrap=True) for line in repair.code.splitlines())
    if not diff:
        return
    if repair.diff:
        yield Text()
        yield from (Text(escape(line), style=_shade(line), no_wrap=True) for line in repair.diff.splitlines())
    for text in repair.elsewhere[:LISTED]:
        yield from paragraph("Diff", text, width)


def _shade(line: str) -> str:
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
