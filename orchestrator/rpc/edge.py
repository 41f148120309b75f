"""What happens to every call, once: who makes it, its errors as statuses, its bounds, its metrics and its line in the log.

To the wire all methods look alike, so all are registered as streams of bytes. A caller is therefore known before anything it
sends is read, the wait for its message has a bound, and what cannot be decoded is its mistake and not ours. A method of a
servicer is, by what its descriptor says:

    unary            async (principal, request) -> response, or (principal, request, line) where it asks for more
    server stream    async (principal, request, line)
    both             async (principal, line)
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from orchestrator import trace
from orchestrator.access import allow
from orchestrator.errors import HeadgateError, InvalidRequest
from orchestrator.rpc.access import RULES, Authenticator, Drain, Metadata, Observer
from orchestrator.rpc.status import ClientStalled, MalformedMessage, code_of, details_of, trailers_of
from orchestrator.runs import Principal, Scope

_log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 60.0
_LAST_WORDS_S = 1.0
_FINISHING_S = 5.0

Context = aio.ServicerContext[bytes, bytes]
Conversation = Callable[[Principal, "Line"], Awaitable[None]]
M = TypeVar("M", bound=Message)


class RequestTooSlow(HeadgateError):
    """The call's message did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class ClientGone(ConnectionResetError):
    """There is nobody to send anything to any more."""


class Line:
    """One call's line to its client. Nothing is queued: `write` returns when the transport has taken the message."""

    def __init__(self, context: Context, stall_timeout_s: float) -> None:
        self._context = context
        self._stall_timeout_s = stall_timeout_s

    @property
    def metadata(self) -> Metadata:
        """What the client sent along with the call."""
        return cast(Metadata, self._context.invocation_metadata() or ())

    async def begin(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Send the first metadata now, instead of with the first message. Raises ClientGone."""
        try:
            await self._context.send_initial_metadata(metadata)
        except aio.InternalError:
            raise ClientGone from None

    def conclude_with(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Send this behind the last message, as trailers."""
        self._context.set_trailing_metadata(metadata)

    async def read(self, kind: type[M]) -> M | None:
        """The next message; None when the client has sent its last. Raises MalformedMessage."""
        raw: object = await self._context.read()
        if raw is aio.EOF:
            return None
        try:
            return kind.FromString(cast(bytes, raw))
        except DecodeError:
            raise MalformedMessage from None

    async def write(self, message: bytes) -> None:
        """Raises ClientStalled when the client does not read, ClientGone or CancelledError when it is not there any more."""
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self._context.write(message)
        except TimeoutError:
            raise ClientStalled from None
        except aio.InternalError:
            raise ClientGone from None


class Edge:
    def __init__(self, authenticate: Authenticator, drain: Drain, observer: Observer, *, stall_timeout_s: float) -> None:
        self._authenticate = authenticate
        self._drain = drain
        self._observer = observer
        self._stall_timeout_s = stall_timeout_s
        self._unary: set[asyncio.Task[Message]] = set()

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """The service's methods, each implemented by the servicer's method of that name. Raises KeyError if one has no rule."""
        handlers: dict[str, grpc.RpcMethodHandler[object, None]] = {}
        for method in service.methods:
            converse = self._conversation(method, getattr(servicer, method.name))
            name = f"{service.full_name}/{method.name}"
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._answering(name, RULES[name], converse))
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    async def close(self) -> None:
        """Wait a moment for what callers asked for and did not wait for."""
        if self._unary:
            await asyncio.wait(self._unary, timeout=_FINISHING_S)

    def _conversation(self, method: MethodDescriptor, handler: Callable[..., Coroutine[Any, Any, Any]]) -> Conversation:
        request_type = GetMessageClass(method.input_type)
        if method.client_streaming:
            return handler

        asks = "line" in inspect.signature(handler).parameters

        async def stream(principal: Principal, line: Line) -> None:
            await handler(principal, await _only(line, request_type), line)

        async def unary(principal: Principal, line: Line) -> None:
            request = await _only(line, request_type)
            more = (line,) if asks else ()
            response = await self._whole(handler(principal, request, *more))
            await line.write(response.SerializeToString())

        return stream if method.server_streaming else unary

    def _answering(
        self, name: str, scope: Scope, converse: Conversation
    ) -> Callable[[object, Context], Coroutine[Any, Any, None]]:
        async def answer(_: object, context: Context) -> None:
            begun = perf_counter()
            code = grpc.StatusCode.CANCELLED
            try:
                failed = await self._converse(scope, converse, context)
                code = grpc.StatusCode.OK if failed is None else code_of(failed)
                if failed is not None:
                    await _refuse(context, failed)
            finally:
                seconds = perf_counter() - begun
                self._observer.call(name, code.name, seconds)
                _log.info("call of %s: %s after %.2f ms", name, code.name, seconds * 1000)

        return answer

    async def _converse(self, scope: Scope, converse: Conversation, context: Context) -> HeadgateError | None:
        try:
            line = Line(context, self._stall_timeout_s)
            trace.enter(_trace_of(line.metadata))
            principal = await self._authenticate(line.metadata)
            allow(principal, scope)
            with self._drain.answer():
                await converse(principal, line)
        except HeadgateError as error:
            if isinstance(error, ClientStalled):
                self._observer.stalled()
            return error
        except ClientGone:
            raise _over() from None
        except Exception:  # noqa: BLE001 - the outermost edge of a call
            _log.exception("a call failed")
            self._observer.internal_error()
            return HeadgateError()
        return None

    async def _whole(self, work: Coroutine[Any, Any, Message]) -> Message:
        """Carry out what a unary call asks for; not broken off halfway if its caller leaves."""
        task = asyncio.create_task(work)
        self._unary.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Message]) -> None:
        self._unary.discard(task)
        if not task.cancelled():
            task.exception()  # its caller is told; if it left, nobody wants to know


async def _only(line: Line, kind: type[Message]) -> Message:
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            request = await line.read(kind)
    except TimeoutError:
        raise RequestTooSlow from None
    if request is None:
        raise InvalidRequest("The call carries no message.")
    return request


async def _refuse(context: Context, error: HeadgateError) -> None:
    try:
        # A client that does not read cannot be told. What is left of its call goes with its connection.
        async with asyncio.timeout(_LAST_WORDS_S):
            await context.abort(code_of(error), details_of(error), trailers_of(error))
    except aio.InternalError:
        raise _over() from None
    except TimeoutError:
        _log.info("a client that does not read was not told why its call ended: %s", error.code)


def _trace_of(metadata: Metadata) -> trace.Trace | None:
    def sent(name: str) -> list[str]:
        return [value for key, value in metadata if key == name and isinstance(value, str)]

    return trace.parse(sent("traceparent"), sent("tracestate"))


def _over() -> asyncio.CancelledError:
    """Ends a call whose client has left. Any other exception would have gRPC log an error and try to answer."""
    return asyncio.CancelledError()
