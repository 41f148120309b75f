"""Binding an aiohttp application to an address, and what aiohttp itself would answer in plain text.

A request that cannot even be parsed (bad framing, headers beyond the limit) reaches no handler; it gets the same JSON envelope
as any other error, and its connection is closed. Bytes of such a request are neither echoed nor logged.

A connection is bounded from its first byte on: how long the headers of a request may take (from their first byte; before that it
is idle), how long it may be idle, and how many there are.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from gateway.access.browsers import SECURE
from gateway.errors import HeadersTooLarge, envelope
from gateway.observe import logs
from gateway.transports.error_response import error_response, of_http
from orchestrator.errors import HeadgateError, InvalidRequest, Unavailable

log = logs.logger(__name__)


class Unparsable(InvalidRequest):
    """The request is not valid HTTP."""

    code = "invalid_http"


class Full(Unavailable):
    """This server has as many connections as it may have. Try again shortly."""


class Limits(NamedTuple):
    max_header_bytes: int = 64 * 1024
    header_timeout_s: float = 15.0
    max_connections: int = 20_000
    keepalive_timeout_s: float = 75.0


class Connection(web.RequestHandler):
    """One client connection. Differs from aiohttp's in how it words the errors that happen outside of any handler, and in not
    waiting long for headers that have begun.
    """

    __slots__ = ("_header_timeout_s", "_headers_due", "_new_request_id")

    def __init__(self, server: web.Server, *, new_request_id: Callable[[], str], header_timeout_s: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._new_request_id = new_request_id
        self._header_timeout_s = header_timeout_s
        self._headers_due: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None
        elif self._headers_due is None:  # it was idle, and what has come is no whole head
            self._headers_due = self._loop.call_later(self._header_timeout_s, self._headers_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        super().connection_lost(exc)

    def _headers_late(self) -> None:
        self._headers_due = None
        log.info("headers_late")
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("The response had begun")
        if status == 400:
            log.info("request_unparsable", error=type(exc).__name__)
            failed: HeadgateError = HeadersTooLarge() if isinstance(exc, LineTooLong) else Unparsable()
        else:
            log.error("request_failed", exc_info=exc)
            failed = HeadgateError()
        response = error_response(failed, request.path, self._new_request_id())
        response.headers.update(SECURE)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            resp = error_response(of_http(resp), request.path, self._new_request_id())
        return await super().finish_response(request, resp, start_time)


class _Refusal(asyncio.Protocol):
    """A connection too many: told so before it has asked, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = envelope(Full())
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        fields = "".join(f"{name}: {value}\r\n" for name, value in SECURE.items())
        answer = cast(asyncio.Transport, transport)
        answer.write(f"{head}{fields}Retry-After: 1\r\nConnection: close\r\n\r\n".encode() + body)
        answer.close()


@asynccontextmanager
async def listening(
    app: web.Application,
    *,
    host: str,
    port: int,
    new_request_id: Callable[[], str],
    limits: Limits | None = None,
    reuse_port: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Serve `app` inside; yields the URL. On leaving, connections are closed, handlers that still run are cancelled."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    loop = asyncio.get_running_loop()
    limits = limits or Limits()

    def connection() -> asyncio.Protocol:
        assert runner.server is not None
        if len(runner.server.connections) >= limits.max_connections:
            return _Refusal()
        return Connection(
            runner.server,
            loop=loop,
            new_request_id=new_request_id,
            access_log=None,
            header_timeout_s=limits.header_timeout_s,
            keepalive_timeout=limits.keepalive_timeout_s,
            max_line_size=limits.max_header_bytes,
            max_field_size=limits.max_header_bytes,
            lingering_time=2.0,
            auto_decompress=False,  # compressed bodies are refused, not inflated
        )

    try:
        listener = await loop.create_server(
            connection, host.strip("[]"), port, backlog=8192, reuse_port=reuse_port or None, ssl=tls
        )
        try:
            bound_host, bound_port = listener.sockets[0].getsockname()[:2]
            yield f"http{'s' if tls else ''}://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
        finally:
            listener.close()
    finally:
        await runner.cleanup()
