"""A cursor in a log that another process reads: `engine.Subscription` over a feed.

The place is kept here, after the last entry that was returned, so a connection or an orchestrator that is lost is silence: the
feed is asked for again from that place, of whichever orchestrator answers, and continues without a hole or a repeat. Only after
`outage_s` without any is the reader told. Nothing is read ahead but what aiohttp buffers (128 KiB); beyond it the orchestrator's
own cursor waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import aiohttp

from orchestrator.errors import HeadgateError, RunNotFound
from orchestrator.events import Entry, Gap
from orchestrator.http.feed import FeedReader
from orchestrator.peers import OrchestratorAway
from orchestrator.streamlog.log import Position

_log = logging.getLogger(__name__)

_PAUSES_S = (0.0, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Before each attempt to get the feed back; the last one is repeated. Any byte of a feed starts them over."""


class Following:
    """`connect` opens the feed after a position; `clock` is monotonic; `spread(seconds)` picks a moment within so many.

    `response` is the feed as it was first opened. Closed by its owner.
    """

    def __init__(
        self,
        connect: Callable[[Position], Awaitable[aiohttp.ClientResponse]],
        response: aiohttp.ClientResponse,
        position: Position,
        *,
        outage_s: float,
        clock: Callable[[], float],
        spread: Callable[[float], float],
    ) -> None:
        self.ended = False
        self._connect = connect
        self._response: aiohttp.ClientResponse | None = response
        self._position = position
        self._outage_s = outage_s
        self._clock = clock
        self._spread = spread
        self._reader = FeedReader()
        self._told: Gap | None = None
        self._attempts = 0
        self._lost_at = 0.0
        self._mending: asyncio.Task[aiohttp.ClientResponse | None] | None = None

    async def next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        """See `engine.Subscription.next`. Raises OrchestratorAway once no orchestrator has been there for `outage_s`."""
        if self.ended:
            return ()
        if self._response is not None and (items := self._at_hand(self._response)):
            return items
        try:
            async with asyncio.timeout(timeout_s):
                return await self._next()
        except TimeoutError:
            return ()

    async def close(self) -> None:
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.wait((self._mending,))
            if not self._mending.cancelled() and self._mending.exception() is None:
                self._response = self._mending.result()
        if self._response is not None:
            self._response.release()

    def _at_hand(self, response: aiohttp.ClientResponse) -> Sequence[Entry | Gap]:
        """What has arrived already, without the cost of a wait."""
        try:
            data = response.content.read_nowait()
        except aiohttp.ClientError:
            return ()  # to be met again by whoever waits
        return self._received(data) if data else ()

    async def _next(self) -> Sequence[Entry | Gap]:
        while not self.ended:
            if self._response is None:
                if (gone := await self._mended()) is not None:
                    return (gone,)
                continue
            try:
                data = await self._response.content.readany()
            except aiohttp.ClientError as error:
                self._lose(self._response, str(error) or type(error).__name__)
                continue
            if not data:
                self._lose(self._response, "it stopped without an ending")
            elif items := self._received(data):
                return items
        return ()

    def _received(self, data: bytes) -> Sequence[Entry | Gap]:
        self._attempts = 0
        items = self._reader.feed(data)
        if items and self._told is not None and items[0] == self._told:
            del items[0]  # the place before a gap is the same after a reconnect, and so is what is said of it
        if items:
            last = items[-1]
            if isinstance(last, Entry):
                self._position, self._told = Position(last.seq, last.ms), None
            else:
                self._told = last
        self.ended = self._reader.ended
        return items

    def _lose(self, response: aiohttp.ClientResponse, why: str) -> None:
        _log.info("a feed was lost and is asked for again: %s", why)
        response.close()
        self._response = None
        self._reader = FeedReader()
        if not self._attempts:
            self._lost_at = self._clock()

    async def _mended(self) -> Gap | None:
        """Wait for a new connection, which is sought by a task of its own: a reader's patience is shorter than an attempt.

        A gap without an end if there is no such run any more.
        """
        if self._mending is None:
            self._mending = asyncio.create_task(self._mend())
        self._response = await asyncio.shield(self._mending)
        self._mending = None
        if self._response is None:
            self.ended = True
            return Gap(self._position.seq + 1, None, None)
        return None

    async def _mend(self) -> aiohttp.ClientResponse | None:
        while True:
            await asyncio.sleep(self._spread(_PAUSES_S[min(self._attempts, len(_PAUSES_S) - 1)]))
            self._attempts += 1
            try:
                return await self._connect(self._position)
            except RunNotFound:
                return None
            except HeadgateError as error:
                if self._clock() - self._lost_at >= self._outage_s:
                    raise OrchestratorAway(
                        "The orchestrator has not answered for too long. The run may go on: resume its stream by its id.",
                        retry_after_s=1,
                    ) from error
