"""API keys in PostgreSQL: of each key its digest, never its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.keys import ApiKey, StoredKey
from orchestrator.limits.quota import Allowance
from orchestrator.runs import scopes_named
from orchestrator.store.database import Connection, Database


class PostgresKeys:
    """`store.keys.KeyStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = database.queries

    async def add(self, key: StoredKey) -> None:
        async with self._database.connection() as connection:
            await self._add(connection, key)

    async def get(self, key_ids: Sequence[str]) -> Sequence[StoredKey]:
        return await self._stored("get_keys", list(key_ids))

    async def find(self, prefix: str) -> Sequence[StoredKey]:
        return await self._stored("find_keys", prefix)

    async def list(self, tenant: str | None) -> Sequence[ApiKey]:
        return [stored.key for stored in await self._stored("list_keys", tenant)]

    async def revoke(self, key_id: str, at_ms: int) -> None:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["revoke_key"], key_id, at_ms)

    async def replace(self, key_id: str, by: StoredKey, *, now_ms: int, ends_ms: int) -> bool:
        async with self._database.connection() as connection, connection.transaction():
            if not await connection.fetchval(self._queries["end_key"], key_id, now_ms, ends_ms):
                return False
            await self._add(connection, by)
            return True

    async def touch(self, used_ms: Mapping[str, int]) -> None:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["touch_keys"], list(used_ms), list(used_ms.values()))

    async def secret(self, name: str, proposed: bytes) -> bytes:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["propose_secret"], name, proposed)
            agreed: bytes = await connection.fetchval(self._queries["find_secret"], name)
        return agreed

    async def _add(self, connection: Connection, stored: StoredKey) -> None:
        key = stored.key
        await connection.execute(
            self._queries["add_key"],
            key.id,
            key.prefix,
            stored.digest,
            key.name,
            key.tenant,
            sorted(key.scopes),
            None if key.limits is None else msgspec.json.encode(key.limits).decode(),
            key.created_ms,
            key.expires_ms,
        )

    async def _stored(self, query: str, *asked: object) -> Sequence[StoredKey]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(self._queries[query], *asked)
        return [_stored(row) for row in rows]


def _stored(row: Mapping[str, Any]) -> StoredKey:
    key = ApiKey(
        id=row["id"],
        prefix=row["prefix"],
        name=row["name"],
        tenant=row["tenant"],
        created_ms=row["created_ms"],
        scopes=scopes_named(row["scopes"]),
        limits=None if row["limits"] is None else msgspec.json.decode(row["limits"], type=Allowance),
        expires_ms=row["expires_ms"],
        revoked_ms=row["revoked_ms"],
        last_used_ms=row["last_used_ms"],
    )
    return StoredKey(key, row["digest"])
