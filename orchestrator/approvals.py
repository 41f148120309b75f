"""Approvals: decisions that runs wait for. Asked for, listed, decided once, in the runs' own logs.

What is asked and what was decided are events. That a run waits is also remembered beside the logs, for lists; that memory is a
hint and the log is the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrator.clock import Clock
from orchestrator.engine import Approval
from orchestrator.errors import HeadgateError, RunConflict
from orchestrator.events import EventType, timestamp
from orchestrator.herald import Herald
from orchestrator.listing import Records
from orchestrator.runs import Run
from orchestrator.streamlog.log import Log


class ApprovalNotFound(HeadgateError):
    """No run waits for such a decision."""

    status = 404
    type = "invalid_request_error"
    code = "approval_not_found"


class Approvals:
    def __init__(self, log: Log, records: Records, herald: Herald, clock: Clock) -> None:
        self._log = log
        self._records = records
        self._herald = herald
        self._clock = clock

    async def ask(self, run: Run, payload: dict[str, Any]) -> None:
        """Say that the run waits for a decision, once. Raises LogClosed, LogMissing, LogUnavailable."""
        await self._herald.say(run.id, EventType.APPROVAL_REQUESTED, payload, once=f"asked-{payload['approval_id']}")
        await self.asked(run, payload, timestamp(int(self._clock.time() * 1000)))

    async def asked(self, run: Run, payload: dict[str, Any], at: str) -> None:
        """The log says that the run waits for a decision."""
        approval = Approval(
            run_id=run.id,
            approval_id=str(payload["approval_id"]),
            requested_at=at,
            query=run.query,
            session_id=run.session_id,
            proposed_action=_text(payload.get("proposed_action")),
            reason=_text(payload.get("reason")),
            expires_at=_text(payload.get("expires_at")),
            metadata=payload.get("metadata") if isinstance(payload.get("metadata"), dict) else None,
        )
        await self._log.approve(run.tenant, run.id, approval.approval_id, msgspec.json.encode(approval))

    async def waiting(self, tenant: str, session_id: str | None = None) -> Sequence[Approval]:
        """What a tenant's runs wait for, oldest first. Those of runs that have ended meanwhile are forgotten on the way."""
        waiting = []
        for encoded in await self._log.approvals(tenant):
            approval = msgspec.json.decode(encoded, type=Approval)
            run = await self._log.run(approval.run_id)
            if run is None or run.state.ended:
                await self._log.approve(tenant, approval.run_id, approval.approval_id, None)
            elif session_id in (None, approval.session_id):
                waiting.append(approval)
        return sorted(waiting, key=lambda approval: approval.requested_at)

    async def decide(self, run: Run, decision: dict[str, Any]) -> dict[str, Any]:
        """Say a decision, the first about this approval; returns it as the log has it.

        Raises ApprovalNotFound; RunConflict if it was decided before, or the run has ended.
        """
        asked = decided = None
        for entry in await self._records.kept(run.id):
            event, payload = entry.event, entry.event.payload or {}
            if payload.get("approval_id") != decision["approval_id"]:
                continue
            if event.type == EventType.APPROVAL_REQUESTED:
                asked = payload
            elif event.type == EventType.APPROVAL_DECISION:
                decided = payload
        if decided is not None:
            raise RunConflict("This was decided already.", code="approval_decided")
        if run.state.ended:
            raise RunConflict(f"The run has ended already, as {run.state}.", code="run_ended")
        if asked is None:
            raise ApprovalNotFound
        said = {**decision, "step": asked.get("step")}
        if not await self._say(run, said):
            raise RunConflict("This was decided already.", code="approval_decided")
        return said

    async def settle(self, run: Run, decision: dict[str, Any]) -> dict[str, Any]:
        """Say a decision, unless another was said; returns the one that holds."""
        if await self._say(run, decision):
            return decision
        for entry in await self._records.kept(run.id):
            payload = entry.event.payload or {}
            if entry.event.type == EventType.APPROVAL_DECISION and payload.get("approval_id") == decision["approval_id"]:
                return payload
        return decision

    async def _say(self, run: Run, decision: dict[str, Any]) -> bool:
        """False if another decision stands. Raises LogClosed, LogMissing, LogUnavailable."""
        name = decision["approval_id"]
        said = await self._herald.say(run.id, EventType.APPROVAL_DECISION, decision, once=f"decision-{name}")
        await self._log.approve(run.tenant, run.id, name, None)
        return said


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
