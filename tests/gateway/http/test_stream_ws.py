"""The native WebSocket: the same events as the event stream, operations while watching, many runs, and every way to close."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import pytest

from orchestrator.engine import PublishedEvent
from orchestrator.events import Entry
from orchestrator.runs import RunState
from orchestrator.streamlog.memory import MemoryStore
from tests.gateway.http.native import ALICE, MISSING, NOT_IDS, assert_error, bearer, begin, settings
from tests.gateway.http.sockets import closed_with, frame, frames_to_the_end, handshake, next_frame, rude, watching
from tests.gateway.http.streams import WS, Stage
from tests.orchestrator.engines import an_engine, until

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


@pytest.fixture
async def stage(server: Any, engine: Any) -> Stage:
    return await Stage.open(server, engine)


async def finished(server: Any, engine: Any) -> Stage:
    run_id = await begin(server, 'say "Hello native world"', model="patient")
    await until(engine, run_id, "STREAM_END", ALICE)
    return Stage(engine, run_id)


def envelopes(run_id: str, entries: list[Entry]) -> list[Any]:
    return [json.loads(entry.envelope(run_id)) for entry in entries]


# A stream


async def test_a_finished_run_from_the_beginning(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    async with watching(server, run.id) as client:
        assert client.socket._response.headers["X-Workflow-ID"] == run.id
        assert await client.rest() == envelopes(run.id, await run.entries())
        assert client.socket.close_code == 1000


async def test_events_arrive_as_they_happen_and_the_socket_closes_with_its_run(server: Any, stage: Stage) -> None:
    async with watching(server, stage.id) as client:
        assert [(await client.next())["type"] for _ in range(2)] == ["WORKFLOW_STARTED", "AGENT_STARTED"]
        for text in ("one", "", "two\u2028\x00"):
            await stage.say(text)
            assert (await client.next())["message"] == text
        await stage.complete()
        assert [event["type"] for event in await client.rest()] == ["WORKFLOW_COMPLETED", "STREAM_END"]
        assert client.socket.close_code == 1000


async def test_from_every_position_with_any_filter(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    entries = await run.entries()
    for entry in entries[:-1]:
        left = envelopes(run.id, entries[entry.seq :])
        async with watching(server, run.id, f"&last_event_id={entry.stream_id}") as client:
            assert await client.rest() == left
        async with watching(server, run.id, "&last_event_id=1", **{"Last-Event-ID": str(entry.seq)}) as client:
            assert await client.rest() == left
        async with watching(server, run.id, f"&last_event_id={entry.seq}&types=LLM_OUTPUT") as client:
            shown = {"LLM_OUTPUT", "WORKFLOW_COMPLETED", "STREAM_END"}
            assert await client.rest() == [each for each in left if each["type"] in shown]


async def test_whoever_had_everything_is_told_that_it_was_all(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    last = (await run.entries())[-1]
    async with watching(server, run.id, f"&last_event_id={last.stream_id}") as client:
        assert await client.rest() == [{"workflow_id": run.id, "type": "STREAM_END"}]
        assert client.socket.close_code == 1000


async def test_a_client_comes_and_goes_without_effect(server: Any, stage: Stage) -> None:
    async with watching(server, stage.id) as client:
        await client.next()
    async with rude(server, stage.id) as (_, writer):
        writer.transport.abort()
    await stage.say("still here")
    assert (await stage.engine.get(ALICE, stage.id)).state is RunState.RUNNING


# Refusals, before the upgrade


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("?workflow_id=", 400),
        (f"?workflow_id={MISSING}&last_event_id=x", 400),
        (f"?workflow_id={MISSING}&types=NOPE", 400),
        (f"?workflow_id={MISSING}", 404),
        *[(f"?workflow_id={given}", 404) for given in NOT_IDS],
    ],
)
async def test_is_told_in_plain_http(server: Any, query: str, status: int) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert_error(await server.ask("GET", WS + query, headers=bearer(**upgrade)), status)


async def test_unknown_and_foreign_runs_are_the_same_404(server: Any, stage: Stage) -> None:
    first, second = [
        (await server.raw(handshake(run_id, "Authorization: Bearer sk-b", "x-request-id: same"), first=True))[0]
        for run_id in (stage.id, MISSING)
    ]
    assert_error(first, 404, "run_not_found")
    assert first.body == second.body


async def test_without_a_key_or_a_handshake(server: Any, stage: Stage) -> None:
    (answer,) = await server.raw(handshake(stage.id), first=True)
    assert_error(answer, 401, "invalid_api_key")
    assert_error(await server.ask("GET", f"{WS}?workflow_id={stage.id}", headers=bearer()), 400, "websocket_expected")
    (answer,) = await server.raw(handshake(stage.id, "Authorization: Bearer sk-a").replace(b": 13", b": 12"), first=True)
    assert_error(answer, 400, "websocket_expected")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example.com", True),
        ("HTTPS://APP.example.com", True),
        ("http://localhost", True),
        ("https://evil.example.com", False),
        ("https://app.example.com.evil.example", False),
        ("http://app.example.com", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("\udcff", False),
    ],
)
async def test_pages_of_other_origins(serve: Any, engine: Any, origin: str, allowed: bool) -> None:
    """A browser lets any page open a socket to any server; it is the server who must look."""
    server = await serve(settings(server={"origins": ["https://app.example.com"]}), engine)
    stage = await Stage.open(server, engine)
    request = handshake(stage.id, "Authorization: Bearer sk-a", f"Origin: {origin}")
    (answer,) = await server.raw(request, first=True, head_first=allowed)
    if allowed:
        assert answer.status == 101
    else:
        assert_error(answer, 403, "origin_not_allowed")


async def test_two_origins_are_none(server: Any, stage: Stage) -> None:
    origins = ["Origin: http://localhost"] * 2
    (answer,) = await server.raw(handshake(stage.id, "Authorization: Bearer sk-a", *origins), first=True)
    assert_error(answer, 403, "origin_not_allowed")


# Operations


async def test_cancel(server: Any, stage: Stage) -> None:
    async with watching(server, stage.id) as client:
        assert await client.answered(op="cancel", reason="enough") == {"op": "cancel", "ok": True, "workflow_id": stage.id}
        ended = await client.until("WORKFLOW_CANCELLED")
        assert (ended["payload"]["reason"], ended["payload"]["by"]) == ("enough", "alice")
        assert [event["type"] for event in await client.rest()] == ["STREAM_END"]


async def test_pause_and_resume(server: Any, stage: Stage) -> None:
    async with watching(server, stage.id) as client:
        early = await client.answered(op="resume")
        assert (early["op"], early["ok"], set(early["error"])) == ("resume", False, {"code", "message"})
        assert await client.answered(op="pause", reason="lunch") == {"op": "pause", "ok": True, "workflow_id": stage.id}
        assert (await client.answered(op="resume"))["ok"]


async def test_approve(server: Any, stage: Stage) -> None:
    ask = {"approval_id": "a-1", "proposed_action": "rm -rf", "reason": "tidy"}
    await stage.publish(PublishedEvent("APPROVAL_REQUESTED", payload=ask))
    async with watching(server, stage.id) as client:
        await client.until("APPROVAL_REQUESTED")
        operation = {"op": "approve", "approval_id": "a-1", "approved": False, "feedback": "no!"}
        assert (await client.answered(**operation))["ok"]
        said = await client.answered(**operation)
        assert (said["ok"], set(said["error"])) == (False, {"code", "message"})


@pytest.mark.parametrize(
    ("message", "op", "code"),
    [
        ("", None, "invalid_message"),
        ("hello", None, "invalid_message"),
        ("[]", None, "invalid_message"),
        ("{}", None, "invalid_message"),
        ('{"op":null}', None, "invalid_message"),
        ('{"op":7}', None, "invalid_message"),
        ("[" * 60_000, None, "invalid_message"),
        ('{"op":"cancel","reason":"\\ud800"}', None, "invalid_message"),
        ('{"op":"dance"}', "dance", "unknown_operation"),
        ('{"op":"Cancel"}', "Cancel", "unknown_operation"),
        ('{"op":"cancel","reason":7}', "cancel", "invalid_message"),
        ('{"op":"cancel","reasn":"x"}', "cancel", "invalid_message"),
        ('{"op":"approve","approval_id":"a"}', "approve", "invalid_message"),
        ('{"op":"approve","approval_id":"a","approved":1}', "approve", "invalid_message"),
        ('{"op":"subscribe","last_event_id":-1}', "subscribe", "invalid_message"),
        (f'{{"op":"subscribe","last_event_id":{"9" * 60_000}}}', "subscribe", "invalid_message"),
        (f'{{"op":"subscribe","workflow_id":"{MISSING}"}}', "subscribe", "run_not_found"),
        (f'{{"op":"subscribe","workflow_id":"{MISSING}","types":["NOPE"]}}', "subscribe", "unknown_event_type"),
        (f'{{"op":"subscribe","workflow_id":"{MISSING}","last_event_id":"x"}}', "subscribe", "invalid_position"),
        (f'{{"op":"cancel","workflow_id":"{MISSING}"}}', "cancel", "run_not_found"),
        ('{"op":"cancel","workflow_id":"../../x"}', "cancel", "run_not_found"),
        (f'{{"op":"unsubscribe","workflow_id":"{MISSING}"}}', "unsubscribe", "not_subscribed"),
        ('{"op":"subscribe"}', "subscribe", "already_subscribed"),
    ],
)
async def test_what_cannot_be_done_is_answered_and_the_stream_goes_on(
    server: Any, stage: Stage, message: str, op: str | None, code: str
) -> None:
    async with watching(server, stage.id) as client:
        await client.socket.send_str(message)
        said = await client.answer()
        assert (said["op"], said["ok"], said["error"]["code"]) == (op, False, code)
        assert said["error"]["message"]
        await stage.complete()
        assert (await client.rest())[-1]["type"] == "STREAM_END"


async def test_binary_messages_are_answered_too(server: Any, stage: Stage) -> None:
    async with watching(server, stage.id) as client:
        await client.socket.send_bytes(b'{"op":"cancel"}')
        assert (await client.answer())["error"]["code"] == "invalid_message"
    assert (await stage.engine.get(ALICE, stage.id)).state is RunState.RUNNING


async def test_a_foreign_run_is_out_of_reach(server: Any, engine: Any, stage: Stage) -> None:
    answer = await server.ask(
        "POST", "/api/v1/tasks", headers=bearer("sk-b"), json={"query": "/script\nhang", "model": "patient"}
    )
    foreign = answer.json["task_id"]
    async with watching(server, stage.id) as client:
        for op in ("cancel", "pause", "resume", "subscribe"):
            missing = await client.answered(op=op, workflow_id=MISSING)
            hidden = await client.answered(op=op, workflow_id=foreign)
            assert hidden["error"]["code"] == "run_not_found"
            assert hidden["error"] == missing["error"]
    state = await server.ask("GET", f"/api/v1/tasks/{foreign}/control-state", headers=bearer("sk-b"))
    assert (state.json["is_cancelled"], state.json["is_paused"]) == (False, False)


# Many runs


async def test_one_socket_shows_many_runs(server: Any, engine: Any, stage: Stage) -> None:
    second = await Stage.open(server, engine)
    await second.say("before")
    async with watching(server, stage.id) as client:
        await client.until("AGENT_STARTED")
        operation = {"op": "subscribe", "workflow_id": second.id, "last_event_id": 2, "types": ["LLM_PARTIAL"]}
        await client.socket.send_str(json.dumps(operation))
        assert await client.next() == {"op": "subscribe", "ok": True, "workflow_id": second.id}
        assert (await client.next())["message"] == "before"
        await stage.say("one")
        assert (await client.next())["workflow_id"] == stage.id
        await second.say("two")
        assert (await client.next())["workflow_id"] == second.id
        await stage.complete()  # its own run; the other goes on
        assert (await client.until("STREAM_END"))["workflow_id"] == stage.id
        await second.say("three")
        assert (await client.next())["message"] == "three"
        await second.complete()
        assert [(each["workflow_id"], each["type"]) for each in await client.rest()] == [
            (second.id, "WORKFLOW_COMPLETED"),
            (second.id, "STREAM_END"),
        ]
        assert client.socket.close_code == 1000


async def test_a_run_that_ended_can_be_subscribed_to_and_leaves_the_socket_open(server: Any, engine: Any, stage: Stage) -> None:
    run = await finished(server, engine)
    entries = await run.entries()
    async with watching(server, stage.id) as client:
        await client.until("AGENT_STARTED")
        assert (await client.answered(op="subscribe", workflow_id=run.id))["ok"]
        assert [await client.next() for _ in entries] == envelopes(run.id, entries)
        last = entries[-1].stream_id
        assert (await client.answered(op="subscribe", workflow_id=run.id, last_event_id=last))["ok"]
        assert await client.next() == {"workflow_id": run.id, "type": "STREAM_END"}
        await stage.say("still open")
        assert (await client.next())["message"] == "still open"


async def test_unsubscribing_is_silence_and_the_socket_stays(server: Any, stage: Stage) -> None:
    async with watching(server, stage.id) as client:
        await client.until("AGENT_STARTED")
        assert await client.answered(op="unsubscribe") == {"op": "unsubscribe", "ok": True, "workflow_id": stage.id}
        await stage.say("unheard")
        assert (await client.answered(op="unsubscribe"))["error"]["code"] == "not_subscribed"
        assert (await client.answered(op="subscribe", last_event_id=2))["ok"]
        assert (await client.next())["message"] == "unheard"
        await stage.complete()
        assert [each["type"] for each in await client.rest()] == ["WORKFLOW_COMPLETED", "STREAM_END"]


async def test_a_socket_shows_only_so_many(serve: Any, engine: Any) -> None:
    server = await serve(settings(streams={"ws_max_runs": 2}), engine)
    runs = [await Stage.open(server, engine) for _ in range(3)]
    async with watching(server, runs[0].id) as client:
        assert (await client.answered(op="subscribe", workflow_id=runs[1].id))["ok"]
        assert (await client.answered(op="subscribe", workflow_id=runs[2].id))["error"]["code"] == "too_many_subscriptions"
        assert (await client.answered(op="unsubscribe", workflow_id=runs[1].id))["ok"]
        assert (await client.answered(op="subscribe", workflow_id=runs[2].id))["ok"]


# Gaps and endings


async def test_a_gap_is_told_and_the_stream_goes_on(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    async with watching(server, run.id, "&last_event_id=1-3&types=LLM_OUTPUT") as client:
        gap, *rest = await client.rest()
        assert gap == {
            "workflow_id": run.id,
            "type": "STREAM_GAP",
            "payload": {"missing_from": 4, "missing_to": None, "resumes_at": 1},
        }
        assert [each["type"] for each in rest] == ["LLM_OUTPUT", "WORKFLOW_COMPLETED", "STREAM_END"]
        assert client.socket.close_code == 1000


async def test_a_log_that_is_lost_closes_with_4408(serve: Any) -> None:
    store = MemoryStore(time.time)
    models = {"patient": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"}}
    async with an_engine(models=models, store=store) as engine:
        server = await serve(settings(streams={"keepalive_s": 0.05}), engine)
        stage = await Stage.open(server, engine)
        async with watching(server, stage.id) as client:
            await client.until("AGENT_STARTED")
            del store.records[stage.id]
            (gap,) = await client.rest()
            assert gap["payload"] == {"missing_from": 3, "missing_to": None, "resumes_at": None}
            assert client.socket.close_code == 4408


@pytest.mark.parametrize("unsubscribed", [False, True])
async def test_draining_closes_with_1001(server: Any, stage: Stage, unsubscribed: bool) -> None:
    async with watching(server, stage.id) as client:
        if unsubscribed:
            await client.answered(op="unsubscribe")
        rest, _ = await asyncio.gather(client.rest(), server.drain.finish(0, spread_s=0))
        assert "STREAM_END" not in [each.get("type") for each in rest]
        assert client.socket.close_code == 1001
    (answer,) = await server.raw(handshake(stage.id, "Authorization: Bearer sk-a"), first=True)
    assert_error(answer, 503, "draining")


# Rude clients


async def test_a_message_of_64_kib_and_no_byte_more(server: Any, stage: Stage) -> None:
    async with watching(server, stage.id) as client:
        await client.socket.send_str("x" * 65536)
        assert (await client.answer())["error"]["code"] == "invalid_message"
        await client.socket.send_str("x" * 65537)
        await client.rest()
        assert client.socket.close_code == 1009


async def test_one_in_pieces_is_as_long_as_its_pieces(server: Any, stage: Stage) -> None:
    async with rude(server, stage.id) as (reader, writer):
        writer.write(frame(TEXT, b"x" * 40_000, final=False) + frame(0, b"x" * 40_000))
        assert await closed_with(reader) == 1009


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (b"\xc1" + frame(TEXT, b"x")[1:], 1002),  # compressed, though that was never agreed
        (frame(3, b""), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"", final=False), 1002),
        (frame(0, b"x"), 1002),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, (1005).to_bytes(2)), 1002),
    ],
)
async def test_breaches_of_the_protocol_close_with_its_code(server: Any, stage: Stage, sent: bytes, code: int) -> None:
    async with rude(server, stage.id) as (reader, writer):
        writer.write(sent)
        assert await closed_with(reader) == code
        assert await reader.read() == b""


async def test_garbage_instead_of_frames(server: Any, stage: Stage) -> None:
    async with rude(server, stage.id) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        assert await closed_with(reader) in (1002, 1009)


async def test_a_close_is_answered_with_a_close(server: Any, stage: Stage) -> None:
    async with rude(server, stage.id) as (reader, writer):
        writer.write(frame(CLOSE, (1000).to_bytes(2)))
        assert await closed_with(reader) == 1000
        assert await reader.read() == b""


async def test_pings_are_answered(server: Any, stage: Stage) -> None:
    async with rude(server, stage.id) as (reader, writer):
        writer.write(frame(PING, b"hello"))
        while (got := await next_frame(reader))[0] == TEXT:
            pass
        assert got == (PONG, b"hello")


@pytest.mark.parametrize("flood", [frame(PING, b"x" * 125), frame(TEXT, b"{}"), frame(PONG, b"")])
async def test_a_flood_is_listened_to_slowly_and_events_still_come(serve: Any, engine: Any, flood: bytes) -> None:
    """What is sent beyond the allowance waits in the client's own socket: neither memory nor anybody's time is spent on it."""
    server = await serve(settings(streams={"ws_messages_per_s": 20}), engine)
    stage = await Stage.open(server, engine)
    async with rude(server, stage.id) as (reader, writer):
        writer.write(flood * 20_000)
        opcodes = [(await next_frame(reader))[0] for _ in range(2)]
        await stage.say("through")
        await stage.complete()
        while True:
            opcode, payload = await next_frame(reader)
            opcodes.append(opcode)
            if opcode == TEXT and b"STREAM_END" in payload:
                break
        assert len(opcodes) < 200, "answers to four seconds' worth of messages, and a few events"


async def test_a_client_that_never_reads_is_cut(serve: Any, engine: Any) -> None:
    server = await serve(settings(streams={"stall_timeout_s": 0.3}), engine)
    stage = await Stage.open(server, engine)
    async with rude(server, stage.id), watching(server, stage.id) as client:
        for _ in range(60):
            await stage.publish(PublishedEvent("LLM_PARTIAL", message="x" * 250_000))
            await client.until("LLM_PARTIAL")
        while b"headgate_stalled_clients_total 1.0" not in server.metrics.text():
            await stage.say("tick")
            await client.until("LLM_PARTIAL")
        await stage.complete()
        assert (await client.rest())[-1]["type"] == "STREAM_END"


async def test_a_client_that_never_reads_is_cut_though_it_only_pings(serve: Any, engine: Any) -> None:
    server = await serve(settings(streams={"stall_timeout_s": 0.2, "ws_messages_per_s": 1_000_000}), engine)
    stage = await Stage.open(server, engine)
    async with rude(server, stage.id) as (_, writer):
        try:
            while True:
                writer.write(frame(PING, b"x" * 125) * 1000)
                await writer.drain()
        except ConnectionError:
            assert b"headgate_active_streams 0.0" in server.metrics.text()


async def test_a_peer_that_is_gone_is_noticed(serve: Any, engine: Any) -> None:
    """It answers no ping. With 20 s between pings that is 30 s; here a hundredth of it."""
    server = await serve(settings(streams={"ws_ping_s": 0.2}), engine)
    stage = await Stage.open(server, engine)
    async with rude(server, stage.id) as (reader, _):
        assert [opcode for opcode, _ in await frames_to_the_end(reader)] == [TEXT, TEXT, PING]


async def test_a_slow_reader_stays_though_its_pongs_are_late(serve: Any, engine: Any) -> None:
    """A client that was slower than its pings was cut after 30 s, in the middle of reading: the ping waited behind megabytes."""
    server = await serve(settings(streams={"ws_ping_s": 0.2}), engine)
    stage = await Stage.open(server, engine)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(handshake(stage.id, "Authorization: Bearer sk-a"))
        slow.setblocking(False)
        for _ in range(16):
            await stage.publish(PublishedEvent("LLM_PARTIAL", message="x" * 250_000))
        received = bytearray()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 1.0:
            received += await loop.sock_recv(slow, 1 << 15)
            await asyncio.sleep(0.01)
        assert len(received) < 4_000_000, "it was not slow"
        await stage.complete()
        while b'"STREAM_END"' not in received[-1000:]:
            data = await loop.sock_recv(slow, 1 << 20)
            assert data, "it was cut"
            received += data


async def test_a_peer_that_dies_with_much_on_its_way_is_noticed(serve: Any, engine: Any) -> None:
    """Of what is on its way to it nothing is taken any more: 40 s with 20 s between pings."""
    server = await serve(settings(streams={"ws_ping_s": 0.2}), engine)
    stage = await Stage.open(server, engine)
    async with rude(server, stage.id):
        for _ in range(60):
            await stage.publish(PublishedEvent("LLM_PARTIAL", message="x" * 250_000))
        async with asyncio.timeout(3):
            while b"headgate_active_streams 0.0" not in server.metrics.text():  # noqa: ASYNC110 - it can only be asked for
                await asyncio.sleep(0.01)


async def test_a_quiet_client_that_answers_pings_stays(serve: Any, engine: Any) -> None:
    server = await serve(settings(streams={"ws_ping_s": 0.1}), engine)
    stage = await Stage.open(server, engine)
    async with rude(server, stage.id) as (reader, writer):
        pings = 0
        while pings < 5:
            opcode, payload = await next_frame(reader)
            if opcode == PING:
                pings += 1
                writer.write(frame(PONG, payload))
        await stage.complete()
        assert await closed_with(reader) == 1000


async def test_many_sockets_of_one_run_each_get_all_of_it(server: Any, stage: Stage) -> None:
    async def follow(position: int) -> list[Any]:
        async with watching(server, stage.id, f"&last_event_id={position}") as client:
            return await client.rest()

    await stage.say(*"abcdef")
    clients = [asyncio.create_task(follow(number % 7)) for number in range(20)]
    for number in range(50):
        await stage.say(str(number))
    await stage.complete()
    entries = await stage.entries()
    assert await asyncio.gather(*clients) == [envelopes(stage.id, entries[number % 7 :]) for number in range(20)]
