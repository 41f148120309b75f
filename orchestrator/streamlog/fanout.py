"""From one log to many readers: a ring of recent entries per run that is being read, and cursors into it.

Entries arrive in a run's `Channel` from the local log as it appends, or by notification when another process does. `seq` shows a
hole, and a hole is filled by reading the log before anything newer is delivered. A cursor older than the ring reads pages from
the log, and from the archive when the log has expired. A reader is a lagging cursor, never a queue: it costs its position.

Whatever is delivered follows the event before it, by `seq` and by `ms`. When it cannot (trimmed, expired, lost), the reader
gets a `Gap` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from orchestrator.errors import RunNotFound
from orchestrator.metrics import Metrics, NoMetrics
from orchestrator.streamlog.channel import Channel
from orchestrator.streamlog.cursor import PAGE, ArchiveCursor, History, LiveCursor
from orchestrator.streamlog.log import Batch, Log, LogUnavailable, Position, Tail

_log = logging.getLogger(__name__)


_SILENCE_S = 10.0
"""After so long without news of a run, whoever waits for its end has the log asked."""


class Fanout:
    """All readers of this process. `linger_s`: how long a run without readers keeps its ring, for the reader about to come."""

    def __init__(
        self,
        log: Log,
        history: History,
        *,
        metrics: Metrics | None = None,
        ring_bytes: int = 256 * 1024,
        linger_s: float = 5.0,
        watch_delay_s: float = 0.025,
        pages_at_once: int = 8,
    ) -> None:
        self.paging = asyncio.Semaphore(pages_at_once)
        self._log = log
        self._history = history
        self._metrics = metrics or NoMetrics()
        self._ring_bytes = ring_bytes
        self._linger_s = linger_s
        self._watch_delay_s = watch_delay_s
        self._channels: dict[str, Channel] = {}
        self._writing: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        log.listener = self._feed
        log.watched = self._watched

    def hold(self, run_id: str, tenant: str) -> None:
        """A tenant's run is about to be opened here: keep its events from the first one on, so that its reader needs no replay.

        Another process's events are watched for only if no writer starts here first, which is the usual case. A run that is held
        already stays so: several callers with one idempotency key may try to open it at once, and one of them reads it already.
        """
        if run_id in self._channels:
            return
        channel = self._channels[run_id] = Channel(run_id, self._ring_bytes, seq=0, ms=0, tenant=tenant)
        loop = asyncio.get_running_loop()
        channel.watching = loop.call_later(self._watch_delay_s, self._watch, channel)
        channel.lingering = loop.call_later(self._linger_s, self._drop, channel)

    @contextmanager
    def writing(self, run_id: str) -> Iterator[None]:
        """A writer of the run lives in this process: what it appends arrives directly, so notifications are not needed."""
        self._writing[run_id] += 1
        if (channel := self._channels.get(run_id)) is not None:
            self._unwatch(channel)
        try:
            yield
        finally:
            self._writing[run_id] -= 1
            if not self._writing[run_id]:
                del self._writing[run_id]
            if (channel := self._channels.get(run_id)) is not None and not channel.closed:
                self._watch(channel)

    @asynccontextmanager
    async def subscribe(self, run_id: str, position: Position) -> AsyncIterator[LiveCursor | ArchiveCursor]:
        """Read from after `position`. Raises RunNotFound when neither the log nor the archive knows the run."""
        channel = await self._channel(run_id)
        if channel is None:
            yield await self._archived(run_id, position)
            return
        with self._read(channel):
            yield LiveCursor(self, self._log, channel, position, self._metrics)

    async def over(self, run_id: str) -> None:
        """Wait until the run's log is closed, or gone. Reads nothing of it."""
        channel = await self._channel(run_id)
        if channel is None:
            return
        with self._read(channel):
            while not (channel.closed or channel.lost):
                if not await channel.wait(_SILENCE_S):
                    self.catch_up(channel)

    def tenant(self, run_id: str) -> str | None:
        """Whose run this is, if it was opened here not long ago; saves its first reader from asking the log."""
        channel = self._channels.get(run_id)
        return None if channel is None else channel.tenant

    async def close(self) -> None:
        for channel in list(self._channels.values()):
            self._drop(channel)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- channels --------------------------------------------------------------------------------------------------------

    async def _channel(self, run_id: str) -> Channel | None:
        channel = self._channels.get(run_id)
        if channel is not None:
            return channel
        tail = await self._log.tail(run_id)
        if tail is None:
            return None
        if (channel := self._channels.get(run_id)) is not None:
            return channel  # another reader was quicker while this one waited
        channel = self._channels[run_id] = Channel(run_id, self._ring_bytes, seq=tail.seq, ms=tail.ms)
        channel.closed = tail.closed
        if not channel.closed and run_id not in self._writing:
            self._watch(channel)
        return channel

    async def _archived(self, run_id: str, position: Position) -> ArchiveCursor:
        if not await self._history.entries(run_id, 0, 1):
            raise RunNotFound
        return ArchiveCursor(self._history, run_id, position, self._metrics)

    @contextmanager
    def _read(self, channel: Channel) -> Iterator[None]:
        if channel.lingering is not None:
            channel.lingering.cancel()
            channel.lingering = None
        channel.readers += 1
        try:
            yield
        finally:
            channel.readers -= 1
            if not channel.readers:
                self._leave(channel)

    def _leave(self, channel: Channel) -> None:
        if channel.closed:
            self._drop(channel)
        elif channel.lingering is None and self._channels.get(channel.run_id) is channel:
            channel.lingering = asyncio.get_running_loop().call_later(self._linger_s, self._drop, channel)

    def _drop(self, channel: Channel) -> None:
        if self._channels.get(channel.run_id) is channel:
            del self._channels[channel.run_id]
        self._unwatch(channel)
        if channel.lingering is not None:
            channel.lingering.cancel()
            channel.lingering = None
        channel.dismiss()

    def _watch(self, channel: Channel) -> None:
        if channel.watching is not None:
            channel.watching.cancel()
            channel.watching = None
        if not channel.watched and not channel.closed and channel.run_id not in self._writing:
            channel.watched = True
            self._log.watch(channel.run_id)

    def _unwatch(self, channel: Channel) -> None:
        if channel.watching is not None:
            channel.watching.cancel()
            channel.watching = None
        if channel.watched:
            channel.watched = False
            self._log.unwatch(channel.run_id)

    # -- feeding ---------------------------------------------------------------------------------------------------------

    def _feed(self, batch: Batch) -> None:
        channel = self._channels.get(batch.run_id)
        if channel is None:
            return
        if not channel.feed(batch):
            self.catch_up(channel)

    def _watched(self, run_id: str) -> None:
        """Notifications flow from now on; what was appended just before must be fetched."""
        if (channel := self._channels.get(run_id)) is not None:
            self.catch_up(channel)

    def catch_up(self, channel: Channel) -> None:
        """Compare the channel's tail with the log's, and mend. Also called on every keepalive, so that no loss lasts."""
        if channel.catching_up:
            channel.catch_up_again = True
            return
        channel.catching_up = True
        task = asyncio.get_running_loop().create_task(self._fetch(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, channel: Channel) -> None:
        """Bring the channel up to the log's tail, or find out that the log has lost what the channel holds.

        The channel may be fed while the log's answer is on its way, so an answer is compared with what the channel held
        when the question was asked.
        """
        try:
            while True:
                channel.catch_up_again = False
                held = channel.tail_seq, channel.tail_ms
                tail = await self._log.tail(channel.run_id)
                if tail is None:
                    if held[0]:
                        channel.lose()
                    return
                if tail.seq < held[0] or (tail.seq == held[0] and tail.ms != held[1]):
                    channel.restart(tail)
                elif tail.seq > channel.tail_seq:
                    await self._fetch_page(channel, tail)
                    continue
                if not channel.catch_up_again:
                    return
        except LogUnavailable as error:
            _log.warning("comparing a log's tail failed; the next keepalive tries again: %s", error)
        finally:
            channel.catching_up = False

    async def _fetch_page(self, channel: Channel, tail: Tail) -> None:
        seq, ms = channel.tail_seq, channel.tail_ms
        entries = await self._log.read(channel.run_id, seq, PAGE, after_ms=ms if seq else None)
        if not entries or entries[0].seq != seq + 1 or not channel.feed(Batch(channel.run_id, seq, ms, entries)):
            channel.restart(tail)
