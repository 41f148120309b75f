"""A plan's steps inside a run's workflow: agents, and whatever reads or writes, are activities; what waits, waits here.

A parallel step with nothing in it that waits for people is one activity, which interprets it with the same interpreter: its
branches then cost Temporal nothing, and start and end within milliseconds of each other.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    TimeoutType,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.exceptions import TimeoutError as ActivityTimeout

with workflow.unsafe.imports_passed_through():
    import msgspec

    from orchestrator import endings
    from orchestrator.plans.interpreter import Branch, StepContext, StepResult, Verdict
    from orchestrator.plans.progress import Place, Progress, Share
    from orchestrator.plans.steps import Agent, Approval, Child, Parallel
    from orchestrator.plans.template import TemplateFailed
    from orchestrator.plans.tree import Node
    from orchestrator.runs import RunState
    from orchestrator.workflows import messages as said
    from orchestrator.workflows.failures import failure_of

RANKS_PER_GENERATION = 1000
"""An agent that was paused and goes on takes another rank; a workflow that the janitor starts anew is another generation. Later
ones outrank all attempts of earlier ones."""

LOOK_S = 10.0
"""After so long a run that waits for a decision looks whether it is in the log, where decisions are before anybody tells of them;
then after twice as long, and so on."""


class Gate:
    """Whether the run is to stand still, as its signals say, how often it was, and what was decided."""

    def __init__(self, job: said.RunInput) -> None:
        self.pause = job.pause
        self.resumed = job.resumed
        self.pauses = job.pauses
        self.decisions: dict[str, dict[str, Any]] = {}


class TemporalSteps(StepContext):
    """`StepContext` of a run inside its workflow."""

    def __init__(self, job: said.RunInput, gate: Gate) -> None:
        self._job = job
        self._gate = gate
        self._ranks = job.ranks
        self._told = job.told
        self._working = 0
        self._asked: set[str] = set()
        self._answered = job.answered

    async def checkpoint(self, step: str) -> None:
        """The last of several branches to come to one says that the run stands still."""
        gate = self._gate
        while gate.pause is not None:
            await workflow.wait_condition(lambda: gate.pause is None or not self._working)
            if gate.pause is not None:
                paused = {"checkpoint": step, **asdict(gate.pause)}
                await self._say("WORKFLOW_PAUSED", paused, f"paused-{self._pauses}", RunState.PAUSED)
                await workflow.wait_condition(lambda: gate.pause is None)
        if self._answered < gate.pauses:  # also where it was resumed before it stood still
            self._answered = gate.pauses
            resumed = asdict(gate.resumed) if gate.resumed else {}
            await self._say("WORKFLOW_RESUMED", resumed, f"resumed-{self._pauses}", RunState.RUNNING)
        if workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError  # whatever was under way when it was asked for has ended otherwise

    async def run_agent(self, node: Node, visit: int, *, final: bool) -> StepResult:
        assert isinstance(node.spec, Agent)
        job = self._job
        asked = said.AgentInput(job.run_id, node.name, final, job.heartbeat_s, self._rank(), visit=visit, fresh=self._fresh(node))
        return await self._work(said.RUN_AGENT, asked, node.spec.timeout_s, node.spec.attempts)

    async def run_whole(self, node: Node, place: Place, share: Share) -> StepResult | None:
        """Not where other branches run beside it: each of them counts what has finished of the whole."""
        if node.waits or place.parallel_index is not None:
            return None
        assert isinstance(node.spec, Parallel)
        attempts = max((agent.spec.attempts for agent in node.agents() if isinstance(agent.spec, Agent)), default=1)
        asked = said.BranchesInput(
            self._job.run_id,
            node.name,
            self._job.heartbeat_s,
            self._rank(),
            place=msgspec.to_builtins(place),
            finished=share.finished.as_integer_ratio(),
            weight=share.weight.as_integer_ratio(),
            fresh=self._fresh(node),
        )
        return await self._work(said.RUN_BRANCHES, asked, node.longest_s, attempts)

    async def choose(self, node: Node) -> Branch:
        try:
            branch: Branch = await self._briefly(said.CHOOSE, said.StepInput(self._job.run_id, node.name))
        except ActivityError as error:
            raise _refused(error) from error
        return branch

    async def approve(self, node: Node, visit: int) -> Verdict:
        assert isinstance(node.spec, Approval)
        step, gate = said.StepInput(self._job.run_id, node.name, visit), self._gate
        try:
            wanted: str = await self._briefly(said.ASK_APPROVAL, step)
        except ActivityError as error:
            raise _refused(error) from error
        late, look_s = workflow.time() + node.spec.timeout_s, LOOK_S
        while wanted not in gate.decisions:
            left_s = late - workflow.time()
            if left_s <= 0:
                gate.decisions[wanted] = await self._briefly(said.EXPIRE_APPROVAL, step)
                break
            try:
                await workflow.wait_condition(lambda: wanted in gate.decisions, timeout=min(left_s, look_s))
            except TimeoutError:
                if look_s < left_s:
                    await self._look(wanted, step)
                look_s *= 2
        return msgspec.convert(gate.decisions[wanted], Verdict)

    async def _look(self, wanted: str, step: said.StepInput) -> None:
        found: dict[str, Any] = await self._briefly(said.LOOK, step)
        if found.get("cancelled"):
            raise asyncio.CancelledError
        if "decision" in found:
            self._gate.decisions.setdefault(wanted, found["decision"])

    async def run_child(self, node: Node, visit: int) -> StepResult:
        assert isinstance(node.spec, Child)
        step, spec = said.StepInput(self._job.run_id, node.name, visit), node.spec
        workflow_type: str = spec.type or ""
        try:
            argument = await self._briefly(said.CHILD_INPUT, step)
            result: Any = await workflow.execute_child_workflow(
                workflow_type,
                argument,
                id=f"{self._job.run_id}/{node.name}" + (f"/{visit}" if visit > 1 else ""),
                task_queue=spec.task_queue,
                execution_timeout=timedelta(seconds=spec.timeout_s),
                cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
                parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
            )
        except (ActivityError, ChildWorkflowError, WorkflowAlreadyStartedError) as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            failure = failure_of(error)
            return StepResult(endings.failed_state(failure), failure=failure)
        await self._briefly(said.CHILD_OUTPUT, said.ChildOutput(self._job.run_id, node.name, result, visit))
        return StepResult(RunState.COMPLETED)

    async def tell(self, progress: Sequence[Progress]) -> None:
        self._told += 1
        told = [msgspec.to_builtins(one) for one in progress]
        await self._briefly(said.TELL, said.TellInput(self._job.run_id, self._told, self._job.generation + 1, told))

    @property
    def goes_on(self) -> bool:
        return False

    @property
    def long(self) -> bool:
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() >= self._job.long_history

    async def renew(self, next_step: int, share: Share) -> None:
        workflow.continue_as_new(
            dataclasses.replace(
                self._job,
                next_step=next_step,
                finished=share.finished.as_integer_ratio(),
                ranks=self._ranks,
                told=self._told,
                pause=self._gate.pause,
                resumed=self._gate.resumed,
                pauses=self._gate.pauses,
                answered=self._answered,
            )
        )

    async def sleep(self, seconds: float) -> None:
        await workflow.sleep(seconds)

    def random(self) -> float:
        return workflow.random().random()

    async def _work(self, activity: str, asked: Any, timeout_s: float, attempts: int) -> StepResult:
        self._working += 1
        try:
            result = await workflow.execute_activity(
                activity,
                asked,
                result_type=dict,
                start_to_close_timeout=timedelta(seconds=timeout_s + 60),
                schedule_to_close_timeout=timedelta(seconds=timeout_s * 2 + 120),
                heartbeat_timeout=timedelta(seconds=self._job.heartbeat_s),
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(milliseconds=100),
                    maximum_interval=timedelta(seconds=5),
                    maximum_attempts=attempts,
                ),
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            return broken_off(error)
        finally:
            self._working -= 1
        return msgspec.convert(result, StepResult)

    async def _briefly(self, activity: str, asked: Any) -> Any:
        """An activity of milliseconds, done by the worker that decides: it costs one event of the history."""
        return await workflow.execute_local_activity(
            activity,
            asked,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=200),
                maximum_interval=timedelta(seconds=5),
            ),
        )

    async def _say(self, event_type: str, payload: dict[str, Any], once: str, state: RunState) -> None:
        await workflow.execute_activity(
            said.SAY, said.SayInput(self._job.run_id, event_type, payload, once, state.value), **ending_options()
        )

    @property
    def _pauses(self) -> str:
        """A name for the latest pause that no other has, whichever workflow of the run says something of it."""
        generation = f"{self._job.generation}-" if self._job.generation else ""
        return f"{generation}{self._gate.pauses}"

    def _rank(self) -> int:
        self._ranks += 1
        return self._job.generation * RANKS_PER_GENERATION + self._ranks - 1

    def _fresh(self, node: Node) -> bool:
        """Whether nothing of the step can be in the log: the first workflow of a run asks for it for the first time."""
        if node.name in self._asked:
            return False
        self._asked.add(node.name)
        return self._job.generation == 0


def broken_off(error: ActivityError) -> StepResult:
    """What becomes of a step whose activity did not say how it ended."""
    if is_cancelled_exception(error):
        return StepResult(RunState.CANCELLED, reason=workflow.cancellation_reason() or None)
    cause = error.cause
    if not isinstance(cause, ActivityTimeout):
        failure = endings.ENGINE_ERROR
    else:
        failure = endings.WORKER_LOST if cause.type is TimeoutType.HEARTBEAT else endings.TIMEOUT
    return StepResult(endings.failed_state(failure), failure=failure)


def ending_options() -> dict[str, Any]:
    """Of activities that are done however long it takes."""
    return {
        "start_to_close_timeout": timedelta(seconds=10),
        "retry_policy": RetryPolicy(maximum_interval=timedelta(seconds=5)),
    }


def briefly(decision: dict[str, Any]) -> dict[str, Any]:
    """Of a decision, what the workflow needs. What was said about it stays in the run's log."""
    return {key: decision[key] for key in ("approved", "decided_by") if decision.get(key) is not None}


def _refused(error: ActivityError) -> BaseException:
    """A template or a condition that could not be filled in is the plan's mistake; anything else is not ours to tell."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type == TemplateFailed.code:
        return TemplateFailed(cause.message)
    return error
