"""The generated code is what `make protos` makes of the `.proto` files, and the wire is the reference's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor

from protos import common_pb2, generate, orchestrator_pb2, streaming_pb2

FOLDER = Path(generate.__file__).parent


def test_the_generated_code_is_not_stale(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "protos").iterdir()}
    committed = {path.name: path.read_bytes() for path in FOLDER.glob("*_pb2*") if path.suffix != ".pyc"}
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    assert not stale, f"run `make protos`: {stale}"


def test_protoc_sees_every_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.proto")} == {"common", "events", "orchestrator", "streaming"}


REFERENCE = {
    (streaming_pb2, "StreamRequest"): "1 workflow_id, 2 types, 3 last_event_id, 4 last_stream_id",
    (streaming_pb2, "TaskUpdate"): "1 workflow_id, 2 type, 3 agent_id, 4 message, 5 timestamp, 6 seq, 7 stream_id, 8 payload, "
    "9 payload_json",
    (orchestrator_pb2, "SubmitTaskRequest"): "1 metadata, 2 query, 3 context, 10 require_approval, 11 model",
    (orchestrator_pb2, "SubmitTaskResponse"): "1 workflow_id, 2 task_id, 3 status, 5 message",
    (orchestrator_pb2, "GetTaskStatusRequest"): "1 task_id, 2 include_details",
    (orchestrator_pb2, "GetTaskStatusResponse"): "1 task_id, 2 status, 3 progress, 4 result, 5 metrics, 7 error_message",
    (orchestrator_pb2, "CancelTaskRequest"): "1 task_id, 2 reason",
    (orchestrator_pb2, "CancelTaskResponse"): "1 success, 2 message",
    (orchestrator_pb2, "PauseTaskRequest"): "1 task_id, 2 reason",
    (orchestrator_pb2, "PauseTaskResponse"): "1 success, 2 message",
    (orchestrator_pb2, "ResumeTaskRequest"): "1 task_id, 2 reason",
    (orchestrator_pb2, "ResumeTaskResponse"): "1 success, 2 message",
    (orchestrator_pb2, "GetControlStateRequest"): "1 task_id",
    (orchestrator_pb2, "GetControlStateResponse"): "1 is_paused, 2 is_cancelled, 3 paused_at, 4 pause_reason, 5 paused_by, "
    "6 cancel_reason, 7 cancelled_by",
    (orchestrator_pb2, "ListTasksRequest"): "1 user_id, 2 session_id, 3 limit, 4 offset, 5 filter_status",
    (orchestrator_pb2, "ListTasksResponse"): "1 tasks, 2 total_count",
    (orchestrator_pb2, "TaskSummary"): "1 task_id, 2 query, 3 status, 4 mode, 5 created_at, 6 completed_at",
    (orchestrator_pb2, "ApproveTaskRequest"): "1 approval_id, 2 workflow_id, 3 run_id, 4 approved, 5 feedback, "
    "6 modified_action, 7 approved_by",
    (orchestrator_pb2, "ApproveTaskResponse"): "1 success, 2 message",
    (orchestrator_pb2, "GetPendingApprovalsRequest"): "1 user_id, 2 session_id",
    (orchestrator_pb2, "GetPendingApprovalsResponse"): "1 approvals",
    (orchestrator_pb2, "PendingApproval"): "1 approval_id, 2 workflow_id, 3 query, 4 proposed_action, 5 reason, "
    "6 requested_at, 7 metadata",
    (common_pb2, "TaskMetadata"): "1 task_id, 2 user_id, 3 session_id, 4 tenant_id, 5 created_at, 6 labels, 7 max_agents, "
    "8 token_budget",
    (common_pb2, "TokenUsage"): "1 prompt_tokens, 2 completion_tokens, 3 total_tokens, 4 cost_usd, 5 model, 6 tier, 7 provider",
    (common_pb2, "ExecutionMetrics"): "1 latency_ms, 2 token_usage, 3 cache_hit, 4 cache_score, 5 agents_used, 6 mode",
    (common_pb2, "StatusCode"): "0 STATUS_CODE_UNSPECIFIED, 1 STATUS_CODE_OK, 2 STATUS_CODE_ERROR, 3 STATUS_CODE_TIMEOUT, "
    "4 STATUS_CODE_RATE_LIMITED, 5 STATUS_CODE_BUDGET_EXCEEDED",
    (orchestrator_pb2, "TaskStatus"): "0 TASK_STATUS_UNSPECIFIED, 1 TASK_STATUS_QUEUED, 2 TASK_STATUS_RUNNING, "
    "3 TASK_STATUS_COMPLETED, 4 TASK_STATUS_FAILED, 5 TASK_STATUS_CANCELLED, 6 TASK_STATUS_TIMEOUT, 7 TASK_STATUS_PAUSED",
}


@pytest.mark.parametrize(("module", "name"), REFERENCE)
def test_numbers_are_the_reference_s(module: ModuleType, name: str) -> None:
    file: FileDescriptor = module.DESCRIPTOR
    found: Descriptor | EnumDescriptor | None = file.message_types_by_name.get(name) or file.enum_types_by_name.get(name)
    assert found is not None
    members = found.values if isinstance(found, EnumDescriptor) else found.fields
    assert ", ".join(f"{member.number} {member.name}" for member in members) == REFERENCE[module, name]


METHODS = [
    *("SubmitTask", "GetTaskStatus", "CancelTask", "ListTasks", "ApproveTask", "GetPendingApprovals"),
    *("PauseTask", "ResumeTask", "GetControlState"),
]


def test_methods_are_called_by_the_reference_s_names() -> None:
    services = [*streaming_pb2.DESCRIPTOR.services_by_name.values(), *orchestrator_pb2.DESCRIPTOR.services_by_name.values()]
    assert [method.full_name for service in services for method in service.methods] == [
        "shannon.orchestrator.StreamingService.StreamTaskExecution",
        *(f"shannon.orchestrator.OrchestratorService.{name}" for name in METHODS),
    ]
