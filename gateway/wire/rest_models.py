"""What the native routes answer, as models: answers are made of them, and the description of the API too. No I/O.

Times are RFC 3339 in UTC with milliseconds. A field that has no value yet is there and null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.runs import RunState


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NativeFailure(Answer):
    code: str = Field(description="For programs: it does not change, the message may.")
    message: str
    request_id: str = Field(description="Also in the header `x-request-id`, and in the server's log.")


class NativeError(Answer):
    """Why a native route refused or failed."""

    error: NativeFailure


class Submitted(Answer):
    """A task that has been taken on."""

    task_id: str = Field(examples=["task-0197a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    workflow_id: str = Field(description="Equals `task_id`.")
    status: RunState
    message: str
    created_at: str = Field(examples=["2026-11-20T12:00:00.000Z"])


class SubmittedStream(Submitted):
    stream_url: str = Field(description="Where its events are, as a path on this server.")


class Usage(Answer):
    """Tokens, summed over the task's calls. `estimated`: some were counted here, because an upstream did not say.

    `cost_usd` is null where no price is known.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached: int | None = None
    reasoning: int | None = None
    estimated: bool = False
    cost_usd: float | None = None


class TaskSummary(Answer):
    """A task in a list."""

    task_id: str
    workflow_id: str
    status: RunState
    query: str = Field(description="The beginning of what was asked.")
    session_id: str | None
    model_used: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    metadata: dict[str, Any] | None


class Task(TaskSummary):
    """All that is known of a task."""

    result: str | None = Field(description="The whole answer of a completed task.")
    error: str | None = Field(description="Why a task failed.")
    usage: Usage | None
    cached_from: str | None = Field(
        description="The task whose answer this one gave again, and whose usage that is; it spent nothing itself."
    )
    progress: float = Field(ge=0, le=1, description="The share of its steps that have finished. 1: completed.")


class TaskList(Answer):
    tasks: Sequence[TaskSummary] = Field(description="Newest first.")
    total_count: int = Field(description="How many tasks the filter lets through.")


class EventEnvelope(BaseModel):
    """An event, as every native door sends it."""

    workflow_id: str
    type: str
    agent_id: str | None = None
    message: str | None = Field(
        default=None, description="For people: the delta of LLM_PARTIAL, the text of LLM_OUTPUT; else a remark."
    )
    payload: dict[str, Any] | None = None
    timestamp: str
    seq: int = Field(ge=1, description="1, 2, 3 … per task, without holes.")
    stream_id: str = Field(examples=["1763640000000-17"], description="The position, exact across crashes of the log.")


class EventPage(Answer):
    events: Sequence[EventEnvelope]
    next_after: int = Field(description="`after` of the next page.")
    complete: bool = Field(description="The task has ended and this page has its end.")


class TimelineStep(Answer):
    type: str = Field(examples=["WF_STARTED", "ACT_COMPLETED", "TIMER_FIRED", "SIG_RECEIVED"])
    timestamp: str
    event_id: int
    message: str
    details: dict[str, Any] | None = None


class Timeline(Answer):
    """What Temporal did for the task. Empty for a task whose model is not durable."""

    task_id: str
    workflow_id: str
    mode: str
    events: Sequence[TimelineStep]


class Control(Answer):
    """What was asked of a task, and what became of it. `is_paused` is true only when it stands still."""

    is_paused: bool
    is_cancelled: bool
    paused_at: str | None
    pause_reason: str | None
    paused_by: str | None
    cancel_reason: str | None
    cancelled_by: str | None


class Accepted(Answer):
    """What was asked of the task will be done; its events tell when it was."""

    success: bool
    message: str
    task_id: str


class PendingApproval(Answer):
    approval_id: str
    workflow_id: str
    query: str | None
    session_id: str | None
    proposed_action: str | None
    reason: str | None
    requested_at: str
    expires_at: str | None
    metadata: dict[str, Any] | None


class ApprovalList(Answer):
    approvals: Sequence[PendingApproval] = Field(description="Oldest first.")


class Decided(Answer):
    success: bool
    message: str
    workflow_id: str
    approval_id: str


class SessionSummary(Answer):
    """The tasks that share a session id."""

    session_id: str
    user_id: str = Field(description="The tenant whose session it is.")
    title: str | None
    task_count: int
    tokens_used: int
    created_at: str
    updated_at: str


class SessionList(Answer):
    sessions: Sequence[SessionSummary] = Field(description="The latest used first.")
    total_count: int


class SessionTask(Task):
    total_tokens: int = Field(description="What it spent.")


class SessionHistory(Answer):
    session_id: str
    tasks: Sequence[SessionTask] = Field(description="In the order in which they were asked.")
    total_count: int


class Turn(Answer):
    """A task of a session, with its events; the deltas of its text are left out."""

    turn: int = Field(ge=1)
    task_id: str
    user_query: str
    final_output: str | None
    timestamp: str
    events: Sequence[EventEnvelope]
    metadata: dict[str, Any]


class SessionTurns(Answer):
    session_id: str
    turns: Sequence[Turn] = Field(description="In the order in which they were asked.")
    count: int = Field(description="How many turns the session has.")
