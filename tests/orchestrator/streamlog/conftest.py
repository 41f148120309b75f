"""Worlds: one store of event logs, in memory or in Redis, and as many processes on it as a test asks for."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from orchestrator.embedded import Addresses
from orchestrator.events import Entry, Event, encode, timestamp
from orchestrator.runs import Run, RunRequest
from orchestrator.streamlog.log import Batch, Log
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.streamlog.redis import RedisLog

BOUND_S = 5.0


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, ms: int = 1_700_000_000_000) -> None:
        self.ms = ms

    def __call__(self) -> float:
        return self.ms / 1000


class Process:
    """One process's log, and what its listeners heard."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.batches: list[Batch] = []
        self.watched: list[str] = []
        self.control: list[tuple[str, str]] = []
        self._news = asyncio.Event()
        log.listener = lambda batch: self._hear(self.batches, batch)
        log.watched = lambda run_id: self._hear(self.watched, run_id)
        log.on_control(lambda run_id, op: self._hear(self.control, (run_id, op)))

    @property
    def heard(self) -> list[Entry]:
        return [entry for batch in self.batches for entry in batch.entries]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was heard makes this true."""
        async with asyncio.timeout(BOUND_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _hear(self, into: list[Any], what: Any) -> None:
        into.append(what)
        self._news.set()


class World:
    """`fast_ms` is a span that a lease can have and a test can let pass."""

    fast_ms = 60_000

    def __init__(self) -> None:
        self._exits = AsyncExitStack()
        self._numbers = itertools.count(1)

    async def process(self, **options: Any) -> Process:
        raise NotImplementedError

    async def close(self) -> None:
        await self._exits.aclose()

    async def pass_ms(self, ms: int) -> None:
        raise NotImplementedError

    def run(self, *, created_ms: int = 1_700_000_000_000, tenant: str = "acme", number: int | None = None) -> Run:
        number = next(self._numbers) if number is None else number
        return Run(id=f"task-{number:032x}", tenant=tenant, model="demo", answers=("root",), created_ms=created_ms)


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self._stores: dict[tuple[tuple[str, Any], ...], MemoryStore] = {}

    async def process(self, **options: Any) -> Process:
        key = tuple(sorted(options.items()))
        store = self._stores.setdefault(key, MemoryStore(self.clock, **options))
        log = MemoryLog(store)
        self._exits.push_async_callback(log.close)
        return Process(log)

    async def pass_ms(self, ms: int) -> None:
        self.clock.ms += ms


class RedisWorld(World):
    """Redis's clock cannot be owned, so what lapses here is short."""

    fast_ms = 150

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__()
        self.url = url
        self.prefix = prefix

    async def process(self, **options: Any) -> Process:
        log = RedisLog(options.pop("url", self.url), prefix=self.prefix, **options)
        process = Process(await self._exits.enter_async_context(log))
        await log.ping()
        return process

    async def pass_ms(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000 + 0.002)


class Proxy:
    """A TCP proxy before Redis: adds latency to replies, cuts connections before a reply gets through, refuses new ones."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.reply_delay_s = 0.0
        self.cut_chance = 0.0
        self.cuts = 0
        self.refusing = False
        self._rng = rng
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        credentials, _, _ = self._target.netloc.rpartition("@")
        return urlunsplit(self._target._replace(netloc=f"{credentials}@127.0.0.1:{port}"))

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refusing:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, back}
        try:
            with suppress(OSError):  # a cut; the other side has seen it too
                await asyncio.gather(self._requests(reader, back), self._replies(there, writer))
        finally:
            for one in (writer, back):
                self._writers.discard(one)
                one.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            to.write(data)
        to.transport.abort()

    async def _replies(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._rng.random() < self.cut_chance:
                self.cuts += 1
                break
            if self.reply_delay_s:
                await asyncio.sleep(self.reply_delay_s)
            to.write(data)
        to.transport.abort()


@pytest.fixture
def redis_url(backends: Addresses) -> str:
    return backends.redis


_prefixes = itertools.count(1)


@pytest.fixture
async def redis_world(redis_url: str) -> AsyncIterator[RedisWorld]:
    world = RedisWorld(redis_url, f"test{next(_prefixes)}")
    yield world
    await world.close()


@pytest.fixture
async def memory_world() -> AsyncIterator[MemoryWorld]:
    world = MemoryWorld()
    yield world
    await world.close()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.local)])
def world(request: pytest.FixtureRequest) -> World:
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(redis_url, random.Random(1))
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
def body() -> Callable[[object], bytes]:
    """An event's encoding that can be told from others."""
    return lambda mark: encode(event_of(mark))


@pytest.fixture
def event() -> Callable[[object], Event]:
    return event_of


@pytest.fixture
def kept_body() -> Callable[[object], bytes]:
    """The same of an event that the archive keeps."""
    return lambda mark: encode(Event("PROGRESS", timestamp(1_700_000_000_000), message=str(mark)))


def event_of(mark: object) -> Event:
    return Event("LLM_PARTIAL", timestamp(1_700_000_000_000), message=str(mark))


@pytest.fixture
def ask() -> RunRequest:
    return RunRequest(model="demo", upstream_model="demo", plan={"agent": {"upstream": "demo"}}, body={"messages": []})
