"""Temporal activities: the thin edge between a workflow that decides and the desk that does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import timedelta
from fractions import Fraction
from functools import partial
from typing import Any

import msgspec
from temporalio import activity
from temporalio.client import WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode

from orchestrator import endings, trace
from orchestrator.agents.desk import Beat, Desk
from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.ender import Ender
from orchestrator.errors import Failure, InvalidRequest
from orchestrator.events import EventType
from orchestrator.foreign import ForeignRuns
from orchestrator.gate import Gates
from orchestrator.inline_steps import Execution, InlineSteps, Stopped, sibling
from orchestrator.plans.interpreter import Interpreter, Paused, StepResult
from orchestrator.plans.plan import Plan
from orchestrator.plans.progress import Place, Progress, Share, Tally
from orchestrator.plans.template import TemplateFailed
from orchestrator.plans.tree import Node
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.stage import PLAN, Stage
from orchestrator.streamlog.log import AppendSkipped, Fenced, Log, LogClosed, LogMissing, LogUnavailable
from orchestrator.workflows import messages as said
from orchestrator.workflows.steps import briefly

ATTEMPTS_PER_RANK = 1000
"""What a workflow asks for later outranks all attempts at what it asked for earlier."""

_PATIENCE_S = 0.5
"""How long an attempt that has not begun waits before it asks a log again that did not answer."""

_ASK_S = 1.5
"""How long Temporal may take to say what became of an attempt's workflow."""


