"""The gRPC services, a test for each part of native.md §6. What all doors share: test_every_door.py, test_doors_together.py."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from compat_tests.doors import DOORS, MISSING, Server, envelope
from compat_tests.manifest import promise
from compat_tests.raw import TIMEOUT_S, script
from compat_tests.served import ALICE
from compat_tests.stage import publish, staged
from compat_tests.watch import reading
from protos import common_pb2, events_pb2
from protos import orchestrator_pb2 as pb
from protos.streaming_pb2 import StreamRequest


def call(method: Any, request: Any, server: Server) -> Any:
    return method(request, metadata=server.metadata, timeout=TIMEOUT_S)


def refused(method: Any, request: Any, server: Server) -> tuple[grpc.StatusCode, str]:
    """What a call is refused with: the code, and the one for programs."""
    with pytest.raises(grpc.RpcError) as error:
        call(method, request, server)
    trailers: Any = error.value.trailing_metadata()
    return error.value.code(), dict(trailers)["x-error-code"]


# Streams


@promise("grpc.task-update")
def test_an_update_has_the_payload_as_an_object_and_as_its_bytes(here: Server) -> None:
    """native.md §6: `payload` for convenience, `payload_json` exact, also beyond what a double holds."""
    with staged(here) as stage:
        stage.say("X_FACTS", "these", {"big": 2**60 + 1, "text": "\u2028", "list": [1, None, {"a": True}]}, agent_id="me")
        updates = here.streams.StreamTaskExecution(StreamRequest(workflow_id=stage.run, last_event_id=2), timeout=TIMEOUT_S)
        update = next(updates)
        updates.cancel()
        assert json.loads(update.payload_json) == {"big": 2**60 + 1, "text": "\u2028", "list": [1, None, {"a": True}]}
        assert MessageToDict(update.payload) == {"big": float(2**60), "text": "\u2028", "list": [1.0, None, {"a": True}]}
        assert (update.type, update.agent_id, update.message, update.seq) == ("X_FACTS", "me", "these", 3)
        assert envelope(update) == stage.log()[-1]


@promise("grpc.numbers")
def test_names_and_numbers_are_those_of_the_contract(here: Server) -> None:
    """native.md §6: so that stubs made elsewhere understand these services. Asked of the server itself."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(here.channel))
    for line in NUMBERS.strip().splitlines():
        name, _, fields = line.partition(":")
        message = pool.FindMessageTypeByName(name)
        wanted = {field.rpartition("=")[0]: int(field.rpartition("=")[2]) for field in fields.split()}
        assert {field.name: field.number for field in message.fields}.items() >= wanted.items(), name
    statuses = {value.name: value.number for value in pool.FindEnumTypeByName("shannon.orchestrator.TaskStatus").values}
    assert statuses == {f"TASK_STATUS_{name}": number for number, name in enumerate(re.findall(r"\w+", STATUSES))}
    for service, methods in SERVICES.items():
        assert set(re.findall(r"\w+", methods)) <= {method.name for method in pool.FindServiceByName(service).methods}


