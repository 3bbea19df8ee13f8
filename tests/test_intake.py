"""Where activations stand on the way to a layer, looked up in the graph as if it were searched."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.intake import IDENTITY, Meeting, Wiring, meeting
from fanin.trial import ActivationSpec, Kind, LayerSpec, ModelSpec

NAMES = [f"l{i}" for i in range(6)]
FUNCTIONS = ["relu", "tanh"]

sources = st.lists(st.sampled_from(NAMES), max_size=3).map(tuple)


@st.composite
def layers(draw: st.DrawFn) -> LayerSpec:
    """A layer that reads some others, through an activation that is known, unknown or none."""
    inputs = draw(sources)
    return LayerSpec(
        draw(st.sampled_from(NAMES)),
        Kind.LINEAR,
        "Linear",
        (),
        inputs,
        joins=draw(st.sampled_from(["sum", "sum", "product", "concatenation"])) if len(inputs) > 1 else "",
        input_activation=draw(st.sampled_from([None, IDENTITY, *FUNCTIONS])),
        calls=draw(st.sampled_from([1, 1, 0])),
    )


activations = st.builds(ActivationSpec, st.just("a"), st.sampled_from(FUNCTIONS), sources)
specs = st.builds(
    lambda layers, activations, outputs: ModelSpec("M", "numpy", tuple(layers), tuple(activations), outputs),
    st.lists(layers(), min_size=1, max_size=4),
    st.lists(activations, max_size=4),
    sources,
)


@given(specs)
@settings(max_examples=1000, deadline=None)
def test_activations_stand_where_a_search_of_the_graph_finds_them(spec: ModelSpec) -> None:
    wiring = Wiring.of(spec)
    for layer in spec.layers:
        assert meeting(wiring, layer) == by_search(spec, layer)


def by_search(spec: ModelSpec, layer: LayerSpec) -> Meeting | None:
    """Every activation and every layer looked at, for each source of each layer."""
    fed_by, φ = layer.inputs, layer.input_activation
    if φ == IDENTITY or (φ and (len(fed_by) == 1 or layer.joins == "concatenation")):
        return Meeting(dict.fromkeys(fed_by, φ))
    seen = [a for a in spec.activations if set(a.inputs) & set(fed_by)]
    inside = {a.inputs[0]: a.function for a in seen if len(a.inputs) == 1}
    if φ and [(set(a.inputs), a.function) for a in seen] == [(set(fed_by), φ)]:
        return Meeting(dict.fromkeys(fed_by, IDENTITY), φ)
    alone = len(fed_by) > 1 and all(readers(spec, path) == 1 for path in fed_by)
    if not alone or len(inside) != len(seen) or (φ and set(inside.values()) != {φ}):
        return None
    return Meeting({path: inside.get(path, IDENTITY) for path in fed_by})


def readers(spec: ModelSpec, path: str) -> int:
    return sum(path in layer.inputs for layer in spec.layers if layer.calls) + (path in spec.outputs)
