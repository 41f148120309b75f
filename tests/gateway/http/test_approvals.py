"""Decisions that tasks wait for, over HTTP. What they are is published from outside, as a user's worker does it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine import Publication, PublishedEvent
from tests.gateway.http.native import ALICE, MISSING, NOT_IDS, assert_error, bearer, begin, settings
from tests.orchestrator.engines import until

APPROVALS = "/api/v1/approvals"
DECISION = f"{APPROVALS}/decision"


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


async def request_approval(engine: Any, task: str, approval_id: str, **payload: Any) -> None:
    event = PublishedEvent("APPROVAL_REQUESTED", payload={"approval_id": approval_id, **payload})
    await engine.publish(ALICE, task, Publication(f"worker-{approval_id}", 1, 1, [event]))


async def decide(server: Any, key: str = "sk-a", **body: Any) -> Any:
    return await server.ask("POST", DECISION, headers=bearer(key), json=body)


async def test_what_is_waited_for_is_listed_oldest_first(server: Any, engine: Any) -> None:
    first = await begin(server, "hang", session_id="s-1")
    second = await begin(server, "hang", session_id="s-2")
    await request_approval(
        engine, first, "a-1", proposed_action="delete it", reason="it is old", expires_at="2030-01-01T00:00:00.000Z"
    )
    await request_approval(engine, second, "a-2", metadata={"risk": "high"})
    listed = (await server.ask("GET", APPROVALS, headers=bearer())).json
    assert set(listed) == {"approvals"}
    assert sorted(each["approval_id"] for each in listed["approvals"]) == ["a-1", "a-2"]
    found = {each["approval_id"]: each for each in listed["approvals"]}
    assert found["a-1"].pop("requested_at").endswith("Z")
    assert found["a-1"] == {
        "approval_id": "a-1",
        "workflow_id": first,
        "query": "/script\nhang",
        "session_id": "s-1",
        "proposed_action": "delete it",
        "reason": "it is old",
        "expires_at": "2030-01-01T00:00:00.000Z",
        "metadata": None,
    }
    assert found["a-2"]["metadata"] == {"risk": "high"}
    of_one = (await server.ask("GET", f"{APPROVALS}?session_id=s-2", headers=bearer())).json
    assert [each["approval_id"] for each in of_one["approvals"]] == ["a-2"]
    assert (await server.ask("GET", APPROVALS, headers=bearer("sk-b"))).json == {"approvals": []}
    assert_error(await server.ask("GET", f"{APPROVALS}?session_id=a%20b", headers=bearer()), 400, says="'session_id'")


@pytest.mark.parametrize("approved", [True, False])
async def test_a_decision_is_made_once(server: Any, engine: Any, approved: bool) -> None:
    task = await begin(server, "hang")
    await request_approval(engine, task, "a-1", proposed_action="delete it")
    asked = {"workflow_id": task, "approval_id": "a-1", "approved": approved, "feedback": "go easy"}
    answer = await decide(server, **asked)
    assert answer.status == 200
    assert answer.json == {
        "success": True,
        "message": "Approved." if approved else "Denied.",
        "workflow_id": task,
        "approval_id": "a-1",
    }
    assert answer.headers["x-workflow-id"] == task
    decided = (await until(engine, task, "APPROVAL_DECISION"))[-1].payload or {}
    told = {name: decided.get(name) for name in ("approval_id", "approved", "feedback", "decided_by")}
    assert told == {"approval_id": "a-1", "approved": approved, "feedback": "go easy", "decided_by": "alice"}
    assert (await server.ask("GET", APPROVALS, headers=bearer())).json == {"approvals": []}
    assert_error(await decide(server, **{**asked, "approved": not approved}), 409, "approval_decided")


async def test_a_decision_that_nobody_waits_for_is_a_404(server: Any) -> None:
    task = await begin(server, "hang")
    assert_error(await decide(server, workflow_id=task, approval_id="a-9", approved=True), 404, "approval_not_found")


async def test_an_ended_task_waits_for_nothing(server: Any, engine: Any) -> None:
    task = await begin(server, "hang")
    await request_approval(engine, task, "a-1")
    await server.ask("POST", f"/api/v1/tasks/{task}/cancel", headers=bearer())
    await until(engine, task, "STREAM_END")
    assert (await server.ask("GET", APPROVALS, headers=bearer())).json == {"approvals": []}
    assert_error(await decide(server, workflow_id=task, approval_id="a-1", approved=True), 409, "run_ended")


async def test_nobody_decides_for_a_foreign_task(server: Any, engine: Any) -> None:
    task = await begin(server, "hang")
    await request_approval(engine, task, "a-1")
    headers = {"x-request-id": "same"}
    bodies = [{"workflow_id": named, "approval_id": "a-1", "approved": True} for named in (task, MISSING, *NOT_IDS)]
    answers = [await server.ask("POST", DECISION, headers=bearer("sk-b", **headers), json=body) for body in bodies]
    assert {answer.status for answer in answers} == {404}
    assert len({answer.body for answer in answers}) == 1
    assert len((await server.ask("GET", APPROVALS, headers=bearer())).json["approvals"]) == 1


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"workflow_id": ...}, "missing_required_parameter", "'workflow_id'"),
        ({"approval_id": ...}, "missing_required_parameter", "'approval_id'"),
        ({"approved": ...}, "missing_required_parameter", "'approved'"),
        ({"approved": "yes"}, "invalid_type", "'approved'"),
        ({"approved": 1}, "invalid_type", "'approved'"),
        ({"approval_id": ""}, "invalid_value", "'approval_id'"),
        ({"workflow_id": None}, "invalid_type", "'workflow_id'"),
        ({"feedback": {}}, "invalid_type", "'feedback'"),
        ({"decided_by": "the queen"}, "unknown_parameter", "'decided_by'"),
    ],
)
async def test_a_decision_that_does_not_fit_decides_nothing(
    server: Any, engine: Any, change: dict[str, Any], code: str, says: str
) -> None:
    task = await begin(server, "hang")
    await request_approval(engine, task, "a-1")
    body = {"workflow_id": task, "approval_id": "a-1", "approved": True} | change
    answer = await decide(server, **{name: value for name, value in body.items() if value is not ...})
    assert_error(answer, 422, code, says)
    assert len((await server.ask("GET", APPROVALS, headers=bearer())).json["approvals"]) == 1
