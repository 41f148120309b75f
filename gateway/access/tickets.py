"""Stream tickets: what a browser, which cannot send a key with a stream, puts into the URL instead.

A ticket is good for a minute, for opening native streams and for nothing else, on behalf of whoever asked for it, as long as
that one's key is good, and if it was asked for one run, for that run only. It is signed and stored nowhere, so any replica with
the same secret honours it. A stream that was opened with it outlives it, and ends when the key does.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable

import msgspec

from gateway.errors import Unauthorized
from orchestrator.runs import Principal

LIFETIME_S = 60

_SHAPE = re.compile(r"([A-Za-z0-9_-]{1,1024})\.([A-Za-z0-9_-]{43})")


class Ticket(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who may open streams until when. Times are milliseconds since the epoch."""

    principal: Principal
    expires_ms: int
    run_id: str | None = None


class Tickets:
    """Issues and honours tickets. `clock` gives seconds since the epoch; `secret` is asked for when first needed.

    Methods raise what asking for it raises.
    """

    def __init__(self, secret: Callable[[], Awaitable[bytes]], clock: Callable[[], float]) -> None:
        self._ask_secret = secret
        self._secret: bytes | None = None
        self._clock = clock

    async def issue(self, principal: Principal, run_id: str | None = None) -> tuple[str, Ticket]:
        """The text that goes into the URL, and what it says."""
        ticket = Ticket(principal, int((self._clock() + LIFETIME_S) * 1000), run_id)
        said = _text(msgspec.json.encode(ticket))
        return f"{said}.{await self._signature(said)}", ticket

    async def honour(self, text: str) -> Ticket:
        """Raises Unauthorized, whatever is wrong with it."""
        shape = _SHAPE.fullmatch(text)
        if shape is None or not hmac.compare_digest(await self._signature(shape[1]), shape[2]):
            raise Unauthorized
        try:  # where nobody needs a key the secret is none either, and anything can be signed
            ticket = msgspec.json.decode(urlsafe_b64decode(shape[1] + "=" * (-len(shape[1]) % 4)), type=Ticket)
        except (ValueError, RecursionError):
            raise Unauthorized from None
        if ticket.expires_ms <= self._clock() * 1000:
            raise Unauthorized
        return ticket

    async def _signature(self, said: str) -> str:
        if self._secret is None:
            self._secret = await self._ask_secret()
        return _text(hmac.digest(self._secret, said.encode(), "sha256"))


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
