"""Temporal activities: the thin edge between a workflow that decides and the desk that does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
from temporalio import activity
from temporalio.client import WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode

from orchestrator import endings, trace
from orchestrator.agents.desk import Desk
from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.ender import Ender
from orchestrator.errors import Failure
from orchestrator.events import EventType
from orchestrator.foreign import ForeignRuns
from orchestrator.herald import Herald
from orchestrator.plans.interpreter import StepResult
from orchestrator.plans.plan import Plan
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.streamlog.log import AppendSkipped, Fenced, Log, LogClosed, LogMissing, LogUnavailable
from orchestrator.workflows.run_workflow import ATTEMPTS_PER_TURN, END_RUN, RUN_AGENT, SAY, AgentInput, EndInput, SayInput

_PATIENCE_S = 0.5
"""How long an attempt that has not begun waits before it asks a log again that did not answer."""

_ASK_S = 1.5
"""How long Temporal may take to say what became of an attempt's workflow."""


class Activities:
    def __init__(self, log: Log, desk: Desk, ender: Ender, herald: Herald, foreign: ForeignRuns) -> None:
        self._log = log
        self._desk = desk
        self._ender = ender
        self._herald = herald
        self._foreign = foreign

    @property
    def all(self) -> list[Callable[..., Any]]:
        return [self.run_agent, self.end_run, self.say]

    @activity.defn(name=RUN_AGENT)
    async def run_agent(self, job: AgentInput) -> dict[str, Any]:
        """One attempt at an agent step. Worker loss and a shutdown are retried by Temporal; everything else is a result."""
        beat = _heartbeat()
        run, request = await self._asked(job.run_id, beat)
        if run is None or request is None:
            return _encoded(StepResult(RunState.FAILED, ended=run is None, failure=endings.ENGINE_ERROR))
        work = Job(
            run=run,
            request=request,
            step=Plan.model_validate(request.plan).step(job.step),
            attempt=job.turn * ATTEMPTS_PER_TURN + activity.info().attempt,
            final=job.final,
            lease_ms=round(job.heartbeat_s * 1000),
        )
        try:
            with trace.inside(request.trace):
                working = asyncio.create_task(self._desk.work(work, beat=beat, cancelled=_why))
            return _encoded(await _see_through(working))
        except Fenced as error:
            raise ApplicationError(error.message, type=error.code, non_retryable=True) from error
        except AppendSkipped as error:
            raise ApplicationError(error.message, type=error.code) from error
        except Interrupted as error:  # what ends a process in order is not worth a traceback in its log
            raise ApplicationError(error.message, type=error.code, category=ApplicationErrorCategory.BENIGN) from error

    async def _asked(self, run_id: str, beat: Callable[[], None]) -> tuple[Run | None, RunRequest | None]:
        """The run and its request, however long the log is away: an outage is no failure of an attempt."""
        while True:
            try:
                return await self._log.run(run_id), await self._log.request(run_id)
            except LogUnavailable as error:
                activity.logger.warning("an attempt waits for the log: %s", error)
                beat()
                await asyncio.sleep(_PATIENCE_S)

    @activity.defn(name=END_RUN)
    async def end_run(self, job: EndInput) -> None:
        """Close the log of a run that no agent ended. Harmless when it has an ending."""
        if job.state == RunState.COMPLETED:
            await self._foreign.complete(job.run_id, job.result)
        elif job.state == RunState.CANCELLED:
            await self._ender.cancel(job.run_id, job.reason, None)
        else:
            failure = endings.ENGINE_ERROR if job.failure is None else msgspec.convert(job.failure, Failure)
            await self._ender.fail(job.run_id, failure)

    @activity.defn(name=SAY)
    async def say(self, job: SayInput) -> None:
        """Say an event in the run's log; harmless when the run has ended meanwhile."""
        try:
            await self._herald.say(job.run_id, EventType(job.type), job.payload, once=job.once, state=RunState(job.state))
        except (LogClosed, LogMissing):
            activity.logger.info("a run had ended before %s could be said", job.type)


def _heartbeat() -> Callable[[], None]:
    """The activity's heartbeat, to be called from outside its task: which activity is meant is in the context."""
    return partial(copy_context().run, activity.heartbeat)


async def _see_through(work: asyncio.Task[StepResult]) -> StepResult:
    """What the attempt results in. That Temporal has given it up is no reason to stop it: the lease decides who may go on.

    While Temporal is away no heartbeat can be delivered, and after two time-outs the SDK cancels the activity by itself. The
    upstream is well all the while, and whoever reads would be kept waiting until another attempt begins, long after Temporal is
    back. That one finds a live lease, waits, and then finds the ending. An attempt is cancelled only once, so one that was given
    up has to look itself whether this process goes down.
    """
    awaited: set[asyncio.Task[Any]] = {work}
    try:
        while not work.done():
            try:
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    work.cancel()
                    awaited = {work}
            except asyncio.CancelledError:
                if await _given_up():
                    awaited.add(asyncio.create_task(activity.wait_for_worker_shutdown()))
                else:
                    work.cancel()
        return await work
    finally:
        for task in awaited - {work}:
            task.cancel()


async def _given_up() -> bool:
    """Whether Temporal waits for this attempt no longer, though nobody asked for it to stop and its workflow goes on."""
    details = activity.cancellation_details()
    if details is None or not (details.timed_out or details.not_found):
        return False
    workflow = activity.client().get_workflow_handle(activity.info().workflow_id or "")
    try:
        found = await workflow.describe(rpc_timeout=timedelta(seconds=_ASK_S))
    except RPCError as error:
        return error.status is not RPCStatusCode.NOT_FOUND
    return found.status is WorkflowExecutionStatus.RUNNING


def _why() -> Stop:
    """Why Temporal cancels the activity that asks. Anything but a request to cancel means that another attempt follows."""
    details = activity.cancellation_details()
    if details is not None and details.cancel_requested and not details.worker_shutdown:
        return Stop("cancelled")
    return Stop("shutdown")


def _encoded(result: StepResult) -> dict[str, Any]:
    """For the workflow's history, which is to hold neither prompts nor answers: an upstream's error may quote both."""
    if result.ended and result.failure is not None:
        result = msgspec.structs.replace(result, failure=Failure(result.failure.code, "The log says why."))
    encoded: dict[str, Any] = msgspec.to_builtins(result)
    return encoded
