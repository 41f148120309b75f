"""Pause, resume, cancel and decisions, over runs that this process executes itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from orchestrator.approvals import ApprovalNotFound
from orchestrator.engine import ControlState, Decision, Engine, Publication, PublishedEvent
from orchestrator.errors import RunConflict, RunNotFound
from orchestrator.runs import RunState
from orchestrator.streamlog.memory import MemoryStore
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.apart import Shape
from tests.orchestrator.engines import ACME, OTHER, an_engine, script, until


@pytest.fixture
def upstream() -> ScriptedUpstream:
    return ScriptedUpstream("demo")


@pytest.fixture
async def engine(upstream: ScriptedUpstream, shape: Shape) -> AsyncIterator[Engine]:
    async with an_engine(upstream=upstream) as engine, shape(engine) as reached:
        yield reached


async def test_a_paused_run_stands_still_and_goes_on_where_it_stopped(engine: Engine, upstream: ScriptedUpstream) -> None:
    run = await engine.submit(ACME, script('say "one two "; once hang; say "three"'))
    await until(engine, run.id, "LLM_PARTIAL", count=2)
    await engine.pause(ACME, run.id, "let me read")
    events = await until(engine, run.id, "WORKFLOW_PAUSED")
    assert (await engine.get(ACME, run.id)).state is RunState.PAUSED
    assert upstream.witness.calls[0].ending == "cancelled"
    assert events[-1].payload == {"checkpoint": "agent", "reason": "let me read", "by": "key-1"}
    state = await engine.control_state(ACME, run.id)
    assert state == ControlState(is_paused=True, paused_at=events[-1].timestamp, pause_reason="let me read", paused_by="key-1")
    await engine.resume(ACME, run.id, "go on")
    events = await until(engine, run.id, "STREAM_END")
    assert "".join(event.message or "" for event in events if event.type == "LLM_PARTIAL") == "one two three"
    assert [event.type for event in events if event.type.startswith("WORKFLOW")] == [
        "WORKFLOW_STARTED",
        "WORKFLOW_PAUSING",
        "WORKFLOW_PAUSED",
        "WORKFLOW_RESUMED",
        "WORKFLOW_COMPLETED",
    ]
    assert "AGENT_RETRYING" not in [event.type for event in events]  # said that a worker was lost, and none was
    assert await engine.control_state(ACME, run.id) == ControlState()


async def test_pausing_twice_and_resuming_what_is_not_paused_is_refused(engine: Engine) -> None:
    run = await engine.submit(ACME, script("hang"))
    with pytest.raises(RunConflict):
        await engine.resume(ACME, run.id)
    await engine.pause(ACME, run.id)
    with pytest.raises(RunConflict):
        await engine.pause(ACME, run.id)
    await engine.cancel(ACME, run.id)
    await until(engine, run.id, "STREAM_END")
    for call in (engine.pause, engine.resume):
        with pytest.raises(RunConflict):
            await call(ACME, run.id)


async def test_a_paused_run_can_be_cancelled(engine: Engine) -> None:
    run = await engine.submit(ACME, script('say "one "; once hang; say "two"'))
    await until(engine, run.id, "LLM_PARTIAL")
    await engine.pause(ACME, run.id)
    await until(engine, run.id, "WORKFLOW_PAUSED")
    await engine.cancel(ACME, run.id, "enough")
    events = await until(engine, run.id, "STREAM_END")
    assert [event.type for event in events][-3:] == ["WORKFLOW_CANCELLING", "WORKFLOW_CANCELLED", "STREAM_END"]
    assert await engine.control_state(ACME, run.id) == ControlState(
        is_cancelled=True, cancel_reason="enough", cancelled_by="key-1"
    )


async def test_a_run_in_another_process_is_controlled_from_here(upstream: ScriptedUpstream) -> None:
    store = MemoryStore(time.time)
    async with an_engine(store=store, upstream=upstream) as there, an_engine(store=store) as here:
        run = await there.submit(ACME, script('say "one "; once hang; say "two"'))
        await until(here, run.id, "LLM_PARTIAL")
        await here.pause(ACME, run.id)
        await until(here, run.id, "WORKFLOW_PAUSED")
        await here.resume(ACME, run.id)
        await until(here, run.id, "WORKFLOW_COMPLETED")


async def test_a_cancel_reaches_a_run_in_another_process_with_its_reason(upstream: ScriptedUpstream) -> None:
    store = MemoryStore(time.time)
    async with an_engine(store=store, upstream=upstream) as there, an_engine(store=store) as here:
        run = await there.submit(ACME, script('say "one "; hang'))
        await until(here, run.id, "LLM_PARTIAL")
        await here.cancel(ACME, run.id, "not what I wanted")
        events = await until(here, run.id, "WORKFLOW_CANCELLED")
        payload = events[-1].payload
        assert payload is not None
        assert (payload["reason"], payload["by"]) == ("not what I wanted", "key-1")


def asks(approval_id: str) -> Publication:
    payload = {"approval_id": approval_id, "proposed_action": "pay", "reason": "it is due"}
    return Publication("worker", 1, 1, [PublishedEvent("APPROVAL_REQUESTED", payload=payload)])


async def test_an_approval_is_listed_and_decided_once(engine: Engine) -> None:
    run = await engine.submit(ACME, script("hang", session_id="s"))
    await engine.publish(ACME, run.id, asks("a1"))
    (waiting,) = await engine.approvals(ACME)
    assert (waiting.run_id, waiting.approval_id, waiting.proposed_action, waiting.session_id) == (run.id, "a1", "pay", "s")
    assert await engine.approvals(OTHER) == []
    assert await engine.approvals(ACME, "other session") == []
    with pytest.raises(RunNotFound):
        await engine.decide(OTHER, run.id, Decision("a1", approved=True))
    outcomes = await asyncio.gather(
        *(engine.decide(ACME, run.id, Decision("a1", approved=yes)) for yes in (True, False)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "RunConflict"]
    assert await engine.approvals(ACME) == []
    with pytest.raises(RunConflict):
        await engine.decide(ACME, run.id, Decision("a1", approved=True))
    with pytest.raises(ApprovalNotFound):
        await engine.decide(ACME, run.id, Decision("a2", approved=True))
    decided = (await until(engine, run.id, "APPROVAL_DECISION"))[-1].payload
    assert decided is not None
    assert decided["decided_by"] == "key-1"


async def test_what_an_ended_run_waited_for_is_no_longer_listed(engine: Engine) -> None:
    run = await engine.submit(ACME, script("hang"))
    await engine.publish(ACME, run.id, asks("a1"))
    await engine.cancel(ACME, run.id)
    await until(engine, run.id, "STREAM_END")
    assert await engine.approvals(ACME) == []
    with pytest.raises(RunConflict):
        await engine.decide(ACME, run.id, Decision("a1", approved=True))