class Activities:
    def __init__(self, *, log: Log, desk: Desk, stage: Stage, gates: Gates, ender: Ender, foreign: ForeignRuns) -> None:
        self._log = log
        self._desk = desk
        self._stage = stage
        self._gates = gates
        self._ender = ender
        self._foreign = foreign

    @property
    def all(self) -> list[Callable[..., Any]]:
        return [
            self.run_agent,
            self.run_branches,
            self.choose,
            self.ask_approval,
            self.expire_approval,
            self.look,
            self.child_input,
            self.child_output,
            self.tell,
            self.say,
            self.end_plan,
            self.end_run,
        ]

    @activity.defn(name=said.RUN_AGENT)
    async def run_agent(self, job: said.AgentInput) -> dict[str, Any]:
        """One attempt at an agent step. Worker loss and a shutdown are retried by Temporal; everything else is a result."""
        beat = _heartbeat()
        run, request = await self._asked(job.run_id, beat)
        if run is None or request is None:
            return _encoded(StepResult(RunState.FAILED, ended=run is None, failure=endings.ENGINE_ERROR))
        plan = Plan.model_validate(request.plan)
        attempt = activity.info().attempt
        working = self._stage.job(
            run,
            request,
            plan,
            plan.step(job.step),
            visit=job.visit,
            attempt=job.rank * ATTEMPTS_PER_RANK + attempt,
            fresh=job.fresh and attempt == 1,
            final=job.final,
            lease_ms=round(job.heartbeat_s * 1000),
        )
        return await self._carried_out(request, self._worked(working, beat))

    async def _worked(self, asked: Awaitable[Job], beat: Beat) -> StepResult:
        try:
            job = await asked
        except TemplateFailed as error:
            return StepResult(RunState.FAILED, failure=error.failure())
        return await self._desk.work(job, beat=beat, cancelled=_why)

    @activity.defn(name=said.RUN_BRANCHES)
    async def run_branches(self, job: said.BranchesInput) -> dict[str, Any]:
        """One attempt at a parallel step as a whole. Finished branches of earlier attempts are found in the log."""
        beat = _heartbeat()
        run, request = await self._asked(job.run_id, beat)
        if run is None or request is None:
            return _encoded(StepResult(RunState.FAILED, ended=run is None, failure=endings.ENGINE_ERROR))
        attempt = activity.info().attempt
        execution = Execution(
            run,
            request,
            Plan.model_validate(request.plan),
            rank=job.rank * ATTEMPTS_PER_RANK + attempt,
            writer=f"{PLAN}{job.step}",
            lease_ms=round(job.heartbeat_s * 1000),
            stays=False,
            fresh=job.fresh and attempt == 1,
            beat=beat,
            cancelled=_why_a_branch,
        )
        place = msgspec.convert(job.place, Place)
        share = Share(Tally(Fraction(*job.finished)), Fraction(*job.weight))
        return await self._carried_out(request, self._branches(execution, job.step, place, share))

    async def _branches(self, execution: Execution, step: str, place: Place, share: Share) -> StepResult:
        gate = self._gates.open(execution.run.id)
        try:
            steps = InlineSteps(execution, self._stage, self._desk, gate)
            return await Interpreter(steps).branches(execution.plan.step(step), place, share)
        except Paused:
            return StepResult(RunState.PAUSED)
        except Stopped as stopped:
            if stopped.stop.kind == "cancelled":
                return StepResult(RunState.CANCELLED, reason=stopped.stop.reason)
            raise Interrupted from stopped
        except asyncio.CancelledError:
            if (stop := _why()).kind == "cancelled":
                return StepResult(RunState.CANCELLED, reason=stop.reason)
            raise Interrupted from None
        finally:
            self._gates.close(execution.run.id, gate)

    async def _carried_out(self, request: RunRequest, work: Coroutine[Any, Any, StepResult]) -> dict[str, Any]:
        """The result, for Temporal: what interrupts an attempt is followed by another, and what refuses it is not."""
        try:
            with trace.inside(request.trace):
                return _encoded(await _see_through(asyncio.create_task(work)))
        except Fenced as error:
            raise ApplicationError(error.message, type=error.code, non_retryable=True) from error
        except AppendSkipped as error:
            raise ApplicationError(error.message, type=error.code) from error
        except Interrupted as error:  # what ends a process in order is not worth a traceback in its log
            raise ApplicationError(error.message, type=error.code, category=ApplicationErrorCategory.BENIGN) from error

    # -- brief ones ------------------------------------------------------------------------------------------------------

    @activity.defn(name=said.CHOOSE)
    async def choose(self, job: said.StepInput) -> str:
        """Which side of a condition holds."""
        branch: str = await self._of_the_plan(job, self._stage.choose)
        return branch

    @activity.defn(name=said.ASK_APPROVAL)
    async def ask_approval(self, job: said.StepInput) -> str:
        """Ask for a decision; its id."""
        wanted: str = await self._of_the_plan(job, partial(self._stage.request_approval, visit=job.visit))
        return wanted

    @activity.defn(name=said.EXPIRE_APPROVAL)
    async def expire_approval(self, job: said.StepInput) -> dict[str, Any]:
        """What holds when nobody has decided in time."""
        run, plan = await self._planned(job.run_id)
        with _for_good():
            verdict = await self._stage.expire_approval(run, plan.step(job.step), job.visit)
        encoded: dict[str, Any] = msgspec.to_builtins(verdict)
        return encoded

    @activity.defn(name=said.LOOK)
    async def look(self, job: said.StepInput) -> dict[str, Any]:
        """What the log says about an approval, in case nobody could tell."""
        run, plan = await self._planned(job.run_id)
        found = await self._stage.look(run, plan.step(job.step), job.visit)
        return {"decision": briefly(found["decision"])} if "decision" in found else found

    @activity.defn(name=said.CHILD_INPUT)
    async def child_input(self, job: said.StepInput) -> Any:
        """The argument of a workflow that is a step."""
        return await self._of_the_plan(job, self._stage.child_input)

    @activity.defn(name=said.CHILD_OUTPUT)
    async def child_output(self, job: said.ChildOutput) -> None:
        """Say what a workflow that is a step brought."""
        _, plan = await self._planned(job.run_id)
        with _for_good():
            await self._stage.child_output(job.run_id, plan.step(job.step), job.visit, job.result)

    @activity.defn(name=said.TELL)
    async def tell(self, job: said.TellInput) -> None:
        """Say progress in the run's log."""
        progress = msgspec.convert(job.progress, list[Progress])
        await self._stage.tell(job.run_id, PLAN, job.rank, job.number, progress, again=job.rank > 1)

    @activity.defn(name=said.END_PLAN)
    async def end_plan(self, job: said.PlanEnd) -> None:
        """Close the log of a run whose plan has come to an end. Harmless when it has an ending."""
        request = await self._log.request(job.run_id)
        if request is not None:
            plan = Plan.model_validate(request.plan)
            await self._stage.end(job.run_id, plan, msgspec.convert(job.result, StepResult))

    async def _of_the_plan(self, job: said.StepInput, act: Callable[[Run, RunRequest, Plan, Node], Awaitable[Any]]) -> Any:
        """Something that needs what earlier steps have brought."""
        with _for_good():
            run, request = await self._log.run(job.run_id), await self._log.request(job.run_id)
            if run is None or request is None:
                raise LogMissing
            plan = Plan.model_validate(request.plan)
            return await act(run, request, plan, plan.step(job.step))

    async def _planned(self, run_id: str) -> tuple[Run, Plan]:
        with _for_good():
            run, request = await self._log.run(run_id), await self._log.request(run_id)
            if run is None or request is None:
                raise LogMissing
            return run, Plan.model_validate(request.plan)

    async def _asked(self, run_id: str, beat: Callable[[], None]) -> tuple[Run | None, RunRequest | None]:
        """The run and its request, however long the log is away: an outage is no failure of an attempt."""
        while True:
            try:
                return await self._log.run(run_id), await self._log.request(run_id)
            except LogUnavailable as error:
                activity.logger.warning("an attempt waits for the log: %s", error)
                beat()
                await asyncio.sleep(_PATIENCE_S)

    @activity.defn(name=said.END_RUN)
    async def end_run(self, job: said.EndInput) -> None:
        """Close the log of a run that no plan ended. Harmless when it has an ending."""
        if job.state == RunState.COMPLETED:
            await self._foreign.complete(job.run_id, job.result)
        elif job.state == RunState.CANCELLED:
            await self._ender.cancel(job.run_id, job.reason, None)
        else:
            failure = endings.ENGINE_ERROR if job.failure is None else msgspec.convert(job.failure, Failure)
            await self._ender.fail(job.run_id, failure)

    @activity.defn(name=said.SAY)
    async def say(self, job: said.SayInput) -> None:
        """Say an event in the run's log; harmless when the run has ended meanwhile."""
        try:
            await self._stage.herald.say(job.run_id, EventType(job.type), job.payload, once=job.once, state=RunState(job.state))
        except (LogClosed, LogMissing):
            activity.logger.info("a run had ended before %s could be said", job.type)


@contextmanager
def _for_good() -> Iterator[None]:
    """Around what is tried until it succeeds: a plan's or a request's mistake, and a log that is closed, stay what they are."""
    try:
        yield
    except (TemplateFailed, InvalidRequest, LogClosed, LogMissing) as error:
        benign = ApplicationErrorCategory.BENIGN
        raise ApplicationError(error.message, type=error.code, non_retryable=True, category=benign) from error


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


def _why_a_branch() -> Stop:
    """Nobody has cancelled the activity: then the interpreter in it has, and no other attempt follows."""
    return sibling() if activity.cancellation_details() is None else _why()


def _encoded(result: StepResult) -> dict[str, Any]:
    """For the workflow's history, which is to hold neither prompts nor answers: an upstream's error may quote both."""
    if result.ended and result.failure is not None:
        result = msgspec.structs.replace(result, failure=Failure(result.failure.code, "The log says why."))
    encoded: dict[str, Any] = msgspec.to_builtins(result)
    return encoded
