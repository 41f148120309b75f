"""`OrchestratorService`: tasks. Each method is a call of the engine with its messages on either side."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.engine import Decision, Details, Engine
from orchestrator.errors import InvalidRequest
from orchestrator.limits.headers import rate_limit_headers
from orchestrator.rpc.access import Task, TaskRules
from orchestrator.rpc.edge import Line
from orchestrator.rpc.translate import STATE_OF, STATUS_OF, instant, instant_of, plain, struct_of
from orchestrator.runs import Principal, Run, RunFilter
from orchestrator.spending.money import usd
from protos import orchestrator_pb2 as pb
from protos.common_pb2 import STATUS_CODE_OK, ExecutionMetrics, TaskMetadata, TokenUsage

_MAX_LIMIT = 100
_LIMIT = 20


class OrchestratorService:
    def __init__(self, engine: Engine, rules: TaskRules, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._rules = rules
        self._clock = clock

    async def SubmitTask(self, principal: Principal, request: pb.SubmitTaskRequest, line: Line) -> pb.SubmitTaskResponse:
        about = request.metadata
        task = Task(
            query=request.query,
            model=request.model or None,
            session_id=about.session_id or None,
            context=plain(request.context) if request.HasField("context") else None,
            metadata=_recorded(about) or None,
            token_budget=_budget(about.token_budget),
            require_approval=request.require_approval,
        )
        run = await self._engine.submit(principal, self._rules(task, principal, line.metadata))
        line.conclude_with(tuple(rate_limit_headers(run.quota)))
        said = "The task had been submitted before." if run.repeated else "The task was submitted."
        return pb.SubmitTaskResponse(workflow_id=run.id, task_id=run.id, status=STATUS_CODE_OK, message=said)

    async def GetTaskStatus(self, principal: Principal, request: pb.GetTaskStatusRequest) -> pb.GetTaskStatusResponse:
        details = await self._engine.details(principal, request.task_id)
        run = details.run
        return pb.GetTaskStatusResponse(
            task_id=run.id,
            status=STATUS_OF[run.state],
            progress=details.progress,
            result=details.result,
            metrics=self._metrics(details) if request.include_details else None,
            error_message=details.failure.message if details.failure else details.reason,
        )

    async def CancelTask(self, principal: Principal, request: pb.CancelTaskRequest) -> pb.CancelTaskResponse:
        await self._engine.cancel(principal, request.task_id, request.reason or None)
        return pb.CancelTaskResponse(success=True, message="The task was asked to stop.")

    async def PauseTask(self, principal: Principal, request: pb.PauseTaskRequest) -> pb.PauseTaskResponse:
        await self._engine.pause(principal, request.task_id, request.reason or None)
        return pb.PauseTaskResponse(success=True, message="The task was asked to stand still.")

    async def ResumeTask(self, principal: Principal, request: pb.ResumeTaskRequest) -> pb.ResumeTaskResponse:
        await self._engine.resume(principal, request.task_id, request.reason or None)
        return pb.ResumeTaskResponse(success=True, message="The task was asked to go on.")

    async def GetControlState(self, principal: Principal, request: pb.GetControlStateRequest) -> pb.GetControlStateResponse:
        state = await self._engine.control_state(principal, request.task_id)
        return pb.GetControlStateResponse(
            is_paused=state.is_paused,
            is_cancelled=state.is_cancelled,
            paused_at=state.paused_at,
            pause_reason=state.pause_reason,
            paused_by=state.paused_by,
            cancel_reason=state.cancel_reason,
            cancelled_by=state.cancelled_by,
        )

    async def ListTasks(self, principal: Principal, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        limit = request.limit or _LIMIT
        if not 0 < limit <= _MAX_LIMIT:
            raise InvalidRequest(f"'limit' is 1 to {_MAX_LIMIT}.", param="limit")
        if request.offset < 0:
            raise InvalidRequest("'offset' counts from 0.", param="offset")
        state = STATE_OF.get(request.filter_status)
        if state is None and request.filter_status:
            raise InvalidRequest("'filter_status' is none that a task can have.", param="filter_status")
        which = RunFilter(request.session_id or None, state)
        listing = await self._engine.list(principal, which, offset=request.offset, limit=limit)
        return pb.ListTasksResponse(tasks=[_summary(run) for run in listing.runs], total_count=listing.total)

    async def ApproveTask(self, principal: Principal, request: pb.ApproveTaskRequest) -> pb.ApproveTaskResponse:
        decision = Decision(
            approval_id=request.approval_id,
            approved=request.approved,
            feedback=request.feedback or None,
            modified_action=request.modified_action or None,
            decided_by=request.approved_by or principal.key_id,
        )
        await self._engine.decide(principal, request.workflow_id, decision)
        return pb.ApproveTaskResponse(success=True, message="The decision was recorded.")

    async def GetPendingApprovals(
        self, principal: Principal, request: pb.GetPendingApprovalsRequest
    ) -> pb.GetPendingApprovalsResponse:
        approvals = await self._engine.approvals(principal, request.session_id or None)
        return pb.GetPendingApprovalsResponse(
            approvals=[
                pb.PendingApproval(
                    approval_id=approval.approval_id,
                    workflow_id=approval.run_id,
                    query=approval.query,
                    proposed_action=approval.proposed_action,
                    reason=approval.reason,
                    requested_at=instant_of(approval.requested_at),
                    metadata=None if approval.metadata is None else struct_of(approval.metadata),
                )
                for approval in approvals
            ]
        )

    def _metrics(self, details: Details) -> ExecutionMetrics:
        run, usage = details.run, details.usage
        until_ms = run.ended_ms or int(self._clock() * 1000)
        metrics = ExecutionMetrics(latency_ms=max(until_ms - run.created_ms, 0))
        if run.cached is not None:
            metrics.cache_hit = True
            metrics.cache_score = 1.0 if run.cached.score is None else run.cached.score
        if usage is not None:
            spent = TokenUsage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
                cost_usd=usd(details.cost_nano or 0),
                model=run.model,
            )
            metrics.token_usage.CopyFrom(spent)
        return metrics


def _budget(tokens: float) -> int | None:
    """A double on the wire, and 0 where nothing is asked."""
    if not tokens:
        return None
    if not (tokens >= 1 and tokens.is_integer()):
        raise InvalidRequest("'token_budget' is a whole number of tokens.", param="metadata.token_budget")
    return int(tokens)


def _recorded(about: TaskMetadata) -> dict[str, str]:
    """What the run remembers: who it is for, and its labels."""
    return ({"user_id": about.user_id} if about.user_id else {}) | dict(about.labels)


def _summary(run: Run) -> pb.TaskSummary:
    return pb.TaskSummary(
        task_id=run.id,
        query=run.query,
        status=STATUS_OF[run.state],
        created_at=instant(run.created_ms),
        completed_at=None if run.ended_ms is None else instant(run.ended_ms),
    )
