"""The turns of a chat: a run that asks for a decision ends one, and whoever decides in a chat begins the next.

Nothing is remembered here. Which turns a run has had is in its log: one for each approval that it asked for, and the last.
"""

from __future__ import annotations

from typing import Any

from gateway.wire.chat_approval import Decided
from orchestrator.access import allow
from orchestrator.engine import Engine
from orchestrator.errors import RunConflict, RunNotFound
from orchestrator.events import EventType
from orchestrator.runs import Principal, Run, Scope

_PAGE = 1000


class Turns:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def decide(self, principal: Principal, said: Decided) -> None:
        """Once. Who sends the same again, because its answer was lost, is answered again.

        Raises Forbidden, RunNotFound, ApprovalNotFound; RunConflict where something else was decided, or it is too late.
        """
        allow(principal, Scope.APPROVALS_DECIDE)
        try:
            await self._engine.decide(principal, said.run_id, said.decision)
        except RunConflict as conflict:
            wanted = said.decision.approval_id, said.decision.approved
            decided = await self._told(principal, said.run_id, EventType.APPROVAL_DECISION)
            if wanted not in [(each.get("approval_id"), each.get("approved")) for each in decided]:
                raise conflict

    async def find(self, principal: Principal, run_id: str, after: str | None) -> Run:
        """The run, if it has had a turn after this approval. Raises RunNotFound."""
        run = await self._engine.get(principal, run_id)
        if after is not None and after not in await self._asked(principal, run):
            raise RunNotFound
        return run

    async def over(self, principal: Principal, run: Run, after: str | None) -> bool:
        """Whether the turn after this approval, or the first, has come to its end."""
        if run.state.ended or run.options.wait:
            return run.state.ended
        asked = await self._asked(principal, run)
        return bool(asked) and asked[-1] != after

    async def _asked(self, principal: Principal, run: Run) -> list[str]:
        requested = await self._told(principal, run.id, EventType.APPROVAL_REQUESTED)
        return [str(each.get("approval_id")) for each in requested]

    async def _told(self, principal: Principal, run_id: str, kind: EventType) -> list[dict[str, Any]]:
        """The payloads of all events of a kind; a page has looked at no more than so many events."""
        payloads: list[dict[str, Any]] = []
        after = 0
        while True:
            page = await self._engine.history(principal, run_id, after_seq=after, limit=_PAGE, types={kind})
            payloads += [entry.event.payload or {} for entry in page.entries]
            if page.complete or page.next_after == after:
                return payloads
            after = page.next_after
