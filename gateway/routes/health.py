"""`/health`: the process answers. `/readiness`: it can serve, dependency by dependency. `/metrics`: its numbers."""

from __future__ import annotations

import msgspec
from aiohttp import web

from gateway.access.rules import Access
from gateway.observe.metrics import CONTENT_TYPE, GatewayMetrics
from gateway.routes.route import Route
from gateway.transports.drain import Drain
from gateway.wire.openai_models import Health, Readiness
from gateway.wire.operation import Operation, Reply
from orchestrator.engine import Dependency, Engine

_HEALTH = Operation("server", (Reply(200, "It does.", Health),))
_READINESS = Operation("server", (Reply(200, "It can.", Readiness), Reply(503, "It cannot, now.", Readiness)))
_METRICS = Operation("server", (Reply(200, "The numbers.", media="text/plain"),))


class HealthRoutes:
    def __init__(self, engine: Engine, drain: Drain, metrics: GatewayMetrics) -> None:
        self._engine = engine
        self._drain = drain
        self._metrics = metrics

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/health", Access.ANYBODY, self.health, _HEALTH),
            Route("GET", "/readiness", Access.ANYBODY, self.readiness, _READINESS),
            Route("GET", "/metrics", Access.OPERATOR, self.metrics, _METRICS),
        ]

    async def health(self, request: web.Request) -> web.Response:
        """Whether the process answers."""
        return web.json_response({"status": "ok"})

    async def readiness(self, request: web.Request) -> web.Response:
        """Whether it can serve, dependency by dependency.

        200 or 503. A dependency that is not required is reported and does not count.
        """
        dependencies = await self._engine.dependencies()
        draining = self._drain.leaving
        ready = not draining and all(dependency.ok for dependency in dependencies.values() if dependency.required)
        answer = {
            "status": "ready" if ready else "draining" if draining else "not_ready",
            "dependencies": {name: _public(dependency) for name, dependency in dependencies.items()},
        }
        return web.Response(body=msgspec.json.encode(answer), status=200 if ready else 503, content_type="application/json")

    async def metrics(self, request: web.Request) -> web.Response:
        """The process's numbers, for Prometheus."""
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _public(dependency: Dependency) -> dict[str, object]:
    """Anybody may ask, so what exactly is wrong (addresses, users) stays in the logs."""
    return {"ok": dependency.ok, "required": dependency.required}
