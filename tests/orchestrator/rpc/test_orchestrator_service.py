"""`OrchestratorService`: every method over the real engine, and every refusal as its status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode, aio
from multidict import CIMultiDict

from gateway.access.idempotency import idempotency
from gateway.wire.task_bodies import SubmitBody
from orchestrator import trace
from orchestrator.engine import Publication, PublishedEvent
from orchestrator.streamlog.memory import MemoryLog
from protos import orchestrator_pb2 as pb
from protos.common_pb2 import STATUS_CODE_OK, TaskMetadata
from tests.orchestrator.engines import MODELS, script
from tests.orchestrator.rpc.conftest import ACME, ALICE, MALLORY, Door, Open

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def refusal(call: Any) -> tuple[StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return raised.value.code(), str(dict(raised.value.trailing_metadata())["x-error-code"])


async def status(door: Door, run_id: str, **more: Any) -> pb.GetTaskStatusResponse:
    answer: pb.GetTaskStatusResponse = await door.tasks.GetTaskStatus(
        pb.GetTaskStatusRequest(task_id=run_id, **more), metadata=ALICE, timeout=10
    )
    return answer


async def until(door: Door, run_id: str, event_type: str) -> None:
    async for update in door.stream(run_id):
        if update.type == event_type:
            return
    raise AssertionError(f"{event_type} never came")


class TestSubmit:
    async def test_a_task(self, door: Door) -> None:
        about = TaskMetadata(user_id="u-1", session_id="s-1", labels={"team": "blue"}, tenant_id="other", task_id="mine")
        request = pb.SubmitTaskRequest(query="/script\nsay 2 words", model="demo", metadata=about)
        request.context.update({"depth": 2, "tags": ["a"], "system_prompt": "Be brief."})
        answer = await door.tasks.SubmitTask(request, metadata=ALICE, timeout=10)
        assert (answer.status, answer.task_id) == (STATUS_CODE_OK, answer.workflow_id)
        await until(door, answer.task_id, "STREAM_END")
        run = await door.engine.get(ACME, answer.task_id)
        assert (run.tenant, run.session_id, run.model) == ("acme", "s-1", "demo")
        assert run.metadata == {"user_id": "u-1", "team": "blue", "context": {"depth": 2, "tags": ["a"]}}
        request = await MemoryLog(door.store).request(run.id)
        assert request is not None
        assert request.context == {"depth": 2, "tags": ["a"]}

    @pytest.mark.parametrize(("parents", "kept"), [((PARENT,), trace.Trace(PARENT, "a=1")), (("nonsense",), None), ((), None)])
    async def test_the_trace_of_the_call_is_the_tasks(self, door: Door, parents: Sequence[str], kept: trace.Trace | None) -> None:
        sent = (*ALICE, *(("traceparent", parent) for parent in parents), ("tracestate", "a=1"))
        request = pb.SubmitTaskRequest(query="/script\nsay 2 words", model="demo")
        answer = await door.tasks.SubmitTask(request, metadata=sent, timeout=10)
        stored = await MemoryLog(door.store).request(answer.task_id)
        assert stored is not None
        assert stored.trace == kept
        await until(door, answer.task_id, "STREAM_END")

    async def test_a_repeated_submission_is_one_task_and_another_one_with_its_key_is_refused(self, door: Door) -> None:
        keyed = (*ALICE, ("idempotency-key", "k-1"))
        request = pb.SubmitTaskRequest(query="/script\nsay 2 words", model="demo")
        first, again = [await door.tasks.SubmitTask(request, metadata=keyed, timeout=10) for _ in range(2)]
        assert (first.task_id, first.message) == (again.task_id, "The task was submitted.")
        assert again.message == "The task had been submitted before."
        other = pb.SubmitTaskRequest(query="/script\nsay 3 words", model="demo")
        refused = await refusal(door.tasks.SubmitTask(other, metadata=keyed, timeout=10))
        assert refused == (StatusCode.FAILED_PRECONDITION, "idempotency_key_reused")
        spaced = (*ALICE, ("idempotency-key", "a b"))
        assert await refusal(door.tasks.SubmitTask(request, metadata=spaced, timeout=10)) == (
            StatusCode.INVALID_ARGUMENT,
            "invalid_request",
        )
        await until(door, first.task_id, "STREAM_END")

    async def test_a_key_counts_at_every_door(self, door: Door) -> None:
        """The same task by REST and by gRPC is the same task."""
        keyed = (*ALICE, ("idempotency-key", "k-1"))
        body = SubmitBody(query="/script\nsay 2 words", model="demo", metadata={"team": "blue"})
        by_rest = idempotency(CIMultiDict([("Idempotency-Key", "k-1")]), ACME, body.model_dump())
        submitted = await door.engine.submit(ACME, script("say 2 words", idempotency=by_rest))
        request = pb.SubmitTaskRequest(query=body.query, model="demo", metadata=TaskMetadata(labels={"team": "blue"}))
        assert (await door.tasks.SubmitTask(request, metadata=keyed, timeout=10)).task_id == submitted.id
        await until(door, submitted.id, "STREAM_END")

    async def test_without_a_model_it_is_the_first_and_without_a_session_a_new_one(self, door: Door) -> None:
        answer = await door.tasks.SubmitTask(pb.SubmitTaskRequest(query="/script\nsay 2 words"), metadata=ALICE, timeout=10)
        run = await door.engine.get(ACME, answer.task_id)
        assert run.model == "demo"
        assert run.session_id is not None
        await until(door, answer.task_id, "STREAM_END")

    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            (pb.SubmitTaskRequest(query=" "), StatusCode.INVALID_ARGUMENT),
            (pb.SubmitTaskRequest(query="x", metadata=TaskMetadata(session_id="a b")), StatusCode.INVALID_ARGUMENT),
            (pb.SubmitTaskRequest(query="x", metadata=TaskMetadata(labels={"a": "x" * 20_000})), StatusCode.INVALID_ARGUMENT),
            (pb.SubmitTaskRequest(query="x", model="nope"), StatusCode.NOT_FOUND),
            (pb.SubmitTaskRequest(query="x", model="durable"), StatusCode.UNAVAILABLE),
        ],
    )
    async def test_refusals(self, door: Door, request_: pb.SubmitTaskRequest, expected: StatusCode) -> None:
        assert (await refusal(door.tasks.SubmitTask(request_, metadata=ALICE, timeout=20)))[0] is expected

    async def test_an_approval_may_be_required(self, door: Door) -> None:
        asked = pb.SubmitTaskRequest(query='/script\nsay "hi"', require_approval=True)
        run_id = (await door.tasks.SubmitTask(asked, metadata=ALICE, timeout=10)).workflow_id
        await until(door, run_id, "APPROVAL_REQUESTED")
        pending = await door.tasks.GetPendingApprovals(pb.GetPendingApprovalsRequest(), metadata=ALICE, timeout=10)
        assert [(each.workflow_id, each.approval_id) for each in pending.approvals] == [(run_id, "begin")]
        decision = pb.ApproveTaskRequest(workflow_id=run_id, approval_id="begin", approved=True, approved_by="bob")
        assert (await door.tasks.ApproveTask(decision, metadata=ALICE, timeout=10)).success
        await until(door, run_id, "STREAM_END")
        assert (await status(door, run_id)).result == "hi"
        again = door.tasks.ApproveTask(decision, metadata=ALICE, timeout=10)
        assert (await refusal(again))[0] is StatusCode.FAILED_PRECONDITION


class TestStatus:
    async def test_of_a_completed_task(self, door: Door) -> None:
        run_id = await door.submit('say "Hello there"; usage 3 2')
        await until(door, run_id, "STREAM_END")
        answer = await status(door, run_id, include_details=True)
        assert (answer.status, answer.progress, answer.result) == (pb.TASK_STATUS_COMPLETED, 1.0, "Hello there")
        usage = answer.metrics.token_usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.model) == (3, 2, 5, "demo")
        assert not (await status(door, run_id)).HasField("metrics")

    async def test_a_task_tells_its_cost_and_stops_at_its_budget(self, open_door: Open) -> None:
        door = await open_door(models={**MODELS, "priced": {**MODELS["demo"], "price": {"input": 2.5, "output": 10}}})
        request = pb.SubmitTaskRequest(query="/script\nsay 500 words", model="priced", metadata=TaskMetadata(token_budget=100))
        run_id = (await door.tasks.SubmitTask(request, metadata=ALICE, timeout=20)).task_id
        await until(door, run_id, "STREAM_END")
        answer = await status(door, run_id, include_details=True)
        usage = answer.metrics.token_usage
        assert answer.status == pb.TASK_STATUS_COMPLETED
        assert 50 < usage.total_tokens <= 100
        assert usage.cost_usd == (usage.prompt_tokens * 2500 + usage.completion_tokens * 10_000) / 10**9

    @pytest.mark.parametrize("budget", [-1.0, 0.5, 2.5, float("nan"), float("inf"), 1e30])
    async def test_what_is_no_budget_is_refused(self, door: Door, budget: float) -> None:
        request = pb.SubmitTaskRequest(query="x", model="demo", metadata=TaskMetadata(token_budget=budget))
        assert (await refusal(door.tasks.SubmitTask(request, metadata=ALICE, timeout=20)))[0] is StatusCode.INVALID_ARGUMENT

    async def test_of_a_running_a_cancelled_and_a_failed_one(self, door: Door) -> None:
        running = await door.submit("say 1 words; hang")
        await until(door, running, "LLM_PARTIAL")
        answer = await status(door, running, include_details=True)
        assert (answer.status, answer.progress) == (pb.TASK_STATUS_RUNNING, 0.0)
        await door.tasks.CancelTask(pb.CancelTaskRequest(task_id=running, reason="enough"), metadata=ALICE, timeout=10)
        await until(door, running, "STREAM_END")
        answer = await status(door, running)
        assert (answer.status, answer.error_message) == (pb.TASK_STATUS_CANCELLED, "enough")
        failed = await door.submit("status 400")
        await until(door, failed, "STREAM_END")
        answer = await status(door, failed)
        assert answer.status == pb.TASK_STATUS_FAILED
        assert answer.error_message

    async def test_of_what_is_not_there(self, door: Door) -> None:
        run_id, _ = await door.open()
        request = pb.GetTaskStatusRequest(task_id=run_id)
        for asked, metadata in ((pb.GetTaskStatusRequest(), ALICE), (request, MALLORY)):
            assert await refusal(door.tasks.GetTaskStatus(asked, metadata=metadata)) == (StatusCode.NOT_FOUND, "run_not_found")


class TestControl:
    async def test_pause_and_resume(self, door: Door) -> None:
        run_id = await door.submit('say "one "; once hang; say "two"')
        await until(door, run_id, "LLM_PARTIAL")
        assert (await door.tasks.PauseTask(pb.PauseTaskRequest(task_id=run_id, reason="wait"), metadata=ALICE)).success
        await until(door, run_id, "WORKFLOW_PAUSED")
        assert (await status(door, run_id)).status == pb.TASK_STATUS_PAUSED
        state = await door.tasks.GetControlState(pb.GetControlStateRequest(task_id=run_id), metadata=ALICE)
        assert MessageToDict(state, preserving_proto_field_name=True) == {
            "is_paused": True,
            "paused_at": state.paused_at,
            "pause_reason": "wait",
            "paused_by": "alice",
        }
        conflict = (StatusCode.FAILED_PRECONDITION, "run_paused")
        assert await refusal(door.tasks.PauseTask(pb.PauseTaskRequest(task_id=run_id), metadata=ALICE)) == conflict
        assert (await door.tasks.ResumeTask(pb.ResumeTaskRequest(task_id=run_id), metadata=ALICE)).success
        await until(door, run_id, "STREAM_END")
        assert (await status(door, run_id)).result == "one two"

    async def test_cancelling_twice_is_once(self, door: Door) -> None:
        run_id = await door.submit('say "one "; hang')
        await until(door, run_id, "LLM_PARTIAL")
        for _ in range(2):
            assert (await door.tasks.CancelTask(pb.CancelTaskRequest(task_id=run_id, reason="no"), metadata=ALICE)).success
        await until(door, run_id, "STREAM_END")
        state = await door.tasks.GetControlState(pb.GetControlStateRequest(task_id=run_id), metadata=ALICE)
        assert (state.is_cancelled, state.cancel_reason, state.cancelled_by) == (True, "no", "alice")

    async def test_a_finished_task_is_not_cancelled(self, door: Door) -> None:
        run_id = await door.submit("say 1 words")
        await until(door, run_id, "STREAM_END")
        asked = door.tasks.CancelTask(pb.CancelTaskRequest(task_id=run_id), metadata=ALICE)
        assert (await refusal(asked))[0] is StatusCode.FAILED_PRECONDITION

    @pytest.mark.parametrize("method", ["CancelTask", "PauseTask", "ResumeTask", "GetControlState"])
    async def test_another_tenant_s_task_is_not_there(self, door: Door, method: str) -> None:
        run_id, _ = await door.open()
        request = getattr(pb, f"{method}Request")(task_id=run_id)
        asked = getattr(door.tasks, method)(request, metadata=MALLORY)
        assert await refusal(asked) == (StatusCode.NOT_FOUND, "run_not_found")


class TestListing:
    async def test_by_session_state_and_page(self, door: Door) -> None:
        ids = []
        for number in range(3):
            ids.append(await door.submit("say 1 words", metadata=TaskMetadata(session_id=f"s-{number % 2}")))
            await until(door, ids[-1], "STREAM_END")

        async def listed(**request: Any) -> tuple[list[str], int]:
            answer = await door.tasks.ListTasks(pb.ListTasksRequest(**request), metadata=ALICE, timeout=10)
            return [task.task_id for task in answer.tasks], answer.total_count

        newest_first = sorted(ids, reverse=True)
        assert await listed() == (newest_first, 3)
        assert await listed(limit=1, offset=1, user_id="whoever") == (newest_first[1:2], 3)
        assert sorted((await listed(session_id="s-0"))[0]) == sorted([ids[0], ids[2]])
        assert await listed(filter_status=pb.TASK_STATUS_RUNNING) == ([], 0)
        assert (await listed(filter_status=pb.TASK_STATUS_COMPLETED))[1] == 3

    async def test_a_summary(self, door: Door) -> None:
        run_id = await door.submit("say 1 words")
        await until(door, run_id, "STREAM_END")
        (task,) = (await door.tasks.ListTasks(pb.ListTasksRequest(), metadata=ALICE, timeout=10)).tasks
        run = await door.engine.get(ACME, run_id)
        assert (task.query, task.status) == ("/script\nsay 1 words", pb.TASK_STATUS_COMPLETED)
        assert (task.created_at.ToMilliseconds(), task.completed_at.ToMilliseconds()) == (run.created_ms, run.ended_ms)

    async def test_other_tenants_see_nothing(self, door: Door) -> None:
        await until(door, await door.submit("say 1 words"), "STREAM_END")
        answer = await door.tasks.ListTasks(pb.ListTasksRequest(), metadata=MALLORY, timeout=10)
        assert (len(answer.tasks), answer.total_count) == (0, 0)

    @pytest.mark.parametrize("request_", [{"limit": 101}, {"limit": -1}, {"offset": -1}, {"filter_status": 99}])
    async def test_what_cannot_be_listed(self, door: Door, request_: dict[str, Any]) -> None:
        asked = door.tasks.ListTasks(pb.ListTasksRequest(**request_), metadata=ALICE)
        assert (await refusal(asked))[0] is StatusCode.INVALID_ARGUMENT


class TestApprovals:
    async def test_are_listed_and_decided_once(self, door: Door) -> None:
        run_id = await door.submit("hang", metadata=TaskMetadata(session_id="s-1"))
        asked = {"approval_id": "a-1", "proposed_action": "rm -rf", "reason": "tidy", "metadata": {"n": 1}}
        event = PublishedEvent("APPROVAL_REQUESTED", payload=asked)
        await door.engine.publish(ACME, run_id, Publication("worker", 1, 1, [event]))

        async def pending(metadata: Any = ALICE, **request: Any) -> list[pb.PendingApproval]:
            answer = await door.tasks.GetPendingApprovals(pb.GetPendingApprovalsRequest(**request), metadata=metadata, timeout=10)
            return list(answer.approvals)

        (approval,) = await pending(session_id="s-1", user_id="whoever")
        assert (approval.approval_id, approval.workflow_id, approval.query) == ("a-1", run_id, "/script\nhang")
        assert (approval.proposed_action, approval.reason) == ("rm -rf", "tidy")
        assert approval.HasField("requested_at")
        assert await pending(session_id="s-2") == await pending(metadata=MALLORY) == []
        decision = pb.ApproveTaskRequest(approval_id="a-1", workflow_id=run_id, approved=True, feedback="fine", approved_by="Ann")
        foreign = door.tasks.ApproveTask(decision, metadata=MALLORY)
        assert (await refusal(foreign))[0] is StatusCode.NOT_FOUND
        assert (await door.tasks.ApproveTask(decision, metadata=ALICE)).success
        await until(door, run_id, "APPROVAL_DECISION")
        again = door.tasks.ApproveTask(decision, metadata=ALICE)
        assert (await refusal(again))[0] is StatusCode.FAILED_PRECONDITION
        assert await pending() == []
        payloads = [entry.event.payload for entry in door.entries(run_id) if entry.event.type == "APPROVAL_DECISION"]
        assert payloads == [{"approval_id": "a-1", "approved": True, "feedback": "fine", "decided_by": "Ann"}]