NUMBERS = """
shannon.orchestrator.StreamRequest: workflow_id=1 types=2 last_event_id=3 last_stream_id=4
shannon.orchestrator.TaskUpdate: workflow_id=1 type=2 agent_id=3 message=4 timestamp=5 seq=6 stream_id=7 payload=8 payload_json=9
shannon.orchestrator.SubmitTaskRequest: metadata=1 query=2 context=3 require_approval=10 model=11
shannon.orchestrator.SubmitTaskResponse: workflow_id=1 task_id=2 status=3 message=5
shannon.orchestrator.GetTaskStatusRequest: task_id=1 include_details=2
shannon.orchestrator.GetTaskStatusResponse: task_id=1 status=2 progress=3 result=4 metrics=5 error_message=7
shannon.orchestrator.CancelTaskRequest: task_id=1 reason=2
shannon.orchestrator.PauseTaskRequest: task_id=1 reason=2
shannon.orchestrator.ResumeTaskRequest: task_id=1 reason=2
shannon.orchestrator.CancelTaskResponse: success=1 message=2
shannon.orchestrator.GetControlStateRequest: task_id=1
shannon.orchestrator.GetControlStateResponse: is_paused=1 is_cancelled=2 paused_at=3 pause_reason=4 paused_by=5 cancel_reason=6 cancelled_by=7
shannon.orchestrator.ListTasksRequest: user_id=1 session_id=2 limit=3 offset=4 filter_status=5
shannon.orchestrator.ListTasksResponse: tasks=1 total_count=2
shannon.orchestrator.ApproveTaskRequest: approval_id=1 workflow_id=2 run_id=3 approved=4 feedback=5 modified_action=6 approved_by=7
shannon.orchestrator.ApproveTaskResponse: success=1 message=2
shannon.orchestrator.GetPendingApprovalsRequest: user_id=1 session_id=2
shannon.orchestrator.PendingApproval: approval_id=1 workflow_id=2 query=3 proposed_action=4 reason=5 requested_at=6 metadata=7
shannon.common.TaskMetadata: task_id=1 user_id=2 session_id=3 tenant_id=4 created_at=5 labels=6 max_agents=7 token_budget=8
shannon.common.TokenUsage: prompt_tokens=1 completion_tokens=2 total_tokens=3 cost_usd=4 model=5 tier=6 provider=7
shannon.common.ExecutionMetrics: latency_ms=1 token_usage=2 cache_hit=3 cache_score=4 agents_used=5 mode=6
"""  # noqa: E501 - a table

STATUSES = "UNSPECIFIED QUEUED RUNNING COMPLETED FAILED CANCELLED TIMEOUT PAUSED"

SERVICES = {
    "shannon.orchestrator.StreamingService": "StreamTaskExecution",
    "shannon.orchestrator.OrchestratorService": "SubmitTask GetTaskStatus CancelTask PauseTask ResumeTask GetControlState "
    "ListTasks ApproveTask GetPendingApprovals",
    "headgate.events.EventService": "PublishEvents",
}


@promise("grpc.credentials", "doors.key")
def test_credentials_are_metadata_on_streams_and_single_calls(there: Server, nobody: Server) -> None:
    """native.md §6: `x-api-key` or `authorization`; without, UNAUTHENTICATED, whatever is asked for."""
    run = there.submit("demo-none", script('say "hi"'))
    for metadata in ([("x-api-key", ALICE)], [("authorization", f"Bearer {ALICE}")]):
        status = nobody.tasks.GetTaskStatus(pb.GetTaskStatusRequest(task_id=run), metadata=metadata, timeout=TIMEOUT_S)
        assert status.task_id == run
        updates = list(nobody.streams.StreamTaskExecution(StreamRequest(workflow_id=run), metadata=metadata, timeout=TIMEOUT_S))
        assert updates[-1].type == "STREAM_END"
    for method in (nobody.tasks.GetTaskStatus, nobody.tasks.CancelTask, nobody.tasks.SubmitTask, nobody.tasks.ListTasks):
        for metadata in ([], [("x-api-key", "wrong")]):
            with pytest.raises(grpc.RpcError) as error:
                method(pb.GetTaskStatusRequest(task_id=run), metadata=metadata, timeout=TIMEOUT_S)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as error:
        publish(nobody, workflow_id=run)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


@promise("grpc.deadlines")
def test_deadlines_and_cancellation_are_honoured(here: Server) -> None:
    """issue: the call ends when its client says so, and the run goes on."""
    with staged(here) as stage:
        request = StreamRequest(workflow_id=stage.run)
        with pytest.raises(grpc.RpcError) as error:
            list(here.streams.StreamTaskExecution(request, timeout=0.3))
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        updates = here.streams.StreamTaskExecution(request, timeout=TIMEOUT_S)
        assert next(updates).seq == 1
        updates.cancel()
        assert updates.code() is grpc.StatusCode.CANCELLED
        assert here.task(stage.run)["status"] == "RUNNING"


@promise("grpc.too-large")
def test_a_message_of_five_megabytes_is_refused(here: Server) -> None:
    """issue: RESOURCE_EXHAUSTED, and the connection serves on."""
    with pytest.raises(grpc.RpcError) as error:
        here.tasks.SubmitTask(pb.SubmitTaskRequest(query="x" * 5_000_000), timeout=TIMEOUT_S)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert here.tasks.ListTasks(pb.ListTasksRequest(limit=1), timeout=TIMEOUT_S).total_count >= 0


