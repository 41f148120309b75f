"""The composition root of a serving process: what is built, how it is wired, and who ends what.

`serve` is a process's life: start, serve until told to stop, drain, stop. Everything long-lived is a context manager entered
here, so whatever was started is stopped, in the opposite order, however the life ends.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from gateway.access.admission import Inside, Outside
from gateway.access.browsers import Browsers
from gateway.access.forwarding import Forwarding
from gateway.access.hosts import Hosts
from gateway.access.keys import KeyRing
from gateway.access.origins import ANY, Origins
from gateway.access.rules import Access
from gateway.access.tickets import Tickets
from gateway.departures import Departures
from gateway.edge import Edge, Front
from gateway.keyring import key_ring, ticket_secret
from gateway.observe import logs
from gateway.observe.metrics import GatewayMetrics
from gateway.proxy import StreamProxy
from gateway.routes.approvals import ApprovalRoutes
from gateway.routes.chat import ChatRoutes
from gateway.routes.docs import DocsRoutes
from gateway.routes.health import HealthRoutes
from gateway.routes.internal import InternalRoutes
from gateway.routes.keys import KeyRoutes
from gateway.routes.models import ModelRoutes
from gateway.routes.openapi import OpenApiRoutes
from gateway.routes.progress import ProgressRoutes
from gateway.routes.route import Route, add_routes
from gateway.routes.sessions import SessionRoutes
from gateway.routes.streams import INSIDE, OUTSIDE, stream_routes
from gateway.routes.task_control import TaskControlRoutes
from gateway.routes.tasks import TaskRoutes
from gateway.routes.tickets import TicketRoutes
from gateway.routes.usage import UsageRoutes
from gateway.rpc import grpc_door
from gateway.settings import Server, Settings
from gateway.transports.drain import Drain
from gateway.transports.http_server import Limits, listening
from gateway.transports.tls import tls_context
from gateway.wiring import configuration
from orchestrator.assembly import orchestrator
from orchestrator.catalog import Catalog
from orchestrator.engine import Engine
from orchestrator.peers import Peers, peer_session
from orchestrator.remote import RemoteEngine
from orchestrator.signing import Signer

log = logs.logger("gateway.app")

ACCESS = web.AppKey("access", dict[web.AbstractRoute, Access])
"""The rule of every route of an app."""

KEYS = web.AppKey[KeyRing]("keys")
"""What tells an app who is calling."""


async def serve(
    settings: Settings,
    *,
    announce: Callable[[str], None],
    progress: Callable[[str], None],
    reuse_port: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT. `announce` is given the URL once requests are answered, `progress` a line for people
    whenever something takes its time.

    `reuse_port`: other processes listen on the same port.
    """
    stop = stop_signal()
    metrics = GatewayMetrics()
    inside = settings.role == "orchestrator"
    tls = None if inside else _tls(settings.server)
    address = settings.orchestrator if inside else settings.server
    async with (
        _engine(settings, metrics, progress) as (engine, peers),
        orchestrator_app(settings, engine, metrics) if inside else gateway(settings, engine, metrics, peers) as (app, drain),
        listening(
            app,
            host=address.host,
            port=address.port,
            new_request_id=new_request_id,
            limits=limits(settings.server),
            reuse_port=reuse_port,
            tls=tls,
        ) as url,
        AsyncExitStack() as stack,
    ):
        rpc = None
        if not inside:
            door = grpc_door(settings, engine, app[KEYS], drain, metrics, new_session_id, reuse_port)
            rpc = await stack.enter_async_context(door)
        if rpc is not None:
            progress(f"gRPC listens on port {rpc.port}")
        announce(url)
        await stop.wait()
        drain.announce()
        log.info("draining", open_answers=drain.open_answers)
        progress(stopping(drain.open_answers, settings.server))
        await asyncio.sleep(settings.server.drain_notice_s)
        if rpc is not None:
            await rpc.leave()
        await drain.finish(settings.server.drain_s)
    log.info("stopped")


@asynccontextmanager
async def _engine(
    settings: Settings, metrics: GatewayMetrics, progress: Callable[[str], None]
) -> AsyncIterator[tuple[Engine, Peers | None]]:
    """The engine of this process, or that of others and the way to them."""
    if settings.role != "gateway":
        async with orchestrator(configuration(settings), metrics, progress=progress) as engine:
            yield engine, None
        return
    async with peer_session() as session:
        peers = Peers(settings.orchestrator.urls, signer(settings), session, time.monotonic, current_request_id)
        yield RemoteEngine(peers, Catalog(settings.models).resolve, outage_s=settings.orchestrator.outage_s), peers


