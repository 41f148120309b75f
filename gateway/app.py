"""The composition root of a serving process: what is built, how it is wired, and who ends what.

`serve` is a process's life: start, serve until told to stop, drain, stop. Everything long-lived is a context manager entered
here, so whatever was started is stopped, in the opposite order, however the life ends.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from gateway.access.keys import Access, KeyRing, Keys, Open
from gateway.access.origins import Origins
from gateway.access.tickets import Tickets, derived_secret
from gateway.departures import Departures
from gateway.edge import Edge, name_response
from gateway.observe import logs
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.approvals import ApprovalRoutes
from gateway.routes.chat import ChatRoutes
from gateway.routes.docs import DocsRoutes
from gateway.routes.health import HealthRoutes
from gateway.routes.models import ModelRoutes
from gateway.routes.openapi import OpenApiRoutes
from gateway.routes.route import add_routes
from gateway.routes.sessions import SessionRoutes
from gateway.routes.stream_sse import SseRoutes
from gateway.routes.stream_ws import WebSocketRoutes
from gateway.routes.task_control import TaskControlRoutes
from gateway.routes.tasks import TaskRoutes
from gateway.routes.tickets import TicketRoutes
from gateway.rpc import grpc_door
from gateway.settings import Auth, Settings
from gateway.transports.drain import Drain
from gateway.transports.http_server import listening
from gateway.wire.native import Renderings
from gateway.wiring import configuration
from orchestrator.assembly import orchestrator
from orchestrator.engine import Engine
from orchestrator.runs import Principal

log = logs.logger("gateway.app")

ACCESS = web.AppKey("access", dict[web.AbstractRoute, Access])
"""The rule of every route of an app."""


async def serve(settings: Settings, *, announce: Callable[[str], None], progress: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `announce` is given the URL once requests are answered, `progress` a line per backend."""
    stop = _stop_signal()
    metrics = GatewayMetrics()
    async with (
        orchestrator(configuration(settings), metrics, progress=progress) as engine,
        gateway(settings, engine, metrics) as (app, drain),
        listening(
            app,
            host=settings.server.host,
            port=settings.server.port,
            new_request_id=new_request_id,
            max_header_bytes=settings.server.max_header_bytes,
        ) as url,
        grpc_door(settings, engine, key_ring(settings.auth), drain, metrics, new_session_id) as rpc,
    ):
        if rpc is not None:
            progress(f"gRPC listens on port {rpc.port}")
        announce(url)
        await stop.wait()
        log.info("draining", open_answers=drain.open_answers)
        if rpc is not None:
            await rpc.leave()
        await drain.finish(settings.server.drain_s)
    log.info("stopped")


@asynccontextmanager
async def gateway(settings: Settings, engine: Engine, metrics: GatewayMetrics) -> AsyncIterator[tuple[web.Application, Drain]]:
    """The doors to an engine, ready to be bound to an address, and the drain that ends their answers."""
    drain = Drain(spread=lambda seconds: random.uniform(0, seconds))
    async with Departures(engine, drain, metrics) as departures:
        yield build_app(settings, engine, drain, departures, metrics), drain


def build_app(
    settings: Settings, engine: Engine, drain: Drain, departures: Departures, metrics: GatewayMetrics
) -> web.Application:
    """All routes, behind the edge."""
    access: dict[web.AbstractRoute, Access] = {}
    tickets = Tickets(lambda: ticket_secret(settings.auth), time.time)
    edge = Edge(key_ring(settings.auth), tickets, access, drain, metrics, new_request_id)
    app = web.Application(middlewares=[edge.middleware()], client_max_size=settings.server.max_body_bytes)
    app[ACCESS] = access
    app.on_response_prepare.append(name_response)
    origins = Origins(settings.server.origins, trust_host=settings.auth.mode != "off")
    shown = settings, engine, drain, departures, metrics, Renderings(), origins
    routes = [
        *ChatRoutes(settings, engine, drain, departures, metrics).routes(),
        *ModelRoutes(engine).routes(),
        *TaskRoutes(settings, engine, drain, departures, new_session_id).routes(),
        *TaskControlRoutes(settings, engine).routes(),
        *ApprovalRoutes(settings, engine).routes(),
        *SessionRoutes(settings, engine).routes(),
        *SseRoutes(*shown, jitter=lambda ms: random.randint(ms * 3 // 4, ms * 5 // 4)).routes(),
        *WebSocketRoutes(*shown).routes(),
        *TicketRoutes(engine, tickets).routes(),
        *HealthRoutes(engine, drain, metrics).routes(),
        *DocsRoutes().routes(),
    ]
    access |= add_routes(app, [*routes, *OpenApiRoutes(routes).routes()])
    return app


def key_ring(auth: Auth) -> KeyRing:
    if auth.mode == "off":
        return Open()
    return Keys((key.key.get_secret_value(), Principal(tenant=key.tenant, key_id=key.name)) for key in auth.keys)


def ticket_secret(auth: Auth) -> bytes:
    if auth.ticket_secret is not None:
        return auth.ticket_secret.get_secret_value().encode()
    return derived_secret(key.key.get_secret_value() for key in auth.keys)


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def new_session_id() -> str:
    return f"session-{secrets.token_hex(16)}"


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. A second one finds the default handlers and ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stopping() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping)
    return stop
