"""A gateway on a free port of the loopback, and raw access to it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.access.keys import Access
from gateway.app import ACCESS, gateway, new_request_id
from gateway.observe.metrics import GatewayMetrics
from gateway.settings import Settings
from gateway.transports.drain import Drain
from gateway.transports.http_server import listening
from orchestrator.agents.desk import Desk
from orchestrator.catalog import Catalog, ModelEntry
from orchestrator.clock import SystemClock
from orchestrator.ender import Ender
from orchestrator.engine import Engine
from orchestrator.events import Entry
from orchestrator.inline import InlineRuns
from orchestrator.local import LocalEngine
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Run
from orchestrator.store.postgres import Record
from orchestrator.streamlog.archive import Archive
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import RunCursor
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.witness import Witness
from orchestrator.workflows.activities import Activities
from orchestrator.workflows.worker import Temporal, TemporalAddress


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    url: str
    port: int
    drain: Drain
    metrics: GatewayMetrics
    http: aiohttp.ClientSession
    app: web.Application
    access: Mapping[web.AbstractRoute, Access]

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        async with self.http.request(method, self.url + path, **options) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers, await response.read())

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(10):
                yield reader, writer
        finally:
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> Answer:
        return await read_answer(reader)

    async def raw(self, sent: bytes, *, first: bool = False, head_first: bool = False) -> list[Answer]:
        """Send bytes; read answers until the server closes the connection, or the first one only."""
        async with self.connection() as (reader, writer):
            writer.write(sent)
            answers = [await read_answer(reader, body=not head_first)]
            while not first and (more := await read_answer(reader)).status:
                answers.append(more)
            return answers


async def read_answer(reader: asyncio.StreamReader, *, body: bool = True) -> Answer:
    """One HTTP/1.1 response; status 0 at the end of the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return Answer(0, {}, b"")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    content = b""
    if not body:
        pass
    elif headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            content += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(head[0].split()[1]), headers, content)


Serve = Callable[[Settings, Engine], Awaitable[Server]]


@asynccontextmanager
async def serving(settings: Settings, engine: Engine) -> AsyncIterator[Server]:
    metrics = GatewayMetrics()
    async with (
        gateway(settings, engine, metrics) as (app, drain),
        listening(app, host="127.0.0.1", port=0, new_request_id=new_request_id) as url,
        aiohttp.ClientSession() as http,
    ):
        yield Server(url, int(url.rpartition(":")[2]), drain, metrics, http, app, app[ACCESS])


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(settings, engine)`: stopped when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(settings: Settings, engine: Engine) -> Server:
            return await stack.enter_async_context(serving(settings, engine))

        yield start


class NoStore:
    """An archive that has nothing and takes nothing."""

    async def ping(self) -> None: ...

    async def write(self, records: Sequence[Record]) -> None: ...

    async def run(self, run_id: str) -> Run | None:
        return None

    async def runs(self, tenant: str, before: RunCursor | None, limit: int) -> list[Run]:
        return []

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        return []

    async def find(self, run_id: str, seq: int) -> Entry | None:
        return None


@pytest.fixture
def witness() -> Witness:
    """The upstream's word for what was asked of it, and whether its calls were closed."""
    return Witness()


@pytest.fixture
async def engine(witness: Witness) -> AsyncIterator[Engine]:
    """The real engine over the memory log, with a scripted upstream and without Temporal."""
    metrics, clock = NoMetrics(), SystemClock()
    log = MemoryLog(MemoryStore(clock.time))
    archive = Archive(log, NoStore(), "test")
    fanout = Fanout(log, archive)
    ender = Ender(log, metrics, clock)
    upstreams = {"demo": ScriptedUpstream("demo", witness=witness)}
    desk = Desk(log=log, fanout=fanout, router=Router(upstreams), tokens=Tokenizer(), metrics=metrics, clock=clock)
    temporal = Temporal(
        TemporalAddress("127.0.0.1:1"),
        Activities(log, desk, ender),
        task_queue="test",
        heartbeat_s=5.0,
        max_agents=10,
        drain_s=0.0,
    )
    inline = InlineRuns(desk, ender, lease_ms=5_000)
    agent = {"upstream": "demo"}
    entries = {
        "headgate-demo": {"plan": {"agent": agent}, "durability": "none"},
        "durable": {"plan": {"agent": agent}},
        "patient": {"plan": {"agent": agent}, "durability": "none", "on_disconnect": "continue"},
    }
    engine = LocalEngine(
        log=log,
        fanout=fanout,
        archive=archive,
        catalog=Catalog({name: ModelEntry.model_validate(entry) for name, entry in entries.items()}),
        upstreams=upstreams,
        desk=desk,
        inline=inline,
        temporal=temporal,
        ender=ender,
        metrics=metrics,
        clock=clock,
        random_bytes=secrets.token_bytes,
    )
    async with desk.ticking():
        yield engine
        await engine.close()
        await inline.close()
    await fanout.close()


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """After each test no task is left but the test's own."""
    before = asyncio.all_tasks()
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
    assert not left, left
