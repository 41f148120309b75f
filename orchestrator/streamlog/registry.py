"""Which runs there are: a tenant's, the unfinished ones, those that wait for the archive. And named leases.

These keys concern all runs and so live apart from any run's own. They are written around the log's atomic steps in an order that
leaves a run in `active` when a process dies in between; the janitor settles it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from orchestrator.runs import Run, RunState
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.log import RunCursor
from orchestrator.streamlog.scripts import load
from orchestrator.streamlog.wire import Command

RUN_FIELDS = (b"run", b"state", b"started", b"ended")

_PAGE = 128
_decode_run = msgspec.json.Decoder(Run).decode


def parse_run(fields: Sequence[bytes | None]) -> Run | None:
    """A run from its metadata's `RUN_FIELDS`."""
    body, state, started, ended = fields
    if body is None or state is None:
        return None
    return msgspec.structs.replace(
        _decode_run(body),
        state=RunState(state.decode()),
        started_ms=None if started is None else int(started),
        ended_ms=None if ended is None else int(ended),
    )


class Registry:
    """The part of `RedisLog` that speaks of many runs.

    `retention_ms` is how long a log outlives its last append. A run may be written for longer than that; what is older than two
    retentions is listed from the archive.
    """

    def __init__(self, connection: Connection, prefix: str, retention_ms: int, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._prefix = prefix
        self._active = f"{prefix}:active".encode()
        self._archive = f"{prefix}:archive".encode()
        self._retention_ms = retention_ms
        self._clock = clock
        self._take = load("take")

    def entering(self, run: Run) -> list[Command]:
        """Sent ahead of the creation of a run's log, so that no unfinished run is ever missing from `active`."""
        tenant = self._tenant(run.tenant)
        return [
            (b"ZADD", self._active, "NX", run.created_ms, run.id),
            (b"ZADD", tenant, run.created_ms, run.id),
            (b"ZREMRANGEBYSCORE", tenant, "-inf", run.created_ms - 2 * self._retention_ms),
            (b"PEXPIRE", tenant, 2 * self._retention_ms),
        ]

    def settling(self, run_id: str) -> list[Command]:
        return [(b"SADD", self._archive, run_id), (b"ZREM", self._active, run_id)]

    async def active(self) -> list[str]:
        ids: list[bytes] = await self._connection.call((b"ZRANGE", self._active, 0, -1))
        return [run_id.decode() for run_id in ids]

    async def settle(self, run_id: str) -> None:
        active, (exists, closed) = await self._connection.call_all(
            [(b"ZSCORE", self._active, run_id), (b"HMGET", self.meta(run_id), b"state", b"closed")]
        )
        if active is None:
            return  # settled before, and perhaps archived since
        if exists is None:
            await self._connection.call((b"ZREM", self._active, run_id))
        elif closed is not None:
            await self._connection.call_all(self.settling(run_id))

    async def unarchived(self, limit: int) -> list[str]:
        ids: list[bytes] = await self._connection.call((b"SRANDMEMBER", self._archive, limit))
        return [run_id.decode() for run_id in ids]

    async def unarchived_count(self) -> int:
        return int(await self._connection.call((b"SCARD", self._archive)))

    async def archived(self, run_ids: Sequence[str]) -> None:
        if run_ids:
            await self._connection.call((b"SREM", self._archive, *run_ids))

    async def runs(self, tenant: str, before: RunCursor | None, limit: int) -> list[Run]:
        """Ids of expired logs are dropped from the tenant's on the way."""
        key = self._tenant(tenant)
        found: list[Run] = []
        skip = 0
        while len(found) < limit:
            highest = "+inf" if before is None else before.created_ms
            reply: list[bytes] = await self._connection.call(
                (b"ZREVRANGEBYSCORE", key, highest, "-inf", "WITHSCORES", "LIMIT", skip, _PAGE)
            )
            if not reply:
                break
            page = [RunCursor(int(score), run_id.decode()) for run_id, score in zip(reply[::2], reply[1::2], strict=True)]
            later = page if before is None else [c for c in page if (c.created_ms, c.run_id) < (before.created_ms, before.run_id)]
            if not later:
                skip += len(page)
                continue
            found += await self._existing(key, later)
            before, skip = later[-1], 0
        return found[:limit]

    async def lease(self, name: str, owner: str, ttl_ms: int) -> bool:
        key = f"{self._prefix}:lease:{name}".encode()
        return bool(await self._connection.run(self._take, [key], [owner, ttl_ms]))

    def meta(self, run_id: str) -> bytes:
        return f"{self._prefix}:{{{run_id}}}:meta".encode()

    def _tenant(self, tenant: str) -> bytes:
        return f"{self._prefix}:runs:{tenant}".encode()

    async def _existing(self, key: bytes, cursors: Sequence[RunCursor]) -> list[Run]:
        replies: list[Any] = await self._connection.call_all(
            [(b"HMGET", self.meta(cursor.run_id), *RUN_FIELDS) for cursor in cursors]
        )
        runs = [parse_run(fields) for fields in replies]
        oldest_ms = int(self._clock() * 1000) - self._retention_ms  # a younger one without a log is just being opened
        expired = [c.run_id for c, run in zip(cursors, runs, strict=True) if run is None and c.created_ms < oldest_ms]
        if expired:
            self._connection.post((b"ZREM", key, *expired))
        return [run for run in runs if run is not None]
