"""The Temporal workflow that watches a user's own: starts it, waits, and makes its outcome the run's ending.

The user's workflow is a child whose Temporal id is the run's id, so its worker finds the run by its own workflow id; the
watcher's id has a suffix. A cancellation goes through the watcher, everything else straight to the child.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, ChildWorkflowError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    import msgspec

    from orchestrator.runs import RunState
    from orchestrator.workflows.failures import failure_of
    from orchestrator.workflows.messages import END_RUN, EndInput

FOREIGN_WORKFLOW = "HeadgateWatch"


@dataclass
class ForeignInput:
    run_id: str
    type: str
    task_queue: str
    timeout_s: float
    argument: Any


def watcher_id(run_id: str) -> str:
    """The Temporal id of a run's watcher."""
    return f"{run_id}-watch"


@workflow.defn(name=FOREIGN_WORKFLOW)
class ForeignWorkflow:
    @workflow.run
    async def run(self, job: ForeignInput) -> None:
        try:
            result = await workflow.execute_child_workflow(
                job.type,
                job.argument,
                id=job.run_id,
                task_queue=job.task_queue,
                execution_timeout=timedelta(seconds=job.timeout_s),
                cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
                parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )
        except (asyncio.CancelledError, ChildWorkflowError) as error:
            if is_cancelled_exception(error):
                await self._end(EndInput(job.run_id, RunState.CANCELLED.value, reason=workflow.cancellation_reason() or None))
                raise
            failure = failure_of(error)
            await self._end(EndInput(job.run_id, RunState.FAILED.value, msgspec.to_builtins(failure)))
            raise ApplicationError(failure.message, type=failure.code, non_retryable=True) from error
        await self._end(EndInput(job.run_id, RunState.COMPLETED.value, result=result))

    async def _end(self, ending: EndInput) -> None:
        await workflow.execute_activity(
            END_RUN,
            ending,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=5)),
        )
