"""Whoever wants to use us up: what a client, a publisher or an upstream can make us do or hold is bounded, and the others go on.

No test here looks at the clock. Work is compared with work of the same run, memory with a bound, and "the others go on" means
that they are answered while the attack is open.
"""

from __future__ import annotations

import asyncio
import gc
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from aiohttp import web

from gateway.transports.body import read_json_body
from gateway.wire.answer_choice import Choice
from orchestrator.agents.own_calls import OwnCalls
from orchestrator.errors import HeadgateError
from orchestrator.upstreams.toolcalls import ToolCalls
from orchestrator.upstreams.upstream import Delta
from protos.orchestrator_pb2 import ListTasksRequest, SubmitTaskRequest
from protos.streaming_pb2 import StreamRequest
from tests.gateway.http.native import bearer
from tests.gateway.http.sockets import closed_with, frame, next_frame, rude
from tests.security.test_injection import event, publish
from tests.security.world import CHAT, KEY, World, a_world, listening_on_loopback

CHUNK = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\nContent-Type: application/json\r\n".encode()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world(server={"max_body_bytes": "1MiB"}) as world:
        yield world


async def goes_on(world: World) -> None:
    """Somebody else is answered, at both doors."""
    world.upstream.says(CHUNK)
    assert (await world.chat(stream=True)).status == 200
    await world.tasks.ListTasks(ListTasksRequest(), metadata=KEY, timeout=10)


# Connections


async def test_a_hundred_bodies_that_never_come(world: World) -> None:
    async with AsyncExitStack() as stack:
        for number in range(100):
            _, writer = await stack.enter_async_context(world.server.connection())
            writer.write(HEAD + (b"Content-Length: 1000\r\n\r\n{" if number % 2 else b"Transfer-Encoding: chunked\r\n\r\n1\r\n{"))
        await goes_on(world)


async def test_a_body_that_trickles_is_given_up() -> None:
    """The bound is on the whole body: a byte now and then does not extend it."""
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def take(request: web.Request) -> web.Response:
        try:
            await read_json_body(request, max_bytes=1000, timeout_s=0.2)
        except HeadgateError as error:
            outcome.set_result(error.code)
        return web.Response()

    async with listening_on_loopback(take) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        async with asyncio.timeout(10):
            while not outcome.done():
                writer.write(b" ")
                await asyncio.wait([outcome], timeout=0.01)
        writer.close()
    assert outcome.result() == "request_timeout"


async def test_a_hundred_streams_on_one_key(world: World) -> None:
    run = await world.open_run()
    before = _open_streams(world)
    async with AsyncExitStack() as stack:
        target = f"GET /api/v1/stream/sse?workflow_id={run} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\n\r\n".encode()
        for _ in range(100):
            reader, writer = await stack.enter_async_context(world.server.connection())
            writer.write(target)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert _open_streams(world) == before + 100
        await goes_on(world)
        await publish(world, run, event("WORKFLOW_COMPLETED", payload={"result": ""}))


def _open_streams(world: World) -> float:
    text = world.server.metrics.text().decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("headgate_active_streams "))


# Bodies

BOMB = zlib.compress(b" " * 50_000_000)

BODIES = {
    "depth": b'{"model":"said","messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "depth in an object": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "nothing but brackets": b"[" * 1_000_000,
    "a huge integer": b'{"model":"said","messages":[],"seed":' + b"9" * 1_000_000 + b"}",
    "a huge exponent": b'{"model":"said","messages":[],"temperature":1e' + b"9" * 1_000 + b"}",
    "a huge fraction": b'{"model":"said","messages":[],"temperature":0.' + b"9" * 1_000_000 + b"}",
    "many keys": b'{"model":"said","messages":[],' + b",".join(b'"%d":1' % n for n in range(80_000)) + b"}",
    "many messages that are none": b'{"model":"said","messages":[' + b",".join([b"{}"] * 300_000) + b"]}",
    "escapes": b'{"model":"' + rb"\u0061" * 100_000 + b'","messages":[]}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_bodies_that_are_meant_to_hurt(world: World, body: bytes) -> None:
    answer = await world.server.ask("POST", CHAT, headers=bearer(**{"Content-Type": "application/json"}), data=body)
    assert answer.status == 400, answer
    assert len(answer.body) < 1000
    assert world.store.records == {}
    await goes_on(world)


async def test_a_body_over_the_bound_is_refused_by_its_first_bytes(world: World) -> None:
    (answer,) = await world.server.raw(HEAD + b"Content-Length: 99999999999\r\n\r\n{", first=True)
    assert answer.status == 413
    async with world.server.connection() as (reader, writer):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 17)
        assert (await world.server.read(reader)).status == 413


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
async def test_what_is_compressed_is_not_inflated(world: World, coding: str) -> None:
    headers = bearer(**{"Content-Type": "application/json", "Content-Encoding": coding})
    answer = await world.server.ask("POST", CHAT, headers=headers, data=BOMB, skip_auto_headers=["Accept-Encoding"])
    assert answer.status == 415


