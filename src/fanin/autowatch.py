"""What runs inside a script that `fanin run` has started, once it has imported a framework."""

from __future__ import annotations

import os

from fanin.adapters import load
from fanin.adapters.base import Watching
from fanin.capture import watch


def install(framework: str) -> None:
    """Wait for the first model that trains, and watch it into the trial at FANIN_TRIAL for FANIN_STEPS steps."""
    trial, steps = os.environ["FANIN_TRIAL"], int(os.environ.get("FANIN_STEPS", "10"))

    def start(model: object) -> Watching:
        return watch(model, trial=trial, steps=steps).watching

    load(framework).await_training(start)
