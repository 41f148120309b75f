"""Durable runs end to end on real Temporal: how they end, and who goes on when a worker is gone."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import msgspec
import pytest
from temporalio.client import Client, WorkflowHistory

from orchestrator.agents.job import Stop
from orchestrator.endings import WORKER_LOST
from orchestrator.runs import RunState
from orchestrator.workflows.worker import Execution
from tests.orchestrator.engines import ACME
from tests.orchestrator.processes import WAIT_S, Shared, kinds, payload

pytestmark = pytest.mark.local


async def history_of(shared: Shared, run_id: str) -> WorkflowHistory:
    """The run's history, when its workflow has closed."""
    client = await Client.connect(shared.temporal.target)
    handle = client.get_workflow_handle(run_id)
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(handle.result(), return_exceptions=True)
    return await handle.fetch_history()


def types(history: WorkflowHistory) -> list[str]:
    return [event["eventType"].removeprefix("EVENT_TYPE_") for event in history.to_json_dict()["events"]]


def decoded(history: WorkflowHistory) -> bytes:
    """Every byte of the history, with all payloads decoded from their base64."""

    def texts(value: Any) -> list[bytes]:
        if isinstance(value, dict):
            return [part for key, inner in value.items() for part in (key.encode(), *texts(inner))]
        if isinstance(value, list):
            return [part for inner in value for part in texts(inner)]
        raw = str(value).encode()
        try:
            return [raw, base64.b64decode(raw, validate=True)]
        except ValueError:
            return [raw]

    return b"\n".join(texts(history.to_json_dict()))


async def attempts(shared: Shared, run_id: str) -> list[int]:
    """The attempt that came to an end, of each agent activity."""
    history = await history_of(shared, run_id)
    return [
        event.activity_task_started_event_attributes.attempt
        for event in history.events
        if event.HasField("activity_task_started_event_attributes")
    ]


async def test_a_run_from_submit_to_the_end(shared: Shared) -> None:
    async with shared.process() as process:
        run_id = await process.submit('say "CANARY-ANSWER one two"')
        events = await process.events(run_id)
        assert kinds(events) == [
            "WORKFLOW_STARTED",
            "AGENT_STARTED",
            "LLM_PARTIAL",
            "LLM_OUTPUT",
            "AGENT_COMPLETED",
            "WORKFLOW_COMPLETED",
            "STREAM_END",
        ]
        assert payload(events[-2])["result"] == "CANARY-ANSWER one two"
        assert (await process.engine.get(ACME, run_id)).state is RunState.COMPLETED
        history = await history_of(shared, run_id)
        assert process.metrics.calls == ["started", "first token", RunState.COMPLETED]
    call = shared.upstream.witness.calls[0]
    assert call.body["seed"] == 7
    assert call.body["messages"][0] == {"role": "system", "content": "You are CANARY-SYSTEM."}
    everything = decoded(history)
    assert b"CANARY" not in everything, "neither prompts nor answers pass through Temporal"
    assert len(everything) < 16 * 1024
    assert len(history.events) < 15


async def test_the_start_is_eager(shared: Shared) -> None:
    async with shared.process() as process:
        run_id = await process.submit('say "one"')
        await process.events(run_id)
        client = await Client.connect(shared.temporal.target)
        history = await client.get_workflow_handle(run_id).fetch_history()
    started = history.events[0].workflow_execution_started_event_attributes
    assert started.eager_execution_accepted


async def test_an_upstream_that_fails_fails_the_run_and_is_not_quoted(shared: Shared) -> None:
    async with shared.process() as process:
        run_id = await process.submit("CANARY-PROMPT is no statement")
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    assert kinds(events)[-3:] == ["AGENT_FAILED", "WORKFLOW_FAILED", "STREAM_END"]
    assert payload(events[-2])["error"]["status"] == 400
    assert "CANARY-PROMPT" in payload(events[-2])["error"]["message"]
    assert types(history)[-1] == "WORKFLOW_EXECUTION_FAILED"
    assert b"CANARY" not in decoded(history)


async def test_a_cancel_closes_the_upstream_and_its_reason_reaches_the_ending(shared: Shared) -> None:
    async with shared.process() as process:
        run_id = await process.submit('say "one"; hang')
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.cancel(ACME, run_id, "enough")
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
        state = (await process.engine.get(ACME, run_id)).state
    assert shared.upstream.witness.calls[0].ending == "cancelled"
    assert kinds(events)[-4:] == ["WORKFLOW_CANCELLING", "LLM_OUTPUT", "WORKFLOW_CANCELLED", "STREAM_END"]
    ending = payload(events[-2])
    assert (ending["reason"], ending["by"]) == ("enough", "key-1")
    assert state is RunState.CANCELLED
    assert types(history)[-1] in ("WORKFLOW_EXECUTION_CANCELED", "WORKFLOW_EXECUTION_COMPLETED")


