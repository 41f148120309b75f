"""A small pool of PostgreSQL connections that never makes anybody wait for long.

Nothing here blocks a start: the pool connects when it is first used, and the schema is brought up to date in the background, with
backoff for as long as the database is away. Whoever asks for a connection has one within the bound or gets StoreUnavailable;
so does whoever holds one for longer. Streaming does not depend on any of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeAlias

import asyncpg

from orchestrator.errors import HeadgateError, Unavailable
from orchestrator.store.queries import load_queries
from orchestrator.store.schema import migrated

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Any]"

Schema: TypeAlias = Callable[[Connection, Mapping[str, str]], Awaitable[Sequence[str]]]
"""Makes of a database what this code needs, with the queries at hand; returns the names of what it applied. Any number of
processes may do so at once."""

_AWAY = (
    OSError,  # refused, reset, timed out
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # starting up, shutting down
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby that was not promoted yet
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalClientError,  # the protocol was cut in the middle
)
"""What waiting can heal."""

_REFUSED = (asyncpg.PostgresError, asyncpg.InterfaceError)
"""What it cannot."""

_MIGRATE_BOUND_S = 60.0
_BACKOFF_S = (0.1, 5.0)

_log = logging.getLogger(__name__)


class StoreUnavailable(Unavailable):
    """The archive's database did not answer in time. Streaming goes on without it; try again shortly."""

    code = "store_unavailable"


class StoreRefused(HeadgateError):
    """The archive's database refused a statement."""

    code = "store_refused"


class Database:
    """Use as a context manager; entering it waits for nothing."""

    def __init__(self, dsn: str, *, connections: int = 4, bound_s: float = 2.0, schema: Schema = migrated) -> None:
        self.queries: Mapping[str, str] = load_queries()
        self._schema = schema
        self._refusal: str | None = None
        self._pool = asyncpg.create_pool(dsn, min_size=0, max_size=connections)
        self._bound_s = bound_s
        self._tried = asyncio.Event()
        self._ready = False
        self._preparing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._pool  # connects nothing: its least size is 0
        self._preparing = asyncio.create_task(self._prepare(), name="postgres-schema")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        try:
            async with asyncio.timeout(self._bound_s):
                await self._pool.close()
        except _AWAY:
            self._pool.terminate()

    async def refusal(self) -> str | None:
        """Why the database refuses the schema; None where it does not, or is away."""
        try:
            async with asyncio.timeout(self._bound_s):
                await self._tried.wait()
        except TimeoutError:
            return None
        return self._refusal

    @asynccontextmanager
    async def connection(self, bound_s: float | None = None) -> AsyncIterator[Connection]:
        """A connection to a database whose schema is up to date, for at most `bound_s`.

        Raises StoreUnavailable; at once while the database has not been reached since the start.
        """
        with _translated():
            async with asyncio.timeout(bound_s or self._bound_s):
                await self._tried.wait()
                if not self._ready:
                    raise StoreUnavailable
                async with self._acquired() as connection:
                    yield connection

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Connection]:
        connection = await self._pool.acquire()
        try:
            yield connection
        except asyncio.CancelledError:
            connection.terminate()  # to cancel politely would mean to wait for a server that may not answer
            raise
        finally:
            await self._pool.release(connection)

    async def _prepare(self) -> None:
        """Bring the schema up to date, however long the database is away."""
        delay_s, longest_s = _BACKOFF_S
        away = False
        while not self._ready:
            try:
                async with asyncio.timeout(_MIGRATE_BOUND_S), self._acquired() as connection:
                    applied = await self._schema(connection, self.queries)
            except (*_AWAY, *_REFUSED) as error:
                self._refusal = None if isinstance(error, _AWAY) else str(error).partition("\n")[0]
                self._tried.set()
                level = logging.DEBUG if away else logging.WARNING  # an outage is told once
                _log.log(level, "cannot use PostgreSQL, trying on: %s", str(error) or type(error).__name__)
                away = True
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, longest_s)
            else:
                self._ready = True
                self._tried.set()
                if away or applied:
                    _log.info("PostgreSQL is ready; migrations applied: %s", ", ".join(applied) or "none")


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the driver's exceptions into ours."""
    try:
        yield
    except _AWAY as error:
        raise StoreUnavailable from error
    except _REFUSED as error:
        raise StoreRefused from error
