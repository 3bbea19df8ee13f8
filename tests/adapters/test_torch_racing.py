"""A race tells sound networks from poor ones, and leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fanin
from fanin.adapters.base import WatchPlan
from fanin.adapters.torch.racing import race
from fanin.adapters.torch.twins import mapped, several
from fanin.adapters.torch.watching import TorchWatching
from fanin.errors import BatchError, UsageError
from fanin.race import Outcome, Race, RaceOptions
from fanin.trial import ModelSpec

Batch = tuple[Tensor, Tensor]


def batches(count: int = 6, size: int = 64) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(32, 5, generator=generator)
    inputs = [torch.randn(size, 32, generator=generator) for _ in range(count)]
    return [(x, (x @ teacher).argmax(dim=1)) for x in inputs]


def spec_of(model: nn.Module, inputs: Tensor) -> ModelSpec:
    watching = TorchWatching(deepcopy(model), WatchPlan(frozenset(), 1, lambda *_: None, on_error="raise"))
    watching.model(inputs)
    spec = watching.spec
    watching.detach()
    return spec


def mlp(depth: int, std: Callable[[int], float] | None = None) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [layer for _ in range(depth) for layer in (nn.Linear(32, 32), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(32, 5))
        for parameter in model.parameters() if std else ():
            nn.init.zeros_(parameter) if parameter.ndim < 2 else nn.init.normal_(
                parameter, 0, std(parameter.shape[1])
            )
    return model


def he(fan_in: int) -> float:
    return float((2 / fan_in) ** 0.5)


def raced(model: nn.Module, given: Any = None, **options: Any) -> Race:
    given = batches() if given is None else given
    return race(model, given, F.cross_entropy, spec_of(model, batches(1)[0][0]), **options)


def test_twenty_layers_far_too_small_lose_against_their_redraw() -> None:
    seen = raced(mlp(20, lambda fan_in: 1e-3), learning_rates=(2e-3, 1e-2), most=120)
    assert seen.outcome is Outcome.POOR
    assert seen.given < 0.05
    assert seen.steps == 120, "who is behind gets time to catch up"
    assert len(seen.heats) == 2
    assert seen.uninformed == pytest.approx(1.6, abs=0.05)


def test_a_sound_network_does_not_lose() -> None:
    assert raced(mlp(3, he), learning_rates=(2e-3, 1e-2)).outcome is Outcome.HEALTHY


def test_where_neither_moves_it_goes_on_and_says_nothing() -> None:
    seen = raced(mlp(2), learning_rates=(1e-9,), steps=12, most=20)
    assert seen.steps == 20
    assert seen.outcome is Outcome.UNDECIDED


def test_progress_is_reported() -> None:
    told: list[tuple[int, int]] = []
    raced(mlp(1), learning_rates=(1e-9,), steps=2, most=4, on_progress=lambda *at: told.append(at))
    assert told == [(1, 2), (2, 2), (3, 4), (4, 4)]


def test_it_can_be_repeated() -> None:
    model = mlp(3)
    first = raced(model, learning_rates=(1e-3,), steps=5)
    torch.rand(3)
    assert raced(model, learning_rates=(1e-3,), steps=5) == first
    assert raced(model, learning_rates=(1e-3,), steps=5, seed=1) != first


# ── no trace ────────────────────────────────────────────────────────────────────────────────────────────────


def state(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


def assert_untouched(model: nn.Module, run: Callable[[], object]) -> None:
    model.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = state(model), torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    run()
    assert all(torch.equal(a, b) for a, b in zip(before[0], state(model), strict=True))
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert torch.equal(before[1], torch.random.get_rng_state())
    assert before[2] == random.getstate()
    assert np.array_equal(before[3], np.random.get_state()[1])
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))


def test_it_leaves_no_trace() -> None:
    model, given = normed(), batches(2)
    inputs = given[0][0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert_untouched(model, lambda: raced(model, given, optimizer=optimizer, steps=3))
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(given[0][0], inputs)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_nor_when_it_is_ended(kind: type[BaseException]) -> None:
    model = normed()

    def stop(done: int, planned: int) -> None:
        if done == 2:
            raise kind

    def run() -> None:
        with pytest.raises(kind):
            raced(model, steps=5, on_progress=stop)

    assert_untouched(model, run)


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_batch_is_split() -> None:
    (one,) = batches(1, 128)
    parts = several([one])
    assert [len(x) for x, _ in parts] == [16] * 8
    assert raced(mlp(1), one, learning_rates=(1e-3,), steps=2).batches == 8
    assert len(several([{"x": one[0], "labels": one[1]}])) == 8


@pytest.mark.parametrize(
    "one", [(torch.zeros(63, 32), torch.zeros(63)), (torch.zeros(64, 5), torch.zeros(80))]
)
def test_a_small_batch_is_not_enough(one: Batch) -> None:
    with pytest.raises(BatchError, match="several batches"):
        several([one])


def test_a_loader_serves_as_it_is() -> None:
    x, y = batches(1, 160)[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True)
    seen: list[Race] = []
    model = normed()
    assert_untouched(model, lambda: seen.append(raced(model, loader, learning_rates=(1e-3,), steps=4)))
    assert seen[0].batches == 3


# ── optimizers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_users_optimizer_is_mapped_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[1].weight], "lr": 0.5, "weight_decay": 0.25},
            {"params": [model[0].weight, model[0].bias]},
        ],
        lr=0.1,
        betas=(0.5, 0.6),
    )
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    twin = deepcopy(model)
    made = mapped(optimizer, model, twin)
    assert type(made) is torch.optim.AdamW
    assert [id(p) for g in made.param_groups for p in g["params"]] == [
        id(p) for p in (twin[1].weight, twin[0].weight, twin[0].bias)
    ]
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in made.param_groups] == [
        (0.5, 0.25, (0.5, 0.6)),
        (0.1, 0.01, (0.5, 0.6)),
    ]
    assert not made.state
    assert len(optimizer.state) == 3
    theirs, ours = model[1].weight.detach().clone(), twin[1].weight.detach().clone()
    twin(torch.ones(1, 4)).sum().backward()
    made.step()
    assert torch.equal(model[1].weight, theirs)
    assert not torch.equal(twin[1].weight, ours)


def test_its_learning_rate_is_tried_with_one_below_and_one_above() -> None:
    model = mlp(2)
    seen = raced(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.3), steps=2)
    assert [heat.learning_rate for heat in seen.heats] == pytest.approx([0.1, 0.3, 0.9])
    assert seen.optimizer == "SGD"
    made = raced(model, optimizer=lambda parameters: torch.optim.RMSprop(parameters, lr=3e-3), steps=2)
    assert [heat.learning_rate for heat in made.heats] == pytest.approx([1e-3, 3e-3, 9e-3])


def test_an_optimizer_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="none of this model's"):
        raced(mlp(1), optimizer=torch.optim.SGD(mlp(1).parameters(), lr=0.1))


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: object) -> None:
        raise TypeError("no")


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    spec = spec_of(mlp(1), batches(1)[0][0])
    with pytest.raises(UsageError, match="cannot be copied"):
        race(Uncopyable(32, 5), batches(), F.cross_entropy, spec)


# ── from above ──────────────────────────────────────────────────────────────────────────────────────────────


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 5)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layer(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_check_races_when_asked() -> None:
    options = RaceOptions(learning_rates=(3e-2,), steps=12)
    report = fanin.check(mlp(2, he), batches(), F.cross_entropy, race=options)
    assert report.trial.race is not None
    assert report.trial.race.outcome is Outcome.HEALTHY
    assert fanin.check(mlp(2), batches(), F.cross_entropy).trial.race is None


def test_a_model_with_its_own_loss_races() -> None:
    given = [{"x": x, "labels": y} for x, y in batches()]
    report = fanin.check(OwnLoss(), given, race=RaceOptions(learning_rates=(3e-2,), steps=12))
    assert report.trial.race is not None
    assert report.trial.race.given > 0.05


def test_an_iterator_serves_too() -> None:
    def stream() -> Iterator[Batch]:
        yield from batches(8)

    report = fanin.check(mlp(1), stream(), F.cross_entropy, race=RaceOptions((1e-2,), steps=2))
    assert report.trial.race is not None
    assert report.trial.race.batches == 7  # the first one has been looked at