@asynccontextmanager
async def gateway(
    settings: Settings, engine: Engine, metrics: GatewayMetrics, peers: Peers | None = None
) -> AsyncIterator[tuple[web.Application, Drain]]:
    """The doors to an engine, ready to be bound to an address, and the drain that ends their answers.

    With `peers` the engine is theirs, and so are the native streams.
    """
    drain = Drain(spread=lambda seconds: random.uniform(0, seconds))
    async with Departures(engine, drain, metrics) as departures, key_ring(settings, engine, drain) as keys:
        tickets = Tickets(lambda: ticket_secret(settings.auth, engine), time.time)
        streams = stream_routes(settings, engine, drain, departures, metrics)
        if peers is not None:
            proxy = StreamProxy(settings, peers, drain, departures, metrics)
            streams = [proxy.in_front_of(route) for route in streams]
        routes = [
            *ChatRoutes(settings, engine, drain, departures, metrics).routes(),
            *ModelRoutes(engine).routes(),
            *TaskRoutes(settings, engine, drain, departures, new_session_id).routes(),
            *TaskControlRoutes(settings, engine).routes(),
            *ApprovalRoutes(settings, engine).routes(),
            *SessionRoutes(settings, engine).routes(),
            *UsageRoutes(engine, time.time).routes(),
            *ProgressRoutes(settings, engine, drain, departures, metrics, new_session_id).routes(),
            *streams,
            *TicketRoutes(engine, tickets).routes(),
            *KeyRoutes(engine, keys, settings.limits.key.allowance(), time.time, secrets.token_bytes).routes(),
            *HealthRoutes(engine, drain, metrics).routes(),
            *DocsRoutes().routes(),
        ]
        access: dict[web.AbstractRoute, Access] = {}
        edge = Edge(Outside(keys, tickets, access), drain, metrics, new_request_id, front(settings), hosts(settings))
        app = _app(settings, edge, access, [*routes, *OpenApiRoutes(routes).routes()])
        app[KEYS] = keys
        yield app, drain


@asynccontextmanager
async def orchestrator_app(
    settings: Settings, engine: Engine, metrics: GatewayMetrics
) -> AsyncIterator[tuple[web.Application, Drain]]:
    """What gateways that run apart call: the engine, and the very native streams that a gateway has where it runs here."""
    drain = Drain(spread=lambda seconds: random.uniform(0, seconds))
    async with Departures(engine, drain, metrics) as departures, key_ring(settings, engine, drain) as keys:
        streams = stream_routes(settings, engine, drain, departures, metrics)
        routes = [
            *(route._replace(path=route.path.replace(OUTSIDE, INSIDE, 1)) for route in streams),
            *InternalRoutes(settings, engine, drain, metrics).routes(),
            *HealthRoutes(engine, drain, metrics).routes(),
        ]
        access: dict[web.AbstractRoute, Access] = {}
        edge = Edge(Inside(signer(settings), keys, access), drain, metrics, new_request_id, hosts=inner_hosts(settings))
        yield _app(settings, edge, access, routes), drain


def _app(settings: Settings, edge: Edge, access: dict[web.AbstractRoute, Access], routes: Iterable[Route]) -> web.Application:
    """Routes behind an edge. `access` is filled with the rule of each."""
    app = web.Application(middlewares=[edge.middleware()], client_max_size=settings.server.max_body_bytes)
    app[ACCESS] = access
    app.on_response_prepare.append(edge.prepare)
    access |= add_routes(app, routes)
    return app


def front(settings: Settings) -> Front:
    server, keyless = settings.server, settings.auth.mode == "off"
    origins = Origins(server.origins, trust_host=not keyless)
    return Front(Browsers(origins, keyless=keyless, tls=server.tls is not None), Forwarding(server.trusted_proxies))


def hosts(settings: Settings) -> Hosts | None:
    """By which names clients may call. None: by any."""
    server = settings.server
    if settings.auth.mode != "off" or ANY in server.origins:
        return None
    return Hosts([server.host, *(urlsplit(origin).hostname or "" for origin in server.origins)])


def inner_hosts(settings: Settings) -> Hosts | None:
    """The same of gateways, whose signatures prove nothing where there is no secret."""
    between = settings.orchestrator
    if between.secret is not None:
        return None
    return Hosts([between.host, *(urlsplit(url).hostname or "" for url in between.urls)])


def limits(server: Server) -> Limits:
    return Limits(int(server.max_header_bytes), server.header_timeout_s, server.max_connections)


def _tls(server: Server) -> ssl.SSLContext | None:
    return None if server.tls is None else tls_context(server.tls.cert, server.tls.key, server.tls.min_version)


def signer(settings: Settings) -> Signer:
    secret = settings.orchestrator.secret
    return Signer("" if secret is None else secret.get_secret_value(), time.time)


def stopping(open_answers: int, server: Server) -> str:
    """What whoever pressed Ctrl-C is waiting for."""
    if not open_answers:
        return "Stopping ..."
    open_ones = "1 answer is" if open_answers == 1 else f"{open_answers} answers are"
    return f"Stopping: {open_ones} open and may go on for {server.drain_notice_s + server.drain_s:g} s. Again ends at once."


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def current_request_id() -> str:
    """That of the request which is being served; a new one for what Headgate does by itself."""
    return structlog.contextvars.get_contextvars().get("request_id") or new_request_id()


def new_session_id() -> str:
    return f"session-{secrets.token_hex(16)}"


def stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. A second one ends the process at once, and its children with it.

    Python's own handler would unwind the loop in the middle of its last words, under the feet of native threads.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stopping() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping)
    return stop
