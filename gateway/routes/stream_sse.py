"""`GET /api/v1/stream/sse`: a run's events as server-sent events, from any position to the end.

Headers and the first bytes leave at once: a browser's `open` event must not wait for a quiet run. Whatever is refused is
therefore refused before; afterwards a stream that is complete ends with `done`, and one that ends otherwise can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from aiohttp import web

from gateway.access.rules import Access
from gateway.departures import Departures
from gateway.edge import PRINCIPAL, about_run, only_run
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.transports.counted import counted
from gateway.transports.drain import Drain
from gateway.transports.pump import Pace, Pump
from gateway.transports.sink import EVENT_STREAM_HEADERS, EventStreamSink
from gateway.wire.native import NativeEncoder, Renderings, opening
from gateway.wire.operation import EVENT_STREAM, Operation, Reply
from gateway.wire.stream_query import SseQuery, asked_stream
from orchestrator.engine import Engine

RETRY_MS = 2000

_HEADERS = {**EVENT_STREAM_HEADERS, "Cache-Control": "no-cache, no-transform"}

_ABOUT = Operation(
    "streams",
    (Reply(200, "The events.", media=EVENT_STREAM, headers={"X-Workflow-ID": "The task."}),),
    query=SseQuery,
    headers={"Last-Event-ID": "The position after which to begin. Wins over `last_event_id`."},
    refusals=(404, 429, 503),
    ticket=True,
)


class SseRoutes:
    """`jitter(ms)` spreads the time after which clients that were cut off together come back; tests own it."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        drain: Drain,
        departures: Departures,
        metrics: GatewayMetrics,
        renderings: Renderings,
        jitter: Callable[[int], int],
    ) -> None:
        self._engine = engine
        self._drain = drain
        self._departures = departures
        self._metrics = metrics
        self._renderings = renderings
        self._jitter = jitter
        self._stall_timeout_s = settings.streams.stall_timeout_s
        self._pump = Pump(Pace(hold_s=0, keepalive_s=settings.streams.keepalive_s), monotonic, drain)

    def routes(self) -> list[Route]:
        return [Route("GET", "/api/v1/stream/sse", Access.STREAM, self.stream_sse, _ABOUT)]

    async def stream_sse(self, request: web.Request) -> web.StreamResponse:
        """Watch a task as server-sent events.

        Replays from a position, then live, to the event `done`. A reader who comes back with the `id` of the last event that it
        got misses nothing and gets nothing twice; where events are no longer to be had, `STREAM_GAP` says which.
        """
        asked = asked_stream(SseQuery, request.query, request.headers)
        only_run(request, asked.run_id)
        with self._drain.answer():
            async with self._engine.subscribe(request[PRINCIPAL], asked.run_id, asked.position) as subscription:
                about_run(request, asked.run_id)
                sink = EventStreamSink(request, stall_timeout_s=self._stall_timeout_s, headers=_HEADERS)
                rendering = self._renderings.sse(asked.run_id, asked.types, raw_names=asked.raw_names)
                with counted(self._metrics), self._departures.reader(asked.run_id):
                    await sink.write(opening(self._jitter(RETRY_MS)))
                    await self._pump.run(subscription, NativeEncoder(rendering), sink, request[PRINCIPAL])
        return sink.response
