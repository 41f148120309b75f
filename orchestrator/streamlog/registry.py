"""Which runs there are: a tenant's, the unfinished ones, those that wait for the archive. And named runs and leases.

These keys concern all runs and so live apart from any run's own. They are written around the log's atomic steps in an order that
leaves a run in `active` when a process dies in between; the janitor settles it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrator.runs import Run, RunState
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.log import Reservation
from orchestrator.streamlog.scripts import load
from orchestrator.streamlog.wire import Command

RUN_FIELDS = (b"run", b"state", b"started", b"ended")

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

    `retention_ms` is how long a log outlives its last append.
    """

    def __init__(self, connection: Connection, prefix: str, retention_ms: int) -> None:
        self._connection = connection
        self._prefix = prefix
        self._active = f"{prefix}:active".encode()
        self._archive = f"{prefix}:archive".encode()
        self._retention_ms = retention_ms
        self._take, self._reserve = load("take"), load("reserve")

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

    async def unarchived_runs(self, tenant: str) -> list[Run]:
        """The unfinished ones among the tenant's own, and those of anybody that wait for the archive: usually very few."""
        mine, waiting = await self._connection.call_all(
            [(b"ZINTER", 2, self._active, self._tenant(tenant)), (b"SMEMBERS", self._archive)]
        )
        replies: list[Any] = await self._connection.call_all(
            [(b"HMGET", self.meta(run_id.decode()), *RUN_FIELDS) for run_id in {*mine, *waiting}]
        )
        runs = [run for fields in replies if (run := parse_run(fields)) is not None and run.tenant == tenant]
        return sorted(runs, key=lambda run: (run.created_ms, run.id), reverse=True)

    async def approve(self, tenant: str, run_id: str, approval_id: str, wanted: bytes | None) -> None:
        key, field = self._approvals(tenant), f"{run_id} {approval_id}".encode()
        await self._connection.call((b"HDEL", key, field) if wanted is None else (b"HSET", key, field, wanted))

    async def approvals(self, tenant: str) -> list[bytes]:
        wanted: list[bytes] = await self._connection.call((b"HVALS", self._approvals(tenant)))
        return wanted

    async def lease(self, name: str, owner: str, ttl_ms: int) -> bool:
        key = f"{self._prefix}:lease:{name}".encode()
        return bool(await self._connection.run(self._take, [key], [owner, ttl_ms]))

    async def reserve(self, tenant: str, name: str, wanted: Reservation, instead_of: str, keep_ms: int | None) -> Reservation:
        args = (wanted.run_id, wanted.digest, keep_ms or self._retention_ms, instead_of)
        run_id, digest = await self._connection.run(self._reserve, [self._reservation(tenant, name)], args)
        return Reservation(run_id.decode(), digest.decode())

    async def remember(self, tenant: str, name: str) -> None:
        await self._connection.call((b"PEXPIRE", self._reservation(tenant, name), self._retention_ms))

    def meta(self, run_id: str) -> bytes:
        return f"{self._prefix}:{{{run_id}}}:meta".encode()

    def _approvals(self, tenant: str) -> bytes:
        return f"{self._prefix}:approvals:{tenant}".encode()

    def _reservation(self, tenant: str, name: str) -> bytes:
        """Names are clients' words of any length, so it is their digest that becomes part of a key."""
        return f"{self._prefix}:idem:{tenant}:{hashlib.sha256(name.encode()).hexdigest()}".encode()

    def _tenant(self, tenant: str) -> bytes:
        return f"{self._prefix}:runs:{tenant}".encode()
