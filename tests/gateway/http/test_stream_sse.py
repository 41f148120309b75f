"""The native event stream over real sockets: what opens it, what refuses it, how it ends, and from where it goes on."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from gateway.wire.native import NativeEncoder, Renderings
from gateway.wire.sse_decoder import ServerEvent
from orchestrator.engine import PublishedEvent
from orchestrator.events import Entry
from orchestrator.runs import RunState
from orchestrator.streamlog.memory import MemoryStore
from tests.gateway.http.native import ALICE, MISSING, NOT_IDS, assert_error, assert_hidden, bearer, begin, settings
from tests.gateway.http.streams import SSE, Stage, reading
from tests.orchestrator.engines import an_engine, until
from tests.wire import eventstream

OPENING = re.compile(rb": connected\nretry: (\d+)\n")


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


@pytest.fixture
async def stage(server: Any, engine: Any) -> Stage:
    return await Stage.open(server, engine)


def frames(run_id: str, entries: list[Entry], **options: Any) -> bytes:
    return NativeEncoder(Renderings().sse(run_id, **options)).encode(entries)


async def finished(server: Any, engine: Any) -> Stage:
    run_id = await begin(server, 'say "Hello native world"; reason "Hm"', model="patient")
    await until(engine, run_id, "STREAM_END", ALICE)
    return Stage(engine, run_id)


def assert_opened(stream: bytes) -> bytes:
    """What follows the first bytes."""
    opened = OPENING.match(stream)
    assert opened, stream[:100]
    assert 1500 <= int(opened[1]) <= 2500
    return stream[opened.end() :]


# A stream


async def test_a_finished_run_from_the_beginning(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    answer = await server.ask("GET", f"{SSE}?workflow_id={run.id}", headers=bearer(**{"Accept-Encoding": "gzip, br"}))
    assert answer.status == 200
    expected = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-workflow-id": run.id,
    }
    assert {name: answer.headers[name] for name in expected} == expected
    assert "content-encoding" not in answer.headers
    assert assert_opened(answer.body) == frames(run.id, await run.entries())


async def test_the_stream_opens_before_its_run_says_anything(server: Any, stage: Stage) -> None:
    """A page's `open` event must not wait for the next event of a quiet run."""
    last = (await stage.entries())[-1].stream_id
    async with reading(server, stage.id, f"&last_event_id={last}") as reader:
        while not OPENING.fullmatch(reader.bytes):
            await reader.receive()
        await stage.say("one")
        assert (await reader.next()).event == "thread.message.delta"


async def test_events_arrive_as_they_happen_and_the_stream_ends_with_its_run(server: Any, stage: Stage) -> None:
    async with reading(server, stage.id) as reader:
        assert [(await reader.next()).event for _ in range(2)] == ["WORKFLOW_STARTED", "AGENT_STARTED"]
        for text in ("one", "", "two\u2028\n\ndata: three"):
            await stage.say(text)
            assert (await reader.next()).event == "thread.message.delta"
        await stage.complete()
        last = await reader.rest()
    entries = await stage.entries()
    assert last == [
        ServerEvent(entries[-2].envelope(stage.id).decode(), "WORKFLOW_COMPLETED", entries[-2].stream_id),
        ServerEvent("[DONE]", "done", entries[-1].stream_id),
    ]
    assert assert_opened(reader.bytes) == frames(stage.id, entries)


async def test_a_reader_comes_and_goes_without_effect(server: Any, stage: Stage) -> None:
    async with reading(server, stage.id) as reader:
        await reader.next()
    await stage.say("still here")
    assert (await stage.engine.get(ALICE, stage.id)).state is RunState.RUNNING


