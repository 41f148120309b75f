"""The native streams of a process: the same two doors, whether clients stand before them or a gateway that passes them on."""

from __future__ import annotations

import random

from gateway.departures import Departures
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.route import Route
from gateway.routes.stream_sse import SseRoutes
from gateway.routes.stream_ws import WebSocketRoutes
from gateway.settings import Settings
from gateway.transports.drain import Drain
from gateway.wire.native import Renderings
from orchestrator.engine import Engine

OUTSIDE, INSIDE = "/api/v1/stream/", "/stream/"
"""How their paths begin for clients, and at an orchestrator that runs apart."""


def stream_routes(
    settings: Settings, engine: Engine, drain: Drain, departures: Departures, metrics: GatewayMetrics
) -> list[Route]:
    shown = settings, engine, drain, departures, metrics, Renderings()
    return [
        *SseRoutes(*shown, jitter=lambda ms: random.randint(ms * 3 // 4, ms * 5 // 4)).routes(),
        *WebSocketRoutes(*shown).routes(),
    ]
