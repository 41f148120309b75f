"""Places in Redis: sets of who is in them until when. Whoever does not renew a place has left it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from orchestrator.errors import Unavailable
from orchestrator.limits.scripts import script
from orchestrator.limits.terms import Limit
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.wire import Command

_AT_ONCE = 500
"""Places that one call renews, so that none holds Redis up."""


class Places:
    def __init__(self, connection: Connection, now_us: Callable[[], int]) -> None:
        self._connection = connection
        self._now_us = now_us
        self._enter, self._renew = script("enter"), script("renew")

    async def enter(self, who: str, limits: Sequence[Limit], text: str, lapse_ms: int) -> Limit | None:
        """Take a place in each of these, or in none; then the answer is which of them is full. Raises Unavailable."""
        keys = [limits[0].key.encode()]
        full: int = await self._connection.run(self._enter, keys, (self._now_us(), who, lapse_ms, text))
        return limits[full - 1] if full else None

    async def prolong(self, place: str, who: Sequence[str], lapse_ms: int) -> None:
        """Raises Unavailable."""
        for start in range(0, len(who), _AT_ONCE):
            args: Command = (self._now_us(), lapse_ms, *who[start : start + _AT_ONCE])
            await self._connection.run(self._renew, [place.encode()], args)

    def leave(self, who: str, places: Iterable[str]) -> None:
        """As soon as Redis gets to know of it. Where it does not, the place lapses."""
        with suppress(Unavailable):
            self._connection.post(*((b"ZREM", place, who) for place in places))
