"""The pure numbers that rules are made of."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan, log10, nan

import numpy as np
import pytest

from fanin import measures
from fanin.scheme import HE_NORMAL
from fanin.summary import summarize
from fanin.synthetic import mlp, scaled, seen
from fanin.trial import Kind, LayerSpec, Role

RNG = np.random.default_rng(0)


def test_decades_are_a_logarithm_with_ends() -> None:
    assert measures.decades(100.0) == 2.0
    assert measures.decades(0.0) == -inf
    assert measures.decades(inf) == inf
    assert isnan(measures.decades(-1.0))
    assert isnan(measures.decades(nan))


@pytest.mark.parametrize(("offset", "share"), [(0.0, 1.0), (3.0, 0.1), (1e3, 1e-6)])
def test_what_depends_on_the_input_is_the_variance_over_the_batch(offset: float, share: float) -> None:
    values = RNG.normal(size=(4096, 5)) + offset
    assert measures.depends_on_input(summarize(values, unit_axis=1)) == pytest.approx(share, rel=0.1)


def test_a_constant_carries_nothing_and_nothing_carries_nan() -> None:
    assert measures.depends_on_input(summarize(np.full((8, 3), 7.0), unit_axis=1)) == 0.0
    assert isnan(measures.depends_on_input(summarize(np.zeros((8, 3)), unit_axis=1)))


def test_the_head_is_the_one_layer_that_reaches_the_output() -> None:
    spec = mlp().spec
    found = measures.head(spec)
    assert found is not None
    assert found.path == "head"
    assert measures.head(replace(spec, outputs=("blocks.0.fc", "head"))) is None
    unknown = measures.head(replace(spec, outputs=()))
    assert unknown is not None
    assert unknown.path == "head"
    silent = tuple(replace(layer, calls=0) for layer in spec.layers)
    assert measures.head(replace(spec, outputs=(), layers=silent)) is None


def test_mixing_layers_have_a_matrix_of_their_own_and_ran() -> None:
    spec = mlp((8, 8, 8, 8, 4)).spec
    first, second, third, last = spec.layers
    embedding = replace(first, kind=Kind.EMBEDDING)
    unused = replace(second, calls=0)
    tied = replace(third, parameters=(replace(third.parameters[0], tied_to="x.weight"),))
    assert measures.mixing(replace(spec, layers=(embedding, unused, tied, last))) == (last,)
    assert measures.mixing(spec) == spec.layers


def test_a_chain_has_no_norm_and_no_sum() -> None:
    spec = mlp().spec
    assert measures.is_chain(spec)
    assert not measures.is_chain(mlp(residual=True).spec)
    norm = LayerSpec("norm", Kind.NORM, "LayerNorm", calls=1)
    assert not measures.is_chain(replace(spec, layers=(*spec.layers, norm)))
    assert measures.is_chain(replace(spec, layers=(*spec.layers, replace(norm, calls=0))))


@pytest.mark.parametrize("factor", [0.1, 1.0, 30.0])
def test_the_backward_gain_is_that_of_the_weights_between(factor: float) -> None:
    """he_normal keeps the gradient's power, and each of the 9 weights behind the first layer counts squared."""
    trial = mlp((256,) * 11 + (256,), scaled(HE_NORMAL, factor))
    (step,) = trial.steps
    gained = measures.backward_gain(step, "blocks.0.fc", "blocks.9.fc")
    assert gained == pytest.approx(2 * 9 * log10(factor), abs=0.7)
    assert measures.backward_gain(step, "head", "head") == 0.0


def test_the_backward_gain_knows_neither_the_loss_scale_nor_the_batch() -> None:
    trial = mlp()
    doubled = mlp(batch=tuple(np.concatenate([a, a]) for a in _batch()))  # type: ignore[arg-type]
    once = mlp(batch=_batch())
    gains = [measures.backward_gain(t.steps[0], "blocks.0.fc", "head") for t in (once, doubled)]
    assert gains[0] == pytest.approx(gains[1])
    assert isnan(measures.backward_gain(trial.steps[0], "nowhere", "head"))
    dead = mlp(overrides={"head.weight": "zeros"})
    assert measures.backward_gain(dead.steps[0], "blocks.0.fc", "head") == -inf


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(64, 32)), rng.integers(0, 10, 64)


def test_power_is_summed_over_units() -> None:
    layer = LayerSpec("fc", Kind.LINEAR, "Linear", calls=1)
    step = seen([layer], {("fc", Role.OUTPUT): np.full((8, 5), 2.0)}).steps[0]
    output = measures.layer_output(step, "fc")
    assert output is not None
    assert measures.unit_power(output) == pytest.approx(20.0)
    assert measures.layer_output(step, "elsewhere") is None


def test_the_uninformed_loss_is_read_where_it_is_known() -> None:
    x, labels = _batch()
    share = np.bincount(labels) / len(labels)
    (step,) = mlp(batch=(x, labels)).steps
    assert measures.uninformed_loss(step) == pytest.approx(-float((share * np.log(share)).sum()))
    assert isnan(measures.uninformed_loss(replace(step, observations=())))


def test_attention_is_seen_by_its_entropy() -> None:
    layer = LayerSpec("attn", Kind.ATTENTION, "MultiheadAttention", calls=1)
    step = seen([layer], {("attn", Role.ATTENTION_ENTROPY): np.full((2, 2), 0.5)}).steps[0]
    assert measures.has_attention(step)
    assert not measures.has_attention(mlp().steps[0])


def test_the_inputs_of_the_network_are_those_of_layers_that_read_nothing_else() -> None:
    trial = mlp(residual=True)
    assert list(measures.network_inputs(trial.steps[0], trial.spec)) == ["blocks.0.fc1"]
