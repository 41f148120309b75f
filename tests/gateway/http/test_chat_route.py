"""Asking, resuming, cancelling and leaving, over HTTP, with the real engine and a scripted upstream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.settings import Settings

CHAT = "/v1/chat/completions"
FOREIGN = f"{CHAT}/task-{'0' * 32}"


def settings(**streams: Any) -> Settings:
    keys = [{"key": "sk-a", "name": "alice", "tenant": "acme"}, {"key": "sk-b", "name": "bob", "tenant": "other"}]
    return Settings.model_validate({"auth": {"mode": "keys", "keys": keys}, "streams": streams})


def bearer(key: str = "sk-a", **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **headers}


def ask(script: str, *, model: str = "headgate-demo", stream: bool = True, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": f"/script\n{script}"}], "stream": stream, **fields}


def raw_ask(body: dict[str, Any], *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Authorization: Bearer sk-a", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


def data(body: bytes) -> list[Any]:
    """What an independent reader makes of the stream: each event's data, decoded."""
    events = [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def text(body: bytes) -> str:
    chunks = [event for event in data(body) if event != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


# Asking


async def test_a_stream(server: Any) -> None:
    answer = await server.ask(
        "POST", CHAT, headers=bearer(**{"Accept-Encoding": "gzip, deflate, br"}), json=ask('say "Hello world"')
    )
    assert answer.status == 200
    run_id = answer.headers["x-workflow-id"]
    assert {
        name: answer.headers.get(name) for name in ("content-type", "cache-control", "x-accel-buffering", "content-encoding")
    } == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        "content-encoding": None,
    }
    assert answer.headers["x-request-id"].startswith("req-")
    *chunks, done = data(answer.body)
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in chunks} == {run_id.replace("task-", "chatcmpl-")}
    assert text(answer.body) == "Hello world"
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"


async def test_a_whole_answer(server: Any) -> None:
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask('say "Hello"', stream=False))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["object"] == "chat.completion"
    assert answer.json["choices"][0]["message"]["content"] == "Hello"
    assert answer.json["id"] == answer.headers["x-workflow-id"].replace("task-", "chatcmpl-")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_that_fails_at_once_is_a_real_status(server: Any, stream: bool) -> None:
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask('status 429 retry-after 7 "slow down"', stream=stream))
    assert (answer.status, answer.headers["content-type"]) == (429, "application/json")
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-workflow-id"].startswith("task-")
    assert answer.json["error"]["message"]


async def test_a_failure_after_the_first_token_is_in_band(server: Any) -> None:
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask('say "Hel"; cut'))
    assert answer.status == 200
    events = data(answer.body)
    assert text(answer.body) == "Hel"
    assert set(events[-1]) == {"error"}
    assert "[DONE]" not in events
    assert all(choice["finish_reason"] is None for event in events[:-1] for choice in event["choices"])


async def test_headers_come_after_the_hold_even_if_the_upstream_says_nothing(serve: Any, engine: Any) -> None:
    server = await serve(settings(hold_s=0.05, keepalive_s=0.05), engine)
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask("wait 30s")))
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        assert b"\r\nX-Workflow-ID: task-" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(17) == b"c\r\n: keepalive\n\r\n"


async def test_the_connection_goes_on_after_a_stream(server: Any) -> None:
    """Two streams and a whole answer, pipelined on one connection: each body ends where it should."""
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask('say "one"')) + raw_ask(ask('say "two"')) + raw_ask(ask('say "three"', stream=False)))
        bodies = [await server.read(reader) for _ in range(3)]
    assert [text(answer.body) for answer in bodies[:2]] == ["one", "two"]
    assert bodies[2].json["choices"][0]["message"]["content"] == "three"


async def test_http_1_0_gets_a_stream_that_ends_with_its_connection(server: Any) -> None:
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask('say "old"')).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert text(body) == "old"
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_durable_run_without_temporal_is_a_503_that_may_be_retried(server: Any) -> None:
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask('say "x"', model="durable"))
    assert answer.status == 503
    assert answer.json["error"]["code"] == "backend_unavailable"
    assert "x-should-retry" not in answer.headers


# Resuming


@pytest.fixture
async def finished(server: Any) -> tuple[str, bytes]:
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask('tokens "a" "b" "c" "d"'))
    return answer.headers["x-workflow-id"], answer.body


def frames(body: bytes) -> list[bytes]:
    return [frame + b"\n\n" for frame in body.split(b"\n\n")[:-1]]


