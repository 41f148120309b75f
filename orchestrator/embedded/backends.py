"""The three backends together: started at once, watched while in use, stopped at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from orchestrator.embedded import datadir
from orchestrator.embedded.backend import Backend
from orchestrator.embedded.child import Child
from orchestrator.embedded.datadir import DataDir
from orchestrator.embedded.postgres import Postgres
from orchestrator.embedded.redis import Redis
from orchestrator.embedded.temporal import Temporal


class Addresses(msgspec.Struct, frozen=True):
    """Where the backends are. The addresses may carry passwords, so printing this shows hosts only."""

    redis: str
    """`redis://…`"""
    temporal: str
    """`host:port`"""
    postgres: str
    """`postgresql://…`"""

    def __repr__(self) -> str:
        redis, postgres = (urlsplit(url).netloc.rpartition("@")[2] for url in (self.redis, self.postgres))
        return f"Addresses(redis={redis}, temporal={self.temporal}, postgres={postgres})"


class Ports(msgspec.Struct, frozen=True):
    """Ports for the children; None is any free one."""

    redis: int | None = None
    temporal: int | None = None
    postgres: int | None = None


@asynccontextmanager
async def embedded(
    data_dir: Path,
    *,
    redis: str | None,
    temporal: str | None,
    postgres: str | None,
    progress: Callable[[str], None],
    ports: Ports = Ports(),  # noqa: B008 - immutable
) -> AsyncIterator[Addresses]:
    """Addresses of all three backends; a child process stands behind each that is None. `progress` gets lines for people.

    Raises EmbeddedError, whose message says what to do. Enter it in a thread that outlives the body (see `leash`).
    """
    if redis is not None and temporal is not None and postgres is not None:
        yield Addresses(redis, temporal, postgres)
        return
    async with datadir.hold(data_dir, progress) as data:
        children: dict[str, Child] = {}

        def child(kind: Callable[[DataDir], Backend], port: int | None) -> None:
            with datadir.usable(data.path):
                backend = kind(data)
            children[backend.name] = Child(backend, data, port, progress)

        if redis is None:
            child(Redis, ports.redis)
        if temporal is None:
            child(Temporal, ports.temporal)
        if postgres is None:
            child(Postgres, ports.postgres)
        async with _running(list(children.values())):
            yield Addresses(
                redis=redis or children["redis"].address,
                temporal=temporal or children["temporal"].address,
                postgres=postgres or children["postgres"].address,
            )


@asynccontextmanager
async def _running(children: Sequence[Child]) -> AsyncIterator[None]:
    """Start, watch and stop `children`. They do not know each other, so no order is needed."""
    watches: list[asyncio.Task[None]] = []
    try:
        await _start(children)
        watches = [asyncio.create_task(child.watch(), name=f"watch {child.backend.name}") for child in children]
        yield
    finally:
        for watch in watches:
            watch.cancel()
        watched = await asyncio.gather(*watches, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in children))
        for outcome in watched:
            if isinstance(outcome, Exception):  # a mistake of ours; being cancelled is not one
                raise outcome


async def _start(children: Sequence[Child]) -> None:
    try:
        async with asyncio.TaskGroup() as starting:
            for child in children:
                starting.create_task(child.start())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # the first failure cancelled the others
