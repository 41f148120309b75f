"""Endings: the two events that close a run's log, and reading them back. Exactly one ending per run, and a true one. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrator.errors import Failure
from orchestrator.events import Event, EventType
from orchestrator.runs import Outcome, RunState


def completed(
    at: str, *, text: str, usage: dict[str, Any], finish_reason: str, duration_ms: int, budget: Failure | None = None
) -> Sequence[Event]:
    """The run did what was asked, or as much of it as a `budget` allowed. `usage` is the sum over its calls."""
    spent = None if budget is None else {"code": budget.code, "message": budget.message}
    payload = {"result": text, "usage": usage, "finish_reason": finish_reason, "duration_ms": duration_ms, "budget": spent}
    return completed_as(at, payload)


def completed_as(at: str, payload: dict[str, Any]) -> Sequence[Event]:
    """The same, of a run that says what another said."""
    return _ending(at, EventType.WORKFLOW_COMPLETED, payload)


def failed(at: str, failure: Failure, usage: dict[str, Any] | None = None) -> Sequence[Event]:
    """The run did not get there; a time-out is a failure with `code: timeout`."""
    payload = {"error": {"retryable": False, **msgspec.to_builtins(failure)}, "usage": usage}
    return _ending(at, EventType.WORKFLOW_FAILED, payload, failure.message)


def cancelled(at: str, reason: str | None, by: str | None, usage: dict[str, Any] | None = None) -> Sequence[Event]:
    """Somebody asked for it to stop."""
    return _ending(at, EventType.WORKFLOW_CANCELLED, {"reason": reason, "by": by, "usage": usage})


def _ending(at: str, event_type: EventType, payload: dict[str, Any], message: str | None = None) -> Sequence[Event]:
    known = {key: value for key, value in payload.items() if value is not None}
    return (
        Event(event_type, at, message=message, payload=known),
        Event(EventType.STREAM_END, at),
    )


def failed_state(failure: Failure) -> RunState:
    """The state of a run that failed like this."""
    return RunState.TIMEOUT if failure.code == TIMEOUT.code else RunState.FAILED


def outcome(event: Event) -> Outcome | None:
    """What an ending event says; None for any other event."""
    payload = event.payload or {}
    match event.type:
        case EventType.WORKFLOW_COMPLETED:
            return Outcome(RunState.COMPLETED)
        case EventType.WORKFLOW_CANCELLED:
            return Outcome(RunState.CANCELLED, reason=payload.get("reason"))
        case EventType.WORKFLOW_FAILED:
            failure = msgspec.convert(payload["error"], Failure)
            return Outcome(failed_state(failure), failure)
        case _:
            return None


TIMEOUT = Failure(code="timeout", message="The run took longer than it may.", status=504, type="timeout_error")
RUN_BUDGET_EXCEEDED = Failure(
    code="run_budget_exceeded",
    message="The run stopped because it has used the tokens that it may use.",
    status=429,
    type="insufficient_quota",
)
BUDGET_EXCEEDED = Failure(
    code="budget_exceeded",
    message="The run stopped because the budget of its key or its tenant is spent.",
    status=429,
    type="insufficient_quota",
)
BUDGETS = {failure.code: failure for failure in (RUN_BUDGET_EXCEEDED, BUDGET_EXCEEDED)}
"""What stops a run truthfully and is no failure of it: it ends as completed, with what it has and `finish_reason: length`."""

WORKER_LOST = Failure(
    code="worker_lost",
    message="The process that executed this run was lost. Send the request again, or use a durable model.",
    retryable=True,
    status=503,
)
LOG_ROLLED_BACK = Failure(
    code="log_rolled_back",
    message="The event log lost its latest events in a crash, so this answer could not be finished.",
    retryable=True,
    status=503,
)


def of_workflow(code: str | None, message: str) -> Failure:
    """What a user's own workflow failed with: its words are for its users."""
    return Failure(code=code or "workflow_failed", message=message or "The workflow failed.", status=500)


ENGINE_ERROR = Failure(code="internal_error", message="The run failed inside Headgate.", status=500)
ENGINE_UNAVAILABLE = Failure(
    code="backend_unavailable",
    message="The workflow engine is temporarily unavailable. Try again shortly.",
    retryable=True,
    status=503,
    retry_after_s=2.0,
)
SHUTDOWN = Failure(
    code="server_shutdown",
    message="The server was stopped before this run ended, and its model is not durable. Send the request again.",
    retryable=True,
    status=503,
)