async def test_a_stream_can_be_resumed_after_every_chunk(server: Any, finished: tuple[str, bytes]) -> None:
    """What follows has the bytes that the first connection received."""
    run_id, body = finished
    sent = frames(body)
    for name in (run_id, run_id.replace("task-", "chatcmpl-")):
        for count in range(len(sent)):
            answer = await server.ask("GET", f"{CHAT}/{name}?stream=true&starting_after={count}", headers=bearer())
            assert (answer.status, answer.headers["x-workflow-id"]) == (200, run_id)
            assert frames(answer.body) == sent[count:]


async def test_accept_asks_for_the_stream_too(server: Any, finished: tuple[str, bytes]) -> None:
    run_id, body = finished
    answer = await server.ask("GET", f"{CHAT}/{run_id}", headers=bearer(Accept="text/event-stream"))
    assert answer.body == body


async def test_last_event_id_wins_over_starting_after(server: Any) -> None:
    options = {"headgate_options": {"stream_ids": True}}
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask('tokens "a" "b" "c"', **options))
    sent = frames(answer.body)
    ids = [line.removeprefix(b"id: ").decode() for line in answer.body.split(b"\n") if line.startswith(b"id: ")]
    place = next(number for number, frame in enumerate(sent) if ids[0].encode() in frame)
    path = f"{CHAT}/{answer.headers['x-workflow-id']}?stream=true&starting_after=1000"
    again = await server.ask("GET", path, headers=bearer(**{"Last-Event-ID": ids[0]}))
    assert frames(again.body) == sent[place + 1 :]


async def test_the_whole_answer_afterwards(server: Any, finished: tuple[str, bytes]) -> None:
    answer = await server.ask("GET", f"{CHAT}/{finished[0]}", headers=bearer())
    assert answer.json["choices"][0]["message"]["content"] == "abcd"


async def test_a_run_that_goes_on_has_no_whole_answer_yet(server: Any, witness: Any) -> None:
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask('say "a"; wait 30s')))
        run_id = (await witness.nth(0)).key
        answer = await server.ask("GET", f"{CHAT}/{run_id}", headers=bearer())
        assert (answer.status, answer.json["error"]["code"]) == (409, "run_in_progress")
        assert answer.headers["retry-after"] == "1"


async def test_joining_a_live_stream_and_leaving_it_again_does_no_harm(server: Any, witness: Any) -> None:
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask('say "a"; wait 300ms; say "b"')))
        run_id = (await witness.nth(0)).key
        async with server.connection() as (other_reader, other_writer):
            other_writer.write(
                f"GET {CHAT}/{run_id}?stream=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\n\r\n".encode()
            )
            await other_reader.readuntil(b'"content":"a"')
        answer = await server.read(reader)
    assert text(answer.body) == "ab"
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_replayed_failure_has_the_bytes_of_the_first_stream(server: Any) -> None:
    first = await server.ask("POST", CHAT, headers=bearer(), json=ask('say "Hel"; cut'))
    again = await server.ask("GET", f"{CHAT}/{first.headers['x-workflow-id']}?stream=true", headers=bearer())
    assert (again.status, again.body) == (200, first.body)
    whole = await server.ask("GET", f"{CHAT}/{first.headers['x-workflow-id']}", headers=bearer())
    assert whole.status == 502


@pytest.mark.parametrize(
    "name",
    [
        f"task-{'0' * 32}",
        f"chatcmpl-{'0' * 32}",
        "task-",
        "x",
        "task-" + "0" * 31,
        "task-" + "A" * 32,
        "chatcmpl-task-" + "0" * 32,
        "%00",
        "%ff",
        "hg:%7Bx%7D:events",
        "..%2F..%2Fetc",
        "task-" + "0" * 5000,
        "task-" + "%D9%A0" * 32,
    ],
)
async def test_ids_that_are_unknown_or_impossible_get_the_404_of_foreign_ones(
    server: Any, finished: tuple[str, bytes], name: str
) -> None:
    foreign = await server.ask("GET", f"{CHAT}/{finished[0]}", headers=bearer("sk-b"))
    assert (foreign.status, foreign.json["error"]["code"]) == (404, "run_not_found")
    assert "x-workflow-id" not in foreign.headers
    for method, path in [("GET", name), ("GET", f"{name}?stream=true"), ("POST", f"{name}/cancel")]:
        answer = await server.ask(method, f"{CHAT}/{path}", headers=bearer())
        assert (answer.status, answer.body) == (404, foreign.body)
        assert set(answer.headers) == set(foreign.headers)


async def test_a_foreign_run_cannot_be_cancelled(server: Any, witness: Any) -> None:
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask('say "a"; wait 200ms; say "b"')))
        run_id = (await witness.nth(0)).key
        assert (await server.ask("POST", f"{CHAT}/{run_id}/cancel", headers=bearer("sk-b"))).status == 404
        assert text((await server.read(reader)).body) == "ab"


