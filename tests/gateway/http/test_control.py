"""Cancelling, pausing and resuming tasks, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.http.native import MISSING, NOT_IDS, TASKS, assert_error, assert_hidden, bearer, begin, settings
from tests.orchestrator.engines import until

VERBS = ["cancel", "pause", "resume"]
NOTHING_ASKED = {
    "is_paused": False,
    "is_cancelled": False,
    "paused_at": None,
    "pause_reason": None,
    "paused_by": None,
    "cancel_reason": None,
    "cancelled_by": None,
}


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


async def control(server: Any, task: str, verb: str, **options: Any) -> Any:
    return await server.ask("POST", f"{TASKS}/{task}/{verb}", headers=bearer(), **options)


async def state(server: Any, task: str) -> Any:
    return (await server.ask("GET", f"{TASKS}/{task}/control-state", headers=bearer())).json


async def test_a_cancelled_task_stops_and_says_why(server: Any, engine: Any, witness: Any) -> None:
    task = await begin(server, 'say "x"; hang')
    await until(engine, task, "LLM_PARTIAL")
    assert await state(server, task) == NOTHING_ASKED
    answer = await control(server, task, "cancel", json={"reason": "no longer needed"})
    assert answer.status == 202
    assert answer.json == {"success": True, "message": "The task is being cancelled.", "task_id": task}
    assert answer.headers["x-workflow-id"] == task
    events = await until(engine, task, "STREAM_END")
    told = [event.type for event in events if event.type.startswith("WORKFLOW_")]
    assert told == ["WORKFLOW_STARTED", "WORKFLOW_CANCELLING", "WORKFLOW_CANCELLED"]
    assert (events[-2].payload or {})["reason"] == "no longer needed"
    asked = {"is_cancelled": True, "cancel_reason": "no longer needed", "cancelled_by": "alice"}
    assert await state(server, task) == NOTHING_ASKED | asked
    assert (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json["status"] == "CANCELLED"


async def test_cancelling_twice_is_once(server: Any, engine: Any) -> None:
    task = await begin(server, "hang")
    for _ in range(2):
        assert (await control(server, task, "cancel")).status == 202
    events = await until(engine, task, "STREAM_END")
    assert [event.type for event in events].count("WORKFLOW_CANCELLED") == 1
    assert (await control(server, task, "cancel")).status == 202


@pytest.mark.parametrize(("text", "ended"), [('say "x"', "COMPLETED"), ("status 400", "FAILED")])
async def test_cancelling_what_has_ended_is_a_409_that_says_how(server: Any, engine: Any, text: str, ended: str) -> None:
    task = await begin(server, text)
    await until(engine, task, "STREAM_END")
    assert_error(await control(server, task, "cancel"), 409, "run_ended", ended)


async def test_a_task_pauses_stands_still_and_goes_on(server: Any, engine: Any) -> None:
    task = await begin(server, 'say "one two "; once hang; say "three"')
    await until(engine, task, "LLM_PARTIAL", count=2)
    answer = await control(server, task, "pause", json={"reason": "let me read"})
    assert (answer.status, answer.json["success"]) == (202, True)
    paused = (await until(engine, task, "WORKFLOW_PAUSED"))[-1]
    asked = {"is_paused": True, "paused_at": paused.timestamp, "pause_reason": "let me read", "paused_by": "alice"}
    assert await state(server, task) == NOTHING_ASKED | asked
    assert (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json["status"] == "PAUSED"
    listed = (await server.ask("GET", f"{TASKS}?status=PAUSED", headers=bearer())).json
    assert [each["task_id"] for each in listed["tasks"]] == [task]
    assert_error(await control(server, task, "pause"), 409, "run_paused")
    assert (await control(server, task, "resume")).status == 202
    await until(engine, task, "STREAM_END")
    found = (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json
    assert (found["status"], found["result"]) == ("COMPLETED", "one two three")


async def test_the_wrong_state_is_a_409(server: Any, engine: Any) -> None:
    task = await begin(server, "hang")
    assert_error(await control(server, task, "resume"), 409, "run_not_paused")
    await control(server, task, "cancel")
    await until(engine, task, "STREAM_END")
    for verb in ("pause", "resume"):
        assert_error(await control(server, task, verb), 409, "run_ended")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("options", [{}, {"json": {}}, {"json": {"reason": None}}, {"data": b""}])
async def test_a_reason_may_be_left_out(server: Any, verb: str, options: dict[str, Any]) -> None:
    task = await begin(server, "hang")
    if verb == "resume":
        await control(server, task, "pause")
    assert (await control(server, task, verb, **options)).status == 202


@pytest.mark.parametrize("verb", VERBS)
async def test_a_body_that_does_not_fit_asks_nothing(server: Any, verb: str) -> None:
    task = await begin(server, "hang")
    for body, status, code in [
        ({"json": {"reason": 5}}, 422, "invalid_type"),
        ({"json": {"reason": "x" * 1001}}, 422, "invalid_value"),
        ({"json": {"raeson": "x"}}, 422, "unknown_parameter"),
        ({"data": b"[]", "headers": bearer(**{"Content-Type": "application/json"})}, 400, "invalid_json"),
        ({"data": b"reason=x", "headers": bearer(**{"Content-Type": "text/plain"})}, 415, "unsupported_media_type"),
    ]:
        options = {"headers": bearer(), **body}
        answer = await server.ask("POST", f"{TASKS}/{task}/{verb}", **options)
        assert_error(answer, status, code)
    assert await state(server, task) == NOTHING_ASKED


@pytest.mark.parametrize("verb", VERBS)
async def test_nobody_controls_a_foreign_task(server: Any, verb: str) -> None:
    task = await begin(server, "hang")
    await assert_hidden(server, "POST", f"{TASKS}/{{}}/{verb}", task)
    await assert_hidden(server, "POST", f"{TASKS}/{{}}/{verb}", task, json={"reason": "mine now"})
    assert await state(server, task) == NOTHING_ASKED


@pytest.mark.parametrize("verb", VERBS)
async def test_what_cannot_be_an_id_is_like_one_that_never_was(server: Any, verb: str) -> None:
    for name in [MISSING, *NOT_IDS]:
        assert_error(await control(server, name, verb), 404, "run_not_found")
