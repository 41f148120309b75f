"""What the client can ask, as data: method, path, query, body, and how to read the answer. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from headgate.answers import (
    Accepted,
    Answer,
    ApprovalList,
    ControlState,
    Decided,
    EventPage,
    Health,
    ModelList,
    Session,
    SessionHistory,
    SessionList,
    SessionTurns,
    Submitted,
    Task,
    TaskList,
    Timeline,
    UsageReport,
)

T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A", bound=Answer)


class TaskOptions(TypedDict, total=False):
    """What a submission may say beside its query. Without `model`, the server takes the one of `model_tier` or its default."""

    model: str
    model_tier: Literal["small", "medium", "large"]
    session_id: str
    context: Mapping[str, Any]
    mode: str
    metadata: Mapping[str, Any]
    idempotency_key: str


class Call(msgspec.Struct, Generic[T_co], frozen=True):
    """`read` makes the answer of a response's body and headers; it raises msgspec.DecodeError.

    `accepts` is a status beyond those of success whose body is an answer as well.
    """

    method: str
    path: str
    read: Callable[[bytes, Mapping[str, str]], T_co]
    query: Mapping[str, str] = {}
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = {}
    accepts: int | None = None


def submit(query: str, options: TaskOptions) -> Call[Submitted]:
    body: dict[str, Any] = {"query": query, **options}
    key = body.pop("idempotency_key", None)
    headers = {"Idempotency-Key": key} if key is not None else {}
    return Call("POST", "/api/v1/tasks", _submitted, body=_given(body), headers=headers)


def execute(
    what: str | Mapping[str, Any],
    input: str | Mapping[str, Any] | None,
    workflow_id: str | None,
    session_id: str | None,
    metadata: Mapping[str, Any] | None,
    idempotency_key: str | None,
) -> Call[str]:
    """The answer is the task's id."""
    body = {"input": input, "workflow_id": workflow_id, "session_id": session_id, "metadata": metadata}
    body |= {"name": what} if isinstance(what, str) else {"workflow": what}
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    quiet = {"enable_progress": "false", "enable_step_logs": "false"}
    return Call("POST", "/api/v1/execute", lambda _, told: told["X-Workflow-ID"], quiet, _given(body), headers)


def task(task_id: str) -> Call[Task]:
    return Call("GET", _task(task_id), _as(Task))


def tasks(limit: int, offset: int, session_id: str | None, status: str | None) -> Call[TaskList]:
    return Call("GET", "/api/v1/tasks", _as(TaskList), _query(limit=limit, offset=offset, session_id=session_id, status=status))


def events(task_id: str, after: int, limit: int, types: Iterable[str]) -> Call[EventPage]:
    return Call("GET", _task(task_id, "/events"), _as(EventPage), _query(after=after, limit=limit, types=",".join(types) or None))


def timeline(task_id: str, full: bool) -> Call[Timeline]:
    return Call("GET", _task(task_id, "/timeline"), _as(Timeline), {"mode": "full" if full else "summary"})


def control_state(task_id: str) -> Call[ControlState]:
    return Call("GET", _task(task_id, "/control-state"), _as(ControlState))


def control(what: Literal["cancel", "pause", "resume"], task_id: str, reason: str | None) -> Call[Accepted]:
    return Call("POST", _task(task_id, f"/{what}"), _as(Accepted), body=_given({"reason": reason}))


def approvals(session_id: str | None) -> Call[ApprovalList]:
    return Call("GET", "/api/v1/approvals", _as(ApprovalList), _query(session_id=session_id))


def approve(task_id: str, approval_id: str, approved: bool, feedback: str | None, modified_action: str | None) -> Call[Decided]:
    decision = {
        "workflow_id": task_id,
        "approval_id": approval_id,
        "approved": approved,
        "feedback": feedback,
        "modified_action": modified_action,
    }
    return Call("POST", "/api/v1/approvals/decision", _as(Decided), body=_given(decision))


def sessions(limit: int, offset: int) -> Call[SessionList]:
    return Call("GET", "/api/v1/sessions", _as(SessionList), _query(limit=limit, offset=offset))


def session(session_id: str) -> Call[Session]:
    return Call("GET", _session(session_id), _as(Session))


def session_history(session_id: str, limit: int, offset: int) -> Call[SessionHistory]:
    return Call("GET", _session(session_id, "/history"), _as(SessionHistory), _query(limit=limit, offset=offset))


def session_events(session_id: str, limit: int, offset: int) -> Call[SessionTurns]:
    return Call("GET", _session(session_id, "/events"), _as(SessionTurns), _query(limit=limit, offset=offset))


def rename_session(session_id: str, title: str) -> Call[Session]:
    return Call("PATCH", _session(session_id), _as(Session), body={"title": title})


def delete_session(session_id: str) -> Call[None]:
    return Call("DELETE", _session(session_id), lambda *_: None)


def usage(first: date | None, last: date | None, by: Iterable[Literal["key", "model", "day"]]) -> Call[UsageReport]:
    asked = {"from": first, "to": last, "group_by": ",".join(by) or None}
    return Call("GET", "/api/v1/usage", _as(UsageReport), _query(**asked))


def health() -> Call[Health]:
    return Call("GET", "/readiness", _as(Health), accepts=503)


def models() -> Call[ModelList]:
    return Call("GET", "/v1/models", _as(ModelList))


def _as(kind: type[A]) -> Callable[[bytes, Mapping[str, str]], A]:
    return lambda body, _: msgspec.json.decode(body, type=kind)


def _submitted(body: bytes, headers: Mapping[str, str]) -> Submitted:
    """The session is named in a header only."""
    submitted = msgspec.json.decode(body, type=Submitted)
    return msgspec.structs.replace(submitted, session_id=headers.get("X-Session-ID"))


def _task(task_id: str, what: str = "") -> str:
    return f"/api/v1/tasks/{quote(task_id, safe='')}{what}"


def _session(session_id: str, what: str = "") -> str:
    return f"/api/v1/sessions/{quote(session_id, safe='')}{what}"


def _query(**asked: object) -> dict[str, str]:
    return {name: str(value) for name, value in asked.items() if value is not None}


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """What is not given is not sent."""
    return {name: value for name, value in body.items() if value is not None}