@pytest.mark.parametrize("value", ["-1", "1.5", "1e3", "abc", "0x1", "%D9%A1", "1" * 1000, "+1", "%201", str(2**64)])
async def test_bad_counts_are_a_400(server: Any, finished: tuple[str, bytes], value: str) -> None:
    answer = await server.ask("GET", f"{CHAT}/{finished[0]}?stream=true&starting_after={value}", headers=bearer())
    assert (answer.status, answer.json["error"]["param"]) == (400, "starting_after")


@pytest.mark.parametrize("value", ["-1", "1.5", "abc", "1-", "-", "1-2-3", "\u0661", "9" * 17, "9" * 60_000, "1 2", "1-2 "])
async def test_bad_event_ids_are_a_400(server: Any, finished: tuple[str, bytes], value: str) -> None:
    answer = await server.ask("GET", f"{CHAT}/{finished[0]}?stream=true", headers=bearer(**{"Last-Event-ID": value}))
    assert answer.status in (400, 410)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("query", ["starting_after=1&starting_after=2", "stream=maybe", "stream="])
async def test_queries_that_mean_nothing_are_a_400(server: Any, finished: tuple[str, bytes], query: str) -> None:
    answer = await server.ask("GET", f"{CHAT}/{finished[0]}?{query}", headers=bearer(Accept="text/event-stream"))
    assert answer.status == 400


async def test_a_repeated_position_is_a_400(server: Any, finished: tuple[str, bytes]) -> None:
    headers = [*bearer().items(), ("Last-Event-ID", "1"), ("Last-Event-ID", "2")]
    assert (await server.ask("GET", f"{CHAT}/{finished[0]}?stream=true", headers=headers)).status == 400


@pytest.mark.parametrize("value", ["1-2", "1000", "9999999999999-3"])
async def test_a_position_that_names_no_event_is_gone(server: Any, finished: tuple[str, bytes], value: str) -> None:
    """Never the continuation of something else, and a real status because nothing of the answer was given."""
    answer = await server.ask("GET", f"{CHAT}/{finished[0]}?stream=true", headers=bearer(**{"Last-Event-ID": value}))
    assert (answer.status, answer.json["error"]["code"]) == (410, "position_gone")


async def test_a_count_beyond_the_stream_is_refused(server: Any, finished: tuple[str, bytes]) -> None:
    answer = await server.ask("GET", f"{CHAT}/{finished[0]}?stream=true&starting_after=99", headers=bearer())
    assert (answer.status, answer.json["error"]["param"]) == (400, "starting_after")


# Cancelling


async def test_cancel_ends_the_stream_and_the_upstream_call(server: Any, witness: Any) -> None:
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask('say "a"; wait 30s')))
        call = await witness.nth(0)
        await reader.readuntil(b'"content":"a"')
        answer = await server.ask("POST", f"{CHAT}/{call.key.replace('task-', 'chatcmpl-')}/cancel", headers=bearer())
        assert answer.status == 200
        await call.closed.wait()
        rest = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert call.ending == "cancelled"
    assert b'"code":"run_cancelled"' in rest
    assert b"[DONE]" not in rest


async def test_cancelling_twice_is_once_and_after_the_end_a_conflict(server: Any, witness: Any) -> None:
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask("wait 30s")))
        call = await witness.nth(0)
        for _ in range(2):
            assert (await server.ask("POST", f"{CHAT}/{call.key}/cancel", headers=bearer())).status == 200
        await call.closed.wait()
    done = await server.ask("POST", CHAT, headers=bearer(), json=ask('say "x"', stream=False))
    assert (await server.ask("POST", f"{CHAT}/{done.headers['x-workflow-id']}/cancel", headers=bearer())).status == 409


# Leaving


async def state(server: Any, run_id: str) -> str:
    answer = await server.ask("GET", f"{CHAT}/{run_id}?stream=true", headers=bearer())
    if answer.status != 200:
        return str(answer.json["error"]["code"])
    last = data(answer.body)[-1]
    return "completed" if last == "[DONE]" else str(last["error"]["code"])


@pytest.mark.parametrize("script", ["wait 30s", 'say "a"; wait 30s', "repeat forever; say 1 word; wait 1ms; end"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_requester_who_leaves_cancels_the_run(server: Any, witness: Any, script: str, stream: bool) -> None:
    """Before the first token, between two, and in the middle of them; streamed or not."""
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask(script, stream=stream)))
        call = await witness.nth(0)
    async with asyncio.timeout(2):
        await call.closed.wait()
    assert call.ending == "cancelled"
    assert await state(server, call.key) == "run_cancelled"