# Tasks


@promise("grpc.submit", "grpc.status")
def test_a_task_is_submitted_and_looked_at(here: Server, there: Server) -> None:
    """native.md §6: with everything that a client may say of it; details only for who asks for them."""
    session = f"session-{uuid.uuid4().hex}"
    about = common_pb2.TaskMetadata(session_id=session, user_id="ann", labels={"team": "a"})
    request = pb.SubmitTaskRequest(metadata=about, query=script('say "well done"', "usage 3 4"), model="demo-none")
    request.context.update({"colour": "green"})
    submitted = call(here.tasks.SubmitTask, request, here)
    assert submitted.workflow_id == submitted.task_id
    assert submitted.status == common_pb2.STATUS_CODE_OK
    assert list(reading(DOORS["grpc"], there, submitted.task_id))
    found = there.task(submitted.task_id)
    assert (found["session_id"], found["metadata"]) == (
        session,
        {"context": {"colour": "green"}, "user_id": "ann", "team": "a"},
    )
    brief, details = (
        call(there.tasks.GetTaskStatus, pb.GetTaskStatusRequest(task_id=submitted.task_id, include_details=wanted), there)
        for wanted in (False, True)
    )
    assert (brief.status, brief.progress, brief.result) == (pb.TASK_STATUS_COMPLETED, 1.0, "well done")
    assert not brief.HasField("metrics")
    spent = details.metrics.token_usage
    assert (spent.prompt_tokens, spent.completion_tokens, spent.total_tokens) == (3, 4, 7)
    assert details.metrics.latency_ms >= 0
    failed = here.submit("demo-none", script('error "No more."'))
    assert list(reading(DOORS["grpc"], here, failed))
    status = call(here.tasks.GetTaskStatus, pb.GetTaskStatusRequest(task_id=failed), here)
    assert (status.status, status.error_message) == (pb.TASK_STATUS_FAILED, "No more.")


@promise("grpc.submit", "grpc.codes")
def test_what_is_no_task_is_refused(here: Server, mallory: Server) -> None:
    """native.md §6: status codes as listed, and the code of the REST routes in a trailer."""
    submit, status = here.tasks.SubmitTask, here.tasks.GetTaskStatus
    assert refused(submit, pb.SubmitTaskRequest(), here)[0] is grpc.StatusCode.INVALID_ARGUMENT
    unknown = pb.SubmitTaskRequest(query="x", model="nothing-of-this-name")
    assert refused(mallory.tasks.SubmitTask, unknown, mallory) == (grpc.StatusCode.NOT_FOUND, "model_not_found")
    assert refused(status, pb.GetTaskStatusRequest(task_id=MISSING), here) == (grpc.StatusCode.NOT_FOUND, "run_not_found")
    run = here.submit("demo-none", script('say "hi"'))
    foreign = pb.GetTaskStatusRequest(task_id=run)
    assert refused(mallory.tasks.GetTaskStatus, foreign, mallory) == (grpc.StatusCode.NOT_FOUND, "run_not_found")


@promise("grpc.list")
def test_tasks_are_listed(here: Server, there: Server) -> None:
    """native.md §6: by session and state, page by page, with the count of all."""
    session = f"session-{uuid.uuid4().hex}"
    runs = [here.submit("demo-none", script(line), session_id=session) for line in ('say "a"', "status 503")]
    for run in runs:
        assert list(reading(DOORS["sse"], here, run))
    for server in (here, there):
        found = call(server.tasks.ListTasks, pb.ListTasksRequest(session_id=session), server)
        assert ([task.task_id for task in found.tasks], found.total_count) == (runs[::-1], 2)
        assert found.tasks[0].created_at.ToMilliseconds() <= found.tasks[0].completed_at.ToMilliseconds()
        page = call(server.tasks.ListTasks, pb.ListTasksRequest(session_id=session, limit=1, offset=1), server)
        assert ([task.task_id for task in page.tasks], page.total_count) == (runs[:1], 2)
        failed = pb.ListTasksRequest(session_id=session, filter_status=pb.TASK_STATUS_FAILED)
        assert [task.task_id for task in call(server.tasks.ListTasks, failed, server).tasks] == runs[1:]
    assert refused(here.tasks.ListTasks, pb.ListTasksRequest(limit=101), here)[0] is grpc.StatusCode.INVALID_ARGUMENT


