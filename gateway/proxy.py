"""The native streams at a gateway that runs apart from its orchestrator: passed through, byte for byte.

    /api/v1/stream/sse, /api/v1/stream/ws   →   /stream/sse, /stream/ws

There is one implementation of these doors, and it stands where the log is read; here are only their fronts. Who the caller is has
been found out by then, and travels as the signed header: keys and tickets stay here. Whatever the orchestrator refuses, it
refuses in the words that the client gets. Either side's leaving is the other's: a client that goes ends its connection to the
orchestrator, and an orchestrator that goes breaks the client's off, which then resumes elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from urllib.parse import unquote_plus

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from gateway.departures import Departures
from gateway.edge import PRINCIPAL, TICKET, Handler, about_run
from gateway.errors import AccessEnded, Draining
from gateway.observe import logs
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.route import Route
from gateway.routes.streams import INSIDE, OUTSIDE
from gateway.settings import Settings
from gateway.transports.counted import counted
from gateway.transports.drain import Drain
from gateway.transports.sink import EventStreamSink
from gateway.transports.tunnel import Handshake, Tunnel
from gateway.wire import websocket
from gateway.wire.native import SseRendering
from gateway.wire.sse import at_boundary
from gateway.wire.ws_messages import close_code
from orchestrator.peers import CONNECT_S, OrchestratorAway, Peers, Refused
from orchestrator.runs import is_run_id

log = logs.logger(__name__)

_ASKED = ("Last-Event-ID", "Host")
_UPGRADE = ("Connection", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol")
"""What of a request goes on. Nothing else does, so no credential can. Compression of messages is never offered."""

_OWN = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "content-length", "date", "server", "x-request-id"})
"""What of an answer does not: each connection has its own."""

_SILENCES = 3.0
"""How many keepalives may be missing."""


class StreamProxy:
    def __init__(self, settings: Settings, peers: Peers, drain: Drain, departures: Departures, metrics: GatewayMetrics) -> None:
        self._peers = peers
        self._drain = drain
        self._departures = departures
        self._metrics = metrics
        self._silence_s = settings.streams.keepalive_s * _SILENCES
        self._stall_timeout_s = settings.streams.stall_timeout_s

    def in_front_of(self, route: Route) -> Route:
        """The same route to clients, without what is behind it."""

        async def handler(request: web.Request) -> web.StreamResponse:
            with self._drain.answer(), self._departures.reader(request.query.get("workflow_id", "")):
                return await self._pass_on(request)

        front: Handler = functools.update_wrapper(handler, route.handler)
        return route._replace(handler=front)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.path.endswith("/ws") and "Upgrade" in request.headers:
                return await self._socket(request)
            return await self._events(request)
        except Refused as refused:
            if refused.status == 401:  # it is this gateway that was refused, not its client
                raise refused.error() from None
            return web.Response(status=refused.status, body=refused.body, headers=_answered(refused.headers))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = await self._peers.stream(
            _target(request),
            request[PRINCIPAL],
            silence_s=self._silence_s,
            headers=_asked(request, _ASKED),
            only_run=_only_run(request),
        )
        sink = EventStreamSink(request, stall_timeout_s=self._stall_timeout_s, headers=_answered(response.headers))
        _name(request)
        with counted(self._metrics):
            async with response:
                await self._pass_events(request, response, sink)
        return sink.response

    async def _pass_events(self, request: web.Request, response: aiohttp.ClientResponse, sink: EventStreamSink) -> None:
        """To the end of the body. A stream that has to stop before says so in-band if the last event is whole, like the door."""
        last = b""
        try:
            async with self._drain.until_closed(request[PRINCIPAL]):
                await sink.start()
                while data := await response.content.readany():
                    last = data
                    await sink.write(data)
            await sink.finish(b"")
        except aiohttp.ClientError as error:
            raise OrchestratorAway from error
        except (Draining, AccessEnded) as broken:
            if not sink.started or not at_boundary(last):
                raise
            rendering = SseRendering(request.query["workflow_id"], frozenset(), raw_names=False)
            await sink.finish(rendering.broken(broken.failure()))

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        tunnel, answer = await self._opened(request)
        try:
            _name(request)
            headers = _answered(answer.headers) | {"Connection": "Upgrade", "Upgrade": "websocket"}
            with counted(self._metrics):
                try:
                    async with self._drain.until_closed(request[PRINCIPAL]):
                        return await tunnel.join(request, headers)
                except (Draining, AccessEnded) as broken:
                    if tunnel.boundary.clear and request.transport is not None:
                        request.transport.write(websocket.close(close_code(broken.failure())))
                    raise
        finally:
            tunnel.close()

    async def _opened(self, request: web.Request) -> tuple[Tunnel, Handshake]:
        """A tunnel to the first orchestrator that agrees. Raises Refused if none does, OrchestratorAway if none is there."""
        target, refused = _target(request), None
        for url in self._peers.order():
            headers = _asked(request, (*_ASKED, *_UPGRADE))
            headers.update(self._peers.headers("GET", target, request[PRINCIPAL], _only_run(request)))
            try:
                tunnel = await Tunnel.to(url, connect_s=CONNECT_S, stall_timeout_s=self._stall_timeout_s)
                try:
                    answer = await tunnel.shake(target, headers)
                except BaseException:
                    tunnel.close()
                    raise
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                log.info("orchestrator_missed", error=type(error).__name__)
                self._peers.missed(url)
                continue
            if answer.status == 101:
                return tunnel, answer
            tunnel.close()
            refused = Refused(answer.status, answer.headers, answer.body)
            if refused.status != 503:
                raise refused
        raise OrchestratorAway(retry_after_s=1) if refused is None else refused


def _target(request: web.Request) -> str:
    """The path and the query at the orchestrator: the query as the client wrote it, less its ticket."""
    query = request.raw_path.partition("?")[2]
    kept = "&".join(part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != "ticket")
    path = INSIDE + request.path.removeprefix(OUTSIDE)
    return f"{path}?{kept}" if kept else path


def _asked(request: web.Request, names: tuple[str, ...]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name in names for value in request.headers.getall(name, []))


def _answered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _OWN}


def _only_run(request: web.Request) -> str | None:
    ticket = request.get(TICKET)
    return None if ticket is None else ticket.run_id


def _name(request: web.Request) -> None:
    """The orchestrator has agreed, so the run is real and the caller's: answer and log name it."""
    if is_run_id(run_id := request.query.get("workflow_id", "")):
        about_run(request, run_id)
