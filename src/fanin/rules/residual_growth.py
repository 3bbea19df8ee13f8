"""FAN108: a residual stream without normalization that grows by a factor with every block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import ClassVar

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.measures import decades
from fanin.rule import Example, Need, Rule
from fanin.scheme import HE_NORMAL
from fanin.summary import Interval
from fanin.synthetic import Init, constant, mlp, normal, scaled
from fanin.trial import Kind, LayerSpec, ModelSpec, Role, Step, Trial

Sources = frozenset[str]
"""What a stream is the sum of, at one place: paths of layers."""

GROWTH = 4.0
"""Decades over the whole stream that are no fault by themselves: eight blocks of he_normal that double the stream make
2.1 and train; eight that triple it, as in `synthetic.mlp`, make 3.7 to 4.3 (3 seeds)."""

EXCESS = 2.0
"""Decades more than a sound draw of the same architecture from which growth is suspect: two draws of he_normal differ
by up to 0.9 (networks of 8 to 24 blocks of 32 units, 3 seeds each)."""

FAULT_EXCESS = 6.0
"""Decades more than a sound draw from which it is a fault: single networks gain up to 5.9 decades and reach 0.61 to
0.98 of a sound one's progress, with 7.5 and more they reach 0.38 to 0.72 at best (benchmarks/cliffs.py)."""

ALONE = 6.0
"""Decades from which growth is suspect without a reference, by the same measurements."""

FAULT_ALONE = 10.0
"""Decades from which it is a fault without a reference: from here on all networks diverged (benchmarks/cliffs.py)."""

FEWEST_BLOCKS = 3
"""Fewer sums are no slope: one layer may make all of it, which other rules name."""

LARGEST_STEP = 0.5
"""Share of the growth that one block may contribute. Of a factor per block each contributes 1/n; growth by addition,
as behind a normalization, is done after the first."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A residual stream, at the entrance of each block in forward order, and at what reads it last.

    Attributes:
        entrances: Paths of layers that read it.
        ends: Paths of the layers whose output was added on the way.
    """

    entrances: tuple[str, ...]
    ends: tuple[str, ...]


