"""Event-stream injection: whatever clients, publishers and upstreams put into their strings, every door gives back exactly the
events that were meant, to readers that were written from the standards and share nothing with what wrote them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from protos.events_pb2 import PublishEvent, PublishRequest
from tests.gateway.http.native import bearer
from tests.gateway.http.sockets import frame, next_frame, rude
from tests.security.world import CHAT, KEY, World, a_world
from tests.wire.eventstream import Read, read

NASTY = ["\n", "\r", "\r\n", "\n\n", "\u2028", "\u2029", "\x85", "\ufeff", "\x0b\x0c\x1c\x1d\x1e\x7f", '"', "\\", "\\u2028", "🙂"]
NASTY += ["data: x\n\n", "event: done\n", "id: 1-1\n", "retry: 1\n", ": c\n", "data: [DONE]\n\n", "[DONE]", '"}\n\n', "\\ud800"]
NASTY += ["\n".join(["data: {}"] * 5), "\r\rid\rdata\r\r", "X-Evil: 1\r\n", "event: STREAM_END\ndata: [DONE]\n\n", "</script>"]
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
strings = st.lists(st.sampled_from(NASTY) | st.text(characters, max_size=6), max_size=6).map("".join)
plain = strings | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none()
objects = st.dictionaries(strings, st.recursive(plain, lambda inner: st.lists(inner, max_size=3)), max_size=3)
own_types = st.from_regex(r"X_[A-Z0-9_]{1,20}", fullmatch=True) | st.sampled_from(["PROGRESS", "TOOL_INVOKED", "WARNING"])

MEGABYTE = "data: [DONE]\n\n" * 80_000

quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as world:
        yield world


# The doors, each read by somebody else's rules

Event = dict[str, Any]
JSON = bearer(**{"Content-Type": "application/json"})


async def by_sse(world: World, run: str) -> list[Event]:
    """Read twice, the second time by a reader that ends lines where Python's `splitlines` does."""
    answer = await world.server.ask("GET", f"/api/v1/stream/sse?workflow_id={run}&names=raw", headers=bearer())
    frames = read(answer.body)
    assert read(answer.body, splitlines=True) == frames
    assert [each.event for each in frames[-1:]] == ["STREAM_END"]
    assert frames[-1].data == "[DONE]"
    events = [json.loads(each.data) for each in frames[:-1]]
    assert [(each.event, each.id) for each in frames[:-1]] == [(event["type"], event["stream_id"]) for event in events]
    for event in events:
        for added in ("delta", "response", "metadata"):
            event.pop(added, None)
    return [*events, {"type": "STREAM_END", "stream_id": frames[-1].id}]


async def by_websocket(world: World, run: str) -> list[Event]:
    events = []
    async with rude(world.server, run) as (reader, writer):
        while (got := await next_frame(reader))[0] == 1:
            events.append(json.loads(got[1]))
        assert got[0] == 8
        writer.write(frame(8, got[1]))
    return events


async def by_rest(world: World, run: str) -> list[Event]:
    answer = await world.server.ask("GET", f"/api/v1/tasks/{run}/events?limit=1000", headers=bearer())
    assert answer.json["complete"]
    return list(answer.json["events"])


async def by_grpc(world: World, run: str) -> list[Event]:
    events = []
    for update in await world.updates(run):
        event = {"type": update.type, "agent_id": update.agent_id, "message": update.message, "stream_id": update.stream_id}
        event |= {"payload": json.loads(update.payload_json)} if update.payload_json else {}
        events.append({name: value for name, value in event.items() if value != ""})
    return events


def told(events: list[Event]) -> list[Event]:
    """What an event says, and where; an empty text is none to some doors."""
    kept = ("type", "agent_id", "message", "payload", "stream_id")
    return [{name: event[name] for name in kept if event.get(name) not in (None, "")} for event in events]


async def events_of(world: World, run: str) -> list[Event]:
    """The run's events, which are the same at all native doors."""
    to_the_end = await asyncio.gather(by_sse(world, run), by_websocket(world, run), by_grpc(world, run))
    sse, socket, grpc, rest = map(told, [*to_the_end, await by_rest(world, run)])
    assert socket == rest
    assert grpc == rest
    assert sse == [*rest[:-1], {"type": "STREAM_END", "stream_id": rest[-1]["stream_id"]}]
    return rest


