"""The archive's store in memory, with the behaviour of `postgres.py`, for tests and simulations. Everything is gone on exit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime

import msgspec

from orchestrator.events import Entry
from orchestrator.runs import ALL_RUNS, Run, RunFilter
from orchestrator.spending.money import cost
from orchestrator.spending.report import MOST_ROWS, UsageQuery, UsageRow
from orchestrator.store.memory_keys import MemoryKeys
from orchestrator.store.records import Record
from orchestrator.store.store import KnownSession, SessionRow
from orchestrator.upstreams.upstream import Usage


class MemoryRuns:
    def __init__(self) -> None:
        self.keys = MemoryKeys()
        self._records: dict[str, Record] = {}
        self._known: dict[tuple[str, str], KnownSession] = {}

    async def ping(self) -> None:
        """Always here."""

    async def write(self, records: Sequence[Record]) -> None:
        for record in records:
            self._records.setdefault(record.run.id, record)

    async def usage(self, tenant: str, query: UsageQuery, key_id: str | None) -> list[UsageRow]:
        sums: dict[tuple[str | None, str | None, date | None], UsageRow] = {}
        for record in self._records.values():
            run = record.run
            day = datetime.fromtimestamp(run.created_ms / 1000, UTC).date()
            if run.tenant == tenant and query.first <= day <= query.last and key_id in (None, run.key_id):
                group = (
                    run.key_id if "key" in query.by else None,
                    run.model if "model" in query.by else None,
                    day if "day" in query.by else None,
                )
                sums[group] = sums.get(group, UsageRow()).plus(_spent(record))
        rows = [msgspec.structs.replace(row, key_id=key, model=model, day=day) for (key, model, day), row in sums.items()]
        return sorted(rows, key=lambda row: (str(row.day), row.key_id or "", row.model or ""))[: MOST_ROWS + 1]

    async def run(self, run_id: str) -> Run | None:
        record = self._records.get(run_id)
        return None if record is None else record.run

    async def runs(
        self, tenant: str, which: RunFilter, *, offset: int, limit: int, without: Sequence[str] = ()
    ) -> tuple[list[Run], int]:
        runs = self._listed(tenant, which, without)
        return runs[offset : offset + limit], len(runs)

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        record = self._records.get(run_id)
        return [] if record is None else [entry for entry in record.entries if entry.seq > after_seq][:limit]

    async def find(self, run_id: str, seq: int) -> Entry | None:
        return next((entry for entry in await self.entries(run_id, seq - 1, 1) if entry.seq == seq), None)

    async def sessions(
        self, tenant: str, *, only: Sequence[str] | None = None, limit: int, without: Sequence[str] = ()
    ) -> list[SessionRow]:
        grouped: dict[str, list[Run]] = {}
        for run in self._listed(tenant, without=without):
            if run.session_id is not None and (only is None or run.session_id in only):
                grouped.setdefault(run.session_id, []).append(run)
        rows = [self._row(tenant, name, runs) for name, runs in grouped.items()]
        return sorted(rows, key=lambda row: (-row.updated_ms, row.id))[:limit]

    async def count_sessions(self, tenant: str, *, but: Sequence[str], without: Sequence[str] = ()) -> int:
        return len({run.session_id for run in self._listed(tenant, without=without)} - {None, *but})

    async def known_sessions(self, tenant: str, session_ids: Sequence[str]) -> dict[str, KnownSession]:
        return {name: self._known[tenant, name] for name in session_ids if (tenant, name) in self._known}

    async def title_session(self, tenant: str, session_id: str, title: str) -> None:
        known = self._known.get((tenant, session_id))
        self._known[tenant, session_id] = KnownSession(title, known.deleted_ms if known else -1)

    async def delete_session(self, tenant: str, session_id: str, now_ms: int) -> None:
        self._known[tenant, session_id] = KnownSession(None, now_ms)

    def _listed(self, tenant: str, which: RunFilter = ALL_RUNS, without: Sequence[str] = ()) -> list[Run]:
        runs = [record.run for record in self._records.values()]
        shown = [
            run
            for run in runs
            if run.tenant == tenant
            and which.lets_through(run)
            and run.id not in without
            and run.created_ms > self._deleted_ms(tenant, run.session_id)
        ]
        return sorted(shown, key=lambda run: (run.created_ms, run.id), reverse=True)

    def _deleted_ms(self, tenant: str, session_id: str | None) -> int:
        known = None if session_id is None else self._known.get((tenant, session_id))
        return -1 if known is None else known.deleted_ms

    def _row(self, tenant: str, name: str, runs: Sequence[Run]) -> SessionRow:
        known = self._known.get((tenant, name))
        usages = [self._records[run.id].usage for run in runs]
        return SessionRow(
            id=name,
            title=known.title if known else None,
            runs=len(runs),
            created_ms=min(run.created_ms for run in runs),
            updated_ms=max(run.ended_ms or run.created_ms for run in runs),
            tokens=sum(usage.total_tokens for usage in usages if usage is not None),
        )


def _spent(record: Record) -> UsageRow:
    usage = record.usage or Usage()
    return UsageRow(
        runs=1,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached or 0,
        cost_nano=cost(record.run.price, record.usage),
    )
