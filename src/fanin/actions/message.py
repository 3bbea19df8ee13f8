"""Message: e-mail, SMS, Slack and a hundred others through Apprise, which knows each by an address of its own."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any, final

from fanin.actions.base import Action, Notice
from fanin.errors import ActionError, UsageError


@final
class Message(Action):
    """An address of Apprise's, e.g. `mailtos://user:password@example.com` or `slack://...`; it holds secrets, so only
    its scheme is ever shown.

    Raises:
        UsageError: Apprise is not installed, or does not know the address.
    """

    def __init__(self, address: str) -> None:
        scheme = address.split("://")[0] if "://" in address else "no scheme"
        self.name = f"message {scheme}"
        self.target = address
        self._sender: Any = _apprise().Apprise()
        if not self._sender.add(address):
            raise UsageError(
                "Apprise does not know this address",
                got=f"{scheme}://... (not shown: it may hold a secret)",
                expected="an address as in https://github.com/caronc/apprise/wiki",
                next_step="try it by itself: apprise -b test ADDRESS",
            )

    def do(self, notice: Notice) -> str:
        """Send it.

        Raises:
            ActionError: It was not taken.
        """
        if not self._sender.notify(title=notice.title, body=notice.text):
            raise ActionError(
                "the message was not sent",
                where=self.name.removeprefix("message "),
                expected="an answer that it was taken",
                next_step="try it by itself: apprise -vv -b test ADDRESS",
            )
        return "sent"


def _apprise() -> Any:
    # What it logs may hold the address; where nobody has asked for its log, Python would print it.
    logging.getLogger("apprise").addHandler(logging.NullHandler())
    try:
        return import_module("apprise")
    except ModuleNotFoundError as error:
        raise UsageError(
            "messages need their extra",
            got=f"no module {error.name}",
            expected="the extra `notify`",
            next_step="pip install 'fanin[notify]'",
        ) from error
