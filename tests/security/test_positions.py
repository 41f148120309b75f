"""Positions that are none, at every door: 400, or what is promised for them; never a 500, never somebody else's events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from protos.streaming_pb2 import StreamRequest
from tests.gateway.http.native import bearer
from tests.gateway.http.sockets import watching
from tests.security.test_injection import event, publish
from tests.security.world import CHAT, KEY, World, a_world
from tests.wire.eventstream import read

NONE = [
    "-1",
    "-",
    "1-",
    "-1-1",
    "1-1-1",
    "1.5",
    "1e3",
    "1_0",
    "+1",
    "0x1",
    "a",
    "1,1",
    "1;1",
    "null",
    "true",
    "[1]",
    '"1"',
    "NaN",
    "$",
    ">",
]
NONE += ["18446744073709551616", "9" * 17, "1-" + "9" * 17, "9" * 5000, "1 1"]
FOREIGN = ["\u0661", "\uff11", "²", "Ⅳ", "1\u2028", "1\x85", "\u20001", "1-\u0661"]
"""What Python takes for digits or white space, and we do not."""

SSE, WS = "/api/v1/stream/sse", "/api/v1/stream/ws"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as world:
        yield world


@pytest.fixture
async def run(world: World) -> str:
    """Three events, the last of them the end."""
    return await ended(world, "mine")


async def ended(world: World, text: str) -> str:
    run = await world.open_run()
    await publish(world, run, event("LLM_PARTIAL", "agent", text), event("WORKFLOW_COMPLETED", payload={"result": text}))
    return run


def refused(answer: Any, place: str) -> None:
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_position"), (place, answer)


@pytest.mark.parametrize("position", [*NONE, *FOREIGN])
async def test_in_a_query(world: World, run: str, position: str) -> None:
    text = quote(position)
    refused(await world.server.ask("GET", f"{SSE}?workflow_id={run}&last_event_id={text}", headers=bearer()), "sse")
    refused(await world.server.ask("GET", f"{WS}?workflow_id={run}&last_event_id={text}", headers=_UPGRADE), "ws")
    refused(await world.server.ask("GET", f"{CHAT}/{run}?stream=true&starting_after={text}", headers=bearer()), "chat")
    page = await world.server.ask("GET", f"/api/v1/tasks/{run}/events?after={text}", headers=bearer())
    assert (page.status, page.json["error"]["code"]) == (400, "invalid_value")


_UPGRADE = bearer(
    **{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 22 + "=="}
)


@pytest.mark.parametrize("position", [*NONE, *FOREIGN[:4]])
@pytest.mark.parametrize("path", [f"{SSE}?workflow_id=", f"{WS}?workflow_id=", f"{CHAT}/"])
async def test_in_a_header(world: World, run: str, path: str, position: str) -> None:
    (answer,) = await world.server.raw(request(path + run, position))
    refused(answer, path)


@pytest.mark.parametrize("path", [f"{SSE}?workflow_id=", f"{WS}?workflow_id=", f"{CHAT}/"])
async def test_in_a_header_more_than_once_or_too_long(world: World, run: str, path: str) -> None:
    (answer,) = await world.server.raw(request(path + run, "1", "1"))
    refused(answer, path)
    (answer,) = await world.server.raw(request(path + run, "1" * (1 << 20)), first=True)
    assert answer.status == 431


def request(target: str, *positions: str) -> bytes:
    upgrade = "".join(
        f"{name}: {value}\r\n" for name, value in _UPGRADE.items() if target.startswith(WS) or name == "Authorization"
    )
    close = "" if target.startswith(WS) else "Connection: close\r\n"
    fields = "".join(f"Last-Event-ID: {position}\r\n" for position in positions)
    return f"GET {target} HTTP/1.1\r\nHost: x\r\n{close}{upgrade}{fields}\r\n".encode()


@pytest.mark.parametrize("position", [*NONE, *FOREIGN, "1" * (1 << 20)])
async def test_by_grpc(world: World, run: str, position: str) -> None:
    call = world.streams.StreamTaskExecution(StreamRequest(workflow_id=run, last_stream_id=position), metadata=KEY, timeout=10)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_by_grpc_as_a_number(world: World, run: str) -> None:
    for number in (10**16, 2**63, 2**64 - 1):
        call = world.streams.StreamTaskExecution(StreamRequest(workflow_id=run, last_event_id=number), metadata=KEY, timeout=10)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, number


@pytest.mark.parametrize("position", [*NONE, *FOREIGN, -1, 1.5, 2**64, True, [], {}])
async def test_in_a_websocket_message(world: World, run: str, position: Any) -> None:
    open_one = await world.open_run()
    async with watching(world.server, open_one) as client:
        answer = await client.answered(op="subscribe", workflow_id=run, last_event_id=position)
        assert answer["ok"] is False
        assert answer["error"]["code"] in ("invalid_position", "invalid_message")


# Those that could be one


async def test_nothing_is_the_beginning(world: World, run: str) -> None:
    for answer in (
        await world.server.ask("GET", f"{SSE}?workflow_id={run}&last_event_id=", headers=bearer(**{"Last-Event-ID": ""})),
        await world.server.ask("GET", f"{SSE}?workflow_id={run}&last_event_id=0", headers=bearer()),
    ):
        assert [json.loads(frame.data)["seq"] for frame in read(answer.body)[:-1]] == [1, 2]


@pytest.mark.parametrize(
    "position", ["9", "9999999999999999", "9999999999999999-1", "0-1", "1-2", "9999999999999999-9999999999999999"]
)
async def test_an_event_that_never_was(world: World, run: str, position: str) -> None:
    """A gap where it can be told in-band, else a refusal; never the events that happen to follow."""
    answer = await world.server.ask("GET", f"{SSE}?workflow_id={run}&last_event_id={position}", headers=bearer())
    first = json.loads(read(answer.body)[0].data)
    assert (answer.status, first["type"]) == (200, "STREAM_GAP")
    chat = await world.server.ask("GET", f"{CHAT}/{run}?stream=true", headers=bearer(**{"Last-Event-ID": position}))
    assert chat.status in (400, 410)
    assert b"mine" not in chat.body


async def test_another_runs_position_gives_no_events_of_that_run(world: World, run: str) -> None:
    """Positions name events within their run and nothing else: they are no way into another's."""
    other = await ended(world, "theirs")
    entries = world.store.records[other].after(0, None, 10)
    for entry in entries:
        answer = await world.server.ask(
            "GET", f"{SSE}?workflow_id={run}&last_event_id={entry.ms + 1000}-{entry.seq}", headers=bearer()
        )
        assert json.loads(read(answer.body)[0].data)["type"] == "STREAM_GAP"
        assert b"theirs" not in answer.body
        foreign = await world.server.ask(
            "GET", f"{SSE}?workflow_id={other}&last_event_id={entry.stream_id}", headers=bearer("sk-b")
        )
        assert (foreign.status, foreign.json["error"]["code"]) == (404, "run_not_found")
