"""Cursors: a reader's place in a run's log, live or archived. They satisfy `engine.Subscription`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from orchestrator.events import Entry, Gap
from orchestrator.metrics import Metrics
from orchestrator.streamlog.channel import Channel
from orchestrator.streamlog.log import Log, LogUnavailable, Position

PAGE = 512
"""Entries per read of the log or the archive, and at most per delivery."""

_PATIENCE_S = 0.5
"""How long a reader waits before it asks a log again that did not answer."""


class History(Protocol):
    """Where events are found after their log has expired. Deltas are not kept there, so `seq` has holes."""

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]: ...

    async def find(self, run_id: str, seq: int) -> Entry | None: ...


class Mender(Protocol):
    """Who brings a channel up to its log's tail, and says whose turn it is to read pages."""

    paging: asyncio.Semaphore
    """A crowd that comes back at once reads in turn: its pages would fill the memory, and whoever asks the log for a word would
    wait until all of them have come."""

    def catch_up(self, channel: Channel) -> None: ...


class LiveCursor:
    """Follows a run's log: from its channel's ring where that reaches back far enough, else in pages from the log."""

    def __init__(self, mender: Mender, log: Log, channel: Channel, position: Position, metrics: Metrics) -> None:
        self._mender = mender
        self._metrics = metrics
        self._log = log
        self._channel = channel
        self._seq = position.seq
        self._ms = position.ms
        self._verified = position.seq == 0
        self.ended = False

    async def next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        """See `engine.Subscription.next`. A log that is away for a while is silence: the reader's place is safe here."""
        if self.ended:
            return ()
        try:
            items = await self._next(timeout_s)
        except LogUnavailable:
            await asyncio.sleep(min(timeout_s, _PATIENCE_S))
            return ()
        if items and isinstance(items[0], Gap):
            self._metrics.gap()
        return items

    async def _next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        if not self._verified and (gap := await self._verify()) is not None:
            return (gap,)
        channel = self._channel
        while True:
            if channel.lost:
                self.ended = True
                return (Gap(self._seq + 1, None, None),)
            ready = channel.since(self._seq, self._ms, PAGE)
            if ready:
                return self._advance(ready)
            if ready is None and self._seq < channel.tail_seq:
                return await self._page()
            if ready is None:
                # Another replica was faster, and the channel has not come so far. Or the log has lost what this reader holds.
                if (gap := await self._verify()) is not None:
                    return (gap,)
                self._mender.catch_up(channel)
            elif channel.closed:
                self.ended = True
                return ()
            if not await channel.wait(timeout_s):
                self._mender.catch_up(channel)
                return ()

    async def _verify(self) -> Gap | None:
        """Whether the event that the position names exists; a gap when it does not."""
        if self._ms is not None and self._channel.since(self._seq, self._ms, 1) is not None:
            self._verified = True
            return None
        entry = await self._log.find(self._channel.run_id, self._seq)
        gap = None
        if entry is not None and self._ms in (None, entry.ms):
            self._ms = entry.ms
        else:
            gap = await self._gap()
        self._verified = True
        return gap

    async def _page(self) -> Sequence[Entry | Gap]:
        ahead = self._channel.tail_seq - self._seq
        async with self._mender.paging:
            entries = await self._log.read(self._channel.run_id, self._seq, min(ahead, PAGE), after_ms=self._ms)
        if entries and entries[0].seq == self._seq + 1:
            return self._advance(entries)
        return (await self._gap(),)

    async def _gap(self) -> Gap:
        """What follows this place is not what the log holds. Tell so, and go on with the first event there is.

        Where the oldest events were trimmed, that is the next one that exists; where the log lost its tail and was written
        anew, it is the log's beginning, because nobody can tell which of the reader's events still count.
        """
        tail = await self._log.tail(self._channel.run_id)
        if tail is None or not tail.seq:
            self.ended = True
            return Gap(self._seq + 1, None, None)
        gap = Gap(self._seq + 1, tail.first_seq - 1 if tail.first_seq > self._seq else None, tail.first_seq)
        self._seq, self._ms = tail.first_seq - 1, None
        return gap

    def _advance(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        last = entries[-1]
        self._seq, self._ms = last.seq, last.ms
        if last.is_end:
            self.ended = True
        return entries


class ArchiveCursor:
    """Reads a run whose log has expired. Everything is there already, so it never waits."""

    def __init__(self, history: History, run_id: str, position: Position, metrics: Metrics) -> None:
        self._history = history
        self._metrics = metrics
        self._run_id = run_id
        self._position = position
        self._seq = position.seq
        self._verified = position.seq == 0
        self.ended = False

    async def next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        """See `engine.Subscription.next`. A position on a delta is a gap: the archive does not keep those."""
        if self.ended:
            return ()
        if not self._verified and (gap := await self._verify()) is not None:
            return (gap,)
        entries = await self._history.entries(self._run_id, self._seq, PAGE)
        if not entries:
            self.ended = True
            return ()
        self._seq = entries[-1].seq
        self.ended = entries[-1].is_end
        return entries

    async def _verify(self) -> Gap | None:
        self._verified = True
        entry = await self._history.find(self._run_id, self._seq)
        if entry is not None and self._position.ms in (None, entry.ms):
            return None
        first = await self._history.entries(self._run_id, 0, 1)
        gap = Gap(self._seq + 1, None, first[0].seq if first else None)
        self._seq = 0
        self._metrics.gap()
        return gap
