"""On an accelerator nothing waits for the device within a step; seen on a CPU, whose tensors take the device's way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

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
from fanin.trial import ModelSpec, Role, Step

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


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    """Take every watch away, whose tests end in the midst of one."""
    yield
    while Taken.made:
        Taken.made.pop().watching._let_go()


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

    made: ClassVar[list[Taken]] = []

    def __init__(self, steps: int = STEPS) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.steps: list[Step] = []
        plan = WatchPlan(needs(load_rules()), steps, lambda step, _: self.steps.append(step), "raise", 0, 16)
        self.watching = TorchWatching(self.model, plan)
        self.made.append(self)

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


# ── one launch for many ─────────────────────────────────────────────────────────────────────────────────────


class Kernel:
    """What a kernel does, by plain operations."""

    def __init__(self) -> None:
        self.launches: list[int] = []

    def takes(self, tensor: Tensor) -> bool:
        return True

    def look(self, tensors: list[Tensor], histograms: list[bool]) -> list[tuple[Tensor, Tensor | None, int]]:
        self.launches.append(len(tensors))
        state, counts = statistics._state, statistics._counts
        return [
            (state(t, None, None), counts(t) if wanted else None, 1)
            for t, wanted in zip(tensors, histograms, strict=True)
        ]


@pytest.fixture
def kernel(device: None, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(statistics, "_has_kernel", lambda values: True)
    monkeypatch.setattr(statistics, "_fused", lambda: made)
    return made


def gradients(step: Step) -> dict[str, float]:
    return {o.tensor: o.summary.rms for o in step.observations if o.role is Role.WEIGHT_GRAD}


def test_gradients_of_a_backward_pass_are_looked_at_together(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Taken()
    taken.step()
    taken.step()
    kernel.launches.clear()
    taken.step()
    assert len(gradients(taken.steps[1])) in kernel.launches
    seen = taken.all()[:STEPS]
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "on_cpu", lambda tensor: tensor.device.type == "cpu")
        patch.setattr(statistics, "_has_kernel", lambda values: False)
        assert same(seen, Taken().all())


def test_gradients_that_ranks_average_do_not_wait(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken()
    taken.step()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    kernel.launches.clear()
    x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))
    loss = nn.functional.cross_entropy(taken.model(x), y)
    kernel.launches.clear()
    loss.backward()
    assert set(kernel.launches) == {1}


@pytest.fixture(params=["cpu", "kernel"])
def way(request: pytest.FixtureRequest) -> None:
    """Where gradients wait: on a CPU, and on a device that has the kernel."""
    if request.param == "kernel":
        request.getfixturevalue("kernel")


def test_no_gradient_waits_where_the_first_pass_has_written_to_one(way: None) -> None:
    assert [len(found) for found in with_writers(from_step=0)] == [3] * STEPS


def test_a_gradient_that_is_written_to_meanwhile_is_not_recorded_and_none_waits_any_more(way: None) -> None:
    assert [len(found) for found in with_writers(from_step=2)] == [3, 3, 0, *[3] * (STEPS - 3)]


def with_writers(from_step: int) -> list[dict[str, float]]:
    """The gradients seen of a training in which somebody writes to them amid the backward pass, from one step on, as
    those do who update weights there."""
    taken = Taken()
    nodes = []
    for parameter in taken.model.parameters():
        node = parameter.view_as(parameter).grad_fn.next_functions[0][0]

        def clear(*_: Any, parameter: nn.Parameter = parameter) -> None:
            if parameter.grad is not None and len(taken.steps) >= from_step:
                parameter.grad.zero_()

        node.register_hook(clear)
        nodes.append(node)  # which live no longer than somebody keeps them
    found = [gradients(step) for step in taken.all()]
    assert all(rms > 0 for step in found for rms in step.values())
    return found


# ── whatever happens, a trial has no gaps ───────────────────────────────────────────────────────────────────


def test_an_interrupt_while_a_step_is_awaited_loses_none(
    device: None, arrivals: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Taken()
    finished, interrupts = Draft.finished, [KeyboardInterrupt()]

    def interrupted(self: Draft) -> Step:
        if self.index == 1 and interrupts:
            raise interrupts.pop()
        return finished(self)

    monkeypatch.setattr(Draft, "finished", interrupted)
    with pytest.raises(KeyboardInterrupt):
        taken.all()
    taken.watching.detach()
    indices = [step.index for step in taken.steps]
    assert indices == list(range(len(indices)))
    assert len(indices) > 1


def test_where_a_step_cannot_be_kept_none_after_it_is(device: None, arrivals: dict[str, bool]) -> None:
    kept: list[int] = []

    def keep(step: Step, spec: ModelSpec) -> None:
        if step.index == 1:
            raise OSError("full")
        kept.append(step.index)

    taken = Taken()
    taken.watching.detach()
    plan = WatchPlan(needs(load_rules()), STEPS, keep, "raise", 0, 16)
    taken.watching = TorchWatching(taken.model, plan)
    with pytest.raises(OSError, match="full"):
        taken.all()
    taken.watching.detach()
    assert kept == [0]
