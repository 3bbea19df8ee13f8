"""The NumPy networks that rules are tested with: their gradients, names, shapes and updates."""

from __future__ import annotations

import numpy as np
import pytest

from fanin.scheme import GLOROT_UNIFORM, HE_NORMAL
from fanin.summary import Floats
from fanin.synthetic import SLOPES, Network, clusters, constant, cross_entropy, mlp, normal, scaled, tiled
from fanin.trial import NETWORK_INPUT, Kind, Role

SIZES = (6, 6, 6, 6, 4)
BATCH = clusters(6, classes=4, size=16, seed=3)


def network(activation: str, residual: bool) -> Network:
    built = Network(activation, residual, blocks=len(SIZES) - 2)
    built.draw(SIZES, scaled(HE_NORMAL), {f"{path}.bias": normal(0.1) for path in built.paths}, seed=1)
    return built


def loss(net: Network, x: Floats) -> float:
    return cross_entropy(net.forward(x), BATCH[1])[0]


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", sorted(SLOPES))
def test_gradients_agree_with_finite_differences(activation: str, residual: bool) -> None:
    """Central differences err by h² L'''/6 and ε L/h: with h = 1e-5 about 1e-10, far below the tolerance."""
    h, x = 1e-5, BATCH[0]
    net = network(activation, residual)
    by_input = net.backward(cross_entropy(net.forward(x), BATCH[1])[1])
    grads = dict(net.grads)
    for name, parameter in net.parameters.items():
        at = tuple(np.random.default_rng(len(name)).integers(0, parameter.shape))
        kept = parameter[at]
        around = []
        for value in (kept + h, kept - h):
            parameter[at] = value
            around.append(loss(net, x))
        parameter[at] = kept
        assert grads[name][at] == pytest.approx((around[0] - around[1]) / (2 * h), rel=1e-5, abs=1e-9), name
    up, down = x.copy(), x.copy()
    up[2, 3] += h
    down[2, 3] -= h
    numeric = (loss(net, up) - loss(net, down)) / (2 * h)
    assert by_input[2, 3] == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_a_plain_network_is_named_as_the_original_would() -> None:
    trial = mlp((8, 12, 12, 4))
    assert [layer.path for layer in trial.spec.layers] == ["blocks.0.fc", "blocks.1.fc", "head"]
    assert [layer.inputs for layer in trial.spec.layers] == [
        (NETWORK_INPUT,),
        ("blocks.0.fc",),
        ("blocks.1.fc",),
    ]
    assert [layer.activation for layer in trial.spec.layers] == ["relu", "relu", None]
    assert [layer.input_activation for layer in trial.spec.layers] == ["identity", "relu", "relu"]
    assert {layer.kind for layer in trial.spec.layers} == {Kind.LINEAR}
    assert [a.tensor for a in trial.spec.activations] == ["blocks.0.relu_input_0", "blocks.1.relu_input_0"]
    assert trial.spec.outputs == ("head",)


def test_a_residual_network_sums_its_branches() -> None:
    trial = mlp((8, 8, 8, 4), residual=True, activation="tanh")
    paths = ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "head"]
    assert [layer.path for layer in trial.spec.layers] == paths
    head, branch = trial.spec.layer("head"), trial.spec.layer("blocks.1.fc2")
    assert head.inputs == (NETWORK_INPUT, "blocks.0.fc2", "blocks.1.fc2")
    assert (head.joins, head.input_activation) == ("sum", "identity")
    assert (branch.inputs, branch.joins, branch.input_activation) == (("blocks.1.fc1",), "", "tanh")


def test_every_role_is_observed_with_its_name_and_shape() -> None:
    start = mlp((8, 12, 4)).start
    assert start is not None
    seen = {(o.role, o.tensor): o.shape for o in start.observations if o.layer == "blocks.0.fc"}
    assert seen == {
        (Role.WEIGHT, "blocks.0.fc.weight"): (12, 8),
        (Role.BIAS, "blocks.0.fc.bias"): (12,),
        (Role.INPUT, "blocks.0.fc_input_0"): (128, 8),
        (Role.OUTPUT, "blocks.0.fc_output_0"): (128, 12),
        (Role.OUTPUT_GRAD, "gradient/blocks.0.fc_output_0"): (128, 12),
        (Role.WEIGHT_GRAD, "gradient/blocks.0.fc.weight"): (12, 8),
        (Role.ACTIVATION_INPUT, "blocks.0.relu_input_0"): (128, 12),
    }
    grad = start.of(Role.WEIGHT_GRAD)["gradient/blocks.0.fc.weight"].summary
    assert grad.histogram is not None
    assert grad.units is not None
    assert len(grad.units.mean) == 12


def test_training_lowers_the_loss_and_starts_from_the_initialization() -> None:
    trial = mlp(steps=10)
    losses = [step.loss for step in trial.steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    start = trial.start
    assert start is not None
    first = start.of(Role.WEIGHT)["blocks.0.fc.weight"].summary
    assert first.std == pytest.approx(HE_NORMAL.std(32, 32), rel=0.1)


def test_an_override_leaves_every_other_parameter_as_it_was() -> None:
    plain, changed = mlp().start, mlp(overrides={"blocks.2.fc.weight": "zeros"}).start
    assert plain is not None
    assert changed is not None
    for role in (Role.WEIGHT, Role.BIAS):
        for name, seen in plain.of(role).items():
            same = changed.of(role)[name].summary.mean == seen.summary.mean
            assert same == (name != "blocks.2.fc.weight")


def test_the_same_seed_gives_the_same_trial() -> None:
    assert mlp(steps=3, seed=5).steps[-1].loss == mlp(steps=3, seed=5).steps[-1].loss
    assert mlp(steps=3, seed=5).steps[-1].loss != mlp(steps=3, seed=6).steps[-1].loss


def test_what_overflows_becomes_infinite_in_silence() -> None:
    start = mlp(init=normal(1e80)).start
    assert start is not None
    assert start.of(Role.OUTPUT)["head_output_0"].summary.non_finite > 0
    assert not np.isfinite(start.loss)


def test_initializers_draw_what_they_say() -> None:
    rng = np.random.default_rng(0)
    assert np.unique(constant(0.5)(rng, (3, 4))).tolist() == [0.5]
    assert scaled(HE_NORMAL, 2)(rng, (400, 100)).std() == pytest.approx(2 * np.sqrt(2 / 100), rel=0.02)
    uniform = scaled(GLOROT_UNIFORM)(rng, (400, 100))
    assert np.abs(uniform).max() <= np.sqrt(6 / 500)
    assert uniform.std() == pytest.approx(np.sqrt(2 / 500), rel=0.02)
    copied = tiled(normal(1.0), rows=2)(rng, (6, 4))
    assert len(np.unique(copied, axis=0)) == 2
    assert (copied[0] == copied[2]).all()
