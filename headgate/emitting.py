"""Events from your own Temporal activities into the run that they work for.

    worker = Worker(client, task_queue="mine", workflows=[...], activities=[...],
                    interceptors=[headgate.Emitting("127.0.0.1:50052", api_key=...)])

    @activity.defn
    async def write(topic: str) -> str:
        async for word in model(topic):
            headgate.say(word)                                  # a piece of the answer
        headgate.emit("PROGRESS", "drafted", payload={"progress": 0.5})
        return "..."

`emit` never waits: while one request is under way, further events gather for the next. What was emitted has arrived when the
activity is over; `flush` waits earlier. A request whose acknowledgement was lost is sent again and has no second effect, and the
events of an attempt that was replaced are refused. A workflow that is a step of a plan writes to the run of that plan, in the
step's name, and cannot end it. A workflow that was not started through Headgate has no run to write to: there, events go nowhere,
so the same code works with and without.

Over gRPC (`EventService.PublishEvents`, see `docs/reference/grpc.md`); for other languages use that directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
import msgspec
from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from protos import events_pb2, events_pb2_grpc

_log = logging.getLogger(__name__)

MAX_BATCH = 500
MAX_WAITING = 100_000
"""Events that may wait to be sent; an activity that emits more without ever awaiting `flush` is told so."""

_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

_NOWHERE = frozenset({"run_not_found", "log_missing"})
"""Refusals that mean: there is no such run, so there is nobody to tell."""


class EmitRefused(Exception):
    """The run's log refused an event. `code` says why: `log_closed` (the run has ended), `fenced` (another attempt works) …"""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"{code}: {message}")


class Emitter:
    """One writer's one attempt in one run. Use from the event loop that made it."""

    def __init__(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...], run_id: str, writer: str, attempt: int
    ) -> None:
        self._stub = events_pb2_grpc.EventServiceStub(channel)  # type: ignore[no-untyped-call]  # as it is generated
        self._metadata = metadata
        self._run_id = run_id
        self._writer = writer
        self._attempt = attempt
        self._sent = 0
        self._waiting: list[events_pb2.PublishEvent] = []
        self._sending: asyncio.Task[None] | None = None
        self._refused: EmitRefused | None = None
        self._call: grpc.aio.StreamStreamCall[events_pb2.PublishRequest, events_pb2.PublishAck] | None = None

    def emit(self, event: events_pb2.PublishEvent) -> None:
        """Queue an event. Raises what an earlier one was refused with."""
        if self._refused is not None:
            if self._refused.code in _NOWHERE:
                return
            raise self._refused
        if len(self._waiting) >= MAX_WAITING:
            raise BufferError(f"{MAX_WAITING} events wait to be sent; await headgate.flush() now and then")
        self._waiting.append(event)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def flush(self) -> None:
        """Wait until everything emitted is in the run's log. Raises EmitRefused."""
        while self._sending is not None:
            await asyncio.shield(self._sending)
        if self._refused is not None and self._refused.code not in _NOWHERE:
            raise self._refused

    async def close(self) -> None:
        """Send nothing more."""
        self._waiting.clear()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        if self._call is not None:
            self._call.cancel()

    async def _send(self) -> None:
        try:
            while self._waiting and self._refused is None:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                self._sent += 1
                await self._publish(
                    events_pb2.PublishRequest(
                        workflow_id=self._run_id,
                        writer=self._writer,
                        attempt=self._attempt,
                        producer_seq=self._sent,
                        events=batch,
                    )
                )
        except EmitRefused as refused:
            self._refused = refused
            self._waiting.clear()
            if refused.code in _NOWHERE:
                _log.debug("nothing is emitted: %s has no run", self._run_id)
        finally:
            self._sending = None

    async def _publish(self, request: events_pb2.PublishRequest) -> None:
        """Send until it is acknowledged: a repetition has no second effect."""
        tries = 0
        while True:
            try:
                if self._call is None:
                    self._call = self._stub.PublishEvents(metadata=self._metadata)
                await self._call.write(request)
                ack = await self._call.read()
            except grpc.aio.AioRpcError as error:
                self._call = None
                if error.code() not in _WORTH_A_RETRY:
                    raise EmitRefused(error.code().name.lower(), error.details() or "") from error
            else:
                if isinstance(ack, events_pb2.PublishAck):
                    if not ack.HasField("error"):
                        return
                    if not ack.error.retryable:
                        raise EmitRefused(ack.error.code, ack.error.message)
                else:
                    self._call = None  # the server ended the stream
            await asyncio.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
            tries += 1


