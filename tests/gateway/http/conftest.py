"""A gateway on a free port of the loopback, and raw access to it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.access.rules import Access
from gateway.app import ACCESS, current_request_id, gateway, new_request_id, orchestrator_app, signer
from gateway.observe.metrics import GatewayMetrics
from gateway.settings import Settings
from gateway.transports.drain import Drain
from gateway.transports.http_server import listening
from orchestrator import assembly
from orchestrator.catalog import ModelEntry
from orchestrator.clock import SystemClock
from orchestrator.engine import Engine
from orchestrator.metrics import NoMetrics
from orchestrator.peers import Peers, peer_session
from orchestrator.remote import RemoteEngine
from orchestrator.store.memory import MemoryRuns
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.witness import Witness
from orchestrator.workflows.worker import TemporalAddress
from tests.orchestrator.engines import TOKENIZER

SHAPE = os.environ.get("HEADGATE_DOORS_SHAPE", "whole")
"""`split` runs all these tests against a gateway and an orchestrator that meet only over HTTP."""


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
        _reached(settings, engine) as (reached, peers),
        gateway(settings, reached, metrics, peers) as (app, drain),
        listening(app, host="127.0.0.1", port=0, new_request_id=new_request_id) as url,
        aiohttp.ClientSession() as http,
    ):
        yield Server(url, int(url.rpartition(":")[2]), drain, metrics, http, app, app[ACCESS])


@asynccontextmanager
async def _reached(settings: Settings, engine: Engine) -> AsyncIterator[tuple[Engine, Peers | None]]:
    """The engine as it is, or, in the shape `split`, behind an orchestrator's app of the same settings."""
    if SHAPE == "whole":
        yield engine, None
        return
    async with (
        orchestrator_app(settings, engine, GatewayMetrics()) as (app, _),
        listening(app, host="127.0.0.1", port=0, new_request_id=new_request_id) as url,
        peer_session() as session,
    ):
        peers = Peers([url], signer(settings), session, time.monotonic, current_request_id)
        yield RemoteEngine(peers, engine.resolve, outage_s=5.0), peers


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(settings, engine)`: stopped when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(settings: Settings, engine: Engine) -> Server:
            return await stack.enter_async_context(serving(settings, engine))

        yield start


@pytest.fixture
def witness() -> Witness:
    """The upstream's word for what was asked of it, and whether its calls were closed."""
    return Witness()


@pytest.fixture
async def engine(witness: Witness) -> AsyncIterator[Engine]:
    """The real engine over the memory log, with a scripted upstream and without Temporal."""
    clock = SystemClock()
    agent = {"upstream": "demo"}
    entries = {
        "headgate-demo": {"plan": {"agent": agent}, "durability": "none"},
        "durable": {"plan": {"agent": agent}},
        "patient": {"plan": {"agent": agent}, "durability": "none", "on_disconnect": "continue"},
        "stubborn": {"plan": {"agent": {**agent, "route": {"retry": {"attempts": 3, "delay_s": 0.01}}}}, "durability": "none"},
        "priced": {"plan": {"agent": agent}, "durability": "none", "price": {"input": 2.5, "output": 10}},
        "cached": {"plan": {"agent": agent}, "durability": "none", "cache": {"exact": True}},
        "cached-at-any": {"plan": {"agent": agent}, "durability": "none", "cache": {"exact": True, "any_temperature": True}},
    }
    config = assembly.Configuration(
        data_dir=Path("unused"),
        redis=None,
        temporal=None,
        postgres=None,
        upstreams={"demo": ScriptedConfig(kind="scripted")},
        models={name: ModelEntry.model_validate(entry) for name, entry in entries.items()},
        drain_s=0.0,
    )
    parts = assembly.Parts(
        log=MemoryLog(MemoryStore(clock.time)),
        store=MemoryRuns(),
        upstreams={"demo": ScriptedUpstream("demo", witness=witness)},
        temporal=TemporalAddress("127.0.0.1:1"),
        metrics=NoMetrics(),
        clock=clock,
        tokens=TOKENIZER,
        owner="test",
        temporal_wait_s=0.0,
    )
    async with assembly.engine(config, parts) as engine:
        yield engine


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """After each test no task is left but the test's own."""
    before = asyncio.all_tasks()
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
    assert not left, left
