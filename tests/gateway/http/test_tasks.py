"""Submitting tasks and looking at them, over HTTP, with the real engine and a scripted upstream."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.gateway.http.native import (
    MISSING,
    NOT_IDS,
    TASKS,
    assert_error,
    assert_hidden,
    bearer,
    begin,
    script,
    settings,
)
from tests.orchestrator.engines import until

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


# Submitting


async def test_a_task_is_taken_on(server: Any) -> None:
    answer = await server.ask("POST", TASKS, headers=bearer(), json=script('say "hi"', session_id="s-1"))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert set(answer.json) == {"task_id", "workflow_id", "status", "message", "created_at"}
    assert answer.json["task_id"] == answer.json["workflow_id"] == answer.headers["x-workflow-id"]
    assert re.fullmatch("task-[0-9a-f]{32}", answer.json["task_id"])
    assert answer.json["status"] in ("QUEUED", "RUNNING")
    assert TIME.fullmatch(answer.json["created_at"])
    assert answer.headers["x-session-id"] == "s-1"


async def test_a_task_without_a_session_begins_one(server: Any) -> None:
    first, second = [await server.ask("POST", TASKS, headers=bearer(), json=script("say 1 words")) for _ in range(2)]
    assert re.fullmatch("session-[0-9a-f]{32}", first.headers["x-session-id"])
    assert first.headers["x-session-id"] != second.headers["x-session-id"]
    listed = (await server.ask("GET", f"{TASKS}?session_id={first.headers['x-session-id']}", headers=bearer())).json
    assert [task["task_id"] for task in listed["tasks"]] == [first.json["task_id"]]


async def test_a_task_to_be_streamed_says_where(server: Any) -> None:
    answer = await server.ask("POST", f"{TASKS}/stream", headers=bearer(), json=script('say "hi"'))
    task_id = answer.json["task_id"]
    assert answer.status == 201
    assert answer.json["stream_url"] == f"/api/v1/stream/sse?workflow_id={task_id}"
    assert answer.headers["link"] == f"<{answer.json['stream_url']}>; rel=stream"
    assert answer.headers["location"] == f"{TASKS}/{task_id}"
    assert (answer.headers["x-workflow-id"], answer.headers["x-session-id"][:8]) == (task_id, "session-")
    assert set(answer.json) == {"task_id", "workflow_id", "status", "message", "created_at", "stream_url"}


async def test_a_task_goes_on_without_whoever_submitted_it(server: Any, engine: Any) -> None:
    """The connection is closed after the answer; `headgate-demo` would be cancelled with a chat client that leaves."""
    task = await begin(server, 'wait 50ms; say "done"')
    await until(engine, task, "STREAM_END")
    answer = await server.ask("GET", f"{TASKS}/{task}", headers=bearer())
    assert (answer.json["status"], answer.json["result"]) == ("COMPLETED", "done")


@pytest.mark.parametrize(
    ("fields", "ran"),
    [
        ({}, "headgate-demo"),
        ({"model": "patient"}, "patient"),
        ({"model_override": "patient"}, "patient"),
        ({"model": "patient", "model_override": "headgate-demo"}, "patient"),
        ({"model_tier": "large"}, "patient"),
        ({"model_tier": "small"}, "headgate-demo"),
        ({"model_tier": "large", "model": "headgate-demo"}, "headgate-demo"),
        ({"model": None, "model_tier": None, "context": None, "metadata": None, "mode": None}, "headgate-demo"),
    ],
)
async def test_which_model_a_task_gets(serve: Any, engine: Any, fields: dict[str, Any], ran: str) -> None:
    models = {name: {"plan": {"agent": {"upstream": "demo"}}} for name in ("headgate-demo", "patient")}
    server = await serve(
        settings(upstreams={"demo": {"kind": "scripted"}}, models=models, tasks={"tiers": {"large": "patient"}}), engine
    )
    task = await begin(server, "say 1 words", **fields)
    assert (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json["model_used"] == ran


async def test_a_configured_default_model_wins_over_the_first(serve: Any, engine: Any) -> None:
    models = {name: {"plan": {"agent": {"upstream": "demo"}}} for name in ("headgate-demo", "patient")}
    server = await serve(
        settings(upstreams={"demo": {"kind": "scripted"}}, models=models, tasks={"default_model": "patient"}), engine
    )
    task = await begin(server, "say 1 words")
    assert (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json["model_used"] == "patient"


async def test_a_server_without_a_default_model_asks_for_one(serve: Any, engine: Any) -> None:
    models = {"*": {"plan": {"agent": {"upstream": "demo"}}}}
    server = await serve(settings(upstreams={"demo": {"kind": "scripted"}}, models=models), engine)
    answer = await server.ask("POST", TASKS, headers=bearer(), json={"query": "hi"})
    assert_error(answer, 422, "missing_required_parameter", "'model'")


async def test_what_was_sent_with_a_task_comes_back_but_for_its_system_prompt(server: Any, engine: Any, witness: Any) -> None:
    context = {"system_prompt": "Be brief.", "customer": "acme", "depth": [1, {"a": None}]}
    task = await begin(server, "say 1 words", context=context, mode="simple", metadata={"ticket": 7})
    await until(engine, task, "STREAM_END")
    answer = await server.ask("GET", f"{TASKS}/{task}", headers=bearer())
    assert answer.json["metadata"] == {
        "mode": "simple",
        "context": {"customer": "acme", "depth": [1, {"a": None}]},
        "ticket": 7,
    }
    assert b"Be brief" not in answer.body
    events = await server.ask("GET", f"{TASKS}/{task}/events", headers=bearer())
    assert b"Be brief" not in events.body
    assert b"customer" not in events.body


async def test_the_system_prompt_of_the_context_reaches_the_model(server: Any, engine: Any) -> None:
    """Its words are counted in the prompt; everything else of the context is not."""
    prompts = {}
    for name, context in {
        "plain": None,
        "recorded": {"a": "word " * 50},
        "prompt": {"system_prompt": "word " * 50},
    }.items():
        task = await begin(server, "say 1 words", context=context)
        await until(engine, task, "STREAM_END")
        usage = (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json["usage"]
        prompts[name] = usage["prompt_tokens"]
    assert prompts["plain"] == prompts["recorded"] < prompts["prompt"]


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({}, "missing_required_parameter", "'query'"),
        ({"query": ""}, "invalid_value", "'query'"),
        ({"query": " \n\t"}, "invalid_value", "'query'"),
        ({"query": 5}, "invalid_type", "'query'"),
        ({"query": None}, "invalid_type", "'query'"),
        ({"query": "hi", "session_id": "a b"}, "invalid_value", "'session_id'"),
        ({"query": "hi", "session_id": ""}, "invalid_value", "'session_id'"),
        ({"query": "hi", "session_id": "a\r\nSet-Cookie: x"}, "invalid_value", "'session_id'"),
        ({"query": "hi", "session_id": "x" * 257}, "invalid_value", "'session_id'"),
        ({"query": "hi", "context": []}, "invalid_type", "'context'"),
        ({"query": "hi", "context": {"system_prompt": 1}}, "invalid_type", "'context.system_prompt'"),
        ({"query": "hi", "context": {"a": "x" * 20_000}}, "too_long", "'context'"),
        ({"query": "hi", "metadata": "x"}, "invalid_type", "'metadata'"),
        ({"query": "hi", "model_tier": "huge"}, "invalid_value", "'model_tier'"),
        ({"query": "hi", "model": ""}, "invalid_value", "'model'"),
        ({"query": "hi", "mode": 3}, "invalid_type", "'mode'"),
        ({"query": "hi", "qeury": "hi"}, "unknown_parameter", "'qeury'"),
    ],
)
async def test_well_formed_nonsense_is_a_422_that_names_the_place(server: Any, body: Any, code: str, says: str) -> None:
    for path in (TASKS, f"{TASKS}/stream"):
        answer = await server.ask("POST", path, headers=bearer(), json=body)
        assert_error(answer, 422, code, says)
        assert "x-workflow-id" not in answer.headers
    assert (await server.ask("GET", TASKS, headers=bearer())).json == {"tasks": [], "total_count": 0}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"query": "\\ud800"}', b'{"a":' * 300])
async def test_what_is_not_a_json_object_is_a_400(server: Any, body: bytes) -> None:
    answer = await server.ask("POST", TASKS, headers=bearer(**{"Content-Type": "application/json"}), data=body)
    assert_error(answer, 400, "invalid_json")


async def test_other_refusals_of_bodies(serve: Any, engine: Any) -> None:
    server = await serve(settings(server={"max_body_bytes": 1000}), engine)
    answer = await server.ask("POST", TASKS, headers=bearer(**{"Content-Type": "text/plain"}), data=b"hi")
    assert_error(answer, 415, "unsupported_media_type")
    assert_error(await server.ask("POST", TASKS, headers=bearer(), json={"query": "x" * 1000}), 413, "body_too_large")
    assert_error(await server.ask("POST", TASKS, headers=bearer("sk-x"), json={"query": "x"}), 401, "invalid_api_key")
    answer = await server.ask("POST", TASKS, headers=bearer(), json={"query": "x", "model": "nobody"})
    assert_error(answer, 404, "model_not_found", "nobody")
    assert_error(await server.ask("PUT", TASKS, headers=bearer()), 405, "method_not_allowed")


async def test_an_idempotency_key_is_no_reason_to_refuse(server: Any) -> None:
    headers = bearer(**{"Idempotency-Key": "k-1"})
    assert (await server.ask("POST", TASKS, headers=headers, json=script("say 1 words"))).status == 200


async def test_a_durable_task_without_its_engine_is_a_503_that_says_when_to_come_back(server: Any) -> None:
    answer = await server.ask("POST", TASKS, headers=bearer(), json={"query": "hi", "model": "durable"})
    assert_error(answer, 503, "backend_unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_draining_server_takes_no_task_and_still_tells_of_old_ones(server: Any) -> None:
    task = await begin(server, "say 1 words")
    server.drain.begin()
    assert_error(await server.ask("POST", TASKS, headers=bearer(), json=script("say 1 words")), 503, "draining")
    assert (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).status == 200


# Looking


async def test_a_completed_task_in_full(server: Any, engine: Any) -> None:
    task = await begin(server, 'say "Hello world"', session_id="s-1")
    await until(engine, task, "STREAM_END")
    answer = await server.ask("GET", f"{TASKS}/{task}", headers=bearer())
    assert answer.headers["x-workflow-id"] == task
    found = answer.json
    usage = found.pop("usage")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    created, completed = found.pop("created_at"), found.pop("completed_at")
    assert TIME.fullmatch(created)
    assert TIME.fullmatch(completed)
    assert created <= completed
    assert found.pop("started_at") is None or TIME.fullmatch(answer.json["started_at"])
    assert found == {
        "task_id": task,
        "workflow_id": task,
        "status": "COMPLETED",
        "result": "Hello world",
        "error": None,
        "query": '/script\nsay "Hello world"',
        "session_id": "s-1",
        "model_used": "headgate-demo",
        "cached_from": None,
        "progress": 1.0,
        "metadata": None,
    }


async def test_a_failed_task_says_why(server: Any, engine: Any) -> None:
    task = await begin(server, 'status 400 "That is not possible"')
    await until(engine, task, "STREAM_END")
    found = (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json
    assert (found["status"], found["result"], found["progress"]) == ("FAILED", None, 0.0)
    assert "That is not possible" in found["error"]


async def test_a_running_task_has_no_result_yet(server: Any, engine: Any) -> None:
    task = await begin(server, 'say "Hello"; hang')
    await until(engine, task, "LLM_PARTIAL")
    found = (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json
    assert (found["status"], found["result"], found["error"], found["completed_at"]) == ("RUNNING", None, None, None)
    assert found["progress"] == 0.0


# Listing


async def test_listing_pages_and_filters(server: Any, engine: Any) -> None:
    """Newest first; ids sort by their creation, and those of one millisecond have no other order."""
    tasks = [await begin(server, "say 1 words", session_id=f"s-{number % 2}") for number in range(5)]
    for task in tasks:
        await until(engine, task, "STREAM_END")
    running = await begin(server, 'say "x"; hang', session_id="s-1")
    await until(engine, running, "LLM_PARTIAL")
    newest_first = sorted([running, *tasks], reverse=True)
    mine = [sorted(tasks[number::2], reverse=True) for number in (0, 1)]

    async def listed(query: str) -> tuple[list[str], int]:
        answer = await server.ask("GET", f"{TASKS}?{query}", headers=bearer())
        assert answer.status == 200, answer
        return [task["task_id"] for task in answer.json["tasks"]], answer.json["total_count"]

    assert await listed("") == (newest_first, 6)
    assert await listed("limit=2") == (newest_first[:2], 6)
    assert await listed("limit=2&offset=4") == (newest_first[4:], 6)
    assert await listed("offset=99") == ([], 6)
    assert await listed("session_id=s-0") == (mine[0], 3)
    assert await listed("status=RUNNING") == ([running], 1)
    assert await listed("status=COMPLETED&session_id=s-1&limit=1") == (mine[1][:1], 2)
    assert await listed("status=TIMEOUT") == ([], 0)
    assert await listed("session_id=unknown") == ([], 0)
    summary = (await server.ask("GET", f"{TASKS}?limit=1", headers=bearer())).json["tasks"][0]
    assert set(summary) == {
        "task_id",
        "workflow_id",
        "status",
        "query",
        "session_id",
        "model_used",
        "created_at",
        "started_at",
        "completed_at",
        "metadata",
    }


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=",
        "limit=1.0",
        "limit=1e1",
        "limit=%D9%A1",
        "limit=18446744073709551616",
        "limit=+5",
        "limit=5&limit=6",
        "offset=-1",
        "offset=x",
        "offset=99999999999999999",
        "status=running",
        "status=DONE",
        "status=",
        "session_id=a%20b",
        "session_id=",
    ],
)
async def test_a_listing_that_cannot_be_meant_is_a_400(server: Any, query: str) -> None:
    name = query.partition("=")[0]
    assert_error(await server.ask("GET", f"{TASKS}?{query}", headers=bearer()), 400, says=f"'{name}'")


async def test_listings_hold_only_the_tenants_own(server: Any) -> None:
    await begin(server, "say 1 words", session_id="s-1")
    for query in ("", "?session_id=s-1", "?status=COMPLETED"):
        answer = await server.ask("GET", TASKS + query, headers=bearer("sk-b"))
        assert answer.json == {"tasks": [], "total_count": 0}


# Events


async def test_events_page_by_page_are_all_events_once(server: Any, engine: Any) -> None:
    task = await begin(server, "say 10 words")
    await until(engine, task, "STREAM_END")
    whole = (await server.ask("GET", f"{TASKS}/{task}/events?limit=1000", headers=bearer())).json
    assert [event["seq"] for event in whole["events"]] == list(range(1, len(whole["events"]) + 1))
    assert whole["complete"] is True
    assert whole["next_after"] == len(whole["events"])
    assert [event["type"] for event in whole["events"]][:2] == ["WORKFLOW_STARTED", "AGENT_STARTED"]
    assert [event["type"] for event in whole["events"]][-2:] == ["WORKFLOW_COMPLETED", "STREAM_END"]
    for event in whole["events"]:
        assert event["workflow_id"] == task
        assert TIME.fullmatch(event["timestamp"])
        assert re.fullmatch(rf"\d+-{event['seq']}", event["stream_id"])
    paged, after, complete = [], 0, False
    while not complete:
        page = (await server.ask("GET", f"{TASKS}/{task}/events?limit=4&after={after}", headers=bearer())).json
        assert len(page["events"]) <= 4
        paged += page["events"]
        after, complete = page["next_after"], page["complete"]
    assert paged == whole["events"]


async def test_events_of_some_types(server: Any, engine: Any) -> None:
    task = await begin(server, "say 10 words")
    await until(engine, task, "STREAM_END")
    query = "types=LLM_OUTPUT,WORKFLOW_COMPLETED,X_MINE,&limit=1"
    first = (await server.ask("GET", f"{TASKS}/{task}/events?{query}", headers=bearer())).json
    assert ([event["type"] for event in first["events"]], first["complete"]) == (["LLM_OUTPUT"], False)
    second = await server.ask("GET", f"{TASKS}/{task}/events?{query}&after={first['next_after']}", headers=bearer())
    assert [event["type"] for event in second.json["events"]] == ["WORKFLOW_COMPLETED"]
    third = await server.ask("GET", f"{TASKS}/{task}/events?{query}&after={second.json['next_after']}", headers=bearer())
    assert (third.json["events"], third.json["complete"]) == ([], True)


async def test_events_of_a_running_task_are_not_complete(server: Any, engine: Any) -> None:
    task = await begin(server, 'say "x"; hang')
    await until(engine, task, "LLM_PARTIAL")
    page = (await server.ask("GET", f"{TASKS}/{task}/events", headers=bearer())).json
    assert page["complete"] is False
    beyond = await server.ask("GET", f"{TASKS}/{task}/events?after={page['next_after']}", headers=bearer())
    assert beyond.json == {"events": [], "next_after": page["next_after"], "complete": False}


@pytest.mark.parametrize(
    "query",
    ["after=-1", "after=x", "after=1-1", "after=18446744073709551616", "after=1&after=2", "limit=0", "limit=1001", "types=NOPE"],
)
async def test_events_that_cannot_be_meant_are_a_400(server: Any, query: str) -> None:
    task = await begin(server, "say 1 words")
    name = query.partition("=")[0]
    answer = await server.ask("GET", f"{TASKS}/{task}/events?{query}", headers=bearer())
    assert_error(answer, 400, says="NOPE" if name == "types" else f"'{name}'")


# Timeline and stream


async def test_a_task_that_is_not_durable_has_an_empty_timeline(server: Any) -> None:
    task = await begin(server, "say 1 words")
    for query, mode in {"": "summary", "?mode=summary": "summary", "?mode=full": "full"}.items():
        answer = await server.ask("GET", f"{TASKS}/{task}/timeline{query}", headers=bearer())
        assert answer.json == {"task_id": task, "workflow_id": task, "mode": mode, "events": []}
    assert_error(await server.ask("GET", f"{TASKS}/{task}/timeline?mode=long", headers=bearer()), 400, says="'mode'")


async def test_the_stream_of_a_task_is_elsewhere(server: Any) -> None:
    task = await begin(server, "say 1 words")
    plain = await server.ask("GET", f"{TASKS}/{task}/stream", headers=bearer(), allow_redirects=False)
    assert (plain.status, plain.headers["location"]) == (307, f"/api/v1/stream/sse?workflow_id={task}")
    assert plain.headers["x-workflow-id"] == task
    query = "types=LLM_OUTPUT%2CX_A&last_event_id=1-1%26x%3D%0d%0aSet-Cookie:y&other=z"
    escaped = await server.ask("GET", f"{TASKS}/{task}/stream?{query}", headers=bearer(), allow_redirects=False)
    assert escaped.status == 307
    assert escaped.headers["location"] == (
        f"/api/v1/stream/sse?workflow_id={task}&types=LLM_OUTPUT%2CX_A&last_event_id=1-1%26x%3D%0D%0ASet-Cookie%3Ay"
    )
    assert "set-cookie" not in escaped.headers


# Whose


@pytest.mark.parametrize("part", ["", "/events", "/timeline", "/stream", "/control-state"])
async def test_a_foreign_task_is_like_one_that_never_was(server: Any, part: str) -> None:
    task = await begin(server, "say 1 words")
    await assert_hidden(server, "GET", f"{TASKS}/{{}}{part}", task)


@pytest.mark.parametrize("part", ["", "/events", "/timeline", "/stream", "/control-state"])
async def test_what_cannot_be_an_id_is_like_one_that_never_was(server: Any, part: str) -> None:
    for name in [MISSING, *NOT_IDS]:
        answer = await server.ask("GET", f"{TASKS}/{name}{part}", headers=bearer())
        assert_error(answer, 404, "run_not_found")
        assert "x-workflow-id" not in answer.headers
