"""A native WebSocket from its opening to its close: the runs it shows, and what its client asks meanwhile.

A socket is opened for one run and may show more. The end of a run is its `STREAM_END` message; when it leaves the socket
without a stream, the socket is closed, with the code of how the last one ended. A client that unsubscribes from its last run
keeps its socket, since it may want another one. Where a stream breaks off although its run goes on, the socket is closed at
once, so that the client resumes all that it watched.

Operations are carried out one after the other and answered in order; the answer to `subscribe` comes before its first event.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, NamedTuple, Self

from gateway.departures import Departures
from gateway.errors import AccessEnded, Draining, StreamGap
from gateway.observe.metrics import GatewayMetrics
from gateway.transports.counted import counted
from gateway.transports.drain import Drain
from gateway.transports.pump import Pump
from gateway.transports.ws_sink import Socket, SocketSink
from gateway.wire.native import NativeEncoder, Renderings
from gateway.wire.stream_query import Asked
from gateway.wire.ws_messages import (
    AnyOperation,
    Approve,
    Cancel,
    CloseCode,
    InvalidMessage,
    Pause,
    Resume,
    Subscribe,
    Unsubscribe,
    answer,
    close_code,
    named_op,
    parse_operation,
)
from orchestrator.access import allow
from orchestrator.engine import Decision, Engine
from orchestrator.errors import Failure, HeadgateError, RateLimited, RunConflict, RunNotFound
from orchestrator.runs import Principal, is_run_id


class AlreadySubscribed(RunConflict):
    """The socket shows this run already."""

    code = "already_subscribed"


class NotSubscribed(RunConflict):
    """The socket does not show this run."""

    code = "not_subscribed"


class TooManySubscriptions(RateLimited):
    """The socket shows as many runs as it may. Unsubscribe from one, or open another socket."""

    code = "too_many_subscriptions"


class Doors(NamedTuple):
    """What all conversations of a process share."""

    engine: Engine
    pump: Pump
    drain: Drain
    departures: Departures
    metrics: GatewayMetrics
    renderings: Renderings
    max_runs: int


class Conversation:
    """`run_id` is the run that the socket is opened for; `only_run` the one run that its client may see, if that is so."""

    def __init__(self, doors: Doors, socket: Socket, principal: Principal, run_id: str, only_run: str | None) -> None:
        self._doors = doors
        self._socket = socket
        self._principal = principal
        self._run_id = run_id
        self._only_run = only_run
        self._streams: dict[str, asyncio.Task[Failure | None]] = {}
        self._over: asyncio.Future[CloseCode | None] = asyncio.get_running_loop().create_future()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.cancel()
        await self._stop()
        self._socket.let_go()

    async def watch(self, asked: Asked, greeting: bytes = b"") -> None:
        """Show a run, as soon as the socket is open; first of all the greeting. Raises RunNotFound, and shows nothing then."""
        entered = asyncio.Event()
        stream = asyncio.create_task(self._stream(asked, greeting, entered))
        self._streams[asked.run_id] = stream
        stream.add_done_callback(lambda done: self._ended(asked.run_id, done, entered.is_set()))
        entering = asyncio.create_task(entered.wait())
        try:
            await asyncio.wait((stream, entering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            entering.cancel()
        if not entered.is_set():
            await stream

    async def hold(self) -> None:
        """Converse until either side closes the socket. Raises ConnectionError when the client is simply gone."""
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(self._heard)
        try:
            async with self._doors.drain.until_closed(self._principal):
                code = await self._over
        except (Draining, AccessEnded) as broken:
            code = close_code(broken.failure())
        if code is not None:
            await self._stop()  # nothing may follow the close
            await self._socket.close(code)

    # -- streams ---------------------------------------------------------------------------------------------------------

    async def _stream(self, asked: Asked, greeting: bytes, entered: asyncio.Event) -> Failure | None:
        doors = self._doors
        async with doors.engine.subscribe(self._principal, asked.run_id, asked.position) as subscription:
            entered.set()
            await self._socket.opened.wait()
            with counted(doors.metrics), doors.departures.reader(asked.run_id):
                if greeting:
                    await self._socket.send(greeting)
                encoder = NativeEncoder(doors.renderings.websocket(asked.run_id, asked.types))
                await doors.pump.run(subscription, encoder, SocketSink(self._socket), self._principal)
                return encoder.failure

    def _ended(self, run_id: str, stream: asyncio.Task[Failure | None], entered: bool) -> None:
        if self._streams.get(run_id) is stream:
            del self._streams[run_id]
        if stream.cancelled() or not entered:
            return
        if (error := stream.exception()) is not None:
            self._fail(error)
            return
        failure = stream.result()
        broken = failure is not None and failure.code != StreamGap.code
        if broken or not self._streams:
            self._finish(close_code(failure))

    def _finish(self, code: CloseCode | None) -> None:
        if not self._over.done():
            self._over.set_result(code)

    def _fail(self, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    async def _stop(self) -> None:
        every: list[asyncio.Task[Any] | None] = [*self._streams.values(), self._reading]
        tasks = [task for task in every if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- operations ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while (message := await self._socket.receive()) is not None:
            await self._answer(message)

    def _heard(self, reading: asyncio.Task[None]) -> None:
        if reading.cancelled():
            return
        if (error := reading.exception()) is not None:
            self._fail(error)
        else:
            self._finish(None)  # the client, or a breach of the protocol, has closed the socket already

    async def _answer(self, message: str | bytes) -> None:
        op = run_id = None
        try:
            if isinstance(message, bytes):
                raise InvalidMessage
            op = named_op(message)
            operation = parse_operation(message)
            named = operation.workflow_id or self._run_id
            if not is_run_id(named) or self._only_run not in (None, named):
                raise RunNotFound
            run_id = named
            allow(self._principal, operation.scope)
            said = answer(op, run_id)
            if isinstance(operation, Subscribe):
                await self._subscribe(operation, run_id, greeting=said)
            else:
                await self._carry_out(operation, run_id)
                await self._socket.send(said)
        except HeadgateError as error:
            await self._socket.send(answer(op, run_id, error))

    async def _carry_out(self, operation: AnyOperation, run_id: str) -> None:
        engine, principal = self._doors.engine, self._principal
        match operation:
            case Cancel(reason=reason):
                await engine.cancel(principal, run_id, reason)
            case Pause(reason=reason):
                await engine.pause(principal, run_id, reason)
            case Resume(reason=reason):
                await engine.resume(principal, run_id, reason)
            case Approve(approval_id=approval_id, approved=approved, feedback=feedback, modified_action=modified):
                await engine.decide(principal, run_id, Decision(approval_id, approved, feedback, modified, principal.key_id))
            case Unsubscribe():
                await self._unsubscribe(run_id)
            case Subscribe():
                raise AssertionError("is answered by its stream")

    async def _subscribe(self, operation: Subscribe, run_id: str, greeting: bytes) -> None:
        if run_id in self._streams:
            raise AlreadySubscribed
        if len(self._streams) >= self._doors.max_runs:
            raise TooManySubscriptions
        await self.watch(Asked(run_id, operation.position, operation.wanted), greeting)

    async def _unsubscribe(self, run_id: str) -> None:
        stream = self._streams.get(run_id)
        if stream is None:
            raise NotSubscribed
        stream.cancel()
        await asyncio.wait((stream,))
