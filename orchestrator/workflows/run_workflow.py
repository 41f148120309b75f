"""The Temporal workflow of a run. It decides and does no I/O: agents and endings are activities.

Nothing a model says or is told passes through here: activities append to the log directly, find the request and the prompts
beside it, and return how a step ended, without the words of an upstream's error, which may quote the request.

Recorded histories of this workflow are replayed in tests: tests/orchestrator/workflows/test_replay.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError, TimeoutType, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    import msgspec

    from orchestrator import endings
    from orchestrator.plans.interpreter import StepResult, interpret
    from orchestrator.plans.plan import Agent, Plan
    from orchestrator.runs import RunState

WORKFLOW = "HeadgateRun"
RUN_AGENT = "run_agent"
END_RUN = "end_run"
SAY = "say"

ATTEMPTS_PER_TURN = 1000
TURNS_PER_GENERATION = 1000
"""An agent that was paused and goes on takes another turn; a workflow that the janitor starts anew is another generation. Later
ones outrank all attempts of earlier ones."""


@dataclass
class RunInput:
    """What the workflow is given: references, not content. `plan` is an outline; the request stays beside the log."""

    run_id: str
    plan: dict[str, Any]
    heartbeat_s: float
    generation: int = 0


@dataclass
class AgentInput:
    """`step` names an agent of the run's plan."""

    run_id: str
    step: str
    final: bool
    heartbeat_s: float
    turn: int


@dataclass
class SayInput:
    """An event that the workflow says, under a name that makes saying it twice harmless."""

    run_id: str
    type: str
    payload: dict[str, Any]
    once: str
    state: str


@dataclass
class PauseInput:
    """Who asked to pause or to resume, and why."""

    reason: str | None
    by: str | None


@dataclass
class EndInput:
    """How to end a run that no agent ended: `failure` or `reason`, or the `result` of a user's workflow that completed."""

    run_id: str
    state: str
    failure: dict[str, Any] | None = None
    reason: str | None = None
    result: Any = None


class Gate:
    """Whether the run is to stand still, as its signals say."""

    def __init__(self) -> None:
        self.pause: PauseInput | None = None
        self.resumed: PauseInput | None = None
        self.count = 0


class TemporalSteps:
    """`StepContext` of a run inside its workflow."""

    def __init__(self, job: RunInput, gate: Gate) -> None:
        self._job = job
        self._gate = gate
        self._turn = job.generation * TURNS_PER_GENERATION

    async def checkpoint(self, step: str) -> None:
        gate = self._gate
        if gate.pause is None:
            return
        name = str(gate.count)
        await self._say("WORKFLOW_PAUSED", {"checkpoint": step, **asdict(gate.pause)}, f"paused-{name}", RunState.PAUSED)
        await workflow.wait_condition(lambda: gate.pause is None)
        resumed = asdict(gate.resumed) if gate.resumed else {}
        await self._say("WORKFLOW_RESUMED", resumed, f"resumed-{name}", RunState.RUNNING)

    async def _say(self, event_type: str, payload: dict[str, Any], once: str, state: RunState) -> None:
        await workflow.execute_activity(
            SAY,
            SayInput(self._job.run_id, event_type, payload, once, state.value),
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
        )

    async def run_agent(self, agent: Agent, *, final: bool) -> StepResult:
        job = self._job
        result = await workflow.execute_activity(
            RUN_AGENT,
            AgentInput(job.run_id, agent.name, final, job.heartbeat_s, self._turn),
            result_type=dict,
            start_to_close_timeout=timedelta(seconds=agent.timeout_s + 60),
            schedule_to_close_timeout=timedelta(seconds=agent.timeout_s * 2 + 120),
            heartbeat_timeout=timedelta(seconds=job.heartbeat_s),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=100),
                maximum_interval=timedelta(seconds=5),
                maximum_attempts=agent.attempts,
            ),
        )
        self._turn += 1
        return msgspec.convert(result, StepResult)


@workflow.defn(name=WORKFLOW)
class RunWorkflow:
    def __init__(self) -> None:
        self._gate = Gate()

    @workflow.signal
    def pause(self, reason: str | None, by: str | None) -> None:
        self._gate.pause = PauseInput(reason, by)
        self._gate.count += 1

    @workflow.signal
    def resume(self, reason: str | None, by: str | None) -> None:
        self._gate.pause = None
        self._gate.resumed = PauseInput(reason, by)

    @workflow.run
    async def run(self, job: RunInput) -> dict[str, Any]:
        try:
            result = await interpret(Plan.model_validate(job.plan), TemporalSteps(job, self._gate))
        except (asyncio.CancelledError, ActivityError) as error:
            result = self._broken_off(error)
        if not result.ended:
            await self._end(job.run_id, result)
        match result.state:
            case RunState.COMPLETED:
                return {"state": result.state}
            case RunState.CANCELLED if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError
            case RunState.CANCELLED:  # the agent heard of it first; a workflow may only say so when it was asked itself
                return {"state": result.state}
            case _:
                failure = result.failure or endings.ENGINE_ERROR
                raise ApplicationError("The run failed; its log says why.", type=failure.code, non_retryable=True)

    def _broken_off(self, error: BaseException) -> StepResult:
        """An activity that never came to an end of its own."""
        if is_cancelled_exception(error):
            return StepResult(RunState.CANCELLED, ended=False, reason=workflow.cancellation_reason() or None)
        lost = error.cause if isinstance(error, ActivityError) else None
        if not isinstance(lost, TimeoutError):
            failure = endings.ENGINE_ERROR
        elif lost.type is TimeoutType.HEARTBEAT:
            failure = endings.WORKER_LOST
        else:
            failure = endings.TIMEOUT
        return StepResult(endings.failed_state(failure), ended=False, failure=failure)

    async def _end(self, run_id: str, result: StepResult) -> None:
        failure = None if result.failure is None else msgspec.to_builtins(result.failure)
        await workflow.execute_activity(
            END_RUN,
            EndInput(run_id, result.state.value, failure, result.reason),
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
        )
