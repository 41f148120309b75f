"""A key that is revoked, anywhere, while answers are being given to it: at every door they end in time, and say why."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import openai
import pytest
from aiohttp import WSMsgType
from grpc import StatusCode, aio

from gateway.app import KEYS, new_session_id
from gateway.observe.metrics import GatewayMetrics
from gateway.rpc import grpc_door
from gateway.settings import Settings
from orchestrator.clock import SystemClock
from orchestrator.embedded import Addresses
from orchestrator.engine import DEPARTED, Engine, Submission
from orchestrator.events import EventType
from orchestrator.issuing import Issuing
from orchestrator.keys import ApiKey, mint
from orchestrator.runs import Principal, RunState
from orchestrator.store.postgres import Postgres
from protos.events_pb2 import PublishRequest
from protos.events_pb2_grpc import EventServiceStub
from protos.streaming_pb2 import StreamRequest
from protos.streaming_pb2_grpc import StreamingServiceStub
from tests.orchestrator.engines import an_engine
from tests.orchestrator.engines import until as until_event

pytestmark = pytest.mark.local

ACME = Principal("acme", "somebody")
TALK = '/script\nsay "one"\nhang'
ENDED = "The key or token that this answer was asked for with is no longer valid: it was revoked, or it has expired."
WITHIN_S = 5.0

MODELS = {
    "demo": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"},
    "patient": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none", "on_disconnect": "continue"},
}


@pytest.fixture
async def postgres(backends: Addresses) -> AsyncIterator[Postgres]:
    name = f"revocation_{time.time_ns()}"
    admin = await asyncpg.connect(backends.postgres)
    await admin.execute(f"CREATE DATABASE {name}")
    async with Postgres(urlsplit(backends.postgres)._replace(path=f"/{name}").geturl(), bound_s=20) as postgres:
        yield postgres
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


class World:
    def __init__(self, engine: Engine, issuing: Issuing, server: Any, channel: aio.Channel, text: str, key: ApiKey) -> None:
        self.engine = engine
        self.issuing = issuing
        self.server = server
        self.channel = channel
        self.text = text
        self.key = key
        self.headers = {"Authorization": f"Bearer {text}"}
        self.metadata = [("authorization", f"Bearer {text}")]
        self.open = asyncio.Barrier(1)
        self.asked: dict[str, list[str]] = {model: [] for model in MODELS}
        """The runs that were asked for at the OpenAI door."""

    async def run(self) -> str:
        """A run that has said something and goes on."""
        return (await self.engine.submit(ACME, Submission("demo", {"messages": [{"role": "user", "content": TALK}]}))).id


@pytest.fixture
async def world(serve: Any, postgres: Postgres) -> AsyncIterator[World]:
    settings = Settings.model_validate(
        {"auth": {"mode": "keys"}, "grpc": {"port": 0}, "upstreams": {"demo": {"kind": "scripted"}}, "models": MODELS}
    )
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(an_engine(archive=postgres, models=MODELS))  # type: ignore[arg-type]
        issuing = Issuing(postgres.keys, SystemClock())
        text, fingerprint = mint(lambda count: b"r" * count)
        key = await issuing.create("acme", fingerprint, "reader")
        server = await serve(settings, engine)
        door = grpc_door(settings, engine, server.app[KEYS], server.drain, GatewayMetrics(), new_session_id)
        listening = await stack.enter_async_context(door)
        assert listening is not None
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{listening.port}", options=options))
        yield World(engine, issuing, server, channel, text, key)


async def until(answer: aiohttp.ClientResponse, wanted: bytes) -> bytes:
    """What has been sent when this has."""
    received = b""
    while wanted not in received:
        received += (more := await answer.content.readany())
        assert more, received
    return received


async def chat(world: World, model: str = "demo") -> None:
    """By OpenAI's own client: what was said, then an exception."""
    async with openai.AsyncOpenAI(base_url=f"{world.server.url}/v1", api_key=world.text, max_retries=0) as client:
        opened = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": TALK}], stream=True)
        said = ""

        async def read() -> None:
            nonlocal said
            async for chunk in opened:
                said += chunk.choices[0].delta.content or ""
                if said == "one":
                    world.asked[model].append(chunk.id.replace("chatcmpl-", "task-"))
                    await world.open.wait()

        with pytest.raises(openai.APIError) as raised:
            await read()
        assert (said, raised.value.code, raised.value.message) == ("one", "access_ended", ENDED)


async def patient_chat(world: World) -> None:
    await chat(world, "patient")


