"""What the server answers, as the client's types. The same fields as `docs/reference/rest.md`; unknown ones are ignored.

Times are RFC 3339 in UTC with milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headgate.events import Event
from orchestrator.runs import RunState


class Answer(msgspec.Struct, frozen=True):
    pass


class Submitted(Answer, frozen=True):
    """A task that was taken on."""

    task_id: str
    workflow_id: str
    status: RunState
    message: str
    created_at: str
    session_id: str | None = None


class Usage(Answer, frozen=True):
    """Tokens, summed over the task's calls. `estimated`: an upstream did not say, so some were counted.

    `cost_usd` is None where the server knows no price.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached: int | None = None
    reasoning: int | None = None
    estimated: bool = False
    cost_usd: float | None = None


class TaskSummary(Answer, frozen=True, kw_only=True):
    """A task in a list."""

    task_id: str
    workflow_id: str
    status: RunState
    query: str
    session_id: str | None
    model_used: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    metadata: dict[str, Any] | None

    @property
    def ended(self) -> bool:
        return self.status.ended


class Task(TaskSummary, frozen=True, kw_only=True):
    """All that is known of a task. `progress` goes from 0 to 1. `cached_from`: the task whose answer and usage these are."""

    result: str | None
    error: str | None
    usage: Usage | None
    progress: float
    cached_from: str | None = None


class TaskList(Answer, frozen=True):
    """Newest first. `total_count` is how many tasks the filter lets through."""

    tasks: Sequence[TaskSummary]
    total_count: int


class EventPage(Answer, frozen=True):
    """`next_after` continues it; `complete`: the task has ended, and this is its end."""

    events: Sequence[Event]
    next_after: int
    complete: bool


class TimelineStep(Answer, frozen=True):
    """A step of the task's Temporal history: `WF_STARTED`, `ACT_COMPLETED`, `TIMER_FIRED`, `SIG_RECEIVED` …"""

    type: str
    timestamp: str
    event_id: int
    message: str
    details: dict[str, Any] | None = None


class Timeline(Answer, frozen=True):
    task_id: str
    workflow_id: str
    mode: str
    events: Sequence[TimelineStep]


class ControlState(Answer, frozen=True):
    """What was asked of a task, and what became of it. `is_paused` is true only when it stands still."""

    is_paused: bool
    is_cancelled: bool
    paused_at: str | None
    pause_reason: str | None
    paused_by: str | None
    cancel_reason: str | None
    cancelled_by: str | None


class Accepted(Answer, frozen=True):
    """It was asked; the task's events tell when it has happened."""

    success: bool
    message: str
    task_id: str


class Approval(Answer, frozen=True):
    """A decision that a task waits for."""

    approval_id: str
    workflow_id: str
    query: str | None
    session_id: str | None
    proposed_action: str | None
    reason: str | None
    requested_at: str
    expires_at: str | None
    metadata: dict[str, Any] | None


class ApprovalList(Answer, frozen=True):
    approvals: Sequence[Approval]


class Decided(Answer, frozen=True):
    success: bool
    message: str
    workflow_id: str
    approval_id: str


class Session(Answer, frozen=True):
    """The tasks that share a session id."""

    session_id: str
    user_id: str
    title: str | None
    task_count: int
    tokens_used: int
    created_at: str
    updated_at: str


class SessionList(Answer, frozen=True):
    """The latest used first. `total_count` is how many there are in all."""

    sessions: Sequence[Session]
    total_count: int


class SessionTask(Task, frozen=True, kw_only=True):
    total_tokens: int


class SessionHistory(Answer, frozen=True):
    """The session's tasks in the order in which they were asked."""

    session_id: str
    tasks: Sequence[SessionTask]
    total_count: int


class Turn(Answer, frozen=True):
    """A task of a session with its events, the deltas of its text left out."""

    turn: int
    task_id: str
    user_query: str
    final_output: str | None
    timestamp: str
    events: Sequence[Event]
    metadata: dict[str, Any]


class SessionTurns(Answer, frozen=True):
    session_id: str
    turns: Sequence[Turn]
    count: int


class Dependency(Answer, frozen=True):
    ok: bool
    required: bool


class Health(Answer, frozen=True):
    """Whether the server can serve: `ready`, `not_ready` or `draining`, and each thing that it needs."""

    status: str
    dependencies: Mapping[str, Dependency] = {}

    @property
    def ready(self) -> bool:
        return self.status == "ready"


class Model(Answer, frozen=True):
    id: str
    owned_by: str = ""
    created: int = 0


class ModelList(Answer, frozen=True):
    data: Sequence[Model]


class UsageSum(Answer, frozen=True, kw_only=True):
    """A sum over tasks that have ended. Costs are None where no price is known; `cost_nano_usd` is exact."""

    runs: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    cost_usd: float | None
    cost_nano_usd: int | None


class UsageGroup(UsageSum, frozen=True, kw_only=True):
    """What it was not grouped by is None."""

    key_id: str | None
    model: str | None
    day: str | None


class UsageReport(Answer, frozen=True, kw_only=True):
    """What was used from one day to another, both included. Every task that had ended by `as_of` is in it."""

    first: str = msgspec.field(name="from")
    last: str = msgspec.field(name="to")
    as_of: str
    groups: Sequence[UsageGroup]
    total: UsageSum
