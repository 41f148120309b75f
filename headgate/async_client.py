"""The asynchronous client of the native API (`docs/reference/client.md`).

    async with headgate.AsyncClient("http://127.0.0.1:8080") as client:
        task = await client.submit("What are you?")
        async for event in task.stream():
            print(event.type, event.message)

Everything raises the errors of `headgate.errors`. Requests are sent once; streams, and what waits for a task, reconnect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import date
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

from headgate import calls
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
    Submitted,
    Task,
    TaskList,
    TimelineStep,
    UsageReport,
)
from headgate.async_stream import AsyncEventStream
from headgate.calls import TaskOptions
from headgate.connection import Connection
from headgate.errors import BadAnswer, TaskCancelled, TaskFailed, TaskTimedOut, WaitTimedOut
from headgate.events import Event
from headgate.following import PATIENT, Backoff, Following, Gaps, OnLoss, Reconnecting
from headgate.reading import Transport
from headgate.watching import AsyncWatch, Progress, Read, WatchOptions, event_of, progress_of
from orchestrator.events import ENDINGS, EventType
from orchestrator.runs import RunState

TIMEOUT_S = 30.0

T = TypeVar("T")


class StreamOptions(TypedDict, total=False):
    """How to read a stream.

    `types` filters, but never hides an ending. `last_event_id` is the position after which to begin, a `stream_id` or a `seq`.
    `gaps="skip"` goes on after events that are no longer to be had. `on_loss` is told of lost connections.
    """

    types: Iterable[str]
    last_event_id: str | int
    transport: Transport
    gaps: Gaps
    on_loss: OnLoss


class AsyncTaskHandle:
    """A task that was submitted here, and what can be asked of it."""

    def __init__(self, client: AsyncClient, submitted: Submitted) -> None:
        self.task_id = submitted.task_id
        self.workflow_id = submitted.workflow_id
        self.session_id = submitted.session_id
        self.created_at = submitted.created_at
        self._client = client

    def stream(self, **options: Unpack[StreamOptions]) -> AsyncEventStream:
        return self._client.stream(self.task_id, **options)

    async def get(self) -> Task:
        return await self._client.get(self.task_id)

    async def wait(self, timeout_s: float | None = None) -> Task:
        return await self._client.wait(self.task_id, timeout_s)

    async def result(self, timeout_s: float | None = None) -> str:
        return await self._client.result(self.task_id, timeout_s)

    async def cancel(self, reason: str | None = None) -> Accepted:
        return await self._client.cancel(self.task_id, reason)

    async def pause(self, reason: str | None = None) -> Accepted:
        return await self._client.pause(self.task_id, reason)

    async def resume(self, reason: str | None = None) -> Accepted:
        return await self._client.resume(self.task_id, reason)

    def progress(self, **options: Unpack[WatchOptions]) -> AsyncWatch[Progress]:
        return self._client.progress(self.task_id, **options)


class AsyncClient:
    """A server's native API. Close it, or use it as a context manager; it belongs to the event loop that first uses it."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        backoff: Backoff = PATIENT,
    ) -> None:
        """`timeout_s` bounds each request; streams last as long as they last."""
        self._connection = Connection(base_url, api_key, timeout_s)
        self._backoff = backoff

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    # -- submitting and watching -----------------------------------------------------------------------------------------

    async def submit(self, query: str, **options: Unpack[TaskOptions]) -> AsyncTaskHandle:
        """Submit a task. It goes on whatever becomes of this client."""
        submitted = await self._connection.call(calls.submit(query, options))
        return AsyncTaskHandle(self, submitted)

    async def submit_and_stream(self, query: str, **options: Unpack[TaskOptions]) -> tuple[AsyncTaskHandle, AsyncEventStream]:
        """Submit a task, and its events from the first on."""
        task = await self.submit(query, **options)
        return task, task.stream()

    def stream(self, workflow_id: str, **options: Unpack[StreamOptions]) -> AsyncEventStream:
        """A task's events: those there are, then live, until it ends, across lost connections."""
        following = Following(
            workflow_id,
            types=options.get("types", ()),
            last_event_id=options.get("last_event_id"),
            gaps=options.get("gaps", "raise"),
            backoff=self._backoff,
            server_known=self._connection.answered,
        )
        return AsyncEventStream(self._connection, following, options.get("transport", "sse"), options.get("on_loss"))

    async def execute(
        self,
        what: str | Mapping[str, Any],
        input: str | Mapping[str, Any] | None = None,
        *,
        workflow_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncTaskHandle:
        """Start a plan: a model by its name, or one of your own, `{"name": …, "steps": [ … ]}`. It goes on by itself.

        Raises Forbidden where the key may not bring plans, Conflict where there is a task with this `workflow_id`.
        """
        call = calls.execute(what, input, workflow_id, session_id, metadata, idempotency_key)
        task = await self.get(await self._connection.begin(call))
        begun = Submitted(task.task_id, task.workflow_id, task.status, "", task.created_at, task.session_id)
        return AsyncTaskHandle(self, begun)

    def progress(self, workflow_id: str, **options: Unpack[WatchOptions]) -> AsyncWatch[Progress]:
        """A task's progress, step by step: what there was, then live, until it ends, across lost connections."""
        return self._watch("/api/v1/stream/progress", {"workflow_id": workflow_id}, progress_of, options)

    def stream_many(self, workflow_ids: Iterable[str], **options: Unpack[WatchOptions]) -> AsyncWatch[Event]:
        """The events of several tasks as one stream, until all have ended. Its position is one for all of them."""
        return self._watch("/api/v1/stream/multi", {"workflow_ids": ",".join(workflow_ids)}, event_of, options)

    def _watch(self, path: str, query: Mapping[str, str], read: Read[T], options: WatchOptions) -> AsyncWatch[T]:
        place = Reconnecting(options.get("last_event_id"), self._backoff, self._connection.answered)
        return AsyncWatch(self._connection, path, query, read, place, options.get("on_loss"))

    async def wait(self, task_id: str, timeout_s: float | None = None) -> Task:
        """The task, once it has ended, however it did. Raises WaitTimedOut."""
        await self._ending(task_id, timeout_s)
        return await self.get(task_id)

    async def result(self, task_id: str, timeout_s: float | None = None) -> str:
        """What the task answers. Raises TaskFailed, TaskTimedOut, TaskCancelled, WaitTimedOut."""
        ending = await self._ending(task_id, timeout_s)
        raise_unless_completed(ending)
        return (await self.get(task_id)).result or ""

    async def _ending(self, task_id: str, timeout_s: float | None) -> Event:
        try:
            async with (
                asyncio.timeout(timeout_s),
                aclosing(self.stream(task_id, types=[EventType.WORKFLOW_COMPLETED], gaps="skip")) as events,
            ):
                async for event in events:
                    if event.type in ENDINGS:
                        return event
        except TimeoutError:
            raise WaitTimedOut(f"{task_id} has not ended in {timeout_s:g} s.") from None
        raise BadAnswer(f"The stream of {task_id} ends without saying how the task ended.")

    # -- tasks -----------------------------------------------------------------------------------------------------------

    async def get(self, task_id: str) -> Task:
        return await self._connection.call(calls.task(task_id))

    async def list(
        self, *, limit: int = 20, offset: int = 0, session_id: str | None = None, status: RunState | str | None = None
    ) -> TaskList:
        """Newest first."""
        return await self._connection.call(calls.tasks(limit, offset, session_id, status))

    async def events(self, task_id: str, *, after: int = 0, limit: int = 100, types: Iterable[str] = ()) -> EventPage:
        """A page of the events that there are; `stream` has them all."""
        return await self._connection.call(calls.events(task_id, after, limit, types))

    async def timeline(self, task_id: str, *, full: bool = False) -> Sequence[TimelineStep]:
        """What Temporal did for the task."""
        return (await self._connection.call(calls.timeline(task_id, full))).events

    async def control_state(self, task_id: str) -> ControlState:
        return await self._connection.call(calls.control_state(task_id))

    async def cancel(self, task_id: str, reason: str | None = None) -> Accepted:
        """Twice is once. Raises Conflict if it has ended otherwise."""
        return await self._connection.call(calls.control("cancel", task_id, reason))

    async def pause(self, task_id: str, reason: str | None = None) -> Accepted:
        """At its next safe point. Raises Conflict if it is paused or has ended."""
        return await self._connection.call(calls.control("pause", task_id, reason))

    async def resume(self, task_id: str, reason: str | None = None) -> Accepted:
        """Raises Conflict if it is not paused."""
        return await self._connection.call(calls.control("resume", task_id, reason))

    async def approvals(self, session_id: str | None = None) -> Sequence[Approval]:
        """The decisions that tasks wait for, oldest first."""
        return (await self._connection.call(calls.approvals(session_id))).approvals

    async def approve(
        self,
        task_id: str,
        approval_id: str,
        *,
        approved: bool = True,
        feedback: str | None = None,
        modified_action: str | None = None,
    ) -> Decided:
        """Decide, once. Raises Conflict if somebody else did, or it is too late."""
        return await self._connection.call(calls.approve(task_id, approval_id, approved, feedback, modified_action))

    # -- sessions --------------------------------------------------------------------------------------------------------

    async def sessions(self, *, limit: int = 20, offset: int = 0) -> SessionList:
        """The latest used first."""
        return await self._connection.call(calls.sessions(limit, offset))

    async def session(self, session_id: str) -> Session:
        return await self._connection.call(calls.session(session_id))

    async def session_history(self, session_id: str, *, limit: int = 100, offset: int = 0) -> SessionHistory:
        """Its tasks, oldest first."""
        return await self._connection.call(calls.session_history(session_id, limit, offset))

    async def session_events(self, session_id: str, *, limit: int = 10, offset: int = 0) -> SessionTurns:
        """Its tasks with their events, oldest first."""
        return await self._connection.call(calls.session_events(session_id, limit, offset))

    async def rename_session(self, session_id: str, title: str) -> Session:
        return await self._connection.call(calls.rename_session(session_id, title))

    async def delete_session(self, session_id: str) -> None:
        await self._connection.call(calls.delete_session(session_id))

    # -- usage -----------------------------------------------------------------------------------------------------------

    async def usage(
        self, first: date | None = None, last: date | None = None, *, by: Iterable[Literal["key", "model", "day"]] = ()
    ) -> UsageReport:
        """What was used from one day to another, in UTC: this month until today, if they are not named."""
        return await self._connection.call(calls.usage(first, last, by))

    # -- the server ------------------------------------------------------------------------------------------------------

    async def health(self) -> Health:
        return await self._connection.call(calls.health())

    async def models(self) -> Sequence[Model]:
        return (await self._connection.call(calls.models())).data


def raise_unless_completed(ending: Event) -> None:
    """What an ending says, as an exception if it is not `WORKFLOW_COMPLETED`."""
    payload: dict[str, Any] = ending.payload or {}
    if ending.type == EventType.WORKFLOW_CANCELLED:
        raise TaskCancelled(payload.get("reason"))
    if ending.type == EventType.WORKFLOW_FAILED:
        error: dict[str, Any] = payload.get("error") or {}
        code = str(error.get("code") or "run_failed")
        message = str(error.get("message") or ending.message or "The run failed without saying why.")
        kind = TaskTimedOut if code == "timeout" else TaskFailed
        raise kind(message, code, bool(error.get("retryable")))
