"""Binding an aiohttp application to an address, and what aiohttp itself would answer in plain text.

A request that cannot even be parsed (bad framing, headers beyond the limit) reaches no handler; it gets the same JSON envelope
as any other error, and its connection is closed. Bytes of such a request are neither echoed nor logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from gateway.errors import HeadersTooLarge
from gateway.observe import logs
from gateway.transports.error_response import error_response, of_http
from orchestrator.errors import HeadgateError, InvalidRequest

log = logs.logger(__name__)


class Unparsable(InvalidRequest):
    """The request is not valid HTTP."""

    code = "invalid_http"


class Connection(web.RequestHandler):
    """One client connection. Differs from aiohttp's in how it words the errors that happen outside of any handler."""

    __slots__ = ("_new_request_id",)

    def __init__(self, server: web.Server, *, new_request_id: Callable[[], str], **options: Any) -> None:
        super().__init__(server, **options)
        self._new_request_id = new_request_id

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
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            resp = error_response(of_http(resp), request.path, self._new_request_id())
        return await super().finish_response(request, resp, start_time)


@asynccontextmanager
async def listening(
    app: web.Application,
    *,
    host: str,
    port: int,
    new_request_id: Callable[[], str],
    max_header_bytes: int = 64 * 1024,
    keepalive_timeout_s: float = 75.0,
    reuse_port: bool = False,
) -> AsyncIterator[str]:
    """Serve `app` inside; yields the URL. On leaving, connections are closed, handlers that still run are cancelled."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    loop = asyncio.get_running_loop()

    def connection() -> Connection:
        assert runner.server is not None
        return Connection(
            runner.server,
            loop=loop,
            new_request_id=new_request_id,
            access_log=None,
            keepalive_timeout=keepalive_timeout_s,
            max_line_size=max_header_bytes,
            max_field_size=max_header_bytes,
            lingering_time=2.0,
            auto_decompress=False,  # compressed bodies are refused, not inflated
        )

    try:
        listener = await loop.create_server(connection, host.strip("[]"), port, backlog=8192, reuse_port=reuse_port or None)
        try:
            bound_host, bound_port = listener.sockets[0].getsockname()[:2]
            yield f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
        finally:
            listener.close()
    finally:
        await runner.cleanup()
