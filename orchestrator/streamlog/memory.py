"""The event log in memory: the semantics of `log.py` without I/O, for unit tests and simulations. Everything is gone on exit.

Several `MemoryLog`s on one `MemoryStore` are several processes on one Redis. Notifications to each wait in its `notices`; by
default they arrive in the loop's next iteration, with `manual=True` when the test calls `deliver`, or never when it calls `lose`.
A store's `checkpoint` is awaited before an operation is applied and before it is answered: there a simulation may yield, or raise
LogUnavailable and so lose a request or a reply.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from orchestrator.events import Entry, Event
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.streamlog.log import (
    ANY_RUN,
    Appended,
    Batch,
    Claim,
    Listener,
    LogExists,
    LogMissing,
    Reservation,
    Spent,
    Tail,
)
from orchestrator.streamlog.record import Append, Record

Checkpoint = Callable[[str, Literal["sent", "answered"]], Awaitable[None]]


class MemoryStore:
    """What several `MemoryLog`s share. `clock` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float], *, retention_ms: int = 86_400_000, max_events: int = 1_000_000) -> None:
        self.checkpoint: Checkpoint | None = None
        self.logs: list[MemoryLog] = []
        self.records: dict[str, Record] = {}
        self.active: dict[str, None] = {}
        self.archive: dict[str, None] = {}
        self.approvals: dict[tuple[str, str, str], bytes] = {}
        self.leases: dict[str, tuple[str, int]] = {}
        self.reservations: dict[tuple[str, str], tuple[Reservation, int]] = {}
        self.max_events = max_events
        self.retention_ms = retention_ms
        self._clock = clock

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def record(self, run_id: str) -> Record | None:
        """The run's log, unless it has expired."""
        record = self.records.get(run_id)
        if record is not None and record.touched_ms + self.retention_ms <= self.now_ms():
            del self.records[run_id]
            return None
        return record

    def settle(self, run_id: str) -> None:
        record = self.record(run_id)
        if run_id not in self.active or (record is not None and not record.closed):
            return
        if record is not None:
            self.archive[run_id] = None
        del self.active[run_id]

    async def at(self, operation: str, point: Literal["sent", "answered"]) -> None:
        if self.checkpoint is not None:
            await self.checkpoint(operation, point)