@promise("grpc.approvals")
def test_approvals_are_listed_and_decided_once(here: Server, there: Server) -> None:
    """native.md §6: who comes second is told so."""
    session = f"session-{uuid.uuid4().hex}"
    with staged(here, session_id=session) as stage:
        stage.ask_approval("approval-1")
        pending = call(there.tasks.GetPendingApprovals, pb.GetPendingApprovalsRequest(session_id=session), there).approvals
        assert [(each.workflow_id, each.approval_id, each.proposed_action) for each in pending] == [
            (stage.run, "approval-1", "pay")
        ]
        decision = pb.ApproveTaskRequest(approval_id="approval-1", workflow_id=stage.run, approved=True, approved_by="ann")
        assert call(there.tasks.ApproveTask, decision, there).success
        assert stage.log()[-1]["payload"] == {"approval_id": "approval-1", "approved": True, "decided_by": "ann"}
        assert refused(here.tasks.ApproveTask, decision, here) == (grpc.StatusCode.FAILED_PRECONDITION, "approval_decided")


# Publishing


@promise("grpc.publish", "event.unstored")
def test_events_are_published_once_each(here: Server, there: Server) -> None:
    """native.md §6: positions come back; the same number again gets the same ones, at any replica; heartbeats are not stored."""
    with staged(here) as stage:
        kinds = ("X_ONE", "HEARTBEAT", "PROGRESS", "PING")
        events = [events_pb2.PublishEvent(type=kind, message=kind.lower()) for kind in kinds]
        first = {"workflow_id": stage.run, "writer": "w", "attempt": 1, "producer_seq": 1, "events": events}
        ack, again = publish(here, **first), publish(there, **first)
        assert [position.seq for position in ack.positions] == [3, 0, 4, 0]
        assert (list(again.positions), ack.known_already, again.known_already) == (list(ack.positions), False, True)
        log = stage.log()
        assert [(event["type"], event["stream_id"]) for event in log[2:]] == [
            ("X_ONE", ack.positions[0].stream_id),
            ("PROGRESS", ack.positions[2].stream_id),
        ]


@promise("grpc.publish", "event.types")
def test_what_cannot_be_published_is_told_so(here: Server, mallory: Server) -> None:
    """native.md §2, §6, P2: unknown types, skipped numbers, lower attempts, runs of others and runs that are over."""
    one = [events_pb2.PublishEvent(type="PROGRESS")]
    with staged(here) as stage:
        usual = {"workflow_id": stage.run, "writer": "w", "attempt": 2, "producer_seq": 1, "events": one}
        for kind in ("NOPE", "progress", "X_", "x_mine", "WORKFLOW_STARTED", "STREAM_END", "STREAM_GAP", ""):
            refusal = publish(here, **usual | {"events": [events_pb2.PublishEvent(type=kind)]})
            assert (refusal.error.code, list(refusal.positions)) == ("invalid_request", []), kind
        assert not publish(here, **usual).error.code
        assert publish(here, **usual | {"producer_seq": 3}).error.code == "append_skipped"
        assert publish(here, **usual | {"attempt": 1}).error.code == "fenced"
        for named in (stage.run, MISSING):
            assert publish(mallory, **usual | {"workflow_id": named}).error.code == "run_not_found"
        assert len(stage.log()) == 3
    assert publish(here, **usual | {"producer_seq": 2}).error.code == "log_closed"


# The server


@promise("grpc.health")
def test_health_can_be_checked(here: Server, nobody: Server) -> None:
    """native.md §6: of the whole and of each service, by anybody."""
    for server in (here, nobody):
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        for service in ("", *SERVICES):
            checked = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
            assert checked.status == health_pb2.HealthCheckResponse.SERVING, service