class ResidualGrowth(Rule):
    r"""A residual stream without normalization is multiplied with every block.

    What it detects
    ---------------
    A sum of residual branches whose second moment grows by a factor per block, over the whole stream by many more
    decades than a sound draw of the same architecture.

    Why it matters
    --------------
    A branch that passes on g times what it reads multiplies the stream by 1 + g, so L blocks make (1 + g)^L of it,
    forward and backward. The first outputs are enormous, the first gradients too, and one step throws the weights
    away.

    How it is measured
    ------------------
    The stream is found in the graph: layers that read nested sums, each of what the one before read and a new branch,
    or of what was projected from it. With q_k = E[h²] at the k-th of them,

        D = log10 q_n - log10 q_0

    The rule asks for D > 4, of which no single block makes more than half, at step 0 and at step 5 (values that have
    overflowed by then do not excuse it). With a reference it is suspect from 2 decades more than that has, and a
    fault from 6; without one from D > 6 and D > 10. A stream that any normalization reads is passed: behind it,
    branches are of one size whatever the stream's, and add up linearly. So are streams of fewer than three blocks.

    When it is wrong
    ----------------
    Deep stacks of sound he_normal branches explode too, where nothing scales them; next to a reference that explodes
    with them this rule is silent, for the architecture does it. Scales inside a branch, such as a learned scalar of
    1/√L, count as measured.

    Fix
    ---
    Start the last layer of each branch at zero, or scale it by 1 / √(number of branches); or normalize what each
    branch reads.

    References
    ----------
    - Zhang, Dauphin and Ma 2019, Fixup Initialization: Residual Learning Without Normalization, section 2.
    - De and Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks.
    - Hanin and Rolnick 2018, How to Start Training: The Effect of Initialization and Architecture, section 3.2.
    """

    code: ClassVar[str] = "FAN108"
    name: ClassVar[str] = "residual-growth"
    needs: ClassVar[frozenset[Need]] = frozenset({Need(Role.INPUT, recheck=True, reference=True)})

    def check(self, trial: Trial) -> Iterator[Finding | Missing]:
        """One finding at most, about the longest stream."""
        stream, looks = longest_stream(trial.spec), trial.looks(Role.INPUT)
        if stream is None or not looks:
            return
        moments = [second_moments(step, stream) for step in looks]
        if any(not multiplies(look) for look in moments if _is_finite(look)) or not _is_finite(moments[0]):
            return
        grown = [total(look) for look in moments if _is_finite(look)]
        sound = second_moments(trial.reference, stream) if trial.reference else []
        reference = total(sound) if _is_finite(sound) else None
        excess, suspect, fault = (
            (min(grown), ALONE, FAULT_ALONE)
            if reference is None
            else (min(grown) - reference, EXCESS, FAULT_EXCESS)
        )
        if excess > suspect:
            severity = Severity.FAULT if excess > fault else Severity.SUSPECT
            yield self._finding(stream, moments[0], reference, severity, looks[0].index)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Residual networks whose branches end in layers of several sizes."""
        deep = (32,) * 13 + (10,)
        large = scaled(HE_NORMAL, 3)
        scaled_ends: dict[str, Init] = {f"blocks.{i}.fc2.weight": normal(0.05) for i in range(12)}
        zeros: dict[str, Init] = {f"blocks.{i}.fc2.weight": constant(0.0) for i in range(12)}
        cliff: dict[str, Init] = scaled_ends | {"blocks.5.fc2.weight": normal(1e3)}
        yield Example("he_normal, 8 blocks", lambda: mlp((32,) * 9 + (10,), residual=True))
        yield Example("he_normal, 12 blocks", lambda: mlp(deep, residual=True, reference=True))
        yield Example("branches scaled down", lambda: mlp(deep, residual=True, overrides=scaled_ends))
        yield Example("branches that end in zeros", lambda: mlp(deep, residual=True, overrides=zeros))
        yield Example("one large branch", lambda: mlp(deep, residual=True, overrides=cliff, reference=True))
        yield Example("no residual stream", lambda: mlp(deep, large))
        yield Example("thrice he_normal", lambda: mlp(deep, large, residual=True), ("blocks.0.fc2",))
        yield Example(
            "thrice he_normal, beside a reference",
            lambda: mlp(deep, large, residual=True, reference=True),
            ("blocks.0.fc2",),
        )

    def _finding(
        self, stream: Stream, moments: list[float], reference: float | None, severity: Severity, step: int
    ) -> Finding:
        growth, blocks = total(moments), len(moments) - 1
        against = "" if reference is None else f"; with a sound draw it is {reference:.1f}"
        return Finding(
            self.code,
            self.name,
            stream.ends[0],
            step,
            Interval(growth, growth),
            Interval(0.0, GROWTH if reference is None else max(GROWTH, reference + EXCESS)),
            "log10 E[h²] last / first",
            f"From {stream.entrances[0]} to {stream.entrances[-1]} the residual stream grows by {growth:.1f} decades "
            f"in {blocks} blocks, {10 ** (growth / blocks):.3g} times per block{against}.",
            Cause.RESIDUAL_GROWTH,
            scope=Scope.EVERYWHERE,
            layers=stream.ends,
            severity=severity,
        )


def longest_stream(spec: ModelSpec) -> Stream | None:
    """The longest chain of sums, each of the one before and something new; None where there is none, or where a
    normalization reads one of its sums.

    A sum follows another if it contains all that the other is the sum of, or something projected from the other.
    """
    sums = _Sums({layer.path: frozenset(layer.inputs) for layer in spec.layers})
    for layer in spec.layers:
        if layer.calls and layer.inputs:
            sums.add(layer)
    chain = sums.longest()
    if len(chain) <= FEWEST_BLOCKS:
        return None
    added = frozenset().union(*(after.sources - before.sources for before, after in pairwise(chain)))
    if any(layer.kind is Kind.NORM and not added.isdisjoint(sums.fed[layer.path]) for layer in spec.layers):
        return None
    ends = tuple(layer.path for layer in spec.layers if layer.path in added)
    return Stream(tuple(one.reader for one in chain), ends) if ends else None


@dataclass(frozen=True, slots=True)
class _Sum:
    """What a layer reads first, and the sum before it, so that to go on costs the same however long the chain is.

    Attributes:
        order: Among all, from 0.
        length: Of the chain that ends here.
    """

    sources: Sources
    reader: str
    order: int
    length: int
    before: _Sum | None

    def precedes(self, other: _Sum) -> bool:
        """Whether it is the earlier one of two equally long ones."""
        return self.length == other.length and self.order < other.order


class _Sums:
    """The sums of a model by what they are made of.

    Whatever is part of another sum has its last source in that: so for each sum only those are looked at whose last
    source is one of its own, the youngest first, until none can be longer. In a stream that is the one before it.

    Attributes:
        fed: What each layer reads.
    """

    def __init__(self, fed: dict[str, Sources]) -> None:
        self.fed = fed
        self._known: dict[Sources, _Sum] = {}
        self._by_last: dict[str, list[_Sum]] = {}
        self._lengths: Counter[int] = Counter()
        self._most = 0

    def add(self, layer: LayerSpec) -> None:
        """What a layer reads, unless one before it did."""
        sources = self.fed[layer.path]
        if sources in self._known:
            return
        before = self._nearest(layer.inputs, sources) if layer.joins == "sum" else None
        length = before.length + 1 if before else 1
        new = _Sum(sources, layer.path, len(self._known), length, before)
        self._known[sources] = new
        self._by_last.setdefault(layer.inputs[-1], []).append(new)
        self._lengths[length] += 1
        self._most = max(self._most, length)

    def longest(self) -> list[_Sum]:
        """The longest chain, from its first sum."""
        last = max(self._known.values(), key=lambda one: one.length, default=None)
        found: list[_Sum] = []
        while last is not None:
            found.append(last)
            last = last.before
        return found[::-1]

    def _nearest(self, inputs: tuple[str, ...], sources: Sources) -> _Sum | None:
        """What it follows: the longest chain, of equal ones rather one that is part of it than one it projects."""
        part = self._part(inputs, sources)
        if part and part.length == self._most:
            return part
        projected = self._projected(sources)
        return part if part and (projected is None or part.length >= projected.length) else projected

    def _part(self, inputs: tuple[str, ...], sources: Sources) -> _Sum | None:
        best: _Sum | None = None
        for path in reversed(inputs):
            for one in self._by_last.get(path, ()):
                longer = best is None or one.length > best.length or one.precedes(best)
                if longer and one.sources < sources:
                    best = one
            if best is not None and best.length == self._most and self._lengths[self._most] == 1:
                break
        return best

    def _projected(self, sources: Sources) -> _Sum | None:
        read = {self.fed[path] for path in sources if path in self.fed}
        known = sorted((self._known[s] for s in read if s in self._known), key=lambda one: one.order)
        return max(known, key=lambda one: one.length, default=None)


def second_moments(step: Step, stream: Stream) -> list[float]:
    """E[h²] at each entrance; nan where values overflowed or were not seen."""
    seen = step.first(Role.INPUT)
    return [
        seen[path].summary.second_moment
        if path in seen and not seen[path].summary.non_finite
        else float("nan")
        for path in stream.entrances
    ]


def total(moments: list[float]) -> float:
    """Decades from the first to the last."""
    return decades(moments[-1] / moments[0])


def multiplies(moments: list[float]) -> bool:
    """Whether growth is large, and no single block makes most of it."""
    largest = max(decades(after / before) for before, after in pairwise(moments))
    return total(moments) > GROWTH and largest <= LARGEST_STEP * total(moments)


def _is_finite(moments: list[float]) -> bool:
    """Whether there is a number at every entrance, and none is zero."""
    return bool(moments) and all(isfinite(q) and q > 0 for q in moments)
