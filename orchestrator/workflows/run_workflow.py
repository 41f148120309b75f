"""The Temporal workflow of a run. It decides and does no I/O: agents and endings are activities.

Nothing a model says or is told passes through here: activities append to the log directly, find the request, the prompts and
what earlier steps have brought beside it, and return how a step ended, without the words of an upstream's error, which may quote
the request.

Recorded histories of this workflow are replayed in tests: tests/orchestrator/workflows/test_replay.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from fractions import Fraction

    import msgspec

    from orchestrator import endings
    from orchestrator.plans.interpreter import StepResult, interpret
    from orchestrator.plans.plan import Plan
    from orchestrator.plans.progress import Share, Tally
    from orchestrator.runs import RunState
    from orchestrator.workflows.messages import END_PLAN, PauseInput, PlanEnd, RunInput
    from orchestrator.workflows.steps import Gate, TemporalSteps, briefly, broken_off, ending_options

WORKFLOW = "HeadgateRun"


@workflow.defn(name=WORKFLOW)
class RunWorkflow:
    @workflow.init
    def __init__(self, job: RunInput) -> None:
        self._gate = Gate(job)

    @workflow.signal
    def pause(self, reason: str | None, by: str | None) -> None:
        self._gate.pause = PauseInput(reason, by)
        self._gate.pauses += 1

    @workflow.signal
    def resume(self, reason: str | None, by: str | None) -> None:
        self._gate.pause = None
        self._gate.resumed = PauseInput(reason, by)

    @workflow.signal
    def approve(self, decision: dict[str, Any]) -> None:
        self._gate.decisions[decision["approval_id"]] = briefly(decision)

    @workflow.run
    async def run(self, job: RunInput) -> dict[str, Any]:
        plan = Plan.model_validate(job.plan)
        share = Share.whole(Tally(Fraction(*job.finished)))
        try:
            left_s = None if job.deadline_ms is None else max(0.0, job.deadline_ms / 1000 - workflow.time())
            steps = TemporalSteps(job, self._gate)
            result = await interpret(plan, steps, share=share, first_step=job.next_step, timeout_s=left_s)
        except asyncio.CancelledError:
            result = StepResult(RunState.CANCELLED, reason=workflow.cancellation_reason() or None)
        except ActivityError as error:
            result = broken_off(error)
        if not result.ended:
            await workflow.execute_activity(END_PLAN, PlanEnd(job.run_id, msgspec.to_builtins(result)), **ending_options())
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
