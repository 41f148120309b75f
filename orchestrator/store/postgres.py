"""The archive's tables in PostgreSQL: finished runs and their events.

Writing is idempotent: a run that is here already is left as it is. Reading is by key only, so its cost does not grow with the
archive. Every method raises StoreUnavailable within a bound when the database is away; see `database.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec

from orchestrator.events import Entry
from orchestrator.runs import Run, RunFilter
from orchestrator.spending.report import MOST_ROWS, UsageQuery, UsageRow
from orchestrator.store.database import Database, StoreRefused, StoreUnavailable
from orchestrator.store.postgres_keys import PostgresKeys
from orchestrator.store.records import EVENT_COLUMNS, RUN_COLUMNS, Record, Row, run_of
from orchestrator.store.store import KnownSession, SessionRow

__all__ = ["Postgres", "Record", "StoreRefused", "StoreUnavailable"]

_WRITE_BOUND_S = 30.0


class Postgres:
    """Use as a context manager; entering it waits for nothing."""

    def __init__(self, dsn: str, *, connections: int = 4, bound_s: float = 2.0) -> None:
        self._database = Database(dsn, connections=connections, bound_s=bound_s)
        self._queries = self._database.queries
        self.keys = PostgresKeys(self._database)

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._database.__aexit__(*failure)

    async def ping(self) -> None:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["ping"])

    async def write(self, records: Sequence[Record]) -> None:
        """Keep these runs, all or none. Raises StoreRefused if the database will never take one of them."""
        try:
            await self._write(
                [record.run_row() for record in records],
                [row for record in records for row in record.event_rows()],
            )
        except (msgspec.DecodeError, ArithmeticError, TypeError, ValueError) as error:
            raise StoreRefused from error  # not an event of ours, or a number that no column holds

    async def _write(self, runs: Sequence[Row], events: Sequence[Row]) -> None:
        async with self._database.connection(_WRITE_BOUND_S) as connection, connection.transaction():
            await connection.execute(self._queries["stage"])
            await connection.copy_records_to_table("arriving_runs", records=runs, columns=RUN_COLUMNS)
            await connection.copy_records_to_table("arriving_events", records=events, columns=EVENT_COLUMNS)
            await connection.execute(self._queries["merge_runs"])
            await connection.execute(self._queries["merge_events"])

    async def usage(self, tenant: str, query: UsageQuery, key_id: str | None) -> list[UsageRow]:
        by = [grouping in query.by for grouping in ("key", "model", "day")]
        async with self._database.connection() as connection:
            rows = await connection.fetch(self._queries["sum_usage"], tenant, query.first, query.last, key_id, *by, MOST_ROWS + 1)
        return [UsageRow(**row) for row in rows]

    async def run(self, run_id: str) -> Run | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self._queries["find_run"], run_id)
        return None if row is None else run_of(row)

    async def runs(
        self, tenant: str, which: RunFilter, *, offset: int, limit: int, without: Sequence[str] = ()
    ) -> tuple[list[Run], int]:
        """Some of a tenant's runs, newest first, and how many there are in all; `without` these."""
        asked = (tenant, which.session_id, which.state, list(without))
        async with self._database.connection() as connection:
            rows = await connection.fetch(self._queries["list_runs"], *asked, offset, limit)
            total = await connection.fetchval(self._queries["count_runs"], *asked)
        return [run_of(row) for row in rows], total

    async def sessions(
        self, tenant: str, *, only: Sequence[str] | None = None, limit: int, without: Sequence[str] = ()
    ) -> list[SessionRow]:
        """A tenant's sessions, or `only` some, the latest used first, as their archived runs tell; `without` these runs."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                self._queries["list_sessions"], tenant, None if only is None else list(only), list(without), limit
            )
        return [SessionRow(**row) for row in rows]

    async def count_sessions(self, tenant: str, *, but: Sequence[str], without: Sequence[str] = ()) -> int:
        """How many sessions of the tenant have archived runs; not counting these sessions, nor these runs."""
        async with self._database.connection() as connection:
            total: int = await connection.fetchval(self._queries["count_sessions"], tenant, list(but), list(without))
        return total

    async def known_sessions(self, tenant: str, session_ids: Sequence[str]) -> dict[str, KnownSession]:
        """Titles of these sessions and when they were last deleted; only those of which either is known."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(self._queries["describe_sessions"], tenant, list(session_ids))
        return {row["id"]: KnownSession(row["title"], row["deleted_ms"]) for row in rows}

    async def title_session(self, tenant: str, session_id: str, title: str) -> None:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["title_session"], tenant, session_id, title)

    async def delete_session(self, tenant: str, session_id: str, now_ms: int) -> None:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["delete_session"], tenant, session_id, now_ms)

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with `seq` greater than `after_seq`, oldest first. Positions of deltas are missing."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(self._queries["list_entries"], run_id, after_seq, limit)
        return [Entry(*row) for row in rows]

    async def find(self, run_id: str, seq: int) -> Entry | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self._queries["find_entry"], run_id, seq)
        return None if row is None else Entry(*row)
