"""Webhook: POST the verdict as JSON to an address.

A secret comes from an environment variable and is never shown: either as `Authorization: Bearer ...`, or as the key of
`X-Fanin-Signature: sha256=<HMAC-SHA256 of X-Fanin-Timestamp, a full stop, and the body>`. Redirects are refused, since
they would carry it elsewhere. An address may be a secret by itself (Slack's are): of it only the host is shown.
"""

from __future__ import annotations

import hmac
import http.client
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Literal, final
from urllib.parse import urlsplit

from fanin.actions.base import Action, Notice
from fanin.errors import ActionError, UsageError

TIMEOUT_S = 10.0
"""Seconds for one try; receivers are asked to answer within 3 (Slack) to 10 (GitHub, GitLab)."""

WAITS_S = (1.0, 4.0, 16.0)
"""Seconds before the second to the fourth try, each give or take a half, so that many followers do not come at once."""

PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which another try may succeed."""

Auth = Literal["hmac", "bearer"]


@final
class Webhook(Action):
    """An address that takes a POST."""

    def __init__(
        self,
        url: str,
        secret: str | None = None,
        auth: Auth = "hmac",
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname
            parts.port  # noqa: B018  # raises where it is none
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise UsageError(
                "this is no address of a webhook",
                got=f"{url[:8]}... (not shown: it may hold a secret)",
                expected="https://HOST/PATH",
                next_step="give the whole address, or put it in FANIN_WEBHOOK",
            )
        self.name = f"webhook {host}"
        self.target = url
        self._secret, self._auth, self._sleep = secret, auth, sleep

    def do(self, notice: Notice) -> str:
        """Deliver it, with some tries.

        Raises:
            ActionError: It was refused, or nobody answers.
        """
        body = notice.json.encode()
        for tries, wait in enumerate((*WAITS_S, None), 1):
            answer = self._post(body)
            if isinstance(answer, int) and 200 <= answer < 300:
                return f"delivered, answer {answer}" + (f", at try {tries}" if tries > 1 else "")
            if wait is None or (isinstance(answer, int) and answer not in PASSING):
                raise self._refused(answer, tries)
            self._sleep(wait * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes) -> int | str:
        """The answer's code, or what went wrong; none of it holds the address."""
        request = urllib.request.Request(self.target, body, self._headers(body), method="POST")
        try:
            with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except urllib.error.URLError as error:
            return type(error.reason).__name__ if isinstance(error.reason, OSError) else "no connection"
        except (OSError, http.client.HTTPException, ValueError) as error:
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
            expected=f"an answer from 200 to 299 within {TIMEOUT_S:g} s",
            next_step=f"check address and secret; this was try {tries}, and there will be no other for this finding",
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
