"""On an accelerator nothing waits for the device within a step; seen on a CPU, whose tensors take the device's way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fanin.adapters.base import WatchPlan
from fanin.adapters.torch import statistics
from fanin.adapters.torch.drafting import Draft
from fanin.adapters.torch.outgoing import Outgoing
from fanin.adapters.torch.transfers import Transfer, _Shipment
from fanin.adapters.torch.watching import TorchWatching
from fanin.judgement import load_rules, needs
from fanin.trial import ModelSpec, Step

WAITS = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "nonzero",
    "equal",
)
"""Methods of a tensor that would wait for the device that holds it."""

STEPS = 8


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are measured as those of a device without a kernel are."""
    monkeypatch.setattr(statistics, "on_cpu", lambda tensor: False)


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether what has left is here already, unless somebody waits for it."""
    state = {"here": False}
    monkeypatch.setattr(_Shipment, "is_here", property(lambda self: state["here"]))
    return state


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the methods that were called and would have waited."""
    seen: list[str] = []
    unpacked, handing_over = _Shipment.unpacked, []

    def noted(name: str, theirs: Any) -> Any:
        def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not handing_over:
                seen.append(name)
            return theirs(self, *args, **kwargs)

        return call

    for name in WAITS:
        monkeypatch.setattr(Tensor, name, noted(name, getattr(Tensor, name)))
    monkeypatch.setattr(torch, "equal", noted("equal", torch.equal))

    def arriving(self: _Shipment) -> list[Any]:
        handing_over.append(self)
        try:
            return list(unpacked(self))
        finally:
            handing_over.pop()

    monkeypatch.setattr(_Shipment, "unpacked", arriving)
    starts = _Shipment.__init__

    def leaving(self: _Shipment, *args: Any) -> None:
        handing_over.append(self)  # where a CPU copies at once, a device is told to
        try:
            starts(self, *args)
        finally:
            handing_over.pop()

    monkeypatch.setattr(_Shipment, "__init__", leaving)
    return seen


class Taken:
    """A training that is watched, and the steps that came of it."""

    def __init__(self, steps: int = STEPS) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.steps: list[Step] = []
        plan = WatchPlan(needs(load_rules()), steps, lambda step, _: self.steps.append(step), "raise", 0, 16)
        self.watching = TorchWatching(self.model, plan)

    def step(self) -> None:
        self.optimizer.zero_grad()
        x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def all(self) -> list[Step]:
        for _ in range(STEPS):
            self.step()
        return self.steps


def same(ours: list[Step], theirs: list[Step]) -> bool:
    """Whether two trainings were seen alike, but for the rounding of another way to sum."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert [(o.role, o.tensor) for o in one.observations] == [
            (o.role, o.tensor) for o in other.observations
        ]
        for a, b in zip(one.observations, other.observations, strict=True):
            assert a.summary.count == b.summary.count
            assert a.summary.rms == pytest.approx(b.summary.rms, rel=1e-4, abs=1e-9)
    return True


def test_the_way_of_a_device_shows_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Taken().all()
    monkeypatch.setattr(statistics, "on_cpu", lambda tensor: False)
    assert same(Taken().all(), here)


def test_nothing_waits_for_a_device_until_the_last_step_is_over(
    device: None, arrivals: dict[str, bool], waits: list[str]
) -> None:
    taken = Taken()
    for index in range(STEPS - 1):
        taken.step()
        assert waits == []
        assert len(taken.steps) == max(
            0, index - 1
        )  # the newest is not over, and the one before is under way
    taken.step()
    assert [step.index for step in taken.steps] == list(range(STEPS))


def test_what_would_wait_is_noticed(device: None, waits: list[str]) -> None:
    taken = Taken()

    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        bool(output.sum() > 0)

    taken.model[0].register_forward_hook(look)
    taken.step()
    assert set(waits) == {"__bool__"}


def test_a_step_is_handed_over_as_soon_as_it_is_here(device: None, arrivals: dict[str, bool]) -> None:
    taken = Taken()
    taken.step()
    taken.model(torch.randn(16, 6))  # which ends the first step
    assert taken.steps == []
    arrivals["here"] = True
    taken.step()
    assert [step.index for step in taken.steps] == [0]


def test_detaching_waits_for_what_is_under_way(device: None, arrivals: dict[str, bool]) -> None:
    taken = Taken()
    taken.step()
    taken.step()
    taken.watching.detach()
    assert [step.index for step in taken.steps] == [0, 1]


def test_a_fault_loses_no_step_that_is_over(
    device: None, arrivals: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Taken()
    taken.step()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Draft, "observe", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        taken.step()
    assert [step.index for step in taken.steps] == [0]


def test_steps_leave_in_order_and_one_at_most_is_kept(device: None, arrivals: dict[str, bool]) -> None:
    order: list[int] = []

    class Over:
        def __init__(self, index: int) -> None:
            self.index = index

        def leave(self) -> Transfer:
            return Transfer([torch.zeros(1)])

        def finished(self) -> Any:
            return self.index

    outgoing = Outgoing(lambda step, _: order.append(step))  # type: ignore[arg-type, func-returns-value]
    for index in range(3):
        outgoing.add(Over(index), ModelSpec("", ""))  # type: ignore[arg-type]
    assert order == [0, 1]
    outgoing.finish()
    assert order == [0, 1, 2]


# ── the transfer ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_transfer_brings_tensors_of_all_kinds_in_one_piece() -> None:
    sent = [
        torch.tensor([1, -2], dtype=torch.int32),
        torch.tensor(0.5),
        torch.arange(6, dtype=torch.float64).reshape(2, 3),
        torch.empty(0, dtype=torch.int64),
    ]
    transfer = Transfer(sent)
    assert [transfer.of(tensor).tolist() for tensor in sent] == [[1, -2], [0.5], [0, 1, 2, 3, 4, 5], []]
    assert [transfer.of(tensor).dtype for tensor in sent] == ["int32", "float32", "float64", "int64"]


def test_a_transfer_brings_values_as_they_were_when_they_left() -> None:
    sent = torch.ones(3)
    transfer = Transfer([sent])
    sent.zero_()
    assert transfer.of(sent).tolist() == [1, 1, 1]


def test_a_transfer_of_nothing_is_here() -> None:
    assert Transfer([]).is_here
