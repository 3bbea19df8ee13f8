"""Residual streams that are multiplied with every block, and those that are not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fanin.cause import Cause
from fanin.finding import Finding, Scope, Severity
from fanin.rules.residual_growth import (
    FEWEST_BLOCKS,
    ResidualGrowth,
    Stream,
    _Sums,
    longest_stream,
    multiplies,
)
from fanin.scheme import HE_NORMAL
from fanin.synthetic import mlp, scaled
from fanin.trial import NETWORK_INPUT, RECHECK, Kind, LayerSpec, Mode, ModelSpec, Trial

WIDTHS = (32,) * 13 + (10,)


def judged(trial: Trial) -> list[Finding]:
    return [said for said in ResidualGrowth().check(trial) if isinstance(said, Finding)]


def grown(
    factor: float, *, reference: bool = False, steps: int = 1, widths: tuple[int, ...] = WIDTHS
) -> Trial:
    return mlp(widths, scaled(HE_NORMAL, factor), residual=True, reference=reference, steps=steps)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reference", [False, True])
def test_eight_blocks_of_he_normal_pass(seed: int, reference: bool) -> None:
    assert judged(mlp((32,) * 9 + (10,), residual=True, seed=seed, reference=reference)) == []


@pytest.mark.parametrize("blocks", [12, 16, 24])
def test_what_the_reference_shows_too_is_the_architecture(blocks: int) -> None:
    assert judged(mlp((32,) * (blocks + 1) + (10,), residual=True, reference=True)) == []


@pytest.mark.parametrize(
    ("factor", "severity"), [(1.3, Severity.SUSPECT), (1.6, Severity.FAULT), (3.0, Severity.FAULT)]
)
def test_severity_grows_with_the_excess(factor: float, severity: Severity) -> None:
    (finding,) = judged(grown(factor, reference=True))
    assert (finding.severity, finding.cause) == (severity, Cause.RESIDUAL_GROWTH)
    assert (finding.layer, finding.scope) == ("blocks.0.fc2", Scope.EVERYWHERE)
    assert len(finding.layers) == 12


def test_without_a_reference_more_is_needed() -> None:
    assert judged(grown(1.0, widths=(32,) * 11 + (10,))) == []
    assert judged(grown(1.15))[0].severity is Severity.SUSPECT
    assert judged(grown(3.0))[0].severity is Severity.FAULT


def test_an_overflow_by_the_second_look_does_not_excuse_it() -> None:
    trial = grown(3.0, steps=RECHECK + 1)
    assert len(judged(trial)) == 1


def test_what_training_cures_is_no_symptom() -> None:
    poor, sound = grown(3.0), grown(0.3)
    later = replace(sound.steps[0], index=RECHECK)
    assert judged(replace(poor, steps=(*poor.steps, later))) == []


def test_a_stream_of_zeros_is_no_growth() -> None:
    sound = replace(mlp(WIDTHS, "zeros", residual=True).steps[0], mode=Mode.REFERENCE)
    assert judged(mlp(WIDTHS, "zeros", residual=True)) == []
    poor = grown(3.0)
    assert len(judged(replace(poor, steps=(*poor.steps, sound)))) == 1


# ── growth ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_growth_by_addition_and_by_one_block_is_no_multiplication() -> None:
    assert multiplies([3.0**k for k in range(13)])
    assert not multiplies([1.0 + 1e5 * k for k in range(13)])
    assert not multiplies([1.0] * 6 + [1e9] * 6)
    assert not multiplies([2.0**k for k in range(9)])


# ── the graph ───────────────────────────────────────────────────────────────────────────────────────────────────


def spec(*layers: tuple[str, tuple[str, ...]], norms: tuple[str, ...] = ()) -> ModelSpec:
    return ModelSpec(
        "ByHand",
        "none",
        tuple(
            LayerSpec(
                path,
                Kind.NORM if path in norms else Kind.LINEAR,
                "Layer",
                inputs=inputs,
                joins="sum" if len(inputs) > 1 else "",
                calls=1,
            )
            for path, inputs in layers
        ),
    )


STEM = ("stem", (NETWORK_INPUT,))


def test_nested_sums_are_a_stream() -> None:
    stream = longest_stream(mlp(WIDTHS, residual=True).spec)
    assert stream is not None
    assert stream.entrances == (*(f"blocks.{i}.fc1" for i in range(12)), "head")
    assert stream.ends == tuple(f"blocks.{i}.fc2" for i in range(12))


def test_projections_on_the_skip_continue_a_stream() -> None:
    blocks = [
        STEM,
        ("a1", ("stem",)),
        ("a2", ("a1",)),
        ("b1", ("a2", "stem")),
        ("b2", ("b1",)),
        ("down", ("a2", "stem")),
        ("c1", ("b2", "down")),
        ("c2", ("c1",)),
        ("head", ("b2", "c2", "down")),
    ]
    stream = longest_stream(spec(*blocks))
    assert stream is not None
    assert stream.entrances == ("a1", "b1", "c1", "head")
    assert stream.ends == ("a2", "b2", "down", "c2")


@pytest.mark.parametrize("final", [True, False])
def test_normalized_streams_pass(final: bool) -> None:
    """Before each branch, or only at the end."""
    sums = [tuple(f"b{i}" for i in range(k)) for k in range(6)]
    blocks: list[tuple[str, tuple[str, ...]]] = [STEM]
    for k, ends in enumerate(sums):
        fed = ("stem", *ends)
        blocks += [(f"b{k}", fed)] if final else [(f"n{k}", fed), (f"b{k}", (f"n{k}",))]
    blocks += [("norm", ("stem", *(f"b{k}" for k in range(6)))), ("head", ("norm",))]
    assert longest_stream(spec(*blocks, norms=("norm", *(f"n{k}" for k in range(6))))) is None
    plain = [block for block in blocks if block[0] not in ("norm", "head")]
    assert (longest_stream(spec(*plain)) is not None) == final or not final


def test_plain_networks_have_no_stream() -> None:
    assert longest_stream(mlp(WIDTHS).spec) is None
    assert longest_stream(ModelSpec("Empty", "none")) is None
    assert judged(mlp(WIDTHS, scaled(HE_NORMAL, 3))) == []


def test_short_streams_pass() -> None:
    assert longest_stream(mlp((32,) * 3 + (10,), residual=True).spec) is None


def test_without_inputs_nothing_is_said() -> None:
    trial = grown(3.0)
    assert judged(replace(trial, steps=())) == []
    assert judged(replace(trial, steps=(replace(trial.steps[0], observations=()),))) == []


@st.composite
def graphs(draw: st.DrawFn) -> ModelSpec:
    """Layers that read each other: streams that grow by a layer, that start anew from a projection, and anything."""
    names = [f"l{i}" for i in range(draw(st.integers(1, 16)))]
    layers: list[LayerSpec] = []
    read: list[tuple[str, ...]] = [(NETWORK_INPUT,)]
    for i, name in enumerate(names):
        known = [NETWORK_INPUT, *names[:i]]
        anything = st.lists(st.sampled_from(known), min_size=0, max_size=4, unique=True).map(tuple)
        grown_by = st.tuples(st.sampled_from(read[-3:]), st.sampled_from(known[-3:])).map(
            lambda s: (*dict.fromkeys((*s[0], s[1])),)
        )
        inputs = draw(st.one_of(*[grown_by] * 6, st.sampled_from(read[-2:]), anything))
        read.append(inputs)
        kind = draw(st.sampled_from([Kind.LINEAR] * 30 + [Kind.NORM]))
        joins = draw(st.sampled_from(["sum"] * 8 + ["product"])) if len(inputs) > 1 else ""
        layers.append(
            LayerSpec(
                name, kind, "Linear", (), inputs, joins=joins, calls=draw(st.sampled_from([1, 1, 1, 0]))
            )
        )
    return ModelSpec("M", "numpy", tuple(layers))


@given(graphs())
@settings(max_examples=400, deadline=None)
def test_the_longest_stream_is_that_of_its_definition(spec: ModelSpec) -> None:
    event("a stream" if longest_stream(spec) else "none")
    assert longest_stream(spec) == by_definition(spec)


def by_definition(spec: ModelSpec) -> Stream | None:
    """Every sum compared with every one before it."""
    fed = {layer.path: frozenset(layer.inputs) for layer in spec.layers}
    readers: dict[frozenset[str], LayerSpec] = {}
    for layer in spec.layers:
        if layer.calls and layer.inputs:
            readers.setdefault(fed[layer.path], layer)
    chains: dict[frozenset[str], tuple[frozenset[str], ...]] = {}
    for sources, layer in readers.items():
        projected = {fed.get(path) for path in sources}
        before = [s for s in chains if s < sources or s in projected] if layer.joins == "sum" else []
        nearest = max(before, key=lambda s: (len(chains[s]), s < sources), default=None)
        chains[sources] = (*(chains[nearest] if nearest else ()), sources)
    chain = max(chains.values(), key=len, default=())
    if len(chain) <= FEWEST_BLOCKS:
        return None
    added = frozenset().union(*(after - before for before, after in pairwise(chain)))
    if any(layer.kind is Kind.NORM and added & fed[layer.path] for layer in spec.layers):
        return None
    ends = tuple(layer.path for layer in spec.layers if layer.path in added)
    return Stream(tuple(readers[sources].path for sources in chain), ends) if ends else None


def test_a_stream_is_looked_for_among_few_sums_however_long_it_is() -> None:
    """Compared with each other, the sums of 300 blocks would be so 45,000 times."""
    compared = [0]

    class Counted(frozenset[str]):
        def __lt__(self, other: object) -> bool:
            compared[0] += 1
            return frozenset.__lt__(self, other)  # type: ignore[operator]

    spec = mlp((2,) * 301 + (2,), residual=True).spec
    sums = _Sums({layer.path: Counted(layer.inputs) for layer in spec.layers})
    for layer in spec.layers:
        sums.add(layer)
    assert len(sums.longest()) == 301
    assert compared[0] <= 2 * 301
