"""The native REST routes, a test for each row of native.md §5. Cancel, pause and control state: test_doors_together.py."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from compat_tests.doors import DOORS, MISSING, SSE, TASKS, Event, Refused, Server
from compat_tests.manifest import promise
from compat_tests.raw import Answer, script
from compat_tests.stage import staged
from compat_tests.watch import reading

SUMMARY = {
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
TASK = SUMMARY | {"result", "error", "usage", "progress", "cached_from"}


@pytest.fixture
def session() -> str:
    """A session of this test's own."""
    return f"session-{uuid.uuid4().hex}"


def finished(server: Server, *lines: str, model: str = "demo-none", **fields: Any) -> str:
    """A task that has ended."""
    run = server.submit(model, script(*lines), **fields)
    assert list(reading(DOORS["sse"], server, run))
    return run


def until(server: Server, path: str, settled: Any) -> Any:
    """The answer at `path` as soon as it is so: what is archived is listed from elsewhere, a moment later."""
    begun = time.monotonic()
    while not settled(answer := server.raw.send("GET", path).json):
        assert time.monotonic() - begun < 10, answer
    return answer


@promise("rest.submit")
def test_a_task_is_submitted(here: Server, session: str) -> None:
    """native.md §5: 200, `X-Workflow-ID`, `X-Session-ID`; every documented field is taken."""
    task = {
        "query": script('say "hi"'),
        "session_id": session,
        "context": {"system_prompt": "Be brief.", "more": [1]},
        "mode": "standard",
        "model": "demo-none",
        "model_tier": "small",
        "model_override": "demo",
        "metadata": {"ticket": 7},
    }
    answer = here.raw.send("POST", TASKS, task)
    assert answer.status == 200
    assert answer.json.keys() == {"task_id", "workflow_id", "status", "message", "created_at"}
    assert answer.json["task_id"] == answer.json["workflow_id"] == answer.run
    assert answer.headers["x-session-id"] == session
    found = here.task(answer.run)
    assert (found["session_id"], found["model_used"], found["metadata"]["ticket"]) == (session, "demo-none", 7)
    assert here.raw.send("POST", TASKS, {"query": "hi", "model": "demo"}).headers["x-session-id"]


@promise("rest.submit", "native.errors")
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"{}", 422, "missing_required_parameter"),
        (b'{"query": ""}', 422, None),
        (b'{"query": "hi", "qeury": "ho"}', 422, None),
        (b'{"query": "hi", "model": "nothing-of-this-name/at-all"}', 404, "model_not_found"),
        (b'{"query": "%s", "model": "demo"}' % (b"x" * (64 << 10)), 413, "body_too_large"),
    ],
)
def test_what_is_no_task_is_refused(there: Server, body: bytes, status: int, code: str | None) -> None:
    """native.md §5: with the right status, and the one shape of errors."""
    answer = there.raw.send("POST", TASKS, headers={"Content-Type": "application/json"}, data=body)
    assert answer.status == status
    assert answer.error.keys() == {"code", "message", "request_id"}
    assert code in (None, answer.error["code"])


@promise("native.errors", "doors.key", "doors.foreign-run")
def test_refusals_have_their_statuses(here: Server, there: Server, mallory: Server, nobody: Server) -> None:
    """native.md §5: 401, 404 for what is missing and for what is another's, 405, 415; on every route of a task."""
    run = here.submit("demo-none", script('say "hi"'))
    for path in ("", "/events", "/timeline", "/control-state", "/stream"):
        assert there.raw.send("GET", f"{TASKS}/{run}{path}").status in (200, 307)
        told = [same(mallory.raw.send("GET", f"{TASKS}/{named}{path}", headers=SAME)) for named in (run, MISSING, "nobody")]
        assert told[0] == told[1] == told[2] == (404, "run_not_found")
        assert same(nobody.raw.send("GET", f"{TASKS}/{run}{path}")) == (401, "invalid_api_key")
    assert same(here.raw.send("DELETE", f"{TASKS}/{run}")) == (405, "method_not_allowed")
    assert same(here.raw.send("GET", "/api/v1/nothing")) == (404, "route_not_found")
    assert same(here.raw.send("POST", TASKS, data=b"query=hi", headers={"Content-Type": "text/plain"})) == (
        415,
        "unsupported_media_type",
    )


SAME = {"x-request-id": "same"}


def same(answer: Answer) -> tuple[int, str]:
    assert answer.error.keys() == {"code", "message", "request_id"}
    return answer.status, answer.error["code"]


