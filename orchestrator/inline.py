"""Runs of models with `durability: none`: the same plans and agents, executed by this process alone.

If the process is lost, so is the run; the janitor of whichever process lives then says so in its log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from orchestrator.agents.desk import Desk
from orchestrator.agents.job import Interrupted, Stop
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_ERROR, LOG_ROLLED_BACK, SHUTDOWN
from orchestrator.errors import HeadgateError
from orchestrator.gate import Gate, Gates
from orchestrator.inline_steps import Execution, InlineSteps, Stopped
from orchestrator.plans.interpreter import interpret
from orchestrator.plans.plan import Plan
from orchestrator.runs import Run, RunRequest
from orchestrator.stage import PLAN, Stage
from orchestrator.streamlog.log import AppendSkipped, LogClosed, LogMissing, LogUnavailable

_log = logging.getLogger(__name__)

_CLOSE_S = 10.0
_PATIENCE_S = 0.5

End = Callable[[], Awaitable[object]]


class InlineRuns:
    """All such runs of this process."""

    def __init__(self, stage: Stage, desk: Desk, ender: Ender, gates: Gates, *, lease_ms: int) -> None:
        self._stage = stage
        self._desk = desk
        self._ender = ender
        self._gates = gates
        self._lease_ms = lease_ms
        self._running: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Run, request: RunRequest, plan: Plan) -> None:
        gate = self._gates.open(run.id)
        self._running.add(run.id)
        task = asyncio.create_task(self._execute(run, request, plan, gate), name=f"run {run.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop what still runs; each log says that the server was stopped."""
        for run_id in list(self._running):
            self._gates.stop(run_id, Stop("shutdown"))
            self._desk.stop(run_id, Stop("shutdown"))
        if not self._tasks:
            return
        _, left = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        for task in left:
            _log.warning("%s goes without an ending; the janitor gives it one", task.get_name())
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _execute(self, run: Run, request: RunRequest, plan: Plan, gate: Gate) -> None:
        try:
            end = await self._outcome(run, request, plan, gate)
            while end is not None:
                try:
                    await end()
                    break
                except LogUnavailable as error:  # nobody else knows how the run ended
                    _log.warning("an ending waits for the log: %s", error, extra={"workflow_id": run.id})
                    await asyncio.sleep(_PATIENCE_S)
        finally:
            self._gates.close(run.id, gate)
            self._running.discard(run.id)

    async def _outcome(self, run: Run, request: RunRequest, plan: Plan, gate: Gate) -> End | None:
        """How to end the run, unless its agent has."""
        execution = Execution(run, request, plan, rank=0, writer=PLAN, lease_ms=self._lease_ms, stays=True, fresh=True)
        try:
            steps = InlineSteps(execution, self._stage, self._desk, gate)
            result = await interpret(plan, steps, timeout_s=_longest_s(run))
            return None if result.ended else partial(self._stage.end, run.id, plan, result)
        except Stopped as stopped:
            if stopped.stop.kind == "cancelled":
                return partial(self._ender.cancel, run.id, stopped.stop.reason, stopped.stop.by)
            failure = SHUTDOWN
        except Interrupted:
            failure = SHUTDOWN
        except (LogClosed, LogMissing):
            return None  # somebody else has ended it, or there is nothing left to end
        except AppendSkipped:
            failure = LOG_ROLLED_BACK
        except HeadgateError as error:
            failure = error.failure()
        except Exception:  # noqa: BLE001 - the outermost edge of a run: whatever it was, the log must end
            _log.exception("run failed inside Headgate", extra={"workflow_id": run.id})
            failure = ENGINE_ERROR
        return partial(self._ender.fail, run.id, failure)


def _longest_s(run: Run) -> float | None:
    return None if run.deadline_ms is None else (run.deadline_ms - run.created_ms) / 1000
