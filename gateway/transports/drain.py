"""The open answers of this process, and how they end before they are complete: when the process must end, or when the key that
they were asked with is no longer good.

`announce` lets readiness fail, so that load balancers send no more; `begin` makes new answers be refused; `finish` lets the open
ones go on for a while and then ends each at its own moment, spread out so that their clients do not all come back at once. An
answer ended this way says so, and can be resumed elsewhere.

A key has an end, or is given one (`expire`). Its answers then say that, and end; they cannot be resumed with that key anywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from gateway.errors import AccessEnded, Draining
from orchestrator.runs import Principal

_LAST_WORDS_S = 1.0
_RESUME = "This server is shutting down. If the run's model is durable the run goes on: resume its stream by its id."


class _Open:
    """An open answer. Until the process must go, only its key can end it."""

    def __init__(self, bearer: Principal | None, bound: asyncio.Timeout) -> None:
        self.bearer = bearer
        self._bound = bound
        self._drained = False

    def end(self, at: float, *, drained: bool = False) -> None:
        """By then, in the loop's time, unless it ends sooner."""
        until = self._bound.when()
        if not self._bound.expired() and (until is None or at < until):
            self._bound.reschedule(at)
            self._drained = drained

    def why(self) -> Draining | AccessEnded:
        return Draining(_RESUME, retry_after_s=1) if self._drained else AccessEnded()


class Drain:
    """`spread(seconds)` picks a moment within so many seconds; `clock` gives seconds since the epoch. Tests own both."""

    def __init__(self, spread: Callable[[float], float], clock: Callable[[], float] = time.time) -> None:
        self.leaving = False
        """Not ready any more, though everything is still answered."""
        self.begun = False
        self.closing = False
        """Whoever is cut off from now on did not leave; the server did."""
        self.open_answers = 0
        self._spread = spread
        self._clock = clock
        self._open: dict[_Open, None] = {}
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
    async def until_closed(self, bearer: Principal | None) -> AsyncIterator[None]:
        """Around the part of an answer that can be broken off. Raises Draining when its time is up, AccessEnded when its
        bearer's key is no longer good. No bearer: nobody's key is asked for."""
        if self.closing:
            raise Draining(_RESUME, retry_after_s=1)
        expires_ms = None if bearer is None else bearer.expires_ms
        try:
            async with asyncio.timeout_at(None if expires_ms is None else self._moment(expires_ms)) as bound:
                answer = _Open(bearer, bound)
                self._open[answer] = None
                try:
                    yield
                finally:
                    del self._open[answer]
        except TimeoutError:
            if bound.expired():
                raise answer.why() from None
            raise

    def bearers(self) -> set[str]:
        """The ids of the keys that answers are open for."""
        return {answer.bearer.key_id for answer in self._open if answer.bearer is not None}

    def expire(self, ends_ms: Mapping[str, int]) -> None:
        """End the open answers of keys when these end, at once where that has passed. Harmless when repeated."""
        moments = {key_id: self._moment(end_ms) for key_id, end_ms in ends_ms.items()}
        for answer in self._open if moments else ():
            if answer.bearer is not None and (at := moments.get(answer.bearer.key_id)) is not None:
                answer.end(at)

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
            for answer in self._open:
                answer.end(now + self._spread(spread_s), drained=True)
            # A client that does not read cannot be told; it is not waited for.
            await self._emptied(spread_s + _LAST_WORDS_S)
        self.closing = True

    async def _emptied(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await self._none_open.wait()
        except TimeoutError:
            return False

    def _moment(self, ms: int) -> float:
        """A time of day as one of the loop's."""
        return asyncio.get_running_loop().time() + max(ms / 1000 - self._clock(), 0.0)
