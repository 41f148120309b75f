"""The archive: what runs said, kept in PostgreSQL after their logs have expired.

A run that ends is put in the log's set of runs to archive, in the same step that closes its log. A loop takes runs from there,
copies their entries and a summary, and only then tells the log that they are archived. So PostgreSQL being away delays this and
loses nothing, a crash at any point makes at most a repetition, and a repetition has no effect.

Deltas are not archived: the whole text is in LLM_OUTPUT. An archived run therefore has positions that are missing.

One process at a time does this work, by a lease. Runs are taken many at once, because a transaction for each would cost more
than the run did.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from orchestrator.errors import Unavailable
from orchestrator.events import Entry
from orchestrator.metrics import Metrics, NoMetrics
from orchestrator.runs import Run
from orchestrator.store.database import StoreRefused
from orchestrator.store.records import Record
from orchestrator.store.store import Store
from orchestrator.streamlog.log import Log
from orchestrator.upstreams.upstream import Usage

_BATCH_RUNS = 200
_BATCH_BYTES = 8 << 20
_LEASE_MS = 10_000
_BACKOFF_S = (0.25, 5.0)

_log = logging.getLogger(__name__)


class Archive:
    """Archives while it is entered. Reading it needs only the store. Reads raise StoreUnavailable when that is away.

    `owner` names this process in the lease. `settle` is told what each run has used before it is archived, in case whoever ended
    it could not say so.
    """

    def __init__(
        self,
        event_log: Log,
        store: Store,
        owner: str,
        *,
        settle: Callable[[Run, Usage | None], Awaitable[None]] | None = None,
        metrics: Metrics | None = None,
        poll_s: float = 2.0,
    ) -> None:
        self._log = event_log
        self._store = store
        self._owner = owner
        self._settle = settle
        self._metrics = metrics or NoMetrics()
        self._poll_s = poll_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._loop(), name="archive")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def ping(self) -> None:
        """Raises StoreUnavailable."""
        await self._store.ping()

    async def run(self, run_id: str) -> Run | None:
        return await self._store.run(run_id)

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with `seq` greater than `after_seq`, oldest first. Positions of deltas are missing."""
        return await self._store.entries(run_id, after_seq, limit)

    async def find(self, run_id: str, seq: int) -> Entry | None:
        return await self._store.find(run_id, seq)

    async def _loop(self) -> None:
        delay_s, longest_s = _BACKOFF_S
        while True:
            try:
                while await self._round():
                    pass
            except Unavailable as error:
                first = delay_s == _BACKOFF_S[0]  # an outage is told once
                _log.log(logging.WARNING if first else logging.DEBUG, "archiving waits until it can go on: %s", error.code)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, longest_s)
            except Exception:  # noqa: BLE001 - the outermost edge of this task
                _log.exception("archiving failed; next try in %.1f s", longest_s)
                await asyncio.sleep(longest_s)
            else:
                delay_s = _BACKOFF_S[0]
                await asyncio.sleep(self._poll_s)

    async def _round(self) -> bool:
        """Archive one batch. Whether there may be more."""
        if not await self._log.lease("archive", self._owner, _LEASE_MS):
            return False
        run_ids = await self._log.unarchived(_BATCH_RUNS)
        self._metrics.archive_backlog(len(run_ids) if len(run_ids) < _BATCH_RUNS else await self._log.unarchived_count())
        if not run_ids:
            return False
        await self._store.ping()  # before everything is read from the log for nothing
        taken, records = await self._gather(run_ids)
        if self._settle is not None:
            await asyncio.gather(*(self._settle(record.run, record.usage) for record in records))
        await self._write(records)
        await self._log.archived(taken)
        self._metrics.archived(len(records))
        return True

    async def _gather(self, run_ids: Sequence[str]) -> tuple[Sequence[str], Sequence[Record]]:
        """As many of these runs as make a batch: which they are, and the records of those that still have a log."""
        records: list[Record] = []
        size = 0
        for count, run_id in enumerate(run_ids, 1):
            record = await self._record(run_id)
            if record is None:
                _log.warning("the log of %s was gone before it was archived", run_id)
                continue
            records.append(record)
            size += sum(len(entry.body) for entry in record.entries)
            if size >= _BATCH_BYTES:
                return run_ids[:count], records
        return run_ids, records

    async def _record(self, run_id: str) -> Record | None:
        run = await self._log.run(run_id)
        entries = [] if run is None else await self._log.kept(run_id)
        return Record(run, entries, entries[-1]) if run is not None and entries else None

    async def _write(self, records: Sequence[Record]) -> None:
        try:
            if records:
                await self._store.write(records)
        except StoreRefused:
            await self._write_each(records)

    async def _write_each(self, records: Sequence[Record]) -> None:
        """One run that the database will not take must not hold up the others for ever."""
        for record in records:
            try:
                await self._store.write([record])
            except StoreRefused:
                _log.exception("%s cannot be archived", record.run.id)
