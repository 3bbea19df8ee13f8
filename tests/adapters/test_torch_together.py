"""Small activations wait for one another, and what is seen of them is what an activation took."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch import together
from fanin.adapters.torch.sight import Sight
from fanin.adapters.torch.watching import TorchWatching
from fanin.judgement import load_rules, needs
from fanin.trial import Role, Step

STEPS = 7


class Net(nn.Module):
    """Takes what an activation took, and may write to it afterwards."""

    def __init__(self, act: Callable[[Tensor], Tensor], then: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.act, self.then = act, then
        self.took: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.took.append(float(h.detach().square().mean().sqrt()))
        made = self.act(h)
        with torch.no_grad():
            self.then(h)
        return self.second(made)


def trained(net: Net, batch: int = 16, steps: int = STEPS) -> list[Step]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found: list[Step] = []
    plan = WatchPlan(needs(load_rules()), steps, lambda step, _: found.append(step), "raise", 0, batch)
    watching = TorchWatching(net, plan)
    try:
        for _ in range(steps):
            optimizer.zero_grad()
            x, y = torch.randn(batch, 6), torch.randint(0, 3, (batch,))
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    finally:
        watching.detach()
    return found


def taken(step: Step) -> list[float]:
    return [o.summary.rms for o in step.observations if o.role is Role.ACTIVATION_INPUT]


def waited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many were looked at when each pass was over."""
    counts: list[int] = []
    over = together.Together.over

    def noted(self: together.Together[object]) -> tuple[list[tuple[object, Tensor]], list[object]]:
        whole, lost = over(self)
        counts.append(len([what for what, _ in whole if isinstance(what, tuple)]))
        return whole, lost

    monkeypatch.setattr(together.Together, "over", noted)
    return counts


def test_small_activations_wait_for_the_end_of_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = waited(monkeypatch)
    net = Net(torch.relu, lambda h: None)
    steps = trained(net)
    assert [taken(step) for step in steps] == [pytest.approx([rms], rel=1e-6) for rms in net.took]
    assert sum(counts) == STEPS - 3, "from the fourth step on"


@pytest.mark.parametrize("act", [torch.relu_, nn.ReLU(inplace=True)])
def test_what_an_activation_overwrites_is_seen_as_it_was(
    act: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = waited(monkeypatch)
    net = Net(act, lambda h: None)
    steps = trained(net)
    assert [taken(step) for step in steps] == [pytest.approx([rms], rel=1e-6) for rms in net.took]
    assert sum(counts) == 0


def test_what_is_written_to_from_some_step_on_is_missed_once_and_then_seen() -> None:
    net = Net(torch.relu, lambda h: None)
    net.then = lambda h: h.zero_() if len(net.took) > 4 else None
    steps = trained(net)
    seen = [taken(step) for step in steps]
    assert seen[4] == [], "rather than wrong"
    assert [s for i, s in enumerate(seen) if i != 4] == [
        pytest.approx([rms], rel=1e-6) for i, rms in enumerate(net.took) if i != 4
    ]


def test_a_large_activation_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "TOGETHER", 16 * 8 - 1)
    counts = waited(monkeypatch)
    net = Net(torch.relu, lambda h: None)
    assert [taken(step) for step in trained(net)] == [pytest.approx([rms], rel=1e-6) for rms in net.took]
    assert sum(counts) == 0


def test_a_pass_that_raises_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sights: list[Sight] = []
    begins = Sight.__init__

    def noted(self: Sight, *args: object) -> None:
        begins(self, *args)  # type: ignore[arg-type]
        sights.append(self)

    monkeypatch.setattr(Sight, "__init__", noted)
    net = Net(torch.relu, lambda h: None)

    def fails(h: Tensor) -> None:
        if len(net.took) == 6:
            raise ZeroDivisionError

    net.then = fails
    with pytest.raises(ZeroDivisionError):
        trained(net)
    (sight,) = sights
    assert sight._activations._held == sight._gradients._held == []
