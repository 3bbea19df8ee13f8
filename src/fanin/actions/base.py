"""Action: something to do about a poor verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """What an action is given.

    Attributes:
        trial: Its address.
        run: The identity of its run.
        title: The verdict in a line.
        text: The findings, one a line.
        json: The same for programs, as in `fanin.status`.
    """

    trial: str
    run: str
    title: str
    text: str
    json: str


class Action(ABC):
    """Something to do about a poor verdict.

    Attributes:
        name: What it is, for messages; without secrets.
        target: What tells it from others of its kind; it is hashed and never shown.
        is_once: Whether one finding or several make no difference to it.
    """

    name: str
    target: str = ""
    is_once: bool = False

    @abstractmethod
    def do(self, notice: Notice) -> str:
        """Do it, and say in words what was done.

        Raises:
            ActionError: It cannot be done.
        """
