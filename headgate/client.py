"""The client of the native API for ordinary programs (`docs/reference/client.md`).

    with headgate.Client("http://127.0.0.1:8080") as client:
        task = client.submit("What are you?")
        for event in task.stream():
            print(event.type, event.message)

It is the asynchronous client, run in a thread of its own: every method does what its namesake there does, and waits for it. It
may be used from several threads, also from one with a running event loop, which it blocks. Make it after a fork, not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any, Literal, Self, Unpack

from headgate.answers import (
    Accepted,
    Approval,
    ControlState,
    Decided,
    EventPage,
    Health,
    Model,
    Session,
    SessionHistory,
    SessionList,
    SessionTurns,
    Task,
    TaskList,
    TimelineStep,
    UsageReport,
)
from headgate.async_client import TIMEOUT_S, AsyncClient, AsyncTaskHandle, StreamOptions
from headgate.calls import TaskOptions
from headgate.events import Event
from headgate.following import PATIENT, Backoff
from headgate.loop_thread import LoopThread
from headgate.stream import EventStream, Watch
from headgate.watching import Progress, WatchOptions
from orchestrator.runs import RunState


class TaskHandle:
    """A task that was submitted here, and what can be asked of it."""

    def __init__(self, client: Client, submitted: AsyncTaskHandle) -> None:
        self.task_id = submitted.task_id
        self.workflow_id = submitted.workflow_id
        self.session_id = submitted.session_id
        self.created_at = submitted.created_at
        self._client = client

    def stream(self, **options: Unpack[StreamOptions]) -> EventStream:
        return self._client.stream(self.task_id, **options)

    def get(self) -> Task:
        return self._client.get(self.task_id)

    def wait(self, timeout_s: float | None = None) -> Task:
        return self._client.wait(self.task_id, timeout_s)

    def result(self, timeout_s: float | None = None) -> str:
        return self._client.result(self.task_id, timeout_s)

    def cancel(self, reason: str | None = None) -> Accepted:
        return self._client.cancel(self.task_id, reason)

    def pause(self, reason: str | None = None) -> Accepted:
        return self._client.pause(self.task_id, reason)

    def resume(self, reason: str | None = None) -> Accepted:
        return self._client.resume(self.task_id, reason)

    def progress(self, **options: Unpack[WatchOptions]) -> Watch[Progress]:
        return self._client.progress(self.task_id, **options)


class Client:
    """A server's native API. Close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        backoff: Backoff = PATIENT,
    ) -> None:
        self._client = AsyncClient(base_url, api_key, timeout_s=timeout_s, backoff=backoff)
        self._thread = LoopThread(self._client.close)
        self._run = self._thread.run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._thread.close()

    # -- submitting and watching -----------------------------------------------------------------------------------------

    def submit(self, query: str, **options: Unpack[TaskOptions]) -> TaskHandle:
        return TaskHandle(self, self._run(self._client.submit(query, **options)))

    def submit_and_stream(self, query: str, **options: Unpack[TaskOptions]) -> tuple[TaskHandle, EventStream]:
        task = self.submit(query, **options)
        return task, task.stream()

    def stream(self, workflow_id: str, **options: Unpack[StreamOptions]) -> EventStream:
        return EventStream(self._thread, self._client.stream(workflow_id, **options))

    def execute(
        self,
        what: str | Mapping[str, Any],
        input: str | Mapping[str, Any] | None = None,
        *,
        workflow_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> TaskHandle:
        begun = self._client.execute(
            what,
            input,
            workflow_id=workflow_id,
            session_id=session_id,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return TaskHandle(self, self._run(begun))

    def progress(self, workflow_id: str, **options: Unpack[WatchOptions]) -> Watch[Progress]:
        return Watch(self._thread, self._client.progress(workflow_id, **options))

    def stream_many(self, workflow_ids: Iterable[str], **options: Unpack[WatchOptions]) -> Watch[Event]:
        return Watch(self._thread, self._client.stream_many(workflow_ids, **options))

    def wait(self, task_id: str, timeout_s: float | None = None) -> Task:
        return self._run(self._client.wait(task_id, timeout_s))

    def result(self, task_id: str, timeout_s: float | None = None) -> str:
        return self._run(self._client.result(task_id, timeout_s))

    # -- tasks -----------------------------------------------------------------------------------------------------------

    def get(self, task_id: str) -> Task:
        return self._run(self._client.get(task_id))

    def list(
        self, *, limit: int = 20, offset: int = 0, session_id: str | None = None, status: RunState | str | None = None
    ) -> TaskList:
        return self._run(self._client.list(limit=limit, offset=offset, session_id=session_id, status=status))

    def events(self, task_id: str, *, after: int = 0, limit: int = 100, types: Iterable[str] = ()) -> EventPage:
        return self._run(self._client.events(task_id, after=after, limit=limit, types=types))

    def timeline(self, task_id: str, *, full: bool = False) -> Sequence[TimelineStep]:
        return self._run(self._client.timeline(task_id, full=full))

    def control_state(self, task_id: str) -> ControlState:
        return self._run(self._client.control_state(task_id))

    def cancel(self, task_id: str, reason: str | None = None) -> Accepted:
        return self._run(self._client.cancel(task_id, reason))

    def pause(self, task_id: str, reason: str | None = None) -> Accepted:
        return self._run(self._client.pause(task_id, reason))

    def resume(self, task_id: str, reason: str | None = None) -> Accepted:
        return self._run(self._client.resume(task_id, reason))

    def approvals(self, session_id: str | None = None) -> Sequence[Approval]:
        return self._run(self._client.approvals(session_id))

    def approve(
        self,
        task_id: str,
        approval_id: str,
        *,
        approved: bool = True,
        feedback: str | None = None,
        modified_action: str | None = None,
    ) -> Decided:
        decision = self._client.approve(
            task_id, approval_id, approved=approved, feedback=feedback, modified_action=modified_action
        )
        return self._run(decision)

    # -- sessions --------------------------------------------------------------------------------------------------------

    def sessions(self, *, limit: int = 20, offset: int = 0) -> SessionList:
        return self._run(self._client.sessions(limit=limit, offset=offset))

    def session(self, session_id: str) -> Session:
        return self._run(self._client.session(session_id))

    def session_history(self, session_id: str, *, limit: int = 100, offset: int = 0) -> SessionHistory:
        return self._run(self._client.session_history(session_id, limit=limit, offset=offset))

    def session_events(self, session_id: str, *, limit: int = 10, offset: int = 0) -> SessionTurns:
        return self._run(self._client.session_events(session_id, limit=limit, offset=offset))

    def rename_session(self, session_id: str, title: str) -> Session:
        return self._run(self._client.rename_session(session_id, title))

    def delete_session(self, session_id: str) -> None:
        self._run(self._client.delete_session(session_id))

    # -- usage -----------------------------------------------------------------------------------------------------------

    def usage(
        self, first: date | None = None, last: date | None = None, *, by: Iterable[Literal["key", "model", "day"]] = ()
    ) -> UsageReport:
        return self._run(self._client.usage(first, last, by=by))

    # -- the server ------------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        return self._run(self._client.health())

    def models(self) -> Sequence[Model]:
        return self._run(self._client.models())
