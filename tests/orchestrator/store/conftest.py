"""A database of its own for every test, and a wire to it that can be cut or frozen."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

import asyncpg
import pytest

from orchestrator.embedded import Addresses
from orchestrator.store.postgres import Postgres


@pytest.fixture
async def database(backends: Addresses) -> AsyncIterator[str]:
    """The address of an empty database."""
    name = f"test_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(backends.postgres)
    await admin.execute(f"CREATE DATABASE {name}")
    yield urlsplit(backends.postgres)._replace(path=f"/{name}").geturl()
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with Postgres(database) as postgres:
        yield postgres


class Wire:
    """A TCP proxy to a database. `cut` refuses and drops connections, `freeze` accepts them and answers nothing."""

    def __init__(self, url: str) -> None:
        self._far = urlsplit(url)
        self._port = 0
        self._flows = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        user, _, _ = self._far.netloc.rpartition("@")
        return self._far._replace(netloc=f"{user}@127.0.0.1:{self._port}").geturl()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def mend(self) -> None:
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def freeze(self) -> None:
        self._flows.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        far_reader, far_writer = await asyncio.open_connection(self._far.hostname, self._far.port)
        try:
            with suppress(asyncio.CancelledError):  # how a cut ends us
                await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
async def wire(database: str) -> AsyncIterator[Wire]:
    async with Wire(database) as wire:
        yield wire