@promise("rest.idempotency")
def test_one_idempotency_key_is_one_task(here: Server, there: Server) -> None:
    """native.md §5, P12: also of concurrent callers at two replicas. Another body with it is a conflict."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    task = {"query": script('say "hi"'), "model": "demo"}
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda server: server.raw.send("POST", TASKS, task, key), [here, there] * 4))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["task_id"] for answer in answers}) == 1
    other = there.raw.send("POST", TASKS, {**task, "query": "something else"}, key)
    assert (other.status, other.error["code"]) == (409, "idempotency_key_reused")


@promise("rest.submit-stream")
def test_a_task_is_submitted_to_be_watched(here: Server) -> None:
    """native.md §5: 201, with its stream in the body and in `Link`."""
    answer = here.raw.send("POST", f"{TASKS}/stream", {"query": script('say "hi"'), "model": "demo-none"})
    assert answer.status == 201
    assert answer.headers["link"] == f"<{answer.json['stream_url']}>; rel=stream"
    assert answer.headers["x-workflow-id"] == answer.json["workflow_id"]
    assert here.raw.send("GET", answer.json["stream_url"]).body.endswith(b"event: done\ndata: [DONE]\n\n")


@promise("rest.list")
def test_tasks_are_listed(here: Server, there: Server, mallory: Server, session: str) -> None:
    """native.md §5: newest first, by page, session and state, with the count of all; of the own tenant only."""
    runs = [finished(here, f'say "{number}"', session_id=session) for number in range(3)]
    runs.append(finished(here, "status 503", session_id=session))
    of_session = f"{TASKS}?session_id={session}"
    for server in (here, there):
        found = until(server, of_session, lambda found: found["total_count"] == 4)
        assert [task["task_id"] for task in found["tasks"]] == runs[::-1]
        assert all(task.keys() == SUMMARY for task in found["tasks"])
        pages = [server.raw.send("GET", f"{of_session}&limit=2&offset={offset}").json for offset in (0, 2, 4)]
        assert [[task["task_id"] for task in page["tasks"]] for page in pages] == [runs[:1:-1], runs[1::-1], []]
        assert {page["total_count"] for page in pages} == {4}
        failed = server.raw.send("GET", f"{of_session}&status=FAILED").json
        assert ([task["task_id"] for task in failed["tasks"]], failed["total_count"]) == (runs[3:], 1)
    assert mallory.raw.send("GET", of_session).json == {"tasks": [], "total_count": 0}
    assert len(here.raw.send("GET", TASKS).json["tasks"]) <= 20


@promise("rest.list", "native.errors")
@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "offset=-1", "status=DONE", "limit=1&limit=2"])
def test_a_page_that_cannot_be_is_refused(here: Server, query: str) -> None:
    """native.md §5: `limit` is 1 to 100, and states have names."""
    assert here.raw.send("GET", f"{TASKS}?{query}").status == 400


@promise("rest.task")
def test_a_task_tells_how_it_stands(here: Server, there: Server) -> None:
    """native.md §5: while it goes on, completed, and failed."""
    with staged(here) as stage:
        task = there.task(stage.run)
        assert (task["status"], task["result"], task["error"], task["completed_at"]) == ("RUNNING", None, None, None)
    completed = there.task(finished(here, 'say "well done"', "usage 3 4", metadata={"a": 1}))
    failed = there.task(finished(here, 'say "well"', 'error "No more."'))
    for task in (completed, failed):
        assert task.keys() == TASK
        assert task["created_at"] <= task["started_at"] <= task["completed_at"]
    assert (completed["status"], completed["result"], completed["progress"]) == ("COMPLETED", "well done", 1)
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "estimated": False}
    assert completed["usage"].items() >= usage.items()
    assert completed["metadata"] == {"a": 1}
    assert (failed["status"], failed["result"], failed["error"]) == ("FAILED", None, "No more.")


@promise("rest.stream-redirect")
def test_a_tasks_stream_is_a_redirect(here: Server) -> None:
    """native.md §5: 307 to the event stream, with the query handed on and escaped."""
    run = finished(here, 'say "hi"')
    position = here.log(run)[0]["stream_id"]
    answer = here.raw.send("GET", f"{TASKS}/{run}/stream?types=LLM_OUTPUT%2CX_A&last_event_id={quote(position)}")
    assert answer.status == 307
    target = urlsplit(answer.headers["location"])
    assert target.path == SSE
    assert dict(parse_qsl(target.query)) == {"workflow_id": run, "types": "LLM_OUTPUT,X_A", "last_event_id": position}
    assert here.raw.send("GET", answer.headers["location"]).events[-1].event == "done"


@promise("rest.events")
def test_events_are_read_page_by_page(here: Server, there: Server) -> None:
    """native.md §5: keyset paging by `seq`, filtered or not, to a page that says that it is the last."""
    run = finished(here, "say 20 words")
    log = here.log(run)
    for limit in (1, 7, 1000):
        assert paged(there, run, limit=limit) == log
    assert paged(there, run, limit=2, types="LLM_OUTPUT,STREAM_END") == [log[-4], log[-1]]
    assert len(here.page(run)["events"]) == len(log) < 100
    with staged(here) as stage:
        page = there.page(stage.run)
        assert (len(page["events"]), page["next_after"], page["complete"]) == (2, 2, False)
        assert there.page(stage.run, after=2) == {"events": [], "next_after": 2, "complete": False}
    for query in ("limit=0", "limit=1001", "after=-1", "after=x", "types=NOPE"):
        assert here.raw.send("GET", f"{TASKS}/{run}/events?{query}").status == 400


def paged(server: Server, run: str, **query: Any) -> list[Event]:
    events: list[Event] = []
    after = 0
    while True:
        page = server.page(run, after=after, **query)
        assert len(page["events"]) <= query["limit"]
        events += page["events"]
        after = page["next_after"]
        if page["complete"]:
            return events


@promise("rest.timeline")
def test_the_timeline_is_what_temporal_did(here: Server, there: Server) -> None:
    """native.md §5: readable, in order, read-only; `full` has more. A run without Temporal has none."""
    run = finished(here, 'say "hi"', model="demo")
    path = f"{TASKS}/{run}/timeline"
    summary = until(here, path, lambda found: found["events"][-1]["type"] == "WF_COMPLETED")
    kinds = [event["type"] for event in summary["events"]]
    assert kinds[0] == "WF_STARTED"
    assert {"ACT_SCHEDULED", "ACT_COMPLETED"} <= set(kinds)
    full = there.raw.send("GET", f"{path}?mode=full").json
    assert len(full["events"]) > len(kinds)
    numbers = [event["event_id"] for event in full["events"]]
    assert numbers == sorted(numbers)
    assert here.raw.send("GET", path).json == summary
    assert here.raw.send("GET", f"{path}?mode=all").status == 400
    assert here.raw.send("GET", f"{TASKS}/{finished(here, 'say 1 word')}/timeline").json["events"] == []


@promise("rest.pause", "native.errors")
def test_a_reason_may_be_left_out(here: Server) -> None:
    """native.md §5: with or without a body; what is no reason is refused before anything happens."""
    with staged(here) as stage:
        path = f"{TASKS}/{stage.run}/pause"
        assert here.raw.send("POST", path, {"raeson": "x"}).status == 422
        assert here.raw.send("POST", path, {"reason": 7}).status == 422
        accepted = here.raw.send("POST", path)
        assert (accepted.status, accepted.json.keys()) == (202, {"success", "message", "task_id"})
        assert (accepted.json["success"], accepted.json["task_id"]) == (True, stage.run)


@promise("rest.approvals")
def test_approvals_are_listed_and_decided_once(here: Server, there: Server, mallory: Server, session: str) -> None:
    """native.md §5: 200, then 409; the run is told who decided what."""
    path = f"/api/v1/approvals?session_id={session}"
    with staged(here, session_id=session) as stage:
        stage.ask_approval("approval-1")
        (pending,) = there.raw.send("GET", path).json["approvals"]
        assert (pending["workflow_id"], pending["approval_id"], pending["proposed_action"]) == (stage.run, "approval-1", "pay")
        assert mallory.raw.send("GET", path).json == {"approvals": []}
        decision = {"workflow_id": stage.run, "approval_id": "approval-1", "approved": True, "feedback": "go ahead"}
        assert same(mallory.raw.send("POST", "/api/v1/approvals/decision", decision)) == (404, "run_not_found")
        assert there.raw.send("POST", "/api/v1/approvals/decision", decision).status == 200
        said = stage.log()[-1]
        assert said["type"] == "APPROVAL_DECISION"
        assert said["payload"] == {"approval_id": "approval-1", "approved": True, "feedback": "go ahead", "decided_by": "alice"}
        assert same(here.raw.send("POST", "/api/v1/approvals/decision", decision)) == (409, "approval_decided")
        unknown = {**decision, "approval_id": "approval-2"}
        assert same(here.raw.send("POST", "/api/v1/approvals/decision", unknown)) == (404, "approval_not_found")
        assert there.raw.send("GET", path).json == {"approvals": []}


@promise("rest.sessions")
def test_tasks_are_grouped_by_session(here: Server, there: Server, mallory: Server, session: str) -> None:
    """native.md §5: listed, looked at, read as history and as events, named, and forgotten."""
    runs = [finished(here, f'say "answer {number}"', session_id=session) for number in range(2)]
    path = f"/api/v1/sessions/{session}"
    found = until(there, path, lambda found: found.get("task_count") == 2)
    assert (found["session_id"], found["title"]) == (session, None)
    assert session in [each["session_id"] for each in here.raw.send("GET", "/api/v1/sessions").json["sessions"]]
    history = there.raw.send("GET", f"{path}/history").json
    assert [(task["task_id"], task["result"]) for task in history["tasks"]] == [
        (run, f"answer {n}") for n, run in enumerate(runs)
    ]
    turns = there.raw.send("GET", f"{path}/events").json["turns"]
    assert [turn["task_id"] for turn in turns] == runs
    for turn, run in zip(turns, runs, strict=True):
        assert turn["events"] == [event for event in here.log(run) if event["type"] != "LLM_PARTIAL"]
    assert there.raw.send("PATCH", path, {"title": "Two answers"}).json["title"] == "Two answers"
    assert here.raw.send("GET", path).json["title"] == "Two answers"
    for more in ("", "/history", "/events"):
        assert same(mallory.raw.send("GET", path + more)) == (404, "session_not_found")
    assert here.raw.send("DELETE", path).status == 204
    assert same(there.raw.send("GET", path)) == (404, "session_not_found")


@promise("rest.tickets")
def test_a_ticket_opens_streams_and_nothing_else(there: Server, nobody: Server, mallory: Server) -> None:
    """native.md §5: a minute, for one run or for all of one's own; good for whoever cannot send a key."""
    run, other = (finished(there, 'say "hi"') for _ in range(2))
    issued = there.raw.send("POST", "/api/v1/stream/tickets", {"workflow_id": run})
    assert (issued.status, issued.json.keys()) == (200, {"ticket", "expires_at"})
    left_s = time.mktime(time.strptime(issued.json["expires_at"][:19], "%Y-%m-%dT%H:%M:%S")) - time.mktime(time.gmtime())
    assert 50 <= left_s <= 61
    one, every = issued.json["ticket"], there.raw.send("POST", "/api/v1/stream/tickets").json["ticket"]
    for named, ticket in ((run, one), (run, every), (other, every)):
        assert nobody.raw.send("GET", f"{SSE}?workflow_id={named}&ticket={ticket}").events[-1].event == "done"
        with nobody.socket(named, ticket=ticket) as connection:
            assert len(list(connection)) == len(there.log(named))
    assert same(nobody.raw.send("GET", f"{SSE}?workflow_id={other}&ticket={one}")) == (404, "run_not_found")
    assert same(nobody.raw.send("GET", f"{SSE}?workflow_id={run}&ticket={one}x")) == (401, "invalid_api_key")
    assert same(nobody.raw.send("GET", f"{TASKS}/{run}?ticket={one}")) == (401, "invalid_api_key")
    assert same(mallory.raw.send("POST", "/api/v1/stream/tickets", {"workflow_id": run})) == (404, "run_not_found")
    with pytest.raises(Refused), nobody.socket(other, ticket=one):
        pass


