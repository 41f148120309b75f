"""Processes on one memory log, and what readers of a run in them are told."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.clock import SystemClock
from orchestrator.events import Entry, Event, EventType, Gap, encode
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Run, RunRequest
from orchestrator.streamlog.cursor import ArchiveCursor, LiveCursor
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.memory import MemoryLog, MemoryStore

AT = "2026-01-01T00:00:00.000Z"
RUN_ID = "task-" + "0" * 32
WAIT_S = 5.0


def body(mark: object, kind: str = EventType.LLM_PARTIAL) -> bytes:
    return encode(Event(kind, AT, message=str(mark)))


ENDING = [encode(Event(EventType.WORKFLOW_COMPLETED, AT)), encode(Event(EventType.STREAM_END, AT))]


class Shelf:
    """An archive with these entries."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self.held = list(entries)

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        return [entry for entry in self.held if entry.seq > after_seq][:limit]

    async def find(self, run_id: str, seq: int) -> Entry | None:
        return next((entry for entry in self.held if entry.seq == seq), None)


class Gaps(NoMetrics):
    def __init__(self) -> None:
        self.count = 0

    def gap(self) -> None:
        self.count += 1


class Readers:
    """One process: its log, its fan-out, and what was counted. `beside` is another process on the same log."""

    def __init__(
        self, beside: Readers | None = None, *, shelf: Shelf | None = None, ring_bytes: int = 1 << 20, **store: int
    ) -> None:
        self.clock = beside.clock if beside else TestClock()
        self.store = beside.store if beside else MemoryStore(self.clock.time, **store)
        self.log = MemoryLog(self.store)
        self.gaps = Gaps()
        self.fanout = Fanout(self.log, shelf or Shelf(), metrics=self.gaps, ring_bytes=ring_bytes, linger_s=60.0)
        self._appends = 0

    async def open(self) -> None:
        self.fanout.hold(RUN_ID, "acme")
        await self.log.open(Run(RUN_ID, "acme", "m", "agent", 1), RunRequest("m", "m", {}, {}), [body(1, "WORKFLOW_STARTED")])

    async def append(self, *marks: object, ends: bool = False) -> None:
        self._appends += 1
        bodies = [*map(body, marks), *(ENDING if ends else ())]
        await self.log.append(RUN_ID, "agent", 1, self._appends, bodies, ends=ends)

    async def lose_tail(self, keep: int) -> None:
        """The log falls back to an older state, as Redis does after a crash: its latest events and all they changed are gone."""
        record = self.store.records[RUN_ID]
        entries = record.after(0, None, keep)
        await self.flush()
        await self.log.open(record.run, record.request, [])
        again = self.store.records[RUN_ID]
        for entry in entries:
            again.ms = entry.ms
            again.add([entry.body], entry.ms, self.store.max_events)
        self._appends = 0

    async def flush(self) -> None:
        """The log is gone, as after FLUSHALL."""
        del self.store.records[RUN_ID]

    async def close(self) -> None:
        await self.fanout.close()


class TestClock:
    """The log's time moves a millisecond with every look, so that no two appends share a stream id by chance."""

    __test__ = False

    def __init__(self) -> None:
        self.ms = int(SystemClock().time() * 1000)

    def time(self) -> float:
        self.ms += 1
        return self.ms / 1000


async def read(cursor: LiveCursor | ArchiveCursor, count: int) -> list[int | Gap]:
    """The next so many items: entries by number, gaps as they are."""
    found: list[int | Gap] = []
    while len(found) < count:
        items = await cursor.next(WAIT_S)
        assert items, f"silence or the end after {found}"
        found += [item if isinstance(item, Gap) else item.seq for item in items]
    return found
