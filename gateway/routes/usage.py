"""`/api/v1/usage`: what was used, and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from gateway.access.rules import Access
from gateway.edge import PRINCIPAL
from gateway.routes.native import answer
from gateway.routes.route import Route
from gateway.wire.operation import Operation, Reply
from gateway.wire.task_bodies import parse_query
from gateway.wire.usage_report import AskedUsage, UsageAnswer, usage_answer
from orchestrator.engine import Engine

_USAGE = Operation("usage", (Reply(200, "What was used.", UsageAnswer),), query=AskedUsage, refusals=(503,))


class UsageRoutes:
    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def routes(self) -> list[Route]:
        return [Route("GET", "/api/v1/usage", Access.READ, self.usage, _USAGE)]

    async def usage(self, request: web.Request) -> web.Response:
        """Read what was used, and what it cost.

        Tokens and US dollars of tasks that have ended, failed and cancelled ones too, summed by key, model and day. A key with
        the scope `admin` sees all of its tenant's, others see their own. Tasks are counted when they are archived, usually
        within seconds; `as_of` tells how far that has come.
        """
        asked = parse_query(AskedUsage, request.query)
        query = asked.query(datetime.fromtimestamp(self._clock(), UTC).date())
        return answer(usage_answer(query, await self._engine.usage(request[PRINCIPAL], query)))
