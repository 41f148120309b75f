"""Runs of models with `durability: none`: the same plans and agents, executed by this process alone.

If the process is lost, so is the run; the janitor of whichever process lives then says so in its log.
"""

from __future__ import annotations

import asyncio
import logging

from orchestrator.agents.desk import Desk
from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_ERROR, LOG_ROLLED_BACK, SHUTDOWN
from orchestrator.errors import HeadgateError
from orchestrator.plans.interpreter import StepResult, interpret
from orchestrator.plans.plan import Agent, Plan
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.streamlog.log import AppendSkipped

_log = logging.getLogger(__name__)


class InlineSteps:
    """`StepContext` of one run in this process."""

    def __init__(self, desk: Desk, run: Run, request: RunRequest, lease_ms: int) -> None:
        self._desk = desk
        self._run = run
        self._request = request
        self._lease_ms = lease_ms

    async def run_agent(self, agent: Agent, *, final: bool) -> StepResult:
        job = Job(self._run, self._request, agent, attempt=1, final=final, lease_ms=self._lease_ms)
        return await self._desk.work(job)


class InlineRuns:
    """All such runs of this process."""

    def __init__(self, desk: Desk, ender: Ender, *, lease_ms: int) -> None:
        self._desk = desk
        self._ender = ender
        self._lease_ms = lease_ms
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Run, request: RunRequest, plan: Plan) -> None:
        task = asyncio.create_task(self._execute(run, request, plan), name=f"run {run.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop what still runs; each log says that the server was stopped."""
        self._desk.stop_all(Stop("shutdown"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10.0)
        for task in self._tasks:
            task.cancel()

    async def _execute(self, run: Run, request: RunRequest, plan: Plan) -> None:
        try:
            result = await interpret(plan, InlineSteps(self._desk, run, request, self._lease_ms))
            if not result.ended:
                await self._end(run.id, result)
        except Interrupted:
            await self._ender.fail(run.id, SHUTDOWN)
        except AppendSkipped:
            await self._ender.fail(run.id, LOG_ROLLED_BACK)
        except HeadgateError as error:
            await self._ender.fail(run.id, error.failure())
        except Exception:  # noqa: BLE001 - the outermost edge of a run: whatever it was, the log must end
            _log.exception("run failed inside Headgate", extra={"workflow_id": run.id})
            await self._ender.fail(run.id, ENGINE_ERROR)

    async def _end(self, run_id: str, result: StepResult) -> None:
        if result.state is RunState.CANCELLED:
            await self._ender.cancel(run_id, result.reason, None)
        else:
            await self._ender.fail(run_id, result.failure or ENGINE_ERROR)