_WORTH_A_RETRY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL})


_current: ContextVar[Callable[[events_pb2.PublishEvent], None] | None] = ContextVar("headgate_emitter", default=None)
_speaker: ContextVar[str] = ContextVar("headgate_speaker", default="agent")
_flush: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("headgate_flush", default=None)


def emit(
    event_type: str, message: str | None = None, *, payload: dict[str, Any] | None = None, agent_id: str | None = None
) -> None:
    """Put an event into the log of the run that the current activity works for. Types: `docs/reference/events.md`, or `X_…`.

    By default it is said by `agent`; by a workflow that is a step of a plan, in the step's name.
    """
    send = _current.get()
    if send is None:
        raise RuntimeError("headgate.emit works in activities of a worker that has headgate.Emitting among its interceptors")
    event = events_pb2.PublishEvent(type=event_type, agent_id=agent_id or _speaker.get(), message=message or "")
    if payload is not None:
        event.payload_json = msgspec.json.encode(payload)
    send(event)


def say(text: str, *, agent_id: str | None = None) -> None:
    """A piece of an agent's text. That of the answering agent is what OpenAI clients receive as content."""
    emit("LLM_PARTIAL", text, agent_id=agent_id)


async def flush() -> None:
    """Wait until what the current activity emitted is in the run's log. Raises EmitRefused."""
    wait = _flush.get()
    if wait is not None:
        await wait()


def _step(workflow_id: str | None) -> str:
    """The step of a plan that a workflow is, from its id: `run/step`, and from the second time on `run/step/2`."""
    return (workflow_id or "").partition("/")[2].partition("/")[0]


class Emitting(Interceptor):
    """Lets the activities of a worker emit. `target` is the address of Headgate's gRPC port."""

    def __init__(self, target: str, *, api_key: str | None = None, tls: bool = False) -> None:
        self._target = target
        self._metadata = () if api_key is None else (("authorization", f"Bearer {api_key}"),)
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _EmittingActivities(next, self)

    def emitter(self) -> Emitter:
        """For the current activity; its workflow's id is the run's."""
        if self._channel is None:
            credentials = grpc.ssl_channel_credentials()
            self._channel = (
                grpc.aio.secure_channel(self._target, credentials) if self._tls else grpc.aio.insecure_channel(self._target)
            )
        info = activity.info()
        writer = f"{info.activity_type}:{info.activity_id}"
        return Emitter(self._channel, self._metadata, info.workflow_id or "", writer, info.attempt)


class _EmittingActivities(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, emitting: Emitting) -> None:
        super().__init__(next)
        self._emitting = emitting

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        emitter = self._emitting.emitter()
        loop = asyncio.get_running_loop()

        def send(event: events_pb2.PublishEvent) -> None:
            try:
                here = asyncio.get_running_loop() is loop
            except RuntimeError:
                here = False
            if here:
                emitter.emit(event)
            else:  # an activity that runs in a thread
                loop.call_soon_threadsafe(emitter.emit, event)

        _current.set(send)
        _speaker.set(_step(activity.info().workflow_id) or "agent")
        _flush.set(emitter.flush)
        try:
            result = await super().execute_activity(input)
            await emitter.flush()
            return result
        finally:
            await emitter.close()
