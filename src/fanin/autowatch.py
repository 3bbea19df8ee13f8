"""What runs inside a script that `fanin run` has started, once it has imported a framework."""

from __future__ import annotations

import os

from fanin.adapters import load
from fanin.adapters.base import Watching
from fanin.capture import OnStop, watch


def install(framework: str) -> None:
    """Wait for the first model that trains, and watch it into the trial at FANIN_TRIAL for FANIN_STEPS steps."""
    trial, steps = os.environ["FANIN_TRIAL"], int(os.environ.get("FANIN_STEPS", "10"))
    # A script that knows nothing of us may know what to do about SIGTERM; of our exception it cannot.
    on_stop: OnStop = "flag" if os.environ.get("FANIN_ON_STOP") == "ignore" else "terminate"

    def start(model: object) -> Watching:
        return watch(model, trial=trial, steps=steps, on_stop=on_stop).watching

    load(framework).await_training(start)
