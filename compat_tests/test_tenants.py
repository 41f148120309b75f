"""Two tenants of one Headgate, at every door: what is the other's looks, to the letter, like what never was."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import grpc
import pytest
from openai import APIStatusError, OpenAI

from compat_tests.doors import DOORS, MISSING, TASKS, WS, Refused, Server, operate
from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import CHAT, TIMEOUT_S, Answer, ask, script
from compat_tests.tenants import SECRET, Estate, estate, stored_key
from compat_tests.watch import seen
from protos import events_pb2, orchestrator_pb2, streaming_pb2
from protos import orchestrator_pb2 as tasks

NO_KEY = "key_" + "0" * 24
DECISION = "/api/v1/approvals/decision"


@pytest.fixture(scope="module")
def acme(nobody: Server, brisk_config: dict[str, Any]) -> Iterator[Estate]:
    """One tenant, and what it has."""
    with estate(nobody, brisk_config["grpc"]["port"]) as found:
        yield found


@pytest.fixture(scope="module")
def globex(nobody: Server, brisk_config: dict[str, Any]) -> Iterator[Server]:
    """All doors, for the other tenant."""
    with closing(Server(nobody.url, brisk_config["grpc"]["port"], stored_key(nobody, "globex")[0])) as server:
        yield server


class Asked(NamedTuple):
    """A request about something that has an id, or about `{run}` in the body."""

    route: str
    """As the description of the API names it."""
    path: str
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012 - nobody changes it


def about(path: str, *queries: str, method: str = "GET", route: str = "") -> list[Asked]:
    return [Asked(f"{method} {route or path}", path + query) for query in queries or ("",)]


COMPLETION = "/v1/chat/completions/{id}"
STREAMS = "/api/v1/stream"
POSITIONED = ("?workflow_id={id}", "?workflow_id={id}&last_event_id=1", "?workflow_id={id}&last_event_id=99-9")

RUNS = [
    *about(COMPLETION, "", "?stream=true", "?stream=true&starting_after=1"),
    Asked(f"GET {COMPLETION}", COMPLETION + "?stream=true", headers={"Last-Event-ID": "1-1"}),
    *about(COMPLETION + "/cancel", method="POST"),
    *about(TASKS + "/{id}"),
    *about(TASKS + "/{id}/stream"),
    *about(TASKS + "/{id}/events", "", "?after=1&types=LLM_OUTPUT"),
    *about(TASKS + "/{id}/timeline", "", "?mode=full"),
    *about(TASKS + "/{id}/control-state"),
    *[asked for op in ("cancel", "pause", "resume") for asked in about(f"{TASKS}/{{id}}/{op}", method="POST")],
    *about(f"{STREAMS}/sse", *POSITIONED),
    *about(f"{STREAMS}/progress", *POSITIONED),
    *about(f"{STREAMS}/multi", "?workflow_ids={id}", "?workflow_ids={id}&format=progress", "?workflow_ids={own},{id}"),
    Asked(f"POST {DECISION}", DECISION, {"workflow_id": "{id}", "approval_id": "publish", "approved": True}),
    Asked(f"POST {STREAMS}/tickets", f"{STREAMS}/tickets", {"workflow_id": "{id}"}),
]
"""What takes a run's id. To upgrade, `GET /api/v1/stream/ws` needs a client of its own; see below."""

SESSIONS = [
    *about("/api/v1/sessions/{id}"),
    *about("/api/v1/sessions/{id}/history"),
    *about("/api/v1/sessions/{id}/events"),
    Asked("PATCH /api/v1/sessions/{id}", "/api/v1/sessions/{id}", {"title": "Mine"}),
    *about("/api/v1/sessions/{id}", method="DELETE"),
    *about(TASKS, "?session_id={id}"),
    *about("/api/v1/approvals", "?session_id={id}"),
]

KEYS = [
    *about("/api/v1/auth/keys/{id}", method="DELETE"),
    *about("/api/v1/auth/keys/{id}/rotate", method="POST"),
]

LISTS = [
    TASKS,
    f"{TASKS}?status=COMPLETED",
    "/api/v1/sessions",
    "/api/v1/approvals",
    "/api/v1/usage?group_by=key,model,day",
    "/api/v1/auth/keys",
    "/v1/models",
]

ALIKE_FOR_ALL = {
    "GET /v1/models/{id}",
    "GET /health",
    "GET /readiness",
    "GET /metrics",
    "GET /",
    "GET /docs",
    "GET /openapi.json",
}
BEGINNING = {f"POST {CHAT}", f"POST {TASKS}", f"POST {TASKS}/stream", "POST /api/v1/execute", "POST /api/v1/auth/keys"}