async def raw_chat(world: World) -> None:
    """The body ends properly, after an error and without `[DONE]`."""
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": TALK}]}
    async with world.server.http.post(f"{world.server.url}/v1/chat/completions", headers=world.headers, json=body) as answer:
        received = await until(answer, b'"content":"one"')
        world.asked["demo"].append(answer.headers["X-Workflow-ID"])
        await world.open.wait()
        received += await answer.content.read()
    assert b"[DONE]" not in received
    last = json.loads(received.strip().rsplit(b"data: ", 1)[1])
    assert last == {"error": {"message": ENDED, "type": "invalid_request_error", "param": None, "code": "access_ended"}}


async def events(world: World) -> None:
    url = f"{world.server.url}/api/v1/stream/sse?workflow_id={await world.run()}"
    async with world.server.http.get(url, headers=world.headers) as answer:
        received = await until(answer, b'"one"')
        await world.open.wait()
        received += await answer.content.read()
    assert b"event: done" not in received
    last = received.strip().rsplit(b"\n\n", 1)[1].decode()
    assert last.startswith("event: ERROR_OCCURRED\n"), last
    assert json.loads(last.partition("data: ")[2])["payload"]["code"] == "access_ended"


async def ticketed_events(world: World) -> None:
    """A ticket was all that the browser had, and it ends with the key that it was got with."""
    async with world.server.http.post(f"{world.server.url}/api/v1/stream/tickets", headers=world.headers) as answer:
        ticket = (await answer.json())["ticket"]
    url = f"{world.server.url}/api/v1/stream/sse?workflow_id={await world.run()}&ticket={ticket}"
    async with world.server.http.get(url) as stream:
        await stream.content.readany()
        await world.open.wait()
        assert b"access_ended" in await stream.content.read()
    async with world.server.http.get(url) as again:
        assert (again.status, (await again.json())["error"]["code"]) == (401, "invalid_api_key")


async def socket(world: World) -> None:
    url = f"{world.server.url}/api/v1/stream/ws?workflow_id={await world.run()}"
    async with world.server.http.ws_connect(url, headers=world.headers) as client:
        await client.receive()
        await world.open.wait()
        while (message := await client.receive()).type is WSMsgType.TEXT:
            pass
        assert client.close_code == 1008, message


async def grpc_stream(world: World) -> None:
    stub: Any = StreamingServiceStub(world.channel)  # type: ignore[no-untyped-call]
    updates = aiter(stub.StreamTaskExecution(StreamRequest(workflow_id=await world.run()), metadata=world.metadata))
    await anext(updates)
    await world.open.wait()
    with pytest.raises(aio.AioRpcError) as raised:
        async for _ in updates:
            pass
    assert (raised.value.code(), raised.value.details()) == (StatusCode.UNAUTHENTICATED, ENDED)
    assert dict(raised.value.trailing_metadata() or ())["x-error-code"] == "access_ended"


async def grpc_publisher(world: World) -> None:
    stub: Any = EventServiceStub(world.channel)  # type: ignore[no-untyped-call]
    call = stub.PublishEvents(metadata=world.metadata)
    await call.write(PublishRequest(workflow_id=await world.run(), writer="w", attempt=1, producer_seq=1))
    await call.read()
    await world.open.wait()
    with pytest.raises(aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is StatusCode.UNAUTHENTICATED


DOORS: list[Callable[[World], Coroutine[Any, Any, None]]] = [
    chat, patient_chat, raw_chat, events, ticketed_events, socket, grpc_stream, grpc_publisher
]  # fmt: skip


async def test_what_is_open_at_any_door_ends_within_five_seconds(world: World) -> None:
    """The key is revoked behind the server's back, as `headgate keys revoke` does. All doors at once, so it takes that long once.

    A run goes on, or is cancelled, as its client wanted it if that left: `on_disconnect`.
    """
    world.open = asyncio.Barrier(len(DOORS) + 1)
    async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
        tasks = [clients.create_task(door(world)) for door in DOORS]
        await world.open.wait()
        assert not [task for task in tasks if task.done()]
        revoked = time.monotonic()
        await world.issuing.revoke(None, world.key.id)
        await asyncio.wait(tasks)
        assert time.monotonic() - revoked < WITHIN_S
    refused = await world.server.ask("GET", "/v1/models", headers=world.headers)
    assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")

    for run_id in world.asked["demo"]:
        ending = (await until_event(world.engine, run_id, EventType.WORKFLOW_CANCELLED, ACME))[-1]
        assert DEPARTED in str(ending)
    (patient,) = world.asked["patient"]
    assert (await world.engine.get(ACME, patient)).state is RunState.RUNNING
    for run in (await world.engine.list(ACME, limit=100)).runs:
        await world.engine.cancel(ACME, run.id)
