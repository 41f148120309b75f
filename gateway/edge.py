"""What happens to every request, once: its id, its trace, what browsers ask, its access rule, its errors as envelopes, its
metrics and its line in the log.

Every response carries `x-request-id`, and `X-Workflow-ID` where there is a run; errors and streams are no exception. Nothing a
client sends becomes a 500 or a bare text answer. Neither bodies nor query strings are logged.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from time import perf_counter
from typing import NamedTuple, Protocol

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.access.browsers import Browsers
from gateway.access.forwarding import HOST, Forwarding
from gateway.access.hosts import Hosts
from gateway.access.tickets import Ticket
from gateway.observe import logs
from gateway.observe.metrics import GatewayMetrics
from gateway.transports.drain import Drain
from gateway.transports.error_response import error_response, of_http
from orchestrator import trace
from orchestrator.errors import HeadgateError, InvalidRequest, RunNotFound
from orchestrator.limits.headers import rate_limit_headers
from orchestrator.limits.quota import Quota
from orchestrator.runs import Principal
from orchestrator.signing import Claims

PRINCIPAL = web.RequestKey("principal", Principal)
REQUEST_ID = web.RequestKey("request_id", str)
WORKFLOW_ID = web.RequestKey("workflow_id", str)
REPEATED = web.RequestKey("repeated", bool)
CACHE = web.RequestKey("cache", str)
QUOTA = web.RequestKey("quota", Quota)
TICKET = web.RequestKey("ticket", Ticket)
CLAIMS = web.RequestKey("claims", Claims)
"""What a gateway has signed of its request to an orchestrator that runs apart."""

CLIENT_LEFT = 499
"""In logs and metrics, the status of a request whose client left before it was answered."""

log = logs.logger("gateway.http")

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_UNMATCHED = "unmatched"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def about_run(
    request: web.Request, run_id: str, *, repeated: bool = False, cache: str | None = None, quota: Quota | None = None
) -> None:
    """From here on the request's response and log lines name this run. `repeated`: an earlier request has begun it. `cache`: what
    was found there, if the model has one. `quota`: what the caller's limits let through yet, if there are any.
    """
    request[WORKFLOW_ID] = run_id
    request[REPEATED] = repeated
    if quota is not None:
        request[QUOTA] = quota
    if cache is not None:
        request[CACHE] = cache
    structlog.contextvars.bind_contextvars(workflow_id=run_id)


def only_run(request: web.Request, run_id: str) -> str | None:
    """The one run that the caller's ticket is for, if it has such a ticket. Raises RunNotFound if `run_id` is another."""
    ticket = request.get(TICKET)
    if ticket is None or ticket.run_id is None:
        return None
    if ticket.run_id != run_id:
        raise RunNotFound
    return run_id


class Misframed(HeadgateError):
    """Somebody in between may have read the request differently, so its connection is closed."""


class InvalidHost(Misframed, InvalidRequest):
    """The Host header does not name one host."""

    code = "invalid_host"


class CodingUnknown(Misframed):
    """The only transfer coding that is understood is 'chunked'."""

    status = 501
    type = "invalid_request_error"
    code = "transfer_coding_unknown"


class Admission(Protocol):
    async def admit(self, request: web.Request) -> None:
        """Let a request for an existing route in, with its `PRINCIPAL` where its rule asks for one, or raise why not."""


class Front(NamedTuple):
    """What stands before a door that clients and browsers reach. An orchestrator that runs apart has none."""

    browsers: Browsers
    forwarding: Forwarding


class Edge:
    """`admission` is asked before a handler runs. It knows the rule of every route. `hosts`: the only names to answer to."""

    def __init__(
        self,
        admission: Admission,
        drain: Drain,
        metrics: GatewayMetrics,
        new_request_id: Callable[[], str],
        front: Front | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self._admission = admission
        self._front = front
        self._hosts = hosts
        self._drain = drain
        self._metrics = metrics
        self._new_request_id = new_request_id

    def middleware(self) -> Middleware:
        @web.middleware
        async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._handle(request, handler)

        return edge

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Put ids, and what browsers need, on a response that is about to be sent: `on_response_prepare` sees all of them."""
        headers = response.headers
        if self._front is not None:
            self._front.browsers.inform(request, headers, response.content_type)
        if request_id := request.get(REQUEST_ID):
            headers["x-request-id"] = request_id
        if run_id := request.get(WORKFLOW_ID):
            headers["X-Workflow-ID"] = run_id
        if request.get(REPEATED):
            headers["Idempotency-Replayed"] = "true"
        if found := request.get(CACHE):
            headers["X-Cache"] = headers["X-Headgate-Cache"] = found
        headers.update(rate_limit_headers(request.get(QUOTA)))

    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = perf_counter()
        asked = request.headers.get("x-request-id", "")
        request_id = request[REQUEST_ID] = asked if _SANE_REQUEST_ID.fullmatch(asked) else self._new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if "traceparent" in request.headers:
            _follow_trace(request)
        status = CLIENT_LEFT
        try:
            response = await self._answer(request, handler)
            status = response.status
            if self._drain.leaving:
                response.force_close()  # the client's next request should find another server
            elif "Upgrade" in request.headers and status != HTTPStatus.SWITCHING_PROTOCOLS:
                # An upgrade that nobody knows here is answered as if it had not been asked for, like h2c (RFC 9110, 7.8). But
                # aiohttp has thrown away what came with it, perhaps the beginning of a request. What comes next is no beginning.
                response.force_close()
            return response
        finally:
            self._report(request, status, perf_counter() - begun)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_framing(request)
            if self._hosts is not None:
                self._hosts.check(request.headers.get("Host", ""))
            if self._front is not None:
                if (preflight := self._front.browsers.preflight(request)) is not None:
                    return preflight
                self._front.browsers.check(request)
            if request.match_info.http_exception is None:  # otherwise there is no such route, and the handler raises that
                await self._admission.admit(request)
            return await handler(request)
        except HeadgateError as error:
            failed = error
        except web.HTTPException as raised:
            failed = of_http(raised)
        except Exception as fault:
            if isinstance(fault, ConnectionError) and _gone(request):
                raise
            log.exception("request_failed")
            self._metrics.internal_error()
            failed = HeadgateError()
        if request.writer.output_size:
            # Half a response is out. The one honest thing left is to break the connection off.
            raise ConnectionResetError("The response had begun")
        response = error_response(failed, request.path, request[REQUEST_ID])
        if isinstance(failed, Misframed):
            response.force_close()
        return response

    def _report(self, request: web.Request, status: int, seconds: float) -> None:
        route = request.match_info.route
        pattern = route.resource.canonical if route.resource is not None else _UNMATCHED
        method = route.method if pattern is not _UNMATCHED else "any"
        self._metrics.request(method, pattern, status, seconds)
        client = {} if self._front is None else {"client": self._front.forwarding.client(request)}
        log.info("request", method=method, route=pattern, status=status, duration_ms=round(seconds * 1000, 2), **client)


def _check_framing(request: web.Request) -> None:
    """What aiohttp lets through. Raises InvalidHost (RFC 9112, 3.2) and CodingUnknown (6.1)."""
    headers = request.headers
    if not HOST.fullmatch(headers.get("Host", "")):
        raise InvalidHost
    coding = headers.get("Transfer-Encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise CodingUnknown


def _follow_trace(request: web.Request) -> None:
    headers = request.headers
    followed = trace.parse(headers.getall("traceparent"), headers.getall("tracestate", ()))
    if followed is not None:
        trace.enter(followed)


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
