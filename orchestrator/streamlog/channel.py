"""The recent entries of one run, contiguous and bounded in bytes, and the readers waiting for more. No I/O.

`feed` takes only what directly follows the tail, by `seq` and `ms`; for everything else it says so and changes nothing, and the
fan-out asks the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orchestrator.events import Entry
from orchestrator.streamlog.log import Batch, Tail


class Channel:
    """`seq` and `ms` are the tail to start from; the ring is empty."""

    def __init__(self, run_id: str, ring_bytes: int, *, seq: int, ms: int, tenant: str | None = None) -> None:
        self.run_id = run_id
        self.tenant = tenant
        self.tail_seq = seq
        self.tail_ms = ms
        self.closed = False
        self.lost = False
        self.readers = 0
        self.watched = False
        self.watching: asyncio.TimerHandle | None = None
        self.lingering: asyncio.TimerHandle | None = None
        self.catching_up = False
        self.catch_up_again = False
        self._ring_bytes = ring_bytes
        self._entries: list[Entry] = []
        self._before_ms = ms
        self._size = 0
        self._waiters: dict[asyncio.Future[bool], float] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    def feed(self, batch: Batch) -> bool:
        """Take the batch, or what is new of it. False: there is a hole before it, or it contradicts what is here."""
        entries = batch.entries
        if batch.prev_seq != self.tail_seq:
            last = entries[-1]
            if last.seq <= self.tail_seq:
                return self._knows(last)
            if batch.prev_seq > self.tail_seq:
                return False
            if not self._knows(entries[self.tail_seq - batch.prev_seq - 1]):
                return False
            entries = entries[self.tail_seq - batch.prev_seq :]
        elif batch.prev_ms != self.tail_ms:
            return False
        self._extend(entries)
        return True

    def since(self, seq: int, ms: int | None, limit: int) -> Sequence[Entry] | None:
        """Entries after this one, up to `limit`; None when the ring cannot tell and the log has to be asked."""
        first = self.tail_seq - len(self._entries)
        if not first <= seq <= self.tail_seq or self.lost:
            return None
        if ms is not None and ms != self._ms_at(seq, first):
            return None
        if seq == self.tail_seq:
            return ()
        start = seq - first
        return self._entries[start : start + limit]

    def restart(self, tail: Tail) -> None:
        """The log no longer continues what is here: forget it. Readers find out from the log what became of their place."""
        self._entries.clear()
        self._size = 0
        self.tail_seq, self.tail_ms, self.closed = tail.seq, tail.ms, tail.closed
        self._before_ms = tail.ms
        self._wake()

    def lose(self) -> None:
        """The log is gone."""
        self.lost = True
        self._wake()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for something new; False when nothing came in time.

        One timer serves all who wait, and stays set when they are woken: a thousand readers of a lively run wait fifty times
        a second, and hardly ever in vain.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        due = self._waiters[waiter] = loop.time() + timeout_s
        if self._alarm is None or due < self._alarm_at:
            self._set_alarm(loop, due)
        try:
            return await waiter
        finally:
            self._waiters.pop(waiter, None)

    def dismiss(self) -> None:
        """Nobody will wait any more."""
        if self._alarm is not None and not self._waiters:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = loop.call_at(due, self._time_up, loop), due

    def _time_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = None
        late = [waiter for waiter, due in self._waiters.items() if due <= self._alarm_at]
        for waiter in late:
            del self._waiters[waiter]
            _resolve(waiter, False)
        if self._waiters:
            self._set_alarm(loop, min(self._waiters.values()))

    def _ms_at(self, seq: int, first: int) -> int:
        return self._before_ms if seq == first else self._entries[seq - first - 1].ms

    def _knows(self, entry: Entry) -> bool:
        """Whether the ring holds this very entry, or is too short to contradict it."""
        first = self.tail_seq - len(self._entries)
        return entry.seq < first or self._ms_at(entry.seq, first) == entry.ms

    def _extend(self, entries: Sequence[Entry]) -> None:
        self._entries.extend(entries)
        last = entries[-1]
        self.tail_seq, self.tail_ms = last.seq, last.ms
        for entry in entries:
            self._size += len(entry.body)
        if self._size > self._ring_bytes:
            self._trim()
        if last.is_end:
            self.closed = True
        self._wake()

    def _trim(self) -> None:
        """Down to three quarters of the bound, so that trimming is rare; the newest entry always stays."""
        keep_bytes = self._ring_bytes * 3 // 4
        cut = 0
        while self._size > keep_bytes and cut < len(self._entries) - 1:
            self._size -= len(self._entries[cut].body)
            cut += 1
        if cut:
            self._before_ms = self._entries[cut - 1].ms
            del self._entries[:cut]

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            _resolve(waiter, True)


def _resolve(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)
