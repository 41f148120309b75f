"""Control of runs: cancel, pause, resume, and the decisions that they wait for.

What was asked is in the run's log before anything is done about it, so it is not lost with the process that was asked. Those who
execute the run learn of it at once: agents in this process directly, in another by a message to all, a workflow by a signal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

import msgspec

from orchestrator.agents.desk import Desk
from orchestrator.agents.history import ended
from orchestrator.agents.job import Stop
from orchestrator.approvals import Approvals
from orchestrator.engine import Approval, ControlState, Decision
from orchestrator.errors import RunConflict, Unavailable
from orchestrator.events import Event, EventType
from orchestrator.gate import Gates
from orchestrator.herald import Herald
from orchestrator.listing import Records
from orchestrator.runs import Principal, Run, RunState
from orchestrator.streamlog.log import Log, LogClosed, LogMissing
from orchestrator.workflows.steps import briefly
from orchestrator.workflows.worker import Temporal

_log = logging.getLogger(__name__)

_RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0)


class _Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one process tells the others to do with a run."""

    op: Literal["cancel", "pause", "resume", "decide"]
    reason: str | None = None
    by: str | None = None
    decision: dict[str, Any] | None = None


class Control:
    def __init__(
        self,
        *,
        log: Log,
        records: Records,
        herald: Herald,
        approvals: Approvals,
        desk: Desk,
        gates: Gates,
        temporal: Temporal,
    ) -> None:
        self._log = log
        self._approvals = approvals
        self._records = records
        self._herald = herald
        self._desk = desk
        self._gates = gates
        self._temporal = temporal
        self._tasks: set[asyncio.Task[None]] = set()
        log.on_control(self._ordered)

    async def close(self) -> None:
        """Wait a moment for what was begun on behalf of callers who did not wait."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    async def cancel(self, principal: Principal, run_id: str, reason: str | None) -> Run:
        run = await self._records.run(principal, run_id)
        if run.state is RunState.CANCELLED:
            return run
        _refuse_ended(run)
        asked = {"reason": reason, "by": principal.key_id}
        try:
            await self._herald.say(run_id, EventType.WORKFLOW_CANCELLING, asked, once="cancelling")
        except (LogClosed, LogMissing):
            return await self._too_late(run)
        await self._order(run_id, _Order("cancel", reason, principal.key_id))
        if run.durable:
            self._in_background(self._insist(run_id, self._temporal.cancel, run, reason))
        return run

    async def pause(self, principal: Principal, run_id: str, reason: str | None) -> Run:
        run, state = await self._standing(principal, run_id)
        if state.is_paused or state.pausing:
            raise RunConflict("The run is paused already, or about to be.", code="run_paused")
        asked = {"reason": reason, "by": principal.key_id}
        if run.durable:
            await self._temporal.signal(run_id, "pause", [reason, principal.key_id])
        await self._say(run, EventType.WORKFLOW_PAUSING, asked, once=f"pausing-{state.pauses}")
        await self._order(run_id, _Order("pause", reason, principal.key_id))
        return run

    async def resume(self, principal: Principal, run_id: str, reason: str | None) -> Run:
        run, state = await self._standing(principal, run_id)
        if not (state.is_paused or state.pausing):
            raise RunConflict("The run is not paused.", code="run_not_paused")
        if run.durable:
            await self._temporal.signal(run_id, "resume", [reason, principal.key_id])
        else:
            await self._order(run_id, _Order("resume", reason, principal.key_id))
        return run

    async def state(self, principal: Principal, run_id: str) -> ControlState:
        await self._records.run(principal, run_id)
        return (await self._fold(run_id)).public()

    # -- decisions -------------------------------------------------------------------------------------------------------

    async def approvals(self, principal: Principal, session_id: str | None) -> Sequence[Approval]:
        return await self._approvals.waiting(principal.tenant, session_id)

    async def decide(self, principal: Principal, run_id: str, decision: Decision) -> None:
        run = await self._records.run(principal, run_id)
        asked = {**msgspec.to_builtins(decision), "decided_by": decision.decided_by or principal.key_id}
        try:
            said = await self._approvals.decide(run, asked)
        except (LogClosed, LogMissing):
            raise RunConflict("The run has ended.", code="run_ended") from None
        if run.durable:
            told = said if run.foreign else {"approval_id": decision.approval_id, **briefly(said)}
            self._in_background(self._insist(run_id, self._temporal.signal, run_id, "approve", [told]))
        else:
            await self._order(run_id, _Order("decide", decision=said))

    # -- passing it on ---------------------------------------------------------------------------------------------------

    async def _order(self, run_id: str, order: _Order) -> None:
        if not self._obey(run_id, order):
            await self._log.publish_control(run_id, msgspec.json.encode(order).decode())

    def _ordered(self, run_id: str, text: str) -> None:
        """Another process passes on what was asked of a run; its agents may be here."""
        try:
            order = msgspec.json.decode(text, type=_Order)
        except msgspec.DecodeError:
            _log.warning("an order from another process was not understood")
            return
        self._obey(run_id, order)

    def _obey(self, run_id: str, order: _Order) -> bool:
        """False if nothing of the run is here."""
        match order.op:
            case "cancel":
                stop = Stop("cancelled", order.reason, order.by)
                at_desk, inline = self._desk.stop(run_id, stop), self._gates.stop(run_id, stop)
                return at_desk or inline
            case "pause":
                inline = self._gates.pause(run_id, order.reason, order.by)
                return self._desk.pause(run_id) or inline
            case "resume":
                return self._gates.resume(run_id, order.reason, order.by)
            case "decide":
                return self._gates.decide(run_id, order.decision or {})

    async def _insist(self, run_id: str, call: Any, *args: Any) -> None:
        """Tell Temporal, again if it is away for a moment; after that it is the janitor's, or the workflow's own, to find out."""
        for pause_s in (*_RETRY_S, None):
            try:
                await call(*args)
                return
            except Unavailable as error:
                if pause_s is None:
                    _log.warning("Temporal was not told about a run: %s", error, extra={"workflow_id": run_id})
                    return
                await asyncio.sleep(pause_s)

    # -- what holds now --------------------------------------------------------------------------------------------------

    async def _standing(self, principal: Principal, run_id: str) -> tuple[Run, _Folded]:
        run = await self._records.run(principal, run_id)
        _refuse_ended(run)
        return run, await self._fold(run_id)

    async def _fold(self, run_id: str) -> _Folded:
        folded = _Folded()
        for entry in await self._records.kept(run_id):
            folded.add(entry.event)
        return folded

    async def _say(self, run: Run, event_type: EventType, payload: dict[str, Any], *, once: str) -> bool:
        try:
            return await self._herald.say(run.id, event_type, payload, once=once)
        except (LogClosed, LogMissing):
            raise RunConflict("The run has ended.", code="run_ended") from None

    async def _too_late(self, run: Run) -> Run:
        outcome = await ended(self._log, run.id)
        if outcome is None or outcome.state is RunState.CANCELLED:
            return run
        raise RunConflict(f"The run has ended already, as {outcome.state}.", code="run_ended")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Folded:
    """What a run's events say about its control."""

    def __init__(self) -> None:
        self.is_paused = False
        self.pausing = False
        self.pauses = 0
        self._pause: Event | None = None
        self._paused_at: str | None = None
        self._cancel: Event | None = None

    def add(self, event: Event) -> None:
        match event.type:
            case EventType.WORKFLOW_PAUSING:
                self.pausing, self._pause = True, event
                self.pauses += 1
            case EventType.WORKFLOW_PAUSED:
                self.pausing, self.is_paused, self._paused_at = False, True, event.timestamp
            case EventType.WORKFLOW_RESUMED:
                self.pausing = self.is_paused = False
            case EventType.WORKFLOW_CANCELLING | EventType.WORKFLOW_CANCELLED:
                self._cancel = event
                self.is_paused = self.is_paused and event.type == EventType.WORKFLOW_CANCELLING
            case EventType.WORKFLOW_COMPLETED | EventType.WORKFLOW_FAILED:
                self.pausing = self.is_paused = False
            case _:
                return

    def public(self) -> ControlState:
        pause = (self._pause.payload if self._pause and self.is_paused else None) or {}
        cancel = (self._cancel.payload if self._cancel else None) or {}
        return ControlState(
            is_paused=self.is_paused,
            is_cancelled=self._cancel is not None,
            paused_at=self._paused_at if self.is_paused else None,
            pause_reason=pause.get("reason"),
            paused_by=pause.get("by"),
            cancel_reason=cancel.get("reason"),
            cancelled_by=cancel.get("by"),
        )


def _refuse_ended(run: Run) -> None:
    if run.state.ended:
        raise RunConflict(f"The run has ended already, as {run.state}.", code="run_ended")
