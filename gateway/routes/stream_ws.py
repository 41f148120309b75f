"""`GET /api/v1/stream/ws`: runs' events as WebSocket messages, and a way to control the runs while watching.

What is refused is refused before the upgrade, in plain HTTP.
"""

from __future__ import annotations

from time import monotonic

from aiohttp import web

from gateway.access.rules import Access
from gateway.departures import Departures
from gateway.edge import PRINCIPAL, about_run, only_run
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.route import Route
from gateway.routes.ws_conversation import Conversation, Doors
from gateway.settings import Settings
from gateway.transports.drain import Drain
from gateway.transports.pump import Pace, Pump
from gateway.transports.ws_sink import Socket, SocketLimits
from gateway.wire.native import Renderings
from gateway.wire.operation import Operation, Reply
from gateway.wire.stream_query import StreamQuery, asked_stream
from orchestrator.engine import Engine
from orchestrator.errors import InvalidRequest

_ABOUT = Operation(
    "streams",
    (Reply(101, "The socket is open. One JSON text message per event.", media=None),),
    query=StreamQuery,
    headers={"Last-Event-ID": "The position after which to begin. Wins over `last_event_id`."},
    refusals=(403, 404, 429, 503),
    ticket=True,
)


class HandshakeExpected(InvalidRequest):
    """This route speaks WebSocket: send a handshake (RFC 6455). `/api/v1/stream/sse` has the same events over plain HTTP."""

    code = "websocket_expected"


class WebSocketRoutes:
    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        drain: Drain,
        departures: Departures,
        metrics: GatewayMetrics,
        renderings: Renderings,
    ) -> None:
        streams = settings.streams
        pump = Pump(Pace(hold_s=0, keepalive_s=streams.keepalive_s), monotonic, drain)
        self._doors = Doors(engine, pump, drain, departures, metrics, renderings, streams.ws_max_runs)
        self._limits = SocketLimits(
            streams.ws_ping_s, int(streams.ws_max_message_bytes), streams.ws_messages_per_s, streams.stall_timeout_s
        )
        self._drain = drain

    def routes(self) -> list[Route]:
        return [Route("GET", "/api/v1/stream/ws", Access.STREAM, self.stream_ws, _ABOUT)]

    async def stream_ws(self, request: web.Request) -> web.StreamResponse:
        """Watch tasks over a WebSocket, and control them.

        Replays from a position, then live; closed with 1000 after `STREAM_END`. A client may send `cancel`, `pause`, `resume`,
        `approve`, `subscribe` and `unsubscribe` as `{"op": …}`, and is answered `{"op", "ok", "error"}`.
        """
        asked = asked_stream(StreamQuery, request.query, request.headers)
        only = only_run(request, asked.run_id)
        socket = Socket(request, self._limits, monotonic)
        if not socket.acceptable:
            raise HandshakeExpected
        with self._drain.answer():
            async with Conversation(self._doors, socket, request[PRINCIPAL], asked.run_id, only) as conversation:
                await conversation.watch(asked)
                about_run(request, asked.run_id)
                await socket.start()
                await conversation.hold()
        return socket.response
