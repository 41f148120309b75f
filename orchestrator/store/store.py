"""What is kept of runs after their logs have expired. `postgres.py` keeps it; `memory.py` is for tests and simulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from orchestrator.events import Entry
from orchestrator.runs import Run, RunFilter
from orchestrator.spending.report import UsageQuery, UsageRow
from orchestrator.store.keys import KeyStore
from orchestrator.store.records import Record


class SessionRow(msgspec.Struct, frozen=True):
    """A session as its archived runs tell. Times are milliseconds since the epoch."""

    id: str
    title: str | None
    runs: int
    created_ms: int
    updated_ms: int
    tokens: int


class KnownSession(msgspec.Struct, frozen=True):
    """What is known of a session beyond its runs. Runs not younger than `deleted_ms` are not listed."""

    title: str | None
    deleted_ms: int


class Store(Protocol):
    """Writing is idempotent. Every method raises StoreUnavailable within a bound when the store is away."""

    @property
    def keys(self) -> KeyStore: ...

    async def ping(self) -> None: ...

    async def write(self, records: Sequence[Record]) -> None:
        """Keep these runs, all or none. Raises StoreRefused if one of them can never be kept."""

    async def usage(self, tenant: str, query: UsageQuery, key_id: str | None) -> list[UsageRow]:
        """What a tenant's runs here used, or those of one key; by day, key and model where asked. `MOST_ROWS` and one at most."""

    async def run(self, run_id: str) -> Run | None: ...

    async def runs(
        self, tenant: str, which: RunFilter, *, offset: int, limit: int, without: Sequence[str] = ()
    ) -> tuple[list[Run], int]:
        """Some of a tenant's runs, newest first, and how many there are in all; `without` these."""

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with `seq` greater than `after_seq`, oldest first. Positions of deltas are missing."""

    async def find(self, run_id: str, seq: int) -> Entry | None: ...

    async def sessions(
        self, tenant: str, *, only: Sequence[str] | None = None, limit: int, without: Sequence[str] = ()
    ) -> list[SessionRow]:
        """A tenant's sessions, or `only` some, the latest used first, as their archived runs tell; `without` these runs."""

    async def count_sessions(self, tenant: str, *, but: Sequence[str], without: Sequence[str] = ()) -> int:
        """How many sessions of the tenant have archived runs; not counting these sessions, nor these runs."""

    async def known_sessions(self, tenant: str, session_ids: Sequence[str]) -> dict[str, KnownSession]:
        """Of these sessions, those of which a title or a deletion is known."""

    async def title_session(self, tenant: str, session_id: str, title: str) -> None: ...

    async def delete_session(self, tenant: str, session_id: str, now_ms: int) -> None:
        """Forget what the session was called, and its runs up to now."""