async def test_an_upstream_that_compresses_a_bomb() -> None:
    """We ask for no compression. An upstream that sends it anyway gets as far as the bound of an answer."""
    async with a_world(upstream_options={"max_answer_bytes": 1 << 20}) as world:
        world.upstream.headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
        world.upstream.body = BOMB
        answer = await world.chat()
        assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_protocol_error")


# WebSockets


async def test_compression_is_never_agreed_to(world: World) -> None:
    """A frame of a few bytes could otherwise be a message of gigabytes."""
    run = await world.open_run()
    url = f"{world.server.url}/api/v1/stream/ws?workflow_id={run}"
    async with world.server.http.ws_connect(url, headers=bearer(), compress=15) as socket:
        assert socket._response.headers.get("Sec-WebSocket-Extensions") is None
    async with rude(world.server, run) as (reader, writer):
        writer.write(b"\xc1" + frame(1, zlib.compress(b" " * 60_000))[1:])
        assert await closed_with(reader) == 1002


async def test_a_flood_of_messages_does_not_reach_the_others(world: World) -> None:
    run = await world.open_run()
    async with rude(world.server, run) as (reader, writer):
        writer.write(frame(1, b'{"op":"nothing"}') * 5000 + frame(9, b"") * 5000)
        await goes_on(world)
        assert (await next_frame(reader))[0] in (1, 10)


# gRPC


async def test_a_flood_of_calls_does_not_reach_the_others(world: World) -> None:
    requests = [SubmitTaskRequest(query="hi", model="nothing") for _ in range(500)]
    calls = [world.tasks.SubmitTask(request, metadata=KEY, timeout=20) for request in requests]
    await goes_on(world)
    assert {await call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND}


async def test_calls_that_are_begun_and_given_up(world: World) -> None:
    """HTTP/2's cheapest attack: streams opened and reset as fast as the client can."""
    run = await world.open_run()
    for _ in range(20):
        calls = [world.streams.StreamTaskExecution(StreamRequest(workflow_id=run), metadata=KEY) for _ in range(50)]
        for call in calls:
            call.cancel()
        await asyncio.gather(*(call.code() for call in calls))
    await goes_on(world)
    async with asyncio.timeout(10):
        while _open_streams(world):
            await goes_on(world)


# Work that must not grow faster than what causes it


def work_of(make: Callable[[int], Callable[[], None]], size: int) -> float:
    """Processor time, the best of five, without what the garbage of other tests costs."""
    times = []
    gc.disable()
    try:
        for _ in range(5):
            todo = make(size)
            begun = time.process_time()
            todo()
            times.append(time.process_time() - begun)
    finally:
        gc.enable()
    return min(times)


def call(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}, **more}


def _calls_without_index(size: int) -> Callable[[], None]:
    reader, sent = ToolCalls(), [call(number) for number in range(size)]
    return lambda: [reader.normal(each) for each in sent] and None


def _calls_to_a_reader(size: int) -> Callable[[], None]:
    choice, sent = Choice(), [call(number, index=number) for number in range(size)]
    return lambda: [choice.tool_call_delta(each, 0) for each in sent] and None


def _calls_of_an_agent(size: int) -> Callable[[], None]:
    own, sent = OwnCalls({"f"}), [call(number, index=number) for number in range(size)]
    theirs = [{**each, "index": size + each["index"], "function": {"name": "g", "arguments": ""}} for each in sent]
    deltas = [Delta(tool_calls=[each]) for each in (*sent, *theirs)]
    return lambda: ([own.rest(each) for each in deltas] and own.calls()) and None


@pytest.mark.parametrize("make", [_calls_without_index, _calls_to_a_reader, _calls_of_an_agent])
def test_many_tool_calls_cost_each_the_same(make: Callable[[int], Callable[[], None]]) -> None:
    """Each was looked for among all others: eight thousand in one answer stopped the whole process for seconds, per reader."""
    assert work_of(make, 16_000) < 24 * work_of(make, 2_000)  # eight times as many; sixty-four times the work if it is quadratic


async def test_an_event_with_thousands_of_calls_is_read(world: World) -> None:
    run = await world.open_run()
    calls = [call(number, index=number) for number in range(5_000)]
    said = event("LLM_PARTIAL", "agent", "a", {"tool_calls": calls})
    assert not (await publish(world, run, said, event("WORKFLOW_COMPLETED", payload={"result": ""}))).error.code
    answer = await world.server.ask("GET", f"{CHAT}/{run}", headers=bearer())
    assert len(answer.json["choices"][0]["message"]["tool_calls"]) == 5_000


async def test_choices_are_bounded(world: World) -> None:
    """A reader is told of choice 2 only after 0 and 1, so an index is as expensive as it is high."""
    run = await world.open_run()
    said = event("LLM_PARTIAL", "agent", "a", {"choice": 1_000_000_000})
    await publish(world, run, said, event("WORKFLOW_COMPLETED", payload={"result": ""}))
    answer = await world.server.ask("GET", f"{CHAT}/{run}?stream=true", headers=bearer())
    assert len(answer.body) < 10_000
    assert b"malformed_event" in answer.body
    world.upstream.says({"choices": [{"index": 1_000_000_000, "delta": {"content": "a"}, "finish_reason": "stop"}]})
    assert len((await world.chat(stream=True)).body) < 10_000