def chat_frames(stream: bytes) -> list[Read]:
    """By our own reading of the standard, and as OpenAI's SDK decodes."""
    frames = read(stream)
    assert read(stream, splitlines=True) == frames
    theirs = [event.data for event in SSEDecoder().iter_bytes(iter([stream])) if event.data]
    assert theirs == [each.data for each in frames]
    return frames


async def chat_of(world: World, run: str) -> list[Any]:
    """The chunks of a run's chat stream, `[DONE]` as itself."""
    answer = await world.server.ask("GET", f"{CHAT}/{run}?stream=true", headers=bearer())
    return [each.data if each.data == "[DONE]" else json.loads(each.data) for each in chat_frames(answer.body)]


def content_of(chunks: list[Any]) -> str:
    deltas = [choice["delta"] for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


# Publishers


async def publish(world: World, run: str, *events: PublishEvent, writer: str = "worker", seq: int = 1) -> Any:
    request = PublishRequest(workflow_id=run, writer=writer, attempt=1, producer_seq=seq, events=events)
    (ack,) = [ack async for ack in world.events.PublishEvents(iter([request]), metadata=KEY, timeout=10)]
    return ack


def event(type: str, agent: str = "", message: str = "", payload: Any = None) -> PublishEvent:
    encoded = b"" if payload is None else json.dumps(payload, ensure_ascii=False, indent=1).encode()
    return PublishEvent(type=type, agent_id=agent, message=message, payload_json=encoded)


@quick
@given(said=st.lists(st.tuples(own_types, strings, strings, objects), min_size=1, max_size=4), answer=strings, result=strings)
async def test_what_publishers_say(world: World, said: list[tuple[str, str, str, Any]], answer: str, result: str) -> None:
    run = await world.open_run()
    last = [event("LLM_PARTIAL", "agent", answer), event("WORKFLOW_COMPLETED", payload={"result": result})]
    ack = await publish(world, run, *(event(*each) for each in said), *last)
    assert not ack.error.code, ack.error
    sent = [{"type": type, "agent_id": agent, "message": text, "payload": more} for type, agent, text, more in said]
    sent += [{"type": "LLM_PARTIAL", "agent_id": "agent", "message": answer}]
    sent += [{"type": "WORKFLOW_COMPLETED", "payload": {"result": result}}, {"type": "STREAM_END"}]
    seen = await events_of(world, run)
    for each in seen:
        del each["stream_id"]
    assert seen == told(sent)
    chunks = await chat_of(world, run)
    assert content_of(chunks) == (answer or result)
    assert (chunks[-1], chunks.count("[DONE]")) == ("[DONE]", 1)


@quick
@given(type=strings, message=strings)
async def test_no_type_is_anything_but_a_name(world: World, type: str, message: str) -> None:
    """Types name the events of a stream, where a line's end would begin another field. They are refused, not cleaned."""
    run = await world.open_run()
    for name in (f"X_{type}\n", f"X_A\r\ndata: {type}", f"X_{type}\u2028", "X_" + "A" * 63, "STREAM_END", "x_a", "X_Ä"):
        ack = await publish(world, run, event(name, message=message))
        assert ack.error.code == "invalid_request", name
    writers = [await publish(world, run, event("X_A"), writer=f"a{end}b") for end in ("\n", "\r", "\u2028", "\x85", " ", "é")]
    assert {ack.error.code for ack in writers} == {"invalid_request"}
    assert world.store.records[run].after(0, None, 10) == []


@pytest.mark.parametrize(
    "payload", [b'{"a":"\\ud800"}', b'{"a":"\xed\xa0\x80"}', b'{"\xff":1}', b'{"a":"\\udc00\\ud800"}', b"{} {}"]
)
async def test_halves_of_characters_are_refused(world: World, payload: bytes) -> None:
    """A lone surrogate cannot be written as UTF-8. Bytes that are no UTF-8 ended the publisher's call as an error of ours."""
    run = await world.open_run()
    ack = await publish(world, run, PublishEvent(type="X_A", payload_json=payload))
    assert (ack.error.code, ack.error.retryable) == ("invalid_request", False)


async def test_a_megabyte_on_one_line(world: World) -> None:
    run = await world.open_run()
    half = MEGABYTE[:500_000]
    ack = await publish(world, run, event("X_A", message=half), event("LLM_PARTIAL", "agent", half))
    assert not ack.error.code, ack.error
    await publish(world, run, event("WORKFLOW_COMPLETED", payload={"result": half}), seq=2)
    events = await events_of(world, run)
    assert [len(each.get("message", "")) for each in events] == [500_000, 500_000, 0, 0]
    assert content_of(await chat_of(world, run)) == half


# Upstreams


def chunk(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


@quick
@given(words=st.lists(strings.filter(bool), min_size=1, max_size=4), name=strings.filter(bool), arguments=strings, odd=strings)
async def test_what_upstreams_say(world: World, words: list[str], name: str, arguments: str, odd: str) -> None:
    call = {"index": 0, "id": name, "type": "function", "function": {"name": name, "arguments": arguments}}
    about = {"id": odd, "model": odd, "object": odd, "system_fingerprint": odd, odd: odd}
    said = [chunk({"role": odd, "content": word}, **about) for word in words] + [chunk({"reasoning_content": name})]
    world.upstream.says(*said, chunk({"tool_calls": [call]}), chunk({}, odd or "stop"))
    answer = await world.chat(stream=True)
    if answer.status == 200:
        frames = chat_frames(answer.body)
        deltas = [json.loads(each.data)["choices"][0]["delta"] for each in frames[:-1]]
        assert [delta["content"] for delta in deltas if delta.get("content") is not None] == words
        assert [delta["reasoning"] for delta in deltas if "reasoning" in delta] == [name]
        assert [delta["tool_calls"] for delta in deltas if "tool_calls" in delta] == [[call]]
        assert frames[-1].data == "[DONE]"
    events = await events_of(world, answer.headers["x-workflow-id"])
    partials = [each.get("message") for each in events if each["type"] == "LLM_PARTIAL"]
    assert [text for text in partials if text is not None] == words
    (output,) = [each for each in events if each["type"] == "LLM_OUTPUT"]
    assert output["message"] == "".join(words)
    assert output["payload"]["tool_calls"] == [{name: value for name, value in call.items() if name != "index"}]
    assert [each["type"] for each in events[-2:]] == ["WORKFLOW_COMPLETED", "STREAM_END"]


@quick
@given(message=strings.filter(str.strip), code=strings, early=st.booleans())
async def test_what_upstreams_say_when_they_fail(world: World, message: str, code: str, early: bool) -> None:
    """The message arrives whole where nothing in it has to be hidden; and it ends the stream, once, with nothing after it."""
    error = {"error": {"message": message, "code": code, "type": code, "param": code}}
    world.upstream.says(*([] if early else [chunk({"content": "a"})]), error, chunk({"content": "never"}, "stop"))
    answer = await world.chat(stream=True)
    if early:
        assert answer.status >= 400
        assert answer.json["error"]["message"] == message
    else:
        *_, last = chat_frames(answer.body)
        assert json.loads(last.data)["error"]["message"] == message
    events = await events_of(world, answer.headers["x-workflow-id"])
    assert [each["type"] for each in events[-2:]] == ["WORKFLOW_FAILED", "STREAM_END"]
    assert events[-2]["payload"]["error"]["message"] == message


@pytest.mark.parametrize("escape", [r'"\ud800"', r'"\udc00\ud800"', r'"a\ud83d"', '"\xff"'])
async def test_an_upstream_that_says_half_a_character(world: World, escape: str) -> None:
    """It is a broken line, as any other that is no JSON: left out once, and the answer's end if it happens again."""
    broken = b'{"choices":[{"index":0,"delta":{"content":' + escape.encode("latin-1") + b"}}]}"
    world.upstream.says(chunk({"content": "a"}), broken, chunk({"content": "b"}, "stop"))
    answer = await world.chat(stream=True)
    assert content_of([json.loads(each.data) for each in chat_frames(answer.body)[:-1]]) == "ab"
    world.upstream.says(chunk({"content": "a"}), broken, broken, chunk({"content": "b"}, "stop"))
    *_, last = chat_frames((await world.chat(stream=True)).body)
    assert json.loads(last.data)["error"]["code"] == "upstream_protocol_error"


# Clients


@quick
@given(query=strings.filter(str.strip), metadata=objects, reason=strings, model=strings)
async def test_what_clients_say(world: World, query: str, metadata: Any, reason: str, model: str) -> None:
    """A task's words reach its upstream as they are, and come back as they are; so does the reason why it is cancelled."""
    world.upstream.says(chunk({"content": "a"}, "stop"))
    world.upstream.asked.clear()
    body = {"query": query, "model": f"any/{model}a"[:256], "metadata": metadata, "session_id": "s-1"}
    answer = await world.server.ask("POST", "/api/v1/tasks", headers=JSON, data=json.dumps(body).encode())
    assert answer.status == 200, answer
    run = answer.json["task_id"]
    events = await events_of(world, run)
    assert events[-1]["type"] == "STREAM_END"
    ((_, _, asked),) = world.upstream.asked
    assert json.loads(asked)["messages"] == [{"role": "user", "content": query}]
    assert json.loads(asked)["model"] == body["model"].removeprefix("any/")
    task = (await world.server.ask("GET", f"/api/v1/tasks/{run}", headers=bearer())).json
    assert (task["metadata"] or {}) == metadata
    assert task["model_used"] == body["model"]
    chunks = await chat_of(world, run)
    assert {part["model"] for part in chunks[:-1]} == {body["model"]}
    await _cancelled_with(world, reason[:1000])


async def _cancelled_with(world: World, reason: str) -> None:
    world.upstream.silent = True
    run = (await world.server.ask("POST", "/api/v1/tasks", headers=JSON, json={"query": "hi", "model": "said"})).json["task_id"]
    asked = {"headers": JSON, "data": json.dumps({"reason": reason}).encode()}
    assert (await world.server.ask("POST", f"/api/v1/tasks/{run}/cancel", **asked)).status == 202
    events = {event["type"]: event for event in await events_of(world, run)}
    world.upstream.silent = False
    for type in ("WORKFLOW_CANCELLING", "WORKFLOW_CANCELLED"):
        assert (events[type]["payload"].get("reason") or "") == reason
    failed = await world.server.ask("GET", f"{CHAT}/{run}?stream=true", headers=bearer())
    assert failed.json["error"]["message"] == (f"The run was cancelled: {reason}" if reason else "The run was cancelled.")


@pytest.mark.parametrize("text", [r"\ud800", r"\ud800\ud800", r"\udfff", r"\u0000", "\xff", "\xed\xa0\x80"])
async def test_what_cannot_be_kept_is_refused(world: World, text: str) -> None:
    """NUL, which PostgreSQL cannot hold, and halves of characters: 400 before anything has begun."""
    raw = text.encode("latin-1")
    for path, body in {
        CHAT: b'{"model":"said","messages":[{"role":"user","content":"%b"}]}',
        "/api/v1/tasks": b'{"query":"%b"}',
        "/api/v1/approvals/decision": b'{"workflow_id":"%b","approval_id":"a","approved":true}',
    }.items():
        answer = await world.server.ask("POST", path, headers=JSON, data=body % raw)
        assert answer.status == 400, (path, answer)
    assert world.store.records == {}


# Depth

DEPTHS = [100, 129, 300, 900, 960, 990, 5000]


@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_publisher_that_nests(world: World, depth: int) -> None:
    """What is taken can be read: a payload as deep as our stack was once stored by a shallow caller and crashed its readers."""
    run = await world.open_run()
    nested = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    ack = await publish(world, run, PublishEvent(type="X_A", payload_json=nested))
    if depth > 120:
        assert ack.error.code == "invalid_request"
    else:
        assert not ack.error.code
        await publish(world, run, event("WORKFLOW_COMPLETED", payload={"result": ""}), seq=2)
        assert (await events_of(world, run))[0]["payload"] == json.loads(nested)


@pytest.mark.parametrize("depth", DEPTHS)
async def test_an_upstream_that_nests(world: World, depth: int) -> None:
    nested = b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"x":' + b"[" * depth + b"]" * depth + b"}]}}]}"
    logprobs = b'{"choices":[{"index":0,"delta":{"content":"b"},"logprobs":{"x":' + b"[" * depth + b"]" * depth + b"}}]}"
    world.upstream.says(chunk({"content": "a"}), nested, chunk({"content": "b"}), logprobs, chunk({}, "stop"))
    answer = await world.chat(stream=True)
    assert answer.status == 200
    events = await events_of(world, answer.headers["x-workflow-id"])
    assert events[-2]["type"] == "WORKFLOW_COMPLETED"
    chat_frames(answer.body)