async def test_a_cancel_that_only_the_workflow_hears_of(shared: Shared) -> None:
    """The agent works in a process that the message to all did not reach; Temporal's word comes with a heartbeat."""
    async with shared.process(heartbeat_s=2.0) as process:
        run_id = await process.submit("hang")
        await shared.upstream.witness.nth(0)
        client = await Client.connect(shared.temporal.target)
        await client.get_workflow_handle(run_id).cancel(reason="from the console")
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    assert kinds(events)[-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    assert types(history)[-1] == "WORKFLOW_EXECUTION_CANCELED"


async def test_an_agent_that_was_stopped_before_its_workflow_heard_of_it_closes_the_workflow(shared: Shared) -> None:
    async with shared.process() as process:
        run_id = await process.submit("hang")
        await shared.upstream.witness.nth(0)
        assert process.engine._submissions._inline._desk.stop(run_id, Stop("cancelled", "enough", "key-1"))
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    assert kinds(events)[-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    assert types(history)[-1] == "WORKFLOW_EXECUTION_COMPLETED"
    assert "WORKFLOW_TASK_FAILED" not in types(history)


async def test_a_run_that_takes_longer_than_it_may(shared: Shared) -> None:
    models = {"hasty": {"plan": {"agent": {"upstream": "demo", "timeout_s": 0.2}}}}
    async with shared.process(models) as process:
        run_id = await process.submit('say "one"; hang', model="hasty")
        events = await process.events(run_id)
        assert (await process.engine.get(ACME, run_id)).state is RunState.TIMEOUT
    assert payload(events[-2])["error"]["code"] == "timeout"
    assert shared.upstream.witness.calls[0].ending == "cancelled"


async def test_a_cancel_of_a_queued_run_ends_it_without_an_upstream_call(shared: Shared) -> None:
    """No worker has room for it. When one has, the run is cancelled without having begun."""
    async with shared.process(max_agents=1) as process:
        first = await process.submit("hang")
        await shared.upstream.witness.nth(0)
        queued = await process.submit('say "never"')
        assert (await process.engine.get(ACME, queued)).state is RunState.QUEUED
        await process.engine.cancel(ACME, queued, "changed my mind")
        await process.engine.cancel(ACME, first)
        events = await process.events(queued)
    assert kinds(events) == ["WORKFLOW_STARTED", "WORKFLOW_CANCELLING", "WORKFLOW_CANCELLED", "STREAM_END"]
    assert payload(events[-2]) == {"reason": "changed my mind", "by": "key-1"}
    assert [call.key for call in shared.upstream.witness.calls] == [first]


async def test_heartbeats_keep_a_long_run_on_one_attempt(shared: Shared) -> None:
    async with shared.process(heartbeat_s=2.0) as process:
        run_id = await process.submit('say "one "; wait 4500ms; say "two"')
        events = await process.events(run_id)
        tried = await attempts(shared, run_id)
    assert "AGENT_RETRYING" not in kinds(events)
    assert tried == [1]
    assert len(shared.upstream.witness.calls) == 1


async def test_a_worker_that_is_shut_down_is_a_pause(shared: Shared) -> None:
    """P7 in its quiet form: the first process gives its lease back, and the second goes on where it stopped."""
    async with shared.process(drain_s=0.0) as first:
        run_id = await first.submit('say "one two "; once hang; say "three"')
        await first.until(run_id, "LLM_PARTIAL", 2)
    async with shared.process() as second:
        events = await second.events(run_id)
        history = await history_of(shared, run_id)
        assert second.metrics.calls == ["takeover", RunState.COMPLETED]
    assert payload(events[-2])["result"] == "one two three"
    assert kinds(events).count("AGENT_RETRYING") == 1
    assert "OUTPUT_RESET" not in kinds(events)
    assert len(shared.upstream.witness.calls) == 2
    assert types(history)[-1] == "WORKFLOW_EXECUTION_COMPLETED"


async def test_a_process_that_goes_down_takes_up_none_of_its_own_runs_again(shared: Shared) -> None:
    """Ending the runs of models without durability used to interrupt durable agents too, while this process's worker still took
    tasks: it called the upstream again, only to be stopped once more."""
    async with shared.process(drain_s=0.0) as first:
        run_id = await first.submit('say "one "; once hang; say "two"')
        direct = await first.submit('say "one "; hang', model="direct")
        await first.until(run_id, "LLM_PARTIAL")
        await first.until(direct, "LLM_PARTIAL")
    assert len([call for call in shared.upstream.witness.calls if call.key == run_id]) == 1
    async with shared.process() as second:
        assert payload((await second.events(run_id))[-2])["result"] == "one two"
        assert payload((await second.events(direct))[-2])["error"]["code"] == "server_shutdown"


async def test_attempts_that_are_all_lost_end_as_a_lost_worker(shared: Shared) -> None:
    """`end_run`: no agent could say how it ended. Here none ever beats, because their process's loop of ticks is not running."""
    models = {"fragile": {"plan": {"agent": {"upstream": "demo", "attempts": 1}}}}
    async with shared.process(models, heartbeat_s=0.3) as process:  # less than a tick: every attempt is lost
        run_id = await process.submit('say "one"; hang', model="fragile")
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    assert kinds(events)[-2:] == ["WORKFLOW_FAILED", "STREAM_END"]
    assert payload(events[-2])["error"]["code"] == WORKER_LOST.code
    assert types(history)[-1] == "WORKFLOW_EXECUTION_FAILED"


async def test_what_temporal_knows_of_a_run(shared: Shared) -> None:
    async with shared.process() as process:
        temporal = process.engine._temporal
        run_id = await process.submit("hang")
        run, request = await process.log.run(run_id), await process.log.request(run_id)
        assert run is not None
        assert request is not None
        missing = msgspec.structs.replace(run, id="task-" + "0" * 32)
        assert await temporal.execution(missing) is Execution.MISSING
        assert await temporal.execution(run) is Execution.RUNNING
        client = await Client.connect(shared.temporal.target)
        await client.get_workflow_handle(run_id).terminate()
        assert await temporal.execution(run) is Execution.FAILED
        await temporal.cancel(run, None)
        await temporal.cancel(missing, None)
        await temporal.start(run, request)  # refused as a duplicate, which is no failure
        assert await temporal.execution(run) is Execution.FAILED
        process.engine._submissions._inline._desk.stop(run_id, Stop("shutdown"))
