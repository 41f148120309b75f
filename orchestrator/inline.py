"""Runs of models with `durability: none`: the same plans and agents, executed by this process alone.

If the process is lost, so is the run; the janitor of whichever process lives then says so in its log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from orchestrator.agents.desk import Desk
from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_ERROR, LOG_ROLLED_BACK, SHUTDOWN
from orchestrator.errors import HeadgateError
from orchestrator.events import EventType
from orchestrator.herald import Herald
from orchestrator.plans.interpreter import StepResult, interpret
from orchestrator.plans.plan import Agent, Plan
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.streamlog.log import AppendSkipped, Log, LogUnavailable

_log = logging.getLogger(__name__)

_CLOSE_S = 10.0
_PATIENCE_S = 0.5


class Gate:
    """Whether a run is to stand still, or to stop while it does."""

    def __init__(self) -> None:
        self.pause: dict[str, str | None] | None = None
        self.resumed: dict[str, str | None] = {}
        self.count = 0
        self.stop: Stop | None = None
        self.changed = asyncio.Event()


class InlineSteps:
    """`StepContext` of one run in this process."""

    def __init__(self, parts: InlineRuns, run: Run, request: RunRequest, gate: Gate) -> None:
        self._parts = parts
        self._run = run
        self._request = request
        self._gate = gate
        self._attempt = 0

    async def checkpoint(self, step: str) -> None:
        """Raises Stopped when the run is cancelled, or the process goes down, while it stands still."""
        gate, herald = self._gate, self._parts.herald
        if gate.pause is None and gate.stop is None:
            return
        name, said = str(gate.count), False
        while gate.pause is not None and gate.stop is None:
            if not said:
                paused = {"checkpoint": step, **gate.pause}
                await herald.say(self._run.id, EventType.WORKFLOW_PAUSED, paused, once=f"paused-{name}", state=RunState.PAUSED)
                said = True
            await self._stand_still(step)
        if gate.stop is not None:
            raise Stopped(gate.stop)
        await herald.say(self._run.id, EventType.WORKFLOW_RESUMED, gate.resumed, once=f"resumed-{name}", state=RunState.RUNNING)

    async def _stand_still(self, step: str) -> None:
        """Until something changes; the lease says meanwhile that the run is not forgotten."""
        lease_ms = self._parts.lease_ms
        await self._parts.log.claim(self._run.id, f"paused:{step}", 1, lease_ms)
        self._gate.changed.clear()
        try:
            async with asyncio.timeout(lease_ms / 3000):
                await self._gate.changed.wait()
        except TimeoutError:
            return

    async def run_agent(self, agent: Agent, *, final: bool) -> StepResult:
        self._attempt += 1
        job = Job(self._run, self._request, agent, attempt=self._attempt, final=final, lease_ms=self._parts.lease_ms)
        return await self._parts.desk.work(job)


class Stopped(HeadgateError):
    """The run was stopped while it stood still."""

    code = "interrupted"

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self.stop = stop


class InlineRuns:
    """All such runs of this process."""

    def __init__(self, log: Log, desk: Desk, ender: Ender, herald: Herald, *, lease_ms: int) -> None:
        self.log = log
        self.desk = desk
        self.herald = herald
        self.lease_ms = lease_ms
        self._ender = ender
        self._gates: dict[str, Gate] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Run, request: RunRequest, plan: Plan) -> None:
        self._gates[run.id] = Gate()
        task = asyncio.create_task(self._execute(run, request, plan), name=f"run {run.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def pause(self, run_id: str, reason: str | None, by: str | None) -> bool:
        """Let the run stand still at its next safe point. False if it is not here."""
        gate = self._gates.get(run_id)
        if gate is not None:
            gate.pause = {"reason": reason, "by": by}
            gate.count += 1
        return gate is not None

    def resume(self, run_id: str, reason: str | None, by: str | None) -> bool:
        """Let the run go on. False if it is not here."""
        gate = self._gates.get(run_id)
        if gate is not None:
            gate.pause, gate.resumed = None, {"reason": reason, "by": by}
            gate.changed.set()
        return gate is not None

    def stop(self, run_id: str, stop: Stop) -> bool:
        """Stop the run where no agent works for it. False if it is not here."""
        gate = self._gates.get(run_id)
        if gate is not None:
            gate.stop = stop
            gate.changed.set()
        return gate is not None

    async def close(self) -> None:
        """Stop what still runs; each log says that the server was stopped."""
        for run_id in list(self._gates):
            self.stop(run_id, Stop("shutdown"))
            self.desk.stop(run_id, Stop("shutdown"))
        if not self._tasks:
            return
        _, left = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        for task in left:
            _log.warning("%s goes without an ending; the janitor gives it one", task.get_name())
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _execute(self, run: Run, request: RunRequest, plan: Plan) -> None:
        try:
            end = await self._outcome(run, request, plan)
            while end is not None:
                try:
                    await end()
                    break
                except LogUnavailable as error:  # nobody else knows how the run ended
                    _log.warning("an ending waits for the log: %s", error, extra={"workflow_id": run.id})
                    await asyncio.sleep(_PATIENCE_S)
        finally:
            del self._gates[run.id]

    async def _outcome(self, run: Run, request: RunRequest, plan: Plan) -> Callable[[], Awaitable[bool]] | None:
        """How to end the run, unless its agent has."""
        try:
            result = await interpret(plan, InlineSteps(self, run, request, self._gates[run.id]))
            if result.ended:
                return None
            if result.state is RunState.CANCELLED:
                return partial(self._ender.cancel, run.id, result.reason, None)
            failure = result.failure or ENGINE_ERROR
        except Stopped as stopped:
            if stopped.stop.kind == "cancelled":
                return partial(self._ender.cancel, run.id, stopped.stop.reason, stopped.stop.by)
            failure = SHUTDOWN
        except Interrupted:
            failure = SHUTDOWN
        except AppendSkipped:
            failure = LOG_ROLLED_BACK
        except HeadgateError as error:
            failure = error.failure()
        except Exception:  # noqa: BLE001 - the outermost edge of a run: whatever it was, the log must end
            _log.exception("run failed inside Headgate", extra={"workflow_id": run.id})
            failure = ENGINE_ERROR
        return partial(self._ender.fail, run.id, failure)
