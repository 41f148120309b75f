"""The progress doors over real sockets: what watchers are told, wherever they begin, and that watching changes nothing."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from orchestrator.engine import Engine
from orchestrator.runs import RunState
from orchestrator.store.memory import MemoryRuns
from orchestrator.store.records import Record
from orchestrator.streamlog.memory import MemoryStore
from tests.gateway.http.conftest import Serve, Server
from tests.gateway.http.native import ALICE, MISSING, NOT_IDS, assert_error, assert_hidden, bearer, begin
from tests.gateway.http.plans import PLANS, agent, approval, keyed
from tests.gateway.http.streams import Reader
from tests.orchestrator.engines import an_engine, until
from tests.wire.eventstream import Read, read

PROGRESS = "/api/v1/stream/progress"
EXECUTE = "/api/v1/execute"
MULTI = "/api/v1/stream/multi"
GO = '/script\nsay "go"'
"""What a plain conversation is asked; of the plans, none but `choice` cares."""

NEW = "task-0192f0c1a2b37abc8def0123456789ab"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with an_engine(models=PLANS) as engine:
        yield engine


@pytest.fixture
async def server(serve: Serve, engine: Engine) -> Server:
    return await serve(keyed(), engine)


def told(stream: bytes) -> list[dict[str, Any]]:
    """The objects of a complete stream."""
    *progress, done = read(stream)
    assert (done.event, done.data) == ("done", "[DONE]"), done
    assert {each.event for each in progress} <= {"progress"}
    return [json.loads(each.data) for each in progress]


def facts(objects: list[dict[str, Any]], *more: str) -> list[tuple[Any, ...]]:
    return [(each["step_name"], each["status"], round(each["progress"], 3), *(each.get(one) for one in more)) for each in objects]


async def executed(server: Server, name: str, text: str = GO, query: str = "", key: str = "sk-a", **fields: Any) -> Any:
    """The answer to an execution; it has to be one that comes to its end by itself."""
    return await server.ask("POST", EXECUTE + query, headers=bearer(key), json={"name": name, "input": text, **fields})


async def ended(server: Server, engine: Engine, name: str, text: str = GO) -> str:
    """The id of a run that is over."""
    answer = await executed(server, name, text)
    run_id = str(answer.headers["x-workflow-id"])
    await until(engine, run_id, "STREAM_END", ALICE)
    return run_id


@asynccontextmanager
async def executing(server: Server, name: str, query: str = "") -> AsyncIterator[Reader]:
    """A stream of progress that is read as it comes."""
    body = {"name": name, "input": "go"}
    async with server.http.post(f"{server.url}{EXECUTE}{query}", headers=bearer(), json=body) as response:
        assert response.status == 200, await response.text()
        yield Reader(response)


async def piece(reader: asyncio.StreamReader) -> bytes:
    """One chunk of a chunked body; empty at its end."""
    size = int((await reader.readuntil(b"\r\n")).strip(), 16)
    return (await reader.readexactly(size + 2))[:-2]


# What is told


async def test_the_whole_object(server: Server, engine: Engine) -> None:
    answer = await executed(server, "two", session_id="s-1")
    run_id = answer.headers["x-workflow-id"]
    objects = told(answer.body)
    entries = {entry.seq: entry for entry in (await engine.history(ALICE, run_id, limit=1000)).entries}
    for each in objects:
        assert each.pop("workflow_id") == run_id
        assert each.pop("session_id") == "s-1"
        assert each.pop("timestamp") == entries[each.pop("seq")].event.timestamp
    workflow = {"step_name": "", "step_index": 0, "step_type": ""}
    first = {"step_name": "first", "step_index": 0, "step_type": "agent"}
    second = {"step_name": "second", "step_index": 1, "step_type": "agent"}
    usage = objects[-1]["result"].pop("usage")
    assert usage["completion_tokens"] > 0
    assert objects == [
        {**workflow, "status": "started", "progress": 0.0, "input": GO},
        {**first, "status": "started", "progress": 0.0},
        {**first, "status": "completed", "progress": 0.5, "output": "one"},
        {**second, "status": "started", "progress": 0.5},
        {**second, "status": "completed", "progress": 1.0, "output": "one two"},
        {**workflow, "status": "completed", "progress": 1.0, "result": {"success": True, "output": "one two"}},
    ]


async def test_a_plain_conversation_is_one_step(server: Server) -> None:
    objects = told((await executed(server, "plain", '/script\nsay "Hi"')).body)
    assert facts(objects, "step_type", "output") == [
        ("", "started", 0, "", None),
        ("agent", "started", 0, "agent", None),
        ("agent", "completed", 1, "agent", "Hi"),
        ("", "completed", 1, "", None),
    ]


async def test_branches_are_counted_as_they_finish(server: Server) -> None:
    """plumego told branch 0 without its index, and of none before all had finished."""
    objects = told((await executed(server, "branches")).body)
    both = [each for each in objects if each["step_name"] in ("left", "right", "both")]
    assert sorted(facts(both[1:3], "parallel_index", "parallel_total")) == [
        ("left", "started", 0, 0, 2),
        ("right", "started", 0, 1, 2),
    ]
    assert facts(both[:1] + both[3:], "parallel_index", "parallel_total", "output") == [
        ("both", "started", 0, None, None, None),
        ("left", "completed", 0.25, 0, 2, "l"),
        ("right", "completed", 0.5, 1, 2, "r"),
        ("both", "completed", 0.5, None, None, None),
    ]


@pytest.mark.parametrize(("text", "branch", "taken"), [("go", "then", "goer"), ("stay", "else", "stayer")])
async def test_the_side_that_a_condition_takes(server: Server, text: str, branch: str, taken: str) -> None:
    objects = told((await executed(server, "choice", text)).body)
    assert facts(objects[1:5], "step_type", "branch") == [
        ("which", "started", 0, "conditional", branch),
        (taken, "started", 0, "agent", None),
        (taken, "completed", 0.5, "agent", None),
        ("which", "completed", 0.5, "conditional", None),
    ]


async def test_every_attempt_of_a_retry(server: Server) -> None:
    objects = told((await executed(server, "again")).body)
    assert facts(objects[1:], "step_type", "attempt") == [
        ("twice", "started", 0, "retry", None),
        ("shaky", "started", 0, "agent", 1),
        ("shaky", "failed", 0, "agent", 1),
        ("shaky", "started", 0, "agent", 2),
        ("shaky", "failed", 0, "agent", 2),
        ("twice", "failed", 0, "retry", None),
        ("", "failed", 0, "", None),
    ]


async def test_a_failure_is_told_in_words_for_people(server: Server) -> None:
    objects = told((await executed(server, "fails")).body)
    assert facts(objects[3:]) == [("broken", "started", 0.5), ("broken", "failed", 0.5), ("", "failed", 0.5)]
    assert objects[-2]["error"] == objects[-1]["error"]
    assert objects[-1]["error"]
    assert not {"cause", "result"} & set(objects[-1])


async def test_a_step_that_waits_for_people(server: Server, engine: Engine) -> None:
    async with executing(server, "approved") as reader:
        seen = [json.loads((await reader.next()).data) for _ in range(4)]
        assert facts(seen[3:], "step_type") == [("ok", "started", 0.333, "approval")]
        body = {"workflow_id": seen[0]["workflow_id"], "approval_id": "ok", "approved": True}
        assert (await server.ask("POST", "/api/v1/approvals/decision", headers=bearer(), json=body)).status == 200
        rest = [json.loads(each.data) for each in (await reader.rest())[:-1]]
    assert facts(rest) == [
        ("ok", "completed", 0.667),
        ("speaker", "started", 0.667),
        ("speaker", "completed", 1),
        ("", "completed", 1),
    ]


async def test_a_cancelled_plan(server: Server, engine: Engine) -> None:
    async with executing(server, "hangs") as reader:
        seen = [json.loads((await reader.next()).data) for _ in range(4)]
        run_id = seen[0]["workflow_id"]
        await until(engine, run_id, "AGENT_STARTED", ALICE, count=2)
        await engine.cancel(ALICE, run_id, "enough")
        *rest, done = await reader.rest()
    assert (done.event, done.data) == ("done", "[DONE]")
    objects = [json.loads(each.data) for each in rest]
    assert facts(objects, "message", "result")[-1] == ("", "cancelled", 0.5, "enough", None)
    assert [each["status"] for each in objects] in (["cancelled"], ["cancelled", "cancelled"])


# Where a watcher begins


@pytest.mark.parametrize("name", ["plain", "two", "branches", "again"])
async def test_from_every_position_the_rest_and_nothing_else(server: Server, engine: Engine, name: str) -> None:
    run_id = await ended(server, engine, name)
    url = f"{PROGRESS}?workflow_id={run_id}"
    whole = (await server.ask("GET", url, headers=bearer())).body
    events = read(whole)
    for entry in (await engine.history(ALICE, run_id, limit=1000)).entries:
        after = [each for each in events if int(each.id.partition("-")[2]) > entry.seq] or events[-1:]
        for position in (entry.stream_id, str(entry.seq)):
            by_header = await server.ask("GET", url, headers=bearer(**{"Last-Event-ID": position}))
            by_query = await server.ask("GET", f"{url}&last_event_id={position}", headers=bearer())
            assert read(by_header.body) == after
            assert by_query.body == by_header.body


async def test_a_late_watcher_has_what_the_first_had(server: Server, engine: Engine) -> None:
    answer = await executed(server, "branches")
    late = await server.ask("GET", f"{PROGRESS}?workflow_id={answer.headers['x-workflow-id']}", headers=bearer())
    assert late.body == answer.body
    expected = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache, no-transform"}
    assert {name: late.headers[name] for name in expected} == expected


async def test_a_position_that_never_was_is_refused(server: Server, engine: Engine) -> None:
    """It used to be taken for one that everything stands before, so that a watcher got `done` and nothing else."""
    run_id = await ended(server, engine, "two")
    last = (await engine.history(ALICE, run_id, limit=1000)).entries[-1]
    for position in (str(last.seq + 1), f"{last.ms + 1}-{last.seq}", "9999999999999999"):
        answer = await server.ask("GET", f"{PROGRESS}?workflow_id={run_id}&last_event_id={position}", headers=bearer())
        assert_error(answer, 410, "stream_gap")
        query = f"{MULTI}?workflow_ids={run_id}&format=progress&last_event_id={position}"
        assert_error(await server.ask("GET", query, headers=bearer()), 410, "stream_gap")
    for wrong in ("-1", "1.5", "x", "\u0661"):
        assert_error(await server.ask("GET", f"{PROGRESS}?workflow_id={run_id}&last_event_id={wrong}", headers=bearer()), 400)


async def test_a_foreign_task_is_a_missing_one(server: Server, engine: Engine) -> None:
    run_id = await ended(server, engine, "two")
    await assert_hidden(server, "GET", PROGRESS + "?workflow_id={}", run_id)
    await assert_hidden(server, "GET", MULTI + "?workflow_ids={}", run_id)
    await assert_hidden(server, "GET", f"{MULTI}?workflow_ids={{}},{MISSING}", run_id)
    for wrong in NOT_IDS:
        assert (await server.ask("GET", f"{PROGRESS}?workflow_id={wrong}", headers=bearer())).status == 404


async def test_watching_starts_nothing_and_stops_nothing(server: Server, engine: Engine) -> None:
    run_id = await begin(server, "hang", model="plain")
    await until(engine, run_id, "AGENT_STARTED", ALICE)
    before = (await engine.history(ALICE, run_id, limit=1000)).entries
    for url in (f"{PROGRESS}?workflow_id={run_id}", f"{MULTI}?workflow_ids={run_id}"):
        async with server.http.get(server.url + url, headers=bearer()) as response:
            await Reader(response).next()
    assert len((await engine.list(ALICE)).runs) == 1
    assert (await engine.history(ALICE, run_id, limit=1000)).entries == before
    assert (await engine.get(ALICE, run_id)).state is RunState.RUNNING


async def test_who_executes_and_leaves_stops_nothing(server: Server, engine: Engine) -> None:
    async with executing(server, "approved") as reader:
        run_id = json.loads((await reader.next()).data)["workflow_id"]
    await until(engine, run_id, "APPROVAL_REQUESTED", ALICE)
    body = {"workflow_id": run_id, "approval_id": "ok", "approved": True}
    assert (await server.ask("POST", "/api/v1/approvals/decision", headers=bearer(), json=body)).status == 200
    assert (await until(engine, run_id, "STREAM_END", ALICE))[-2].type == "WORKFLOW_COMPLETED"


# Options


async def test_options_do_what_they_say(server: Server, engine: Engine) -> None:
    run_id = await ended(server, engine, "two")
    url = f"{PROGRESS}?workflow_id={run_id}"
    whole = told((await server.ask("GET", url, headers=bearer())).body)
    quiet = told((await server.ask("GET", f"{url}&enable_progress=false", headers=bearer())).body)
    assert quiet == [whole[0], whole[-1]]
    bare = told((await server.ask("GET", f"{url}&enable_step_logs=false", headers=bearer())).body)
    assert bare == [{name: value for name, value in each.items() if name not in ("input", "output")} for each in whole]
    for wrong in ("keep_alive=0", "keep_alive=61", "enable_progress=perhaps", "compress=br"):
        assert_error(await server.ask("GET", f"{url}&{wrong}", headers=bearer()), 400, says=f"'{wrong.partition('=')[0]}'")


async def test_silence_is_filled(server: Server) -> None:
    async with executing(server, "hangs", "?keep_alive=1") as reader:
        while b": keepalive\n" not in reader.bytes:
            assert await reader.receive(), reader.bytes


@pytest.mark.parametrize(("coding", "window"), [("gzip", 31), ("deflate", 15)])
async def test_a_compressed_stream_comes_as_it_is_told(server: Server, engine: Engine, coding: str, window: int) -> None:
    """A compressor that is not flushed keeps the beginning until the end."""
    body = {"name": "approved", "input": "go"}
    decoder = zlib.decompressobj(wbits=window)
    plain = b""
    async with server.connection() as (reader, writer):
        sent = json.dumps(body).encode()
        head = f"POST {EXECUTE}?compress={coding} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-a\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
        headers = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert f"\r\nContent-Encoding: {coding}\r\n" in headers
        while b'"ok"' not in plain:  # the run waits, and its watcher has all that was told until then
            plain += decoder.decompress(await piece(reader))
        run_id = json.loads(read(plain)[0].data)["workflow_id"]
        asked = {"workflow_id": run_id, "approval_id": "ok", "approved": True}
        await server.ask("POST", "/api/v1/approvals/decision", headers=bearer(), json=asked)
        while more := await piece(reader):
            plain += decoder.decompress(more)
    assert decoder.eof
    whole = await server.ask("GET", f"{PROGRESS}?workflow_id={run_id}", headers=bearer())
    assert plain == whole.body


# Executing


async def test_a_plan_of_ones_own_takes_a_scope(server: Server, engine: Engine) -> None:
    workflow = {"steps": [agent("only", 'say "hi"')]}
    answer = await server.ask("POST", EXECUTE, headers=bearer("sk-c"), json={"workflow": workflow})
    assert_error(answer, 403, says="runs:execute-inline")
    assert (await engine.list(ALICE)).total == 0
    assert (await executed(server, "two", key="sk-c")).status == 200


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{}], "workflow.steps.0: "),
        ([{"agent": {}}], "workflow.steps.0.agent.upstream: "),
        ([agent("a", ""), agent("b", "")], "workflow.steps: has several agents"),
        ([approval("ok")], "workflow.steps: has no agent"),
        ([agent("a", "{{ outputs.b }}")], "workflow.steps.0.agent.input: names outputs.b"),
        ([{"parallel": [agent("a", ""), {"approval": {}}]}], "workflow.steps.0.parallel.branches.1.approval.action: "),
        ([{"agent": {"upstream": "nowhere"}}], "workflow.steps.0.agent.upstream: there is no upstream 'nowhere'"),
    ],
)
async def test_a_mistake_in_a_plan_is_told_with_its_place(server: Server, steps: Any, says: str) -> None:
    answer = await server.ask("POST", EXECUTE, headers=bearer(), json={"workflow": {"steps": steps}})
    assert_error(answer, 400, "invalid_plan", says=says)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"name": "two", "workflow": {"steps": [agent("a", "")]}}, 422),
        ({"name": "nothing"}, 404),
        ({"workflow": {"steps": []}}, 422),
        ({"name": "two", "workflow_id": "mine"}, 422),
        ({"name": "two", "input": 7}, 422),
        ({"name": "two", "metadata": {"a": "x" * 20_000}}, 422),
        ({"name": "two", "surprise": 1}, 422),
    ],
)
async def test_a_body_that_does_not_fit(server: Server, engine: Engine, body: Any, status: int) -> None:
    assert_error(await server.ask("POST", EXECUTE, headers=bearer(), json=body), status)
    assert (await engine.list(ALICE)).total == 0


async def test_an_id_is_given_once(server: Server) -> None:
    first = await executed(server, "two", workflow_id=NEW)
    assert first.headers["x-workflow-id"] == NEW
    assert told(first.body)[0]["workflow_id"] == NEW
    assert_error(await executed(server, "two", workflow_id=NEW), 409, "workflow_exists")


async def test_an_id_is_given_once_also_when_the_log_has_forgotten(serve: Serve) -> None:
    """The log of a run expires, and the archive goes on knowing it."""
    store, archive = MemoryStore(time.time), MemoryRuns()
    async with an_engine(models=PLANS, store=store, archive=archive) as engine:
        server = await serve(keyed(), engine)
        await executed(server, "two", workflow_id=NEW)
        run, entries = await engine.get(ALICE, NEW), (await engine.history(ALICE, NEW, limit=1000)).entries
        await archive.write([Record(run, entries, entries[-1])])
        del store.records[NEW]
        assert_error(await executed(server, "two", workflow_id=NEW), 409, "workflow_exists")


async def test_a_repeated_request_watches_the_first_ones_run(server: Server, engine: Engine) -> None:
    headers = bearer(**{"Idempotency-Key": "k"})
    body = {"name": "two", "input": "go"}
    first = await server.ask("POST", EXECUTE, headers=headers, json=body)
    again = await server.ask("POST", EXECUTE, headers=headers, json=body)
    assert again.body == first.body
    assert (await engine.list(ALICE)).total == 1
    assert_error(await server.ask("POST", EXECUTE, headers=headers, json={**body, "input": "other"}), 409)


async def test_nothing_that_is_asked_is_the_empty_text(server: Server) -> None:
    """It used to be the text `{}`."""
    answer = await server.ask("POST", EXECUTE, headers=bearer(), json={"name": "two"})
    assert "input" not in told(answer.body)[0]


# Several tasks


async def several(server: Server, engine: Engine) -> list[str]:
    return [await ended(server, engine, name) for name in ("two", "plain", "branches")]


@pytest.mark.parametrize("form", ["events", "progress"])
async def test_several_tasks_in_one_stream(server: Server, engine: Engine, form: str) -> None:
    runs = await several(server, engine)
    answer = await server.ask("GET", f"{MULTI}?workflow_ids={','.join(runs)}&format={form}", headers=bearer())
    *events, done = read(answer.body)
    assert (done.event, done.data) == ("done", "[DONE]")
    for run_id in runs:
        mine = [json.loads(each.data) for each in events if json.loads(each.data)["workflow_id"] == run_id]
        if form == "progress":
            alone = await server.ask("GET", f"{PROGRESS}?workflow_id={run_id}", headers=bearer())
            assert mine == told(alone.body)
        else:
            entries = (await engine.history(ALICE, run_id, limit=1000)).entries
            assert [(each["type"], each["seq"]) for each in mine] == [(entry.event.type, entry.seq) for entry in entries]


@pytest.mark.parametrize("form", ["events", "progress"])
async def test_one_cursor_for_all_at_every_event(serve: Serve, form: str) -> None:
    """What one replica told up to any event, the other continues: each task exactly, whatever their order among each other."""
    store = MemoryStore(time.time)
    async with an_engine(models=PLANS, store=store) as engine, an_engine(models=PLANS, store=store) as other:
        here, there = await serve(keyed(), engine), await serve(keyed(), other)
        runs = await several(here, engine)
        url = f"{MULTI}?workflow_ids={','.join(runs)}&format={form}"
        whole = of_each(read((await here.ask("GET", url, headers=bearer())).body), runs)
        events = read((await here.ask("GET", url, headers=bearer())).body)
        for place, event in enumerate(events):
            rest = read((await there.ask("GET", url, headers=bearer(**{"Last-Event-ID": event.id}))).body)
            assert rest[-1].data == "[DONE]"
            had, more = of_each(events[: place + 1], runs), of_each(rest, runs)
            assert {run: had[run] + more[run] for run in runs} == whole
        by_query = await there.ask("GET", f"{url}&last_event_id={events[3].id}", headers=bearer())
        assert read(by_query.body)[-1].data == "[DONE]"


def of_each(events: list[Read], runs: list[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {run: [] for run in runs}
    for each in events:
        if each.data != "[DONE]":
            parts[json.loads(each.data)["workflow_id"]].append(each.data)
    return parts


async def test_a_cursor_has_as_many_positions_as_there_are_tasks(server: Server, engine: Engine) -> None:
    runs = await several(server, engine)
    url = f"{MULTI}?workflow_ids={','.join(runs)}"
    for cursor in ("1", "1,2", "1,2,3,4", "1,2,x"):
        assert_error(await server.ask("GET", url, headers=bearer(**{"Last-Event-ID": cursor})), 400)


async def test_filters_never_hide_endings(server: Server, engine: Engine) -> None:
    runs = await several(server, engine)
    answer = await server.ask("GET", f"{MULTI}?workflow_ids={','.join(runs)}&types=AGENT_STARTED", headers=bearer())
    kinds = [json.loads(each.data)["type"] for each in read(answer.body)[:-1]]
    assert set(kinds) == {"AGENT_STARTED", "WORKFLOW_COMPLETED", "STREAM_END"}
    assert kinds.count("STREAM_END") == 3


async def test_a_task_named_twice_is_told_once(server: Server, engine: Engine) -> None:
    run_id = await ended(server, engine, "two")
    once = await server.ask("GET", f"{MULTI}?workflow_ids={run_id}", headers=bearer())
    twice = await server.ask("GET", f"{MULTI}?workflow_ids={run_id},{run_id}", headers=bearer())
    assert twice.body == once.body


async def test_at_most_fifty(server: Server) -> None:
    many = ",".join(f"task-{number:032x}" for number in range(51))
    assert_error(await server.ask("GET", f"{MULTI}?workflow_ids={many}", headers=bearer()), 400, says="50")
    fifty = ",".join(f"task-{number:032x}" for number in range(50))
    assert_error(await server.ask("GET", f"{MULTI}?workflow_ids={fifty}", headers=bearer()), 404)


async def test_a_live_task_beside_one_that_is_over(server: Server, engine: Engine) -> None:
    over = await ended(server, engine, "two")
    live = await begin(server, "hang", model="plain")
    async with server.http.get(f"{server.url}{MULTI}?workflow_ids={over},{live}&format=progress", headers=bearer()) as response:
        reader = Reader(response)
        seen = [json.loads((await reader.next()).data) for _ in range(8)]
        assert {each["workflow_id"] for each in seen} == {over, live}
        await engine.cancel(ALICE, live, "enough")
        *rest, done = await reader.rest()
    assert done.data == "[DONE]"
    assert json.loads(rest[-1].data)["status"] == "cancelled"


async def test_a_task_whose_events_are_gone_says_so_and_the_others_go_on(server: Server, engine: Engine) -> None:
    runs = await several(server, engine)
    url = f"{MULTI}?workflow_ids={','.join(runs)}"
    answer = await server.ask("GET", url, headers=bearer(**{"Last-Event-ID": "0,999,0"}))
    *events, done = read(answer.body)
    assert done.data == "[DONE]"
    (gap,) = [json.loads(each.data) for each in events if each.event == "STREAM_GAP"]
    assert (gap["workflow_id"], gap["type"]) == (runs[1], "STREAM_GAP")
    others = {json.loads(each.data)["workflow_id"] for each in events if each.event != "STREAM_GAP"}
    assert {runs[0], runs[2]} <= others
