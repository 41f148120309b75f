"""A Headgate to attack: the gateway's HTTP and gRPC doors on real sockets, over the memory log, asking a real HTTP upstream that
says, byte for byte, what a test tells it to say.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from grpc import aio

from gateway.app import new_session_id
from gateway.keyring import key_ring
from gateway.observe.metrics import GatewayMetrics
from gateway.rpc import grpc_door
from gateway.settings import Settings
from gateway.transports.drain import Drain
from orchestrator.clock import SystemClock
from orchestrator.engine import Engine
from orchestrator.runs import Run, RunRequest, new_run_id
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.upstreams.config import OpenAIConfig
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from protos.events_pb2_grpc import EventServiceStub
from protos.orchestrator_pb2_grpc import OrchestratorServiceStub
from protos.streaming_pb2 import StreamRequest, TaskUpdate
from protos.streaming_pb2_grpc import StreamingServiceStub
from tests.gateway.http.conftest import Server, serving
from tests.gateway.http.native import bearer, settings
from tests.orchestrator.engines import an_engine

CHAT = "/v1/chat/completions"
KEY = (("x-api-key", "sk-a"),)
UPSTREAM_KEY = "sk-upstream-0123456789abcdef"

MODELS: dict[str, Any] = {
    "said": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"},
    "any/*": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"},
}


@dataclass
class Upstream:
    """What it answers, and what it was asked."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers and body of each request."""
    silent: bool = False
    """Takes requests and never answers."""

    def says(self, *chunks: Any, done: bool = True) -> None:
        """An event stream of these chunks. They are JSON as Python writes it: escapes for all that is not ASCII."""
        frames = [b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) for chunk in chunks]
        self.status, self.headers = 200, {"Content-Type": "text/event-stream"}
        self.body = b"".join(frame + b"\n\n" for frame in [*frames, *([b"data: [DONE]"] if done else [])])

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path_qs, dict(request.headers), await request.read()))
        if self.silent:
            await asyncio.Event().wait()
        return web.Response(status=self.status, headers=self.headers, body=self.body)


@dataclass
class World:
    server: Server
    engine: Engine
    store: MemoryStore
    upstream: Upstream
    channel: aio.Channel

    def __post_init__(self) -> None:
        # The generated stubs have no types.
        self.streams: Any = StreamingServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.tasks: Any = OrchestratorServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.events: Any = EventServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def chat(self, prompt: str = "hi", model: str = "said", **more: Any) -> Any:
        headers = bearer(**{"Content-Type": "application/json"})
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **more}
        return await self.server.ask("POST", CHAT, headers=headers, data=json.dumps(body).encode())

    async def open_run(self) -> str:
        """A run that only publishers write to."""
        run = Run(id=new_run_id(self.store.now_ms(), os.urandom), tenant="acme", model="said", answers=("agent",), created_ms=1)
        await MemoryLog(self.store).open(run, RunRequest("said", "said", {}, {}), [])
        return run.id

    async def updates(self, run_id: str) -> list[TaskUpdate]:
        """The run's events by gRPC."""
        call = self.streams.StreamTaskExecution(StreamRequest(workflow_id=run_id), metadata=KEY, timeout=10)
        return [update async for update in call]


@asynccontextmanager
async def listening_on_loopback(answer: Callable[[web.Request], Any], **options: Any) -> AsyncIterator[str]:
    """An HTTP server for any path and method; its address."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, **options)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def a_world(*, models: Any = None, upstream_options: Any = None, grpc: Any = None, **sections: Any) -> AsyncIterator[World]:
    """`sections` of the settings besides those of tests/gateway/http/native.py."""
    upstream, store = Upstream(), MemoryStore(SystemClock().time)
    config = settings(grpc={"port": 0, **(grpc or {})}, **sections)
    async with (
        listening_on_loopback(upstream.answer) as url,
        upstream_session() as session,
        an_engine(store=store, upstream=_asked_at(url, session, upstream_options or {}), models=models or MODELS) as engine,
        serving(config, engine) as server,
        _grpc(config, engine) as channel,
    ):
        yield World(server, engine, store, upstream, channel)


def _asked_at(url: str, session: aiohttp.ClientSession, options: dict[str, Any]) -> OpenAIUpstream:
    config = {"kind": "openai", "base_url": f"{url}/v1", "api_key": UPSTREAM_KEY, "retries": 0, **options}
    return OpenAIUpstream("demo", OpenAIConfig.model_validate(config), session)


@asynccontextmanager
async def _grpc(config: Settings, engine: Engine) -> AsyncIterator[aio.Channel]:
    drain, metrics = Drain(spread=lambda _: 0.0), GatewayMetrics()
    async with (
        key_ring(config, engine, drain) as keys,
        grpc_door(config, engine, keys, drain, metrics, new_session_id) as listening,
    ):
        assert listening is not None
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with aio.insecure_channel(f"127.0.0.1:{listening.port}", options=options) as channel:
            yield channel


async def settled() -> None:
    """Let what is about to end end."""
    for _ in range(10):
        await asyncio.sleep(0)
