"""The open answers of this process, and how they end when the process must.

`begin` makes new ones be refused; `finish` lets the open ones go on for a while and then ends each at its own moment, spread
out so that their clients do not all come back at once. An answer ended this way says so, and can be resumed elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.errors import Draining


class Drain:
    """`spread(seconds)` picks a moment within so many seconds; tests own it."""

    def __init__(self, spread: Callable[[float], float]) -> None:
        self.begun = False
        self.closing = False
        """Whoever is cut off from now on did not leave; the server did."""
        self._spread = spread
        self._open: set[asyncio.Timeout] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()

    @property
    def open_answers(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def answer(self) -> AsyncIterator[None]:
        """Around one answer. Raises Draining on entry once drain has begun, and inside when the answer's time is up."""
        if self.begun:
            raise Draining(retry_after_s=1)
        try:
            async with asyncio.timeout(None) as bound:
                self._open.add(bound)
                self._none_open.clear()
                try:
                    yield
                finally:
                    self._open.discard(bound)
                    if not self._open:
                        self._none_open.set()
        except TimeoutError:
            if bound.expired():
                raise Draining(retry_after_s=1) from None
            raise

    def begin(self) -> None:
        """Refuse new answers from now on. Harmless when repeated."""
        self.begun = True

    async def finish(self, within_s: float, *, spread_s: float = 1.0) -> None:
        """Wait until no answer is open, at most `within_s`; then end those that are left and wait for that."""
        self.begin()
        try:
            async with asyncio.timeout(within_s):
                await self._none_open.wait()
        except TimeoutError:
            self.closing = True
            now = asyncio.get_running_loop().time()
            for bound in self._open:
                bound.reschedule(now + self._spread(spread_s))
            await self._last_words(spread_s)
        self.closing = True

    async def _last_words(self, spread_s: float) -> None:
        """An answer to a client that does not read cannot say goodbye; it is not waited for."""
        waiting = asyncio.ensure_future(self._none_open.wait())
        await asyncio.wait([waiting], timeout=spread_s + 1.0)
        waiting.cancel()
