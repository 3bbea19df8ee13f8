"""Webhook: POST the verdict as JSON to an address.

A secret comes from an environment variable and is never shown: either as `Authorization: Bearer ...`, which is sent
over https or to this machine only, or as the key of `X-Fanin-Signature: sha256=<HMAC-SHA256 of X-Fanin-Timestamp, a
full stop, and the body>`. Redirects are refused, since they would carry it elsewhere. An address may be a secret by
itself (Slack's are): of it only the host is shown.

All tries of one delivery carry the same `X-Fanin-Delivery`, by which a receiver can drop what it has got already: an
answer that was lost on the way looks to us as if nothing had arrived.
"""

from __future__ import annotations

import hmac
import ipaddress
import queue
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Literal, final
from urllib.parse import urlsplit

from fanin.actions.base import Action, Notice
from fanin.errors import ActionError, UsageError

TIMEOUT_S = 10.0
"""Seconds for one try; receivers are asked to answer within 3 (Slack) to 10 (GitHub, GitLab)."""

WAITS_S = (1.0, 4.0, 16.0)
"""Seconds before the second to the fourth try, each give or take a half, so that many followers do not come at once."""

DELIVERY_S = 60.0
"""Seconds for all tries together, as for a command: one that hangs keeps later actions waiting. Four tries of TIMEOUT_S
with their pauses would take up to 71."""

PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which another try may succeed."""

SLOW = "no whole answer in time"

Auth = Literal["hmac", "bearer"]


@final
class Webhook(Action):
    """An address that takes a POST.

    Raises:
        UsageError: It is none, or a bearer token would travel in the clear.
    """

    def __init__(
        self,
        url: str,
        secret: str | None = None,
        auth: Auth = "hmac",
        *,
        sleep: Callable[[float], None] = time.sleep,
        seconds: float = DELIVERY_S,
    ) -> None:
        host = _host(url)
        self.name = f"webhook {host}"
        self.target = url
        self._secret, self._auth, self._sleep, self._seconds = secret, auth, sleep, seconds
        in_the_clear = urlsplit(url).scheme == "http"
        if secret is not None and auth == "bearer" and in_the_clear and not _is_here(host):
            raise UsageError(
                "a bearer token is not sent over plain http, where everybody on the way can read it",
                where=host,
                got="http://",
                expected="https://, or an address of this machine",
                next_step="use https://, or --webhook-auth hmac, which signs by the secret and does not send it",
            )
        # A proxy from the environment would carry to another machine what is meant to stay on this one.
        straight = [urllib.request.ProxyHandler({})] if _is_here(host) else []
        self._open = urllib.request.build_opener(_NoRedirects, *straight).open

    def do(self, notice: Notice) -> str:
        """Deliver it, with some tries.

        Raises:
            ActionError: It was refused, or nobody answers.
        """
        body, delivery = notice.json.encode(), str(uuid.uuid4())
        until = time.monotonic() + self._seconds
        for tries, wait in enumerate((*WAITS_S, None), 1):
            answer = self._post(body, delivery, until)
            if isinstance(answer, int) and 200 <= answer < 300:
                return f"delivered, answer {answer}" + (f", at try {tries}" if tries > 1 else "")
            pause = (wait or 0.0) * random.uniform(0.5, 1.5)
            over = wait is None or time.monotonic() + pause >= until
            if over or (isinstance(answer, int) and answer not in PASSING):
                raise self._refused(answer, tries)
            self._sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes, delivery: str, until: float) -> int | str:
        """The answer's code, or what went wrong; none of it holds the address. In a thread, since neither a name that
        is looked up nor an answer that comes byte by byte knows a limit of time."""
        seconds = max(0.1, min(TIMEOUT_S, until - time.monotonic()))
        headers = self._headers(body) | {"X-Fanin-Delivery": delivery}
        answers: queue.Queue[int | str] = queue.Queue()
        work = lambda: answers.put(self._answer(body, headers, seconds))  # noqa: E731
        threading.Thread(target=work, name="fanin-webhook", daemon=True).start()
        try:
            return answers.get(timeout=seconds)
        except queue.Empty:
            return SLOW

    def _answer(self, body: bytes, headers: Mapping[str, str], seconds: float) -> int | str:
        request = urllib.request.Request(self.target, body, dict(headers), method="POST")
        try:
            with self._open(request, timeout=seconds) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except urllib.error.URLError as error:
            return type(error.reason).__name__ if isinstance(error.reason, OSError) else "no connection"
        except Exception as error:  # noqa: BLE001  # whatever it is: who waits must be told
            return type(error).__name__

    def _headers(self, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "fanin"}
        if self._secret is None:
            return headers
        if self._auth == "bearer":
            return headers | {"Authorization": f"Bearer {self._secret}"}
        stamp = str(int(time.time()))
        code = hmac.new(self._secret.encode(), stamp.encode() + b"." + body, sha256).hexdigest()
        return headers | {"X-Fanin-Timestamp": stamp, "X-Fanin-Signature": f"sha256={code}"}

    def _refused(self, answer: int | str, tries: int) -> ActionError:
        return ActionError(
            "the webhook was not delivered",
            where=self.name.removeprefix("webhook "),
            got=f"answer {answer}" if isinstance(answer, int) else answer,
            expected=f"an answer from 200 to 299 within {TIMEOUT_S:g} s, {self._seconds:g} s with all tries",
            next_step=f"check address and secret; this was try {tries}, and there will be no other for this finding",
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _host(url: str) -> str:
    """The host of an address.

    Raises:
        UsageError: It is none; the message holds nothing of it.
    """
    wrong = "no http:// or https:// at its beginning"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is none
        if parts.scheme in ("http", "https"):
            wrong = "no host"
            if parts.hostname:
                return parts.hostname
    except ValueError:
        wrong = "a host or a port that is none"
    raise UsageError(
        "this is no address of a webhook",
        got=f"{wrong} (not shown: it may hold a secret)",
        expected="https://HOST/PATH",
        next_step="give the whole address, or put it in FANIN_WEBHOOK",
    )


def _is_here(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