class MemoryLog:
    """One process's view of a store."""

    def __init__(self, store: MemoryStore, *, manual: bool = False) -> None:
        self.listener: Listener | None = None
        self.watched: Callable[[str], None] | None = None
        self.notices: deque[Callable[[], None]] = deque()
        self._store = store
        self._manual = manual
        self._watching: set[str] = set()
        self._flowing: set[str] = set()
        self._control_listeners: list[Callable[[str, str], None]] = []
        store.logs.append(self)

    async def close(self) -> None:
        self._store.logs.remove(self)

    async def ping(self) -> None:
        await self._store.at("ping", "answered")

    # -- writing ---------------------------------------------------------------------------------------------------------

    async def open(
        self, run: Run, request: RunRequest, bodies: Sequence[bytes], *, events: Sequence[Event] | None = None
    ) -> Appended:
        store = self._store
        await store.at("open", "sent")
        if store.record(run.id) is not None:
            raise LogExists
        record = store.records[run.id] = Record(run, request, store.now_ms())
        store.active.setdefault(run.id)
        record.add(bodies, store.now_ms(), store.max_events)
        if run.state.ended:
            record.close()
            store.settle(run.id)
        appended = Appended(1, len(bodies), record.ms)
        self._hand_on(run.id, appended, 0, bodies, None)
        await store.at("open", "answered")
        self._hand_on(run.id, appended, 0, bodies, events, local=True)
        return appended

    async def reserve(
        self, tenant: str, name: str, wanted: Reservation, *, instead_of: str = "", keep_ms: int | None = None
    ) -> Reservation:
        store = self._store
        await store.at("reserve", "sent")
        held, until_ms = store.reservations.get((tenant, name), (wanted, 0))
        if until_ms <= store.now_ms() or instead_of in (ANY_RUN, held.run_id):
            held = wanted
            store.reservations[tenant, name] = wanted, store.now_ms() + (keep_ms or store.retention_ms)
        await store.at("reserve", "answered")
        return held

    async def remember(self, tenant: str, name: str) -> None:
        store = self._store
        await store.at("remember", "sent")
        held, until_ms = store.reservations.get((tenant, name), (None, 0))
        if held is not None and until_ms > store.now_ms():
            store.reservations[tenant, name] = held, store.now_ms() + store.retention_ms

    async def append(
        self,
        run_id: str,
        writer: str,
        attempt: int,
        producer_seq: int,
        bodies: Sequence[bytes],
        *,
        events: Sequence[Event] | None = None,
        state: RunState | None = None,
        ends: bool = False,
        lease_ms: int = 0,
    ) -> Appended:
        store = self._store
        await store.at("append", "sent")
        record = self._existing(run_id)
        append = Append(writer, attempt, producer_seq, bodies, state, ends, lease_ms)
        appended, prev_ms = record.append(append, store.now_ms(), store.max_events)
        if not appended.repeated:
            self._hand_on(run_id, appended, prev_ms, bodies, None)
        if ends:
            store.settle(run_id)
        await store.at("append", "answered")
        if appended.count == len(bodies):
            self._hand_on(run_id, appended, prev_ms, bodies, events, local=True)
        return appended

    async def claim(self, run_id: str, writer: str, attempt: int, lease_ms: int) -> Claim:
        await self._store.at("claim", "sent")
        claim = self._existing(run_id).claim(writer, attempt, lease_ms, self._store.now_ms())
        await self._store.at("claim", "answered")
        return claim

    async def spend(self, run_id: str, used: int, wanted: int, most: int) -> Spent:
        await self._store.at("spend", "sent")
        spent = self._existing(run_id).spend(used, wanted, most)
        await self._store.at("spend", "answered")
        return spent

    def _existing(self, run_id: str) -> Record:
        record = self._store.record(run_id)
        if record is None:
            raise LogMissing
        return record

    # -- reading ---------------------------------------------------------------------------------------------------------

    async def read(self, run_id: str, after_seq: int, limit: int, *, after_ms: int | None = None) -> list[Entry]:
        await self._store.at("read", "sent")
        record = self._store.record(run_id)
        entries = [] if record is None else record.after(after_seq, after_ms, limit)
        await self._store.at("read", "answered")
        return entries

    async def kept(self, run_id: str) -> list[Entry]:
        await self._store.at("kept", "sent")
        record = self._store.record(run_id)
        return [] if record is None else record.kept()

    async def find(self, run_id: str, seq: int) -> Entry | None:
        found = [entry for entry in await self.read(run_id, seq - 1, 1) if entry.seq == seq]
        return found[0] if found else None

    async def tail(self, run_id: str) -> Tail | None:
        await self._store.at("tail", "sent")
        record = self._store.record(run_id)
        tail = None if record is None else record.tail()
        await self._store.at("tail", "answered")
        return tail

    async def run(self, run_id: str) -> Run | None:
        record = self._store.record(run_id)
        await self._store.at("run", "answered")
        return None if record is None else record.run

    async def request(self, run_id: str) -> RunRequest | None:
        record = self._store.record(run_id)
        await self._store.at("request", "answered")
        return None if record is None else record.request

    async def lease_ms(self, run_id: str) -> int:
        record = self._store.record(run_id)
        await self._store.at("lease_ms", "answered")
        return 0 if record is None else record.held_ms(self._store.now_ms())

    # -- notifications ---------------------------------------------------------------------------------------------------

    def deliver(self, count: int | None = None) -> None:
        """Let the oldest `count` notifications arrive, or all that are waiting now."""
        for _ in range(len(self.notices) if count is None else min(count, len(self.notices))):
            self.notices.popleft()()

    def lose(self, count: int = 1) -> None:
        """Lose the oldest notifications, as a dropped connection does."""
        for _ in range(min(count, len(self.notices))):
            self.notices.popleft()

    def watch(self, run_id: str) -> None:
        self._watching.add(run_id)
        self._flowing.add(run_id)
        self._notify(lambda: self._now_flowing(run_id))

    def unwatch(self, run_id: str) -> None:
        self._watching.discard(run_id)
        self._flowing.discard(run_id)

    async def publish_control(self, run_id: str, op: str) -> None:
        self._act(run_id, op)
        for log in self._store.logs:
            if log is not self:
                log._notify(lambda log=log: log._act(run_id, op))  # type: ignore[misc]
        await self._store.at("publish_control", "answered")

    def on_control(self, listener: Callable[[str, str], None]) -> None:
        self._control_listeners.append(listener)

    def _act(self, run_id: str, op: str) -> None:
        for listener in self._control_listeners:
            listener(run_id, op)

    def _now_flowing(self, run_id: str) -> None:
        if run_id in self._watching and self.watched is not None:
            self.watched(run_id)

    def _notify(self, notice: Callable[[], None]) -> None:
        self.notices.append(notice)
        if not self._manual:
            asyncio.get_running_loop().call_soon(self.deliver, 1)

    def _hand_on(
        self,
        run_id: str,
        appended: Appended,
        prev_ms: int,
        bodies: Sequence[bytes],
        events: Sequence[Event] | None,
        *,
        local: bool = False,
    ) -> None:
        """Give the batch to the listener here (`local`), or leave a notification for every other process that watches."""
        if not bodies:
            return
        known: Sequence[Event | None] = events or [None] * len(bodies)
        entries = [
            Entry(seq, appended.ms, body, event)
            for seq, body, event in zip(range(appended.first_seq, appended.first_seq + len(bodies)), bodies, known, strict=True)
        ]
        batch = Batch(run_id, appended.first_seq - 1, prev_ms, entries)
        if local:
            self._hear(batch)
            return
        for log in self._store.logs:
            if log is not self and run_id in log._flowing:
                log._notify(lambda log=log: log._hear_notice(batch))  # type: ignore[misc]

    def _hear(self, batch: Batch) -> None:
        if self.listener is not None:
            self.listener(batch)

    def _hear_notice(self, batch: Batch) -> None:
        if batch.run_id in self._watching:
            self._hear(batch)

    # -- many runs -------------------------------------------------------------------------------------------------------

    async def unarchived_runs(self, tenant: str) -> list[Run]:
        await self._store.at("unarchived_runs", "answered")
        records = [self._store.record(run_id) for run_id in {**self._store.active, **self._store.archive}]
        runs = [record.run for record in records if record is not None and record.run.tenant == tenant]
        return sorted(runs, key=lambda run: (run.created_ms, run.id), reverse=True)

    async def approve(self, tenant: str, run_id: str, approval_id: str, wanted: bytes | None) -> None:
        await self._store.at("approve", "sent")
        if wanted is None:
            self._store.approvals.pop((tenant, run_id, approval_id), None)
        else:
            self._store.approvals[tenant, run_id, approval_id] = wanted

    async def approvals(self, tenant: str) -> list[bytes]:
        await self._store.at("approvals", "answered")
        return [wanted for (of, _, _), wanted in self._store.approvals.items() if of == tenant]

    async def active(self) -> list[str]:
        await self._store.at("active", "answered")
        return list(self._store.active)

    async def unarchived(self, limit: int) -> list[str]:
        await self._store.at("unarchived", "answered")
        return list(self._store.archive)[:limit]

    async def unarchived_count(self) -> int:
        await self._store.at("unarchived_count", "answered")
        return len(self._store.archive)

    async def archived(self, run_ids: Sequence[str]) -> None:
        await self._store.at("archived", "sent")
        for run_id in run_ids:
            self._store.archive.pop(run_id, None)

    async def settle(self, run_id: str) -> None:
        await self._store.at("settle", "sent")
        self._store.settle(run_id)

    async def lease(self, name: str, owner: str, ttl_ms: int) -> bool:
        await self._store.at("lease", "sent")
        now = self._store.now_ms()
        holder, until_ms = self._store.leases.get(name, (owner, 0))
        if holder != owner and until_ms > now:
            return False
        self._store.leases[name] = (owner, now + ttl_ms)
        return True
