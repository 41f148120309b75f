"""Brings a database's schema up to date: the files of `migrations/`, in order, each once.

Forward only. Any number of processes may start at once: an advisory lock lets one of them work, and the others then find
nothing left to do. All pending migrations are one transaction, so a process that dies in between leaves nothing half done.
A database that is ahead of this code is left alone, which is what a rolling upgrade needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import asyncpg
import msgspec

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(msgspec.Struct, frozen=True):
    version: int
    name: str
    sql: str


def load_migrations() -> Sequence[Migration]:
    """All migrations, oldest first."""
    found = [
        Migration(int(match[1]), match[2], file.read_text())
        for file in (files("orchestrator.store") / "migrations").iterdir()
        if (match := _FILE.fullmatch(file.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


async def migrated(connection: asyncpg.pool.PoolConnectionProxy[Any], queries: Mapping[str, str]) -> Sequence[str]:
    """Apply what is pending of all migrations; returns their names."""
    return [migration.name for migration in await migrate(connection, queries, load_migrations())]


async def migrate(
    connection: asyncpg.pool.PoolConnectionProxy[Any], queries: Mapping[str, str], migrations: Sequence[Migration]
) -> Sequence[Migration]:
    """Apply what is pending; returns what was applied."""
    async with connection.transaction():
        await connection.execute(queries["lock_schema"])
        await connection.execute(queries["create_versions"])
        applied = {row["version"] for row in await connection.fetch(queries["list_versions"])}
        pending = [migration for migration in migrations if migration.version not in applied]
        for migration in pending:
            await connection.execute(migration.sql)
            await connection.execute(queries["add_version"], migration.version, migration.name)
    return pending