def answered(server: Server, asked: Asked, place: str, own: str) -> tuple[Any, ...]:
    """All that is told: status, headers and body, but for the time, the request's id, and the id that was asked about."""

    def fill(text: str) -> str:
        return text.replace("{id}", place).replace("{own}", own)

    body = None if asked.body is None else json.loads(fill(json.dumps(asked.body)))
    answer = server.raw.send(asked.route.split()[0], fill(asked.path), body, asked.headers)
    hidden = {"date", "x-request-id", "location"}
    return answer.status, {k: v for k, v in answer.headers.items() if k not in hidden}, _same(answer, place)


def _same(answer: Answer, place: str) -> str:
    text = answer.body.decode().replace(place, "{id}").replace(answer.headers["x-request-id"], "{request}")
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "{time}", text)


@pytest.fixture(scope="module")
def own(globex: Server) -> str:
    run = globex.submit("demo-none", script('say "mine"'))
    assert seen(DOORS["sse"], globex, run)
    return run


@promise("tenants.http")
@pytest.mark.parametrize("asked", RUNS, ids=lambda asked: f"{asked.route} {asked.path.partition('?')[2]}")
def test_another_tenants_run_is_one_that_never_was(acme: Estate, globex: Server, own: str, asked: Asked) -> None:
    """design.md §1.8: whether it has ended, works, or waits; and nothing becomes of it."""
    before = acme.logs()
    never = answered(globex, asked, MISSING, own)
    assert [answered(globex, asked, run, own) for run in acme.runs] == [never] * 3
    assert never[0] == 404
    if asked.route.startswith("GET"):
        assert answered(acme.server, asked, acme.done, acme.done)[0] != 404
    assert acme.logs() == before


@promise("tenants.http")
@pytest.mark.parametrize("asked", SESSIONS, ids=lambda asked: f"{asked.route} {asked.path.partition('?')[2]}")
def test_another_tenants_session_is_one_that_never_was(acme: Estate, globex: Server, asked: Asked) -> None:
    """design.md §1.8."""
    before = acme.server.raw.send("GET", f"/api/v1/sessions/{acme.session}")
    assert before.status == 200
    assert answered(globex, asked, acme.session, "") == answered(globex, asked, f"never-{uuid.uuid4().hex}", "")
    after = acme.server.raw.send("GET", f"/api/v1/sessions/{acme.session}")
    assert (after.status, after.json) == (200, before.json)


@promise("tenants.http")
@pytest.mark.parametrize("asked", KEYS, ids=lambda asked: asked.route)
def test_another_tenants_key_is_one_that_never_was(acme: Estate, globex: Server, asked: Asked) -> None:
    """design.md §1.8: an administrator is one of a tenant's."""
    never = answered(globex, asked, NO_KEY, "")
    assert answered(globex, asked, acme.key_id, "") == never
    assert never[0] == 404
    assert acme.server.raw.send("GET", TASKS).status == 200


@promise("tenants.lists")
@pytest.mark.parametrize("path", LISTS)
def test_lists_have_nothing_of_others(acme: Estate, globex: Server, own: str, path: str) -> None:
    """design.md §1.8: nor do their totals."""
    mine = globex.raw.send("GET", path)
    assert mine.status == 200
    private = (*acme.runs, acme.session, acme.key_id, acme.key, acme.key[:14], SECRET)
    assert [each for each in private if each in mine.body.decode()] == []
    if path == TASKS:
        assert mine.json["total_count"] == len(mine.json["tasks"])
        assert own in {task["task_id"] for task in mine.json["tasks"]}


@promise("tenants.covered")
def test_no_route_is_left_out(nobody: Server) -> None:
    """issue 4.2: whoever adds a route says here what another tenant sees of it."""
    paths = nobody.raw.send("GET", "/openapi.json").json["paths"]
    there = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    listed = {f"GET {path.partition('?')[0]}" for path in LISTS}
    tried = {asked.route for asked in (*RUNS, *SESSIONS, *KEYS)}
    assert there == tried | listed | ALIKE_FOR_ALL | BEGINNING | {f"GET {WS}"}


@promise("tenants.http")
def test_an_id_that_another_tenant_has_given_can_be_neither_had_nor_seen(acme: Estate, globex: Server) -> None:
    """orchestration.md §2: ids are given once, whoever gives them; 128 random bits are guessed by nobody."""
    before = acme.logs()
    for run in acme.runs:
        answer = globex.raw.send("POST", "/api/v1/execute", {"name": "demo-none", "input": "x", "workflow_id": run})
        assert (answer.status, answer.error["code"]) == (409, "workflow_exists")
        assert SECRET not in answer.body.decode()
    assert acme.logs() == before


