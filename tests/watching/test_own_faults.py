"""Faults of ours end the watch and not the training."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from torch import nn

from fanin.adapters.torch import drafting, tracing
from fanin.adapters.torch.sight import Sight
from fanin.adapters.torch.watching import TorchWatching
from fanin.capture import Watch
from fanin.errors import StoreError
from ways.nets import hooks_on, observe

from .loops import (
    net,
    train,
)


class OurFaultError(Exception):
    """Something in fanin is broken."""


def broken(*args: Any, **kwargs: Any) -> Any:
    raise OurFaultError("broken")


FAULTS: dict[str, tuple[Any, str]] = {
    "summaries": (drafting, "summarize"),
    "observe": (drafting.Draft, "observe"),
    "finished": (drafting.Draft, "finished"),
    "tracer.begin": (tracing.Tracer, "begin"),
    "tracer.enters": (tracing.Tracer, "enters"),
    "tracer.leaves": (tracing.Tracer, "leaves"),
    "tracer.before": (tracing.Tracer, "before"),
    "tracer.after": (tracing.Tracer, "after"),
    "tracer.refresh": (tracing.Tracer, "_of"),
    "a step begins": (TorchWatching, "_begin_step"),
    "a step ends": (TorchWatching, "_is_over"),
    "an optimizer steps": (TorchWatching, "_stepped"),
    "a gradient arrives": (TorchWatching, "_has_gradient"),
    "an output's gradient arrives": (Sight, "_has_output_gradient"),
    "the writer": (Watch, "_keep"),
}


def break_it(monkeypatch: pytest.MonkeyPatch, name: str, model: nn.Module, on_error: str) -> Watch:
    """Watch, then break a part of fanin; hooks that hold their function have to be hung after that."""
    where, what = FAULTS[name]
    monkeypatch.setattr(where, what, broken)
    return observe(model, on_error=on_error)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_ours_is_logged_once_and_training_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = train(net(), 5)
    model = net()
    with caplog.at_level(logging.WARNING, "fanin"):
        seen = break_it(monkeypatch, name, model, "warn")
        assert train(model, 5) == expected
        seen.close()
    assert [r.name for r in caplog.records] == ["fanin"]
    assert "training goes on" in caplog.text
    assert "OurFaultError: broken" in caplog.text
    assert hooks_on(model) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_ours_is_raised_where_that_was_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    seen = break_it(monkeypatch, name, model, "raise")
    with pytest.raises(OurFaultError):
        train(model, 5)
    assert hooks_on(model) == []
    seen.close()


def test_a_trial_that_cannot_be_written_is_reported_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    seen = observe(model, on_error="warn")
    monkeypatch.setattr(
        type(seen._writer), "close", lambda self: (_ for _ in ()).throw(StoreError("disk full"))
    )
    train(model, 5)
    seen.close()
    assert [r.message.count("disk full") for r in caplog.records] == [1]


def test_watching_does_not_start_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    monkeypatch.setattr(TorchWatching, "_attach_to_modules", broken)
    with pytest.raises(OurFaultError):
        observe(model)
    assert hooks_on(model) == []
