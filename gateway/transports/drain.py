"""The open answers of this process, and how they end when the process must.

`announce` lets readiness fail, so that load balancers send no more; `begin` makes new answers be refused; `finish` lets the open
ones go on for a while and then ends each at its own moment, spread out so that their clients do not all come back at once. An
answer ended this way says so, and can be resumed elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from gateway.errors import Draining

_LAST_WORDS_S = 1.0
_RESUME = "This server is shutting down. If the run's model is durable the run goes on: resume its stream by its id."


class Drain:
    """`spread(seconds)` picks a moment within so many seconds; tests own it."""

    def __init__(self, spread: Callable[[float], float]) -> None:
        self.leaving = False
        """Not ready any more, though everything is still answered."""
        self.begun = False
        self.closing = False
        """Whoever is cut off from now on did not leave; the server did."""
        self.open_answers = 0
        self._spread = spread
        self._bounds: set[asyncio.Timeout] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()

    @contextmanager
    def answer(self) -> Iterator[None]:
        """Around the whole of an answer: it is waited for. Raises Draining if new ones are refused."""
        if self.begun:
            raise Draining(retry_after_s=1)
        self.open_answers += 1
        self._none_open.clear()
        try:
            yield
        finally:
            self.open_answers -= 1
            if not self.open_answers:
                self._none_open.set()

    @asynccontextmanager
    async def until_closed(self) -> AsyncIterator[None]:
        """Around the part of an answer that can be broken off. Raises Draining when its time is up."""
        if self.closing:
            raise Draining(_RESUME, retry_after_s=1)
        try:
            async with asyncio.timeout(None) as bound:
                self._bounds.add(bound)
                try:
                    yield
                finally:
                    self._bounds.discard(bound)
        except TimeoutError:
            if bound.expired():
                raise Draining(_RESUME, retry_after_s=1) from None
            raise

    def announce(self) -> None:
        """Say that this server goes away soon. Harmless when repeated."""
        self.leaving = True

    def begin(self) -> None:
        """Refuse new answers from now on. Harmless when repeated."""
        self.announce()
        self.begun = True

    async def finish(self, within_s: float, *, spread_s: float = 1.0) -> None:
        """Wait until no answer is open, at most `within_s`; then end those that are left and wait for that."""
        self.begin()
        if not await self._emptied(within_s):
            self.closing = True
            now = asyncio.get_running_loop().time()
            for bound in self._bounds:
                bound.reschedule(now + self._spread(spread_s))
            # A client that does not read cannot be told; it is not waited for.
            await self._emptied(spread_s + _LAST_WORDS_S)
        self.closing = True

    async def _emptied(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await self._none_open.wait()
        except TimeoutError:
            return False