async def test_raw_names(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    answer = await server.ask("GET", f"{SSE}?workflow_id={run.id}&names=raw", headers=bearer())
    names = [each.event for each in eventstream.read(answer.body)]
    assert names == [entry.event.type for entry in await run.entries()]


async def test_silence_is_filled_and_says_nothing(serve: Any, engine: Any) -> None:
    server = await serve(settings(streams={"keepalive_s": 0.05}), engine)
    stage = await Stage.open(server, engine)
    async with reading(server, stage.id) as reader:
        while reader.bytes.count(b": keepalive\n") < 3:
            await reader.receive()
        await stage.complete()
        await reader.rest()
    assert [each.event for each in eventstream.read(reader.bytes)][-1] == "done"


async def test_a_connection_is_good_for_the_next_request(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    request = f"GET {SSE}?workflow_id={run.id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\n"
    first, second = await server.raw(f"{request}\r\n{request}Connection: close\r\n\r\n".encode())
    assert assert_opened(first.body) == assert_opened(second.body)


async def test_only_get(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    for method in ("HEAD", "POST", "DELETE"):
        answer = await server.ask(method, f"{SSE}?workflow_id={run.id}", headers=bearer())
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


# Refusals


async def test_unknown_and_foreign_runs_are_the_same_404_at_once(server: Any, stage: Stage) -> None:
    await assert_hidden(server, "GET", f"{SSE}?workflow_id={{}}", stage.id)
    async with asyncio.timeout(1):
        assert_error(await server.ask("GET", f"{SSE}?workflow_id={MISSING}", headers=bearer()), 404, "run_not_found")


@pytest.mark.parametrize("given", NOT_IDS)
async def test_what_cannot_be_an_id_is_like_one_that_never_was(server: Any, given: str) -> None:
    assert_error(await server.ask("GET", f"{SSE}?workflow_id={given}", headers=bearer()), 404, "run_not_found")


@pytest.mark.parametrize(
    "query",
    ["", "?workflow_id=", f"?workflow_id={MISSING}&workflow_id={MISSING}", f"?task_id={MISSING}"],
)
async def test_a_stream_is_of_one_run(server: Any, query: str) -> None:
    assert_error(await server.ask("GET", SSE + query, headers=bearer()), 400)


@pytest.mark.parametrize("types", ["NOPE", "llm_partial", "LLM_PARTIAL,NOPE", "X_", "LLM_PARTIAL;", "%00"])
async def test_types_that_no_event_has(server: Any, stage: Stage, types: str) -> None:
    answer = await server.ask("GET", f"{SSE}?workflow_id={stage.id}&types={types}", headers=bearer())
    assert_error(answer, 400, says="type")


@pytest.mark.parametrize("names", ["", "RAW", "pretty"])
async def test_names_are_raw_or_usual(server: Any, stage: Stage, names: str) -> None:
    assert_error(await server.ask("GET", f"{SSE}?workflow_id={stage.id}&names={names}", headers=bearer()), 400)


GARBAGE = ["-1", "1.5", "1e3", "abc", "5-", "-5", "1-1-1", "%201", "0x1", "18446744073709551616", "9" * 20_000, "%D9%A1", "1%00"]


@pytest.mark.parametrize("given", GARBAGE)
async def test_positions_that_cannot_be_meant(server: Any, stage: Stage, given: str) -> None:
    answer = await server.ask("GET", f"{SSE}?workflow_id={stage.id}&last_event_id={given}", headers=bearer())
    assert_error(answer, 400, "invalid_position")


@pytest.mark.parametrize("given", ["-1", "abc", "1-1-1", "18446744073709551616", "9" * 20_000, "\u0661", "1,2"])
async def test_nor_in_the_header(server: Any, stage: Stage, given: str) -> None:
    answer = await server.ask("GET", f"{SSE}?workflow_id={stage.id}&last_event_id=1", headers=bearer(**{"Last-Event-ID": given}))
    assert_error(answer, 400, "invalid_position")


async def test_a_position_is_given_once(server: Any, stage: Stage) -> None:
    twice = [*bearer().items(), ("Last-Event-ID", "1"), ("Last-Event-ID", "1")]
    assert_error(await server.ask("GET", f"{SSE}?workflow_id={stage.id}", headers=twice), 400, "invalid_position")
    query = f"{SSE}?workflow_id={stage.id}&last_event_id=1&last_event_id=1"
    assert_error(await server.ask("GET", query, headers=bearer()), 400)


# Positions


async def test_from_every_position_come_the_bytes_that_are_left(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    entries = await run.entries()
    for at, entry in enumerate(entries[:-1]):
        left = frames(run.id, entries[at + 1 :])
        for position in (entry.stream_id, str(entry.seq)):
            answer = await server.ask("GET", f"{SSE}?workflow_id={run.id}&last_event_id={position}", headers=bearer())
            assert assert_opened(answer.body) == left, position
            answer = await server.ask("GET", f"{SSE}?workflow_id={run.id}", headers=bearer(**{"Last-Event-ID": position}))
            assert assert_opened(answer.body) == left, position


async def test_the_header_wins_unless_it_is_empty(server: Any, engine: Any) -> None:
    run = await finished(server, engine)
    entries = await run.entries()
    path = f"{SSE}?workflow_id={run.id}&last_event_id=1"
    answer = await server.ask("GET", path, headers=bearer(**{"Last-Event-ID": "3"}))
    assert assert_opened(answer.body) == frames(run.id, entries[3:])
    answer = await server.ask("GET", path, headers=bearer(**{"Last-Event-ID": ""}))
    assert assert_opened(answer.body) == frames(run.id, entries[1:])


@pytest.mark.parametrize("types", ["", "&types=LLM_OUTPUT"])
async def test_whoever_had_everything_is_told_that_it_was_all(server: Any, engine: Any, types: str) -> None:
    run = await finished(server, engine)
    last = (await run.entries())[-1]
    for position in (last.stream_id, last.seq):
        path = f"{SSE}?workflow_id={run.id}&last_event_id={position}{types}"
        async with asyncio.timeout(2):
            answer = await server.ask("GET", path, headers=bearer())
        assert assert_opened(answer.body) == b"event: done\ndata: [DONE]\n\n"


async def test_a_position_that_the_run_never_had_is_a_gap(server: Any, engine: Any) -> None:
    """Another run's position, or one of a log that lost its tail. What follows is from the beginning, and said to be."""
    run = await finished(server, engine)
    entries = await run.entries()
    for position in (f"{entries[2].ms + 1}-3", "1-3", "4000"):
        answer = await server.ask("GET", f"{SSE}?workflow_id={run.id}&last_event_id={position}", headers=bearer())
        body = assert_opened(answer.body)
        gap, _, rest = body.partition(b"\n\n")
        assert gap.startswith(b"event: STREAM_GAP\ndata: {"), gap
        assert b'"resumes_at":1}' in gap
        assert rest == frames(run.id, entries)


async def test_what_was_trimmed_is_a_gap_and_the_stream_goes_on(serve: Any) -> None:
    models = {"patient": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"}}
    async with an_engine(models=models, store=MemoryStore(time.time, max_events=5), ring_bytes=1) as engine:
        server = await serve(settings(), engine)
        stage = await Stage.open(server, engine)
        await stage.say(*"abcdefgh")
        await stage.complete()
        answer = await server.ask("GET", f"{SSE}?workflow_id={stage.id}&types=WARNING", headers=bearer())
        gap, *rest = eventstream.read(answer.body)
        assert (gap.event, gap.id) == ("STREAM_GAP", "")
        first = (await stage.entries())[0].seq
        assert first > 1
        said = f'"payload":{{"missing_from":1,"missing_to":{first - 1},"resumes_at":{first}}}}}'
        assert gap.data.endswith(said)
        assert [each.event for each in rest] == ["WORKFLOW_COMPLETED", "done"]


# Filters


@pytest.mark.parametrize(
    "types", ["LLM_OUTPUT", "LLM_PARTIAL,%20LLM_OUTPUT,", "X_MINE", "STREAM_END", "WORKFLOW_STARTED,AGENT_COMPLETED", ""]
)
async def test_a_filter_hides_but_never_the_end(server: Any, engine: Any, types: str) -> None:
    run = await finished(server, engine)
    wanted = frozenset(name for each in types.split(",") if (name := each.replace("%20", "")))
    answer = await server.ask("GET", f"{SSE}?workflow_id={run.id}&types={types}", headers=bearer())
    assert assert_opened(answer.body) == frames(run.id, await run.entries(), types=wanted)


async def test_what_a_filter_hid_before_is_no_hole_between_replay_and_live(server: Any, stage: Stage) -> None:
    """All that was replayed is hidden. The reference stack then went live from `now` and lost what came in between."""
    await stage.say(*"abc")
    async with reading(server, stage.id, "&types=WARNING") as reader:
        while not OPENING.match(reader.bytes):
            await reader.receive()
        await stage.say("d")
        await stage.say("careful", type="WARNING")
        warning = await reader.next()
        await stage.complete()
        assert [each.event for each in await reader.rest()] == ["WORKFLOW_COMPLETED", "done"]
    assert (warning.event, warning.id) == ("WARNING", (await stage.entries())[-3].stream_id)


# Trouble


async def test_draining_ends_a_stream_so_that_it_can_be_resumed(server: Any, stage: Stage) -> None:
    async with reading(server, stage.id) as reader:
        await reader.next()
        await asyncio.gather(server.drain.finish(0, spread_s=0), reader.rest())
    broken = eventstream.read(reader.bytes)[-1]
    assert (broken.event, '"code":"draining"' in broken.data) == ("ERROR_OCCURRED", True)
    assert b"[DONE]" not in reader.bytes
    assert_error(await server.ask("GET", f"{SSE}?workflow_id={stage.id}", headers=bearer()), 503, "draining")


async def test_a_client_that_does_not_read_is_cut_and_others_do_not_notice(serve: Any, engine: Any) -> None:
    server = await serve(settings(streams={"stall_timeout_s": 0.3}), engine)
    stage = await Stage.open(server, engine)
    request = f"GET {SSE}?workflow_id={stage.id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\n\r\n"
    async with server.connection() as (_, writer), reading(server, stage.id) as reader:
        writer.write(request.encode())
        for _ in range(60):  # more than the buffers of both ends hold together
            await stage.publish(PublishedEvent("LLM_PARTIAL", message="x" * 250_000))
            await reader.next()
        while b"headgate_stalled_clients_total 1.0" not in server.metrics.text():
            await stage.say("tick")
            await reader.next()
        await stage.complete()
        await reader.rest()
    assert eventstream.read(reader.bytes)[-1].data == "[DONE]"


async def test_many_readers_of_one_run_each_get_all_of_it(server: Any, stage: Stage) -> None:
    async def follow(position: str) -> bytes:
        async with reading(server, stage.id, f"&last_event_id={position}") as reader:
            await reader.rest()
            return assert_opened(reader.bytes)

    await stage.say(*"abcdef")
    readers = [asyncio.create_task(follow(str(number % 7))) for number in range(40)]
    for number in range(50):
        await stage.say(str(number))
        await asyncio.sleep(0)
    await stage.complete()
    entries = await stage.entries()
    expected = [frames(stage.id, entries[number % 7 :]) for number in range(40)]
    assert await asyncio.gather(*readers) == expected
