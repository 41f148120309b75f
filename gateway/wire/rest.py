"""How runs, events and sessions become the native routes' answers. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway.wire.rest_models import (
    Control,
    PendingApproval,
    SessionSummary,
    SessionTask,
    Submitted,
    SubmittedStream,
    Task,
    TaskSummary,
    Timeline,
    TimelineStep,
    Usage,
)
from orchestrator.engine import Approval, ControlState, Details, History, Session, TimelineEvent
from orchestrator.events import Entry, timestamp
from orchestrator.runs import Run
from orchestrator.spending.money import usd


def submitted(run: Run) -> Submitted:
    message = "The task was taken on."
    return Submitted(task_id=run.id, workflow_id=run.id, status=run.state, message=message, created_at=timestamp(run.created_ms))


def submitted_stream(run: Run, stream_url: str) -> SubmittedStream:
    return SubmittedStream(**submitted(run).model_dump(), stream_url=stream_url)


def summary(run: Run) -> TaskSummary:
    return TaskSummary(**_summarised(run))


def task(details: Details) -> Task:
    return Task(**_told(details))


def session_task(details: Details) -> SessionTask:
    spent = None if details.run.cached is not None else details.usage
    return SessionTask(**_told(details), total_tokens=spent.total_tokens if spent else 0)


def _told(details: Details) -> dict[str, Any]:
    run, failure, usage = details.run, details.failure, details.usage
    return {
        **_summarised(run),
        "result": details.result,
        "error": None if failure is None else failure.message,
        "usage": None if usage is None else Usage(**msgspec.to_builtins(usage), cost_usd=_usd(details.cost_nano)),
        "cached_from": None if run.cached is None else run.cached.run_id,
        "progress": details.progress,
    }


def _usd(nano: int | None) -> float | None:
    return None if nano is None else usd(nano)


def _summarised(run: Run) -> dict[str, Any]:
    return {
        "task_id": run.id,
        "workflow_id": run.id,
        "status": run.state,
        "query": run.query or "",
        "session_id": run.session_id,
        "model_used": run.model,
        "created_at": timestamp(run.created_ms),
        "started_at": _time(run.started_ms),
        "completed_at": _time(run.ended_ms),
        "metadata": run.metadata,
    }


def _time(ms: int | None) -> str | None:
    return None if ms is None else timestamp(ms)


def event_page(run_id: str, history: History) -> bytes:
    """An `EventPage` whose events are the bytes of the log."""
    page = {"events": _raw(run_id, history.entries), "next_after": history.next_after, "complete": history.complete}
    return msgspec.json.encode(page)


def turn(number: int, details: Details, entries: Iterable[Entry]) -> bytes:
    """A `Turn` whose events are the bytes of the log."""
    run = details.run
    return msgspec.json.encode(
        {
            "turn": number,
            "task_id": run.id,
            "user_query": run.query or "",
            "final_output": details.result,
            "timestamp": timestamp(run.created_ms),
            "events": _raw(run.id, entries),
            "metadata": run.metadata or {},
        }
    )


def session_turns(session_id: str, turns: Sequence[bytes], count: int) -> bytes:
    """A `SessionTurns`."""
    return msgspec.json.encode({"session_id": session_id, "turns": [msgspec.Raw(turn) for turn in turns], "count": count})


def _raw(run_id: str, entries: Iterable[Entry]) -> list[msgspec.Raw]:
    return [msgspec.Raw(entry.envelope(run_id)) for entry in entries]


def timeline(run_id: str, mode: str, events: Sequence[TimelineEvent]) -> Timeline:
    steps = [TimelineStep(**msgspec.to_builtins(event)) for event in events]
    return Timeline(task_id=run_id, workflow_id=run_id, mode=mode, events=steps)


def control(state: ControlState) -> Control:
    return Control(**msgspec.to_builtins(state))


def approval(pending: Approval) -> PendingApproval:
    fields = {name: getattr(pending, name) for name in PendingApproval.model_fields if name != "workflow_id"}
    return PendingApproval(workflow_id=pending.run_id, **fields)


def session(found: Session, tenant: str) -> SessionSummary:
    return SessionSummary(
        session_id=found.id,
        user_id=tenant,
        title=found.title,
        task_count=found.runs,
        tokens_used=found.tokens,
        created_at=timestamp(found.created_ms),
        updated_at=timestamp(found.updated_ms),
    )
