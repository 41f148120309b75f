"""`POST /api/v1/stream/tickets`: what a page needs to open a native stream from a browser."""

from __future__ import annotations

from aiohttp import web
from pydantic import Field

from gateway.access.rules import Access
from gateway.access.tickets import Tickets
from gateway.edge import PRINCIPAL
from gateway.routes.native import answer, asked
from gateway.routes.route import Route
from gateway.wire.operation import Operation, Reply
from gateway.wire.rest_models import Answer
from gateway.wire.task_bodies import NativeBody
from orchestrator.engine import Engine
from orchestrator.errors import RunNotFound
from orchestrator.events import timestamp
from orchestrator.runs import is_run_id

_MAX_BODY_BYTES = 64 * 1024


class TicketBody(NativeBody):
    """May be left out altogether."""

    workflow_id: str | None = Field(default=None, description="The one task that the ticket is good for. None: all of yours.")


class TicketIssued(Answer):
    ticket: str = Field(description="For the query of a native stream: `?ticket=`.")
    expires_at: str = Field(description="A minute from now. Streams opened before then go on.")


_ABOUT = Operation(
    "streams",
    (Reply(200, "The ticket.", TicketIssued),),
    body=TicketBody,
    body_required=False,
    refusals=(404,),
)


class TicketRoutes:
    def __init__(self, engine: Engine, tickets: Tickets) -> None:
        self._engine = engine
        self._tickets = tickets

    def routes(self) -> list[Route]:
        return [Route("POST", "/api/v1/stream/tickets", Access.READ, self.ticket, _ABOUT)]

    async def ticket(self, request: web.Request) -> web.Response:
        """Get a ticket for a stream.

        `EventSource` and the WebSockets of browsers send no keys, and a key does not belong into a URL. A ticket opens streams
        for a minute and can do nothing else.
        """
        principal = request[PRINCIPAL]
        body = await asked(request, TicketBody, max_bytes=_MAX_BODY_BYTES, required=False)
        if (run_id := body.workflow_id) is not None:
            if not is_run_id(run_id):
                raise RunNotFound
            await self._engine.get(principal, run_id)
        text, ticket = await self._tickets.issue(principal, run_id)
        issued = TicketIssued(ticket=text, expires_at=timestamp(ticket.expires_ms))
        return answer(issued, headers={"Cache-Control": "no-store"})