@promise("tenants.sdk")
def test_the_sdk_finds_nothing(acme: Estate, globex: Server) -> None:
    """design.md §1.8: nor does a tool's result decide another tenant's approval."""
    key = globex.headers["Authorization"].removeprefix("Bearer ")
    with OpenAI(base_url=f"{globex.url}/v1", api_key=key, max_retries=0, timeout=20.0) as client:

        def told(call: Callable[[str], Any], run: str) -> Any:
            with pytest.raises(APIStatusError) as refused:
                call(run)
            return refused.value.status_code, str(refused.value.body).replace(run.removeprefix("task-"), "{id}")

        def decide(run: str) -> Any:
            call_id = f"call_{run.removeprefix('task-')}_publish"
            function: Any = {"name": "request_approval", "arguments": "{}"}
            messages: Any = [
                {"role": "user", "content": "Version 1.0"},
                {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function", "function": function}]},
                {"role": "tool", "tool_call_id": call_id, "content": "yes"},
            ]
            return client.chat.completions.create(model="headgate-review", messages=messages)

        def cancel(run: str) -> Any:
            return client.post(f"/chat/completions/{run}/cancel", cast_to=object)

        for call in (client.chat.completions.retrieve, cancel, decide):
            never = told(call, MISSING)
            assert [told(call, run) for run in acme.runs] == [never] * 3
            assert never[0] == 404
    assert acme.server.task(acme.waiting)["status"] == "RUNNING"


@promise("tenants.ws", "tenants.covered")
def test_a_socket_reaches_nothing_of_others(acme: Estate, globex: Server) -> None:
    """design.md §1.8: neither when it is opened nor by any operation on a socket of one's own."""
    for run in (*acme.runs, MISSING):
        with pytest.raises(Refused) as refused, globex.socket(run):
            pass
        assert (refused.value.status, refused.value.code) == (404, "run_not_found")
    before = acme.logs()
    mine = globex.submit("wire-none", script('say "mine"', "hang"))
    with globex.socket(mine) as socket:
        for op in ("subscribe", "unsubscribe", "cancel", "pause", "resume", "approve"):
            more = {"approval_id": "publish", "approved": True} if op == "approve" else {}

            def told(run: str, op: str = op, more: Any = more) -> Any:
                answer = operate(socket, op=op, workflow_id=run, **more)
                assert answer.pop("workflow_id") == run
                return answer

            never = told(MISSING)
            assert not never["ok"]
            assert [told(run) for run in acme.runs] == [never] * 3
    DOORS["sse"].ask(globex, mine, "cancel", "the test is over")
    assert acme.logs() == before


TASK: dict[str, Callable[[str], Any]] = {
    "GetTaskStatus": lambda run: tasks.GetTaskStatusRequest(task_id=run, include_details=True),
    "CancelTask": lambda run: tasks.CancelTaskRequest(task_id=run),
    "PauseTask": lambda run: tasks.PauseTaskRequest(task_id=run),
    "ResumeTask": lambda run: tasks.ResumeTaskRequest(task_id=run),
    "GetControlState": lambda run: tasks.GetControlStateRequest(task_id=run),
    "ApproveTask": lambda run: tasks.ApproveTaskRequest(workflow_id=run, approval_id="publish", approved=True),
}


@promise("tenants.grpc", "tenants.covered")
def test_grpc_finds_nothing(acme: Estate, globex: Server) -> None:
    """design.md §1.8: status, details and trailers are those of a run that never was, at every method."""

    def told(call: Callable[[], Any], run: str) -> Any:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        error: Any = refused.value
        trailers = {key: value for key, value in error.trailing_metadata() if key not in ("x-request-id", "date")}
        return error.code(), error.details().replace(run, "{id}"), trailers

    def unary(method: str, run: str) -> Any:
        request: Any = TASK[method](run)
        return lambda: getattr(globex.tasks, method)(request, metadata=globex.metadata, timeout=TIMEOUT_S)

    def stream(run: str, **place: Any) -> Any:
        request = streaming_pb2.StreamRequest(workflow_id=run, **place)
        return lambda: list(globex.streams.StreamTaskExecution(request, metadata=globex.metadata, timeout=TIMEOUT_S))

    def publish(run: str) -> Any:
        event = events_pb2.PublishEvent(type="X_MINE")
        request = events_pb2.PublishRequest(workflow_id=run, writer="stranger", attempt=1, producer_seq=1, events=[event])
        (ack,) = globex.events.PublishEvents(iter([request]), metadata=globex.metadata, timeout=TIMEOUT_S)
        return str(ack).replace(run, "{id}")

    before = acme.logs()
    for method in TASK:
        never = told(unary(method, MISSING), MISSING)
        assert never[0] is grpc.StatusCode.NOT_FOUND
        assert [told(unary(method, run), run) for run in acme.runs] == [never] * 3
    for place in ({}, {"last_event_id": 1}, {"last_stream_id": "1-1"}):
        never = told(stream(MISSING, **place), MISSING)
        assert [told(stream(run, **place), run) for run in acme.runs] == [never] * 3
    assert [publish(run) for run in acme.runs] == [publish(MISSING)] * 3
    assert "run_not_found" in publish(MISSING)
    for session in (acme.session, "", "never"):
        listed = globex.tasks.ListTasks(tasks.ListTasksRequest(session_id=session), metadata=globex.metadata)
        pending = globex.tasks.GetPendingApprovals(tasks.GetPendingApprovalsRequest(session_id=session), metadata=globex.metadata)
        assert SECRET not in f"{listed} {pending}"
        assert not session or (listed.total_count, len(pending.approvals)) == (0, 0)
    assert acme.logs() == before
    modules: Any = (orchestrator_pb2, streaming_pb2, events_pb2)
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    there = {method.name for service in services for method in service.methods}
    others = {"SubmitTask", "ListTasks", "GetPendingApprovals", "StreamTaskExecution", "PublishEvents"}
    assert there == TASK.keys() | others


@promise("tenants.tickets")
def test_a_ticket_is_as_good_as_who_asked_for_it(acme: Estate, globex: Server, nobody: Server, own: str) -> None:
    """native.md §5: one for everything opens nothing of others, and one for a run no other."""

    def ticket(server: Server, **body: Any) -> str:
        answer = server.raw.send("POST", f"{STREAMS}/tickets", body)
        assert answer.status in (200, 201), answer
        return str(answer.json["ticket"])

    def opened(run: str, ticket: str) -> int:
        return nobody.raw.send("GET", f"{STREAMS}/sse?workflow_id={run}&ticket={ticket}").status

    mine, theirs = ticket(globex), ticket(acme.server, workflow_id=acme.done)
    assert (opened(own, mine), opened(acme.done, theirs)) == (200, 200)
    assert {opened(run, mine) for run in (*acme.runs, MISSING)} == {404}
    assert opened(own, theirs) == opened(acme.waiting, theirs)
    assert opened(own, theirs) in (401, 403, 404)


@promise("tenants.names")
def test_the_same_names_are_two(acme: Estate, globex: Server) -> None:
    """issue 4: an idempotency key and a session are a tenant's own, whatever they are called."""
    shared = uuid.uuid4().hex
    key, session = {"Idempotency-Key": shared}, f"/api/v1/sessions/{shared}"
    body = {"query": script('say "x"'), "model": "demo-none", "session_id": shared}
    answers = [server.raw.send("POST", TASKS, body, key) for server in (acme.server, acme.server, globex)]
    assert [answer.status for answer in answers] == [200] * 3
    first, again, other = (answer.json["task_id"] for answer in answers)
    assert first == again != other
    assert "idempotency-replayed" not in answers[2].headers
    for server, run in ((acme.server, first), (globex, other)):
        history = server.raw.send("GET", f"{session}/history").json["tasks"]
        assert [task["task_id"] for task in history] == [run]
    assert globex.raw.send("DELETE", session).status in (200, 204)
    assert [server.raw.send("GET", session).status for server in (acme.server, globex)] == [200, 404]


@promise("tenants.cache")
def test_no_answer_crosses_over(acme: Estate, globex: Server, model_server: ModelServer) -> None:
    """issue 4.6, 5.7: neither from the cache nor from a session's memory."""
    mark = uuid.uuid4().hex
    body = ask("cached", script(f'say "{mark}"'), temperature=0)
    told = [server.raw.send("POST", CHAT, body).headers["x-cache"] for server in (acme.server, acme.server, globex)]
    assert told == ["miss", "hit", "miss"]
    session = {"X-Session-ID": f"shared-{mark}"}
    mine, yours = script(f'say "{SECRET}"', f"# {mark} acme"), script('say "ok"', f"# {mark} globex")
    assert acme.server.raw.send("POST", CHAT, ask("remembers", mine), session).status == 200
    assert globex.raw.send("POST", CHAT, ask("remembers", yours), session).status == 200
    assert model_server.asked(yours).body["messages"] == [{"role": "user", "content": yours}]
