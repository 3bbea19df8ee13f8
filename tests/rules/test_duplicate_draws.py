"""Equal draws in several layers, and weights that are equal for good reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fanin.cause import Cause
from fanin.finding import Finding, Missing, Scope, Severity
from fanin.rules.duplicate_draws import DuplicateDraws
from fanin.scheme import HE_NORMAL
from fanin.summary import Floats
from fanin.synthetic import Init, mlp, scaled, tiled
from fanin.trial import Kind, Role, Trial

HE = scaled(HE_NORMAL)
HIDDEN = tuple(f"blocks.{i}.fc" for i in range(5))


def judged(trial: Trial) -> list[Finding]:
    said = list(DuplicateDraws().check(trial))
    assert all(isinstance(one, Finding) for one in said)
    return [one for one in said if isinstance(one, Finding)]


def seeded(init: Init = HE, seed: int = 7) -> Init:
    return lambda rng, shape: init(np.random.default_rng(seed), shape)


def weights(*paths: str, init: Init) -> dict[str, Init | str]:
    return {f"{path}.weight": init for path in paths}


def respecified(trial: Trial, kind: Kind | None = None, calls: int = 1, **changes: Any) -> Trial:
    layers = tuple(
        replace(
            layer,
            kind=kind or layer.kind,
            calls=calls,
            parameters=(replace(layer.parameters[0], **changes), *layer.parameters[1:]),
        )
        for layer in trial.spec.layers
    )
    return replace(trial, spec=replace(trial.spec, layers=layers))


def without(trial: Trial, role: Role, layer: str | None = None) -> Trial:
    step = trial.steps[0]
    kept = tuple(o for o in step.observations if o.role is not role or layer not in (None, o.layer))
    return replace(trial, steps=(replace(step, observations=kept),))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("init", ["he_normal", "glorot_uniform", "zeros", "ones"])
def test_draws_of_a_running_generator_differ(init: str, seed: int) -> None:
    assert judged(mlp(init=init, seed=seed)) == []
    assert judged(mlp(init=init, seed=seed, residual=True)) == []


def test_the_same_seed_before_each_layer_is_a_suspect() -> None:
    (finding,) = judged(mlp(init=seeded()))
    assert (finding.code, finding.cause) == ("FAN404", Cause.DUPLICATE_DRAWS)
    assert (finding.layer, finding.layers) == (HIDDEN[0], HIDDEN)
    assert (finding.scope, finding.severity) == (Scope.EVERYWHERE, Severity.SUSPECT)
    assert finding.measured.middle == 5
    assert "blocks.0.fc.weight and blocks.1.fc.weight hold the same 1024 values" in finding.message


def test_other_shapes_at_the_ends_do_not_hide_it() -> None:
    (finding,) = judged(mlp((8, *(32,) * 6, 10), init=seeded()))
    assert finding.severity is Severity.SUSPECT
    assert finding.layer == "blocks.1.fc"


def test_two_copies_are_a_note_about_the_first() -> None:
    (finding,) = judged(mlp(overrides=weights(HIDDEN[1], HIDDEN[3], init=seeded())))
    assert (finding.layer, finding.layers) == (HIDDEN[1], (HIDDEN[1], HIDDEN[3]))
    assert (finding.scope, finding.severity) == (Scope.LAYER, Severity.NOTE)


def test_two_pairs_are_two_notes() -> None:
    overrides = weights(*HIDDEN[0:2], init=seeded()) | weights(*HIDDEN[3:5], init=seeded(seed=8))
    trial = mlp((32,) * 9 + (10,), overrides=overrides)
    assert [finding.layers for finding in judged(trial)] == [HIDDEN[0:2], HIDDEN[3:5]]


def test_copied_blocks_of_several_draws_are_one_note() -> None:
    """As in nn.TransformerEncoder, which deep-copies its layer; here fc1 and fc2 differ."""
    trial = mlp((32,) * 5 + (10,), residual=True)
    overrides = {f"blocks.{i}.fc{j}.weight": seeded(seed=j) for i in range(4) for j in (1, 2)}
    (finding,) = judged(mlp((32,) * 5 + (10,), residual=True, overrides=overrides))
    assert (finding.scope, finding.severity) == (Scope.EVERYWHERE, Severity.NOTE)
    assert finding.layers == tuple(layer.path for layer in trial.spec.layers[:-1])
    assert "8 layers share 2 draws" in finding.message


def hadamard(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    h = np.ones((1, 1))
    while len(h) < shape[0]:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(len(h))


@pytest.mark.parametrize(
    "init",
    [lambda rng, shape: np.eye(*shape), hadamard, tiled(seeded()), lambda rng, shape: np.full(shape, 0.1)],
    ids=["identity", "Hadamard", "one row", "constant"],
)
def test_patterns_may_be_shared(init: Init) -> None:
    assert judged(mlp(overrides=weights(*HIDDEN, init=init))) == []


def test_few_values_may_be_equal() -> None:
    assert judged(mlp((3, 3, 3, 3, 10), init=seeded())) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": False},
        {"tied_to": "elsewhere.weight"},
        {"kind": Kind.NORM},
        {"kind": Kind.OTHER},
        {"calls": 0},
    ],
)
def test_frozen_tied_unused_and_unknown_weights_are_passed(changes: dict[str, Any]) -> None:
    assert judged(respecified(mlp(init=seeded()), **changes)) == []


def test_a_copy_without_a_gradient_is_a_teacher() -> None:
    trial = mlp(overrides=weights(*HIDDEN[1:3], init=seeded()))
    assert judged(without(trial, Role.WEIGHT_GRAD, HIDDEN[2])) == []
    assert len(judged(without(trial, Role.WEIGHT_GRAD))) == 1


def test_without_weights_it_says_so_and_blocks_nothing() -> None:
    (said,) = DuplicateDraws().check(without(mlp(), Role.WEIGHT))
    assert isinstance(said, Missing)
    assert not said.blocks
