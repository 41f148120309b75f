"""The rule of every method; and what the gRPC door asks of whoever opens it: who is calling, what a task is, when to go, and whom
to tell how it went.

The gateway has the answers (its key ring, its rules for tasks, its drain, its metrics); these are the shapes they take here, so
that nothing in the orchestrator depends on the gateway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

import msgspec

from orchestrator.engine import Submission
from orchestrator.runs import Principal, Scope

Metadata = Sequence[tuple[str, str | bytes]]
"""A call's metadata: names in lower case, in the order in which they came, repetitions included."""

RULES: Mapping[str, Scope] = {
    "shannon.orchestrator.StreamingService/StreamTaskExecution": Scope.RUNS_READ,
    "shannon.orchestrator.OrchestratorService/SubmitTask": Scope.RUNS_WRITE,
    "shannon.orchestrator.OrchestratorService/GetTaskStatus": Scope.RUNS_READ,
    "shannon.orchestrator.OrchestratorService/CancelTask": Scope.RUNS_WRITE,
    "shannon.orchestrator.OrchestratorService/PauseTask": Scope.RUNS_WRITE,
    "shannon.orchestrator.OrchestratorService/ResumeTask": Scope.RUNS_WRITE,
    "shannon.orchestrator.OrchestratorService/GetControlState": Scope.RUNS_READ,
    "shannon.orchestrator.OrchestratorService/ListTasks": Scope.RUNS_READ,
    "shannon.orchestrator.OrchestratorService/ApproveTask": Scope.APPROVALS_DECIDE,
    "shannon.orchestrator.OrchestratorService/GetPendingApprovals": Scope.RUNS_READ,
    "headgate.events.EventService/PublishEvents": Scope.RUNS_WRITE,
}
"""Which scope each method takes. One that is not here is not served."""

Authenticator = Callable[[Metadata], Awaitable[Principal]]
"""On whose behalf a call with this metadata is made. Raises a HeadgateError with status 401."""


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task as a client words it, before the server's rules for tasks have made a submission of it."""

    query: str
    model: str | None = None
    session_id: str | None = None
    context: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    token_budget: int | None = None
    require_approval: bool = False


TaskRules = Callable[[Task, Principal, Metadata], Submission]
"""What a task comes down to: its model, its messages, what is recorded of it, and, by the call's metadata, what makes it a
repetition of another. Raises InvalidRequest."""


class Drain(Protocol):
    """How the process goes away: see `gateway.transports.drain`."""

    def answer(self) -> AbstractContextManager[None]:
        """Around the whole of a call. Raises a HeadgateError with status 503 if new ones are refused."""

    def until_closed(self, bearer: Principal) -> AbstractAsyncContextManager[None]:
        """Around what can be broken off. Raises a HeadgateError: with status 503 when the process goes away, with 401 when the
        bearer's key is no longer good."""


class Observer(Protocol):
    """Who counts."""

    def call(self, method: str, code: str, seconds: float) -> None:
        """A call has ended. `method` is one that exists; `code` is the name of a status."""

    def stream_opened(self) -> None: ...

    def stream_closed(self) -> None: ...

    def stalled(self) -> None: ...

    def internal_error(self) -> None: ...
