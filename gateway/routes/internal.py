"""What an orchestrator that runs apart answers its gateways: the engine's calls, and runs' logs as feeds.

Refusals are in their own words (`orchestrator.http.refusal`), because they become exceptions again on the other side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

from aiohttp import web

from gateway.access.rules import Access
from gateway.edge import CLAIMS, PRINCIPAL, about_run
from gateway.errors import Draining
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.native import run_id
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.transports.body import read_json_body
from gateway.transports.counted import counted
from gateway.transports.drain import Drain
from gateway.transports.pump import Pace, Pump
from gateway.transports.sink import EventStreamSink
from gateway.wire.feed import FeedEncoder
from gateway.wire.operation import EVENT_STREAM, Operation, Reply
from orchestrator.engine import Engine
from orchestrator.errors import HeadgateError
from orchestrator.http.calls import CALLS
from orchestrator.http.refusal import pack
from orchestrator.signing import SignatureRefused
from orchestrator.streamlog.log import parse_position

KEEPALIVE_S = 5.0
"""A third of the silence after which `orchestrator.remote` takes a feed for dead."""

_BODY_TIMEOUT_S = 60.0
_AROUND_A_BODY = 1 << 20
"""A call holds the body of a client's request and some words more."""

_CALL = Operation("internal", (Reply(200, "What the method returned."),), path={"call": "A method of the engine."})
_FEED = Operation("internal", (Reply(200, "Entries as they stand in the log.", media=EVENT_STREAM),))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InternalRoutes:
    def __init__(self, settings: Settings, engine: Engine, drain: Drain, metrics: GatewayMetrics) -> None:
        self._engine = engine
        self._drain = drain
        self._metrics = metrics
        self._max_body_bytes = int(settings.server.max_body_bytes) + _AROUND_A_BODY
        self._stall_timeout_s = settings.streams.stall_timeout_s
        self._pump = Pump(Pace(hold_s=0, keepalive_s=KEEPALIVE_S), monotonic, drain)

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/engine/{call}", Access.INTERNAL, _refusing(self.call), _CALL),
            Route("GET", "/runs/{id}/feed", Access.INTERNAL, _refusing(self.feed), _FEED),
        ]

    async def call(self, request: web.Request) -> web.StreamResponse:
        """One of the engine's methods."""
        call = CALLS.get(request.match_info["call"])
        if call is None:
            raise web.HTTPNotFound  # a gateway of another version: it must not take this for an answer to its client
        if self._drain.begun and call.name == "submit":
            raise Draining(retry_after_s=1)  # what runs here may finish; what begins should begin elsewhere
        message = await read_json_body(request, max_bytes=self._max_body_bytes, timeout_s=_BODY_TIMEOUT_S)
        if not request[CLAIMS].cover(message):
            raise SignatureRefused
        return web.Response(body=await call.answer(self._engine, request[PRINCIPAL], message), content_type="application/json")

    async def feed(self, request: web.Request) -> web.StreamResponse:
        """A run's log after a position, as it stands."""
        run, position = run_id(request), parse_position(request.query.get("after"))
        about_run(request, run)
        with self._drain.answer():
            answers = "answers" in request.query
            async with self._engine.subscribe(request[PRINCIPAL], run, position, answers=answers) as subscription:
                sink = EventStreamSink(request, stall_timeout_s=self._stall_timeout_s)
                with counted(self._metrics):
                    await self._pump.run(subscription, FeedEncoder(), sink, None)  # whose key it is, its gateway watches
        return sink.response


def _refusing(handler: Handler) -> Handler:
    async def refusing(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except SignatureRefused:
            raise  # not a word of the engine's, so it must not become one
        except HeadgateError as error:
            if request.writer.output_size:
                raise
            return web.Response(status=error.status, body=pack(error), content_type="application/json")

    return refusing
