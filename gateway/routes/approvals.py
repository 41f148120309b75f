"""`/api/v1/approvals`: the decisions that tasks wait for, and deciding them."""

from __future__ import annotations

from aiohttp import web

from gateway.access.rules import Access
from gateway.edge import PRINCIPAL, about_run
from gateway.routes.native import answer, asked
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.wire.operation import Operation, Reply
from gateway.wire.rest import approval
from gateway.wire.rest_models import ApprovalList, Decided
from gateway.wire.task_bodies import ApprovalsQuery, DecisionBody, parse_query
from orchestrator.engine import Decision, Engine
from orchestrator.errors import RunNotFound
from orchestrator.runs import is_run_id

_LIST = Operation("approvals", (Reply(200, "What is waited for.", ApprovalList),), query=ApprovalsQuery)
_DECIDE = Operation("approvals", (Reply(200, "Decided.", Decided),), body=DecisionBody, refusals=(404, 409, 503))


class ApprovalRoutes:
    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        self._max_body_bytes = int(settings.server.max_body_bytes)

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/api/v1/approvals", Access.READ, self.list, _LIST),
            Route("POST", "/api/v1/approvals/decision", Access.DECIDE, self.decide, _DECIDE),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List the decisions that tasks wait for."""
        query = parse_query(ApprovalsQuery, request.query)
        pending = await self._engine.approvals(request[PRINCIPAL], query.session_id)
        return answer(ApprovalList(approvals=[approval(each) for each in pending]))

    async def decide(self, request: web.Request) -> web.Response:
        """Approve or deny what a task proposes.

        Once: whoever comes second is told so with a 409, and so is whoever comes too late.
        """
        principal = request[PRINCIPAL]
        asked_for = await asked(request, DecisionBody, max_bytes=self._max_body_bytes)
        run_id = asked_for.workflow_id
        if not is_run_id(run_id):
            raise RunNotFound
        decision = Decision(
            approval_id=asked_for.approval_id,
            approved=asked_for.approved,
            feedback=asked_for.feedback,
            modified_action=asked_for.modified_action,
            decided_by=principal.key_id,
        )
        await self._engine.decide(principal, run_id, decision)
        about_run(request, run_id)
        message = "Approved." if asked_for.approved else "Denied."
        return answer(Decided(success=True, message=message, workflow_id=run_id, approval_id=asked_for.approval_id))
