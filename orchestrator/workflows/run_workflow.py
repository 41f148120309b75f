"""The Temporal workflow of a run. It decides and does no I/O: agents and endings are activities.

Nothing a model says passes through here: activities append to the log directly, and what returns is how a step ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    import msgspec

    from orchestrator.plans.interpreter import StepResult, interpret
    from orchestrator.plans.plan import Agent, Plan
    from orchestrator.runs import RunState

WORKFLOW = "HeadgateRun"
RUN_AGENT = "run_agent"
END_RUN = "end_run"

ATTEMPTS_PER_GENERATION = 1000
"""Attempts of the workflow started by the janitor outrank all attempts of one that was lost."""


@dataclass
class RunInput:
    """What the workflow is given: references, not content. The request stays beside the log."""

    run_id: str
    plan: dict[str, Any]
    heartbeat_s: float
    generation: int = 0


@dataclass
class AgentInput:
    run_id: str
    step: dict[str, Any]
    final: bool
    heartbeat_s: float
    generation: int


@dataclass
class EndInput:
    """How to end a run that no agent ended; `failure` is absent for a cancelled one."""

    run_id: str
    state: str
    failure: dict[str, Any] | None = None
    reason: str | None = None


class TemporalSteps:
    """`StepContext` of a run inside its workflow."""

    def __init__(self, job: RunInput) -> None:
        self._job = job

    async def run_agent(self, agent: Agent, *, final: bool) -> StepResult:
        job = self._job
        result = await workflow.execute_activity(
            RUN_AGENT,
            AgentInput(job.run_id, agent.model_dump(mode="json"), final, job.heartbeat_s, job.generation),
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
        return msgspec.convert(result, StepResult)


@workflow.defn(name=WORKFLOW)
class RunWorkflow:
    @workflow.run
    async def run(self, job: RunInput) -> dict[str, Any]:
        try:
            result = await interpret(Plan.model_validate(job.plan), TemporalSteps(job))
        except (asyncio.CancelledError, ActivityError) as error:
            result = self._broken_off(error)
        if not result.ended:
            await self._end(job.run_id, result)
        match result.state:
            case RunState.COMPLETED:
                return {"state": result.state}
            case RunState.CANCELLED:
                raise asyncio.CancelledError
            case _:
                failure = result.failure
                raise ApplicationError(
                    failure.message if failure else "The run failed.",
                    type=failure.code if failure else "internal_error",
                    non_retryable=True,
                )

    def _broken_off(self, error: BaseException) -> StepResult:
        """An activity that never came to an end of its own."""
        if is_cancelled_exception(error):
            return StepResult(RunState.CANCELLED, ended=False, reason=workflow.cancellation_reason() or None)
        return StepResult(RunState.FAILED, ended=False)

    async def _end(self, run_id: str, result: StepResult) -> None:
        failure = None if result.failure is None else msgspec.to_builtins(result.failure)
        await workflow.execute_activity(
            END_RUN,
            EndInput(run_id, result.state.value, failure, result.reason),
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
        )