async def test_a_requester_may_leave_a_run_that_goes_on(server: Any, witness: Any) -> None:
    body = ask('say "a"; wait 100ms; say "b"', headgate_options={"on_disconnect": "continue"})
    async with server.connection() as (_, writer):
        writer.write(raw_ask(body))
        call = await witness.nth(0)
    await call.closed.wait()
    assert call.ending == "completed"
    assert await state(server, call.key) == "completed"


async def test_the_model_says_what_leaving_does_and_the_request_knows_better(server: Any, witness: Any) -> None:
    script = 'say "a"; wait 100ms; say "b"'
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask(script, model="patient")))
        first = await witness.nth(0)
    await first.closed.wait()
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask("wait 30s", model="patient", headgate_options={"on_disconnect": "cancel"})))
        second = await witness.nth(1)
    await second.closed.wait()
    assert (first.ending, second.ending) == ("completed", "cancelled")


async def test_a_grace_period_that_nobody_uses_ends_in_cancel(server: Any, witness: Any) -> None:
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask("wait 30s", headgate_options={"on_disconnect": 0.05})))
        call = await witness.nth(0)
    async with asyncio.timeout(2):
        await call.closed.wait()
    assert call.ending == "cancelled"


async def test_coming_back_within_the_grace_period_saves_the_run(server: Any, witness: Any) -> None:
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask('say "a"; wait 400ms; say "b"', headgate_options={"on_disconnect": 0.2})))
        call = await witness.nth(0)
    answer = await server.ask("GET", f"{CHAT}/{call.key}?stream=true", headers=bearer())
    assert text(answer.body) == "ab"
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_grace_period_is_met_by_a_reader_who_is_there_already(server: Any, witness: Any) -> None:
    """A client may be back before the loss of its first connection is noticed."""
    async with server.connection() as (reader, second):
        async with server.connection() as (first_reader, first):
            first.write(raw_ask(ask('say "a"; wait 300ms; say "b"', headgate_options={"on_disconnect": 0.05})))
            run_id = (await witness.nth(0)).key
            await first_reader.readuntil(b'"content":"a"')
            second.write(f"GET {CHAT}/{run_id}?stream=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" in body


async def test_a_submission_that_fails_is_nobodys_departure(server: Any) -> None:
    assert (await server.ask("POST", CHAT, headers=bearer(), json=ask("", model="durable"))).status == 503
    assert b"headgate_client_departures_total 0.0" in server.metrics.text()


# Slow and frozen clients


async def test_a_client_that_never_reads_is_cut_off_and_its_run_cancelled(serve: Any, engine: Any, witness: Any) -> None:
    server = await serve(settings(stall_timeout_s=0.3), engine)
    async with server.connection() as (_, writer):
        writer.transport.pause_reading()
        writer.write(raw_ask(ask("rate max\nrepeat 100000\nsay 50 words\nend")))
        call = await witness.nth(0)
        await call.closed.wait()
    assert call.ending == "cancelled"
    assert b"headgate_stalled_clients_total 1.0" in server.metrics.text()


# Drain


async def test_drain_lets_open_streams_end(server: Any, witness: Any) -> None:
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask('say "a"; wait 200ms; say "b"')))
        await witness.nth(0)
        draining = asyncio.create_task(server.drain.finish(5.0))
        answer = await server.read(reader)
        await draining
    assert text(answer.body) == "ab"
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_drain_ends_streams_that_take_too_long_so_that_they_can_be_resumed(server: Any, witness: Any) -> None:
    async with server.connection() as (reader, writer):
        writer.write(raw_ask(ask('say "a"; wait 30s')))
        call = await witness.nth(0)
        await reader.readuntil(b'"content":"a"')
        await server.drain.finish(0.0, spread_s=0.1)
        rest = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert b'"code":"draining"' in rest
    assert b"[DONE]" not in rest
    assert call.ending is None  # the server left, not the client


async def test_what_was_counted(server: Any, finished: tuple[str, bytes]) -> None:
    text = server.metrics.text()
    assert b'headgate_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1.0' in text
    assert b"headgate_active_streams 0.0" in text
    assert b"headgate_chunk_age_seconds_count 0.0" not in text


async def test_the_context_is_kept_with_the_run_and_not_shown_to_the_model(server: Any, witness: Any) -> None:
    asked = ask("say 1 words", stream=False, headgate_options={"context": {"customer": "acme"}})
    answer = await server.ask("POST", CHAT, headers=bearer(), json=asked)
    task = await server.ask("GET", f"/api/v1/tasks/{answer.headers['x-workflow-id']}", headers=bearer())
    assert task.json["metadata"] == {"context": {"customer": "acme"}}
    assert [call.body for call in witness.calls] == [{"messages": asked["messages"]}]
