"""The actions of a rule configuration of SageMaker Debugger (`action_json`), by ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fanin import config
from fanin.actions.base import Action
from fanin.actions.message import Message
from fanin.actions.stop import Stop

ADDRESSES = {"email": "FANIN_EMAIL", "sms": "FANIN_SMS"}
"""Original action -> environment variable with the address for Apprise that sends it, `{endpoint}` in it. Amazon sends
both by a service of its own; here somebody must say who sends them."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """What is done in place of the configured actions.

    Attributes:
        actions: Those that can be done.
        notes: What cannot, and what is otherwise, a sentence each.
    """

    actions: tuple[Action, ...] = ()
    notes: tuple[str, ...] = ()


def mapped(
    wanted: Iterable[config.Action], trial: str, environment: Mapping[str, str] = os.environ
) -> Mapped:
    """Our actions for those of a configuration, on the trial at an address."""
    actions: list[Action] = []
    notes: list[str] = []
    for one in wanted:
        if one.name == "stoptraining":
            actions.append(Stop(trial))
            if "training_job_prefix" in one.parameters:
                notes.append("stoptraining: training_job_prefix is not used; who writes the trial is meant")
            continue
        template = environment.get(ADDRESSES[one.name], "")
        endpoint = one.parameters.get("endpoint", "")
        if "{endpoint}" in template and endpoint:
            actions.append(Message(template.replace("{endpoint}", endpoint)))
        else:
            notes.append(
                f"{one.name} to {endpoint or 'nobody'}: not sent; set {ADDRESSES[one.name]} to an address of Apprise's "
                "with {endpoint} in it, or pass --notify"
            )
    return Mapped(tuple(actions), tuple(notes))