@promise("rest.health")
def test_a_server_says_how_it_is(nobody: Server, there: Server) -> None:
    """native.md §5: to anybody, with each dependency and its state; its numbers to whoever has a key."""
    assert (nobody.raw.send("GET", "/health").status, nobody.raw.send("GET", "/health").json) == (200, {"status": "ok"})
    ready = nobody.raw.send("GET", "/readiness")
    assert (ready.status, ready.json["status"]) == (200, "ready")
    assert {name: each["ok"] for name, each in ready.json["dependencies"].items()} == {
        "redis": True,
        "temporal": True,
        "postgres": True,
    }
    assert nobody.raw.send("GET", "/metrics").status == 401
    assert b"headgate_active_streams" in there.raw.send("GET", "/metrics").body


@promise("rest.openapi")
def test_every_route_of_this_contract_is_described(nobody: Server) -> None:
    """native.md §5: `/openapi.json`, and a page of it at `/docs`."""
    paths = nobody.raw.send("GET", "/openapi.json").json["paths"]
    described = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}
    assert {f"{method} {path}" for method, path in (line.split() for line in ROUTES)} <= described
    page = nobody.raw.send("GET", "/docs")
    assert (page.status, page.headers["content-type"].split(";")[0]) == (200, "text/html")


ROUTES = """
POST /api/v1/tasks
POST /api/v1/tasks/stream
GET /api/v1/tasks
GET /api/v1/tasks/{id}
GET /api/v1/tasks/{id}/stream
GET /api/v1/tasks/{id}/events
GET /api/v1/tasks/{id}/timeline
GET /api/v1/tasks/{id}/control-state
POST /api/v1/tasks/{id}/cancel
POST /api/v1/tasks/{id}/pause
POST /api/v1/tasks/{id}/resume
GET /api/v1/approvals
POST /api/v1/approvals/decision
GET /api/v1/sessions
GET /api/v1/sessions/{id}
GET /api/v1/sessions/{id}/history
GET /api/v1/sessions/{id}/events
PATCH /api/v1/sessions/{id}
DELETE /api/v1/sessions/{id}
POST /api/v1/stream/tickets
GET /api/v1/stream/sse
GET /api/v1/stream/ws
GET /health
GET /readiness
GET /metrics
GET /openapi.json
""".strip().splitlines()
