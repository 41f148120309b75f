"""Answers that are given again, at the gRPC door."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.upstreams.scripted import ScriptedUpstream
from protos import orchestrator_pb2 as pb
from protos.common_pb2 import ExecutionMetrics
from protos.streaming_pb2 import TaskUpdate
from tests.orchestrator.rpc.conftest import ALICE, MALLORY, Door, Open

PLAN = {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"}
CACHED = {"demo": {**PLAN, "cache": {"exact": True, "any_temperature": True}}}


@pytest.fixture
async def door(open_door: Open) -> Door:
    return await open_door(models=CACHED)


async def submit(door: Door, *metadata: tuple[str, str], who: Any = ALICE) -> str:
    request = pb.SubmitTaskRequest(query="/script\nsay 3 words", model="demo")
    return str((await door.tasks.SubmitTask(request, metadata=(*who, *metadata), timeout=10)).task_id)


async def metrics(door: Door, run_id: str) -> ExecutionMetrics:
    request = pb.GetTaskStatusRequest(task_id=run_id, include_details=True)
    answer = await door.tasks.GetTaskStatus(request, metadata=ALICE, timeout=10)
    found: ExecutionMetrics = answer.metrics
    return found


def said(updates: list[TaskUpdate]) -> list[tuple[str, str, str]]:
    return [(update.type, update.agent_id, update.message) for update in updates]


async def test_the_same_updates_and_metrics_that_say_so(door: Door, upstream: ScriptedUpstream) -> None:
    first = await submit(door)
    recorded = await door.read(first)
    again = await submit(door)
    updates = await door.read(again)
    assert said(updates) == said(recorded)
    assert [update.seq for update in updates] == list(range(1, len(updates) + 1))
    told, repeated = await metrics(door, first), await metrics(door, again)
    assert ((told.cache_hit, told.cache_score), (repeated.cache_hit, repeated.cache_score)) == ((False, 0.0), (True, 1.0))
    assert repeated.token_usage == told.token_usage
    assert len(upstream.witness.calls) == 1


@pytest.mark.parametrize(("control", "calls"), [("no-cache", 2), ("no-store", 2), ("max-age=60", 1)])
async def test_a_call_may_say_how_it_is_to_be_answered(door: Door, upstream: ScriptedUpstream, control: str, calls: int) -> None:
    await door.read(await submit(door))
    await door.read(await submit(door, ("cache-control", control)))
    assert len(upstream.witness.calls) == calls


async def test_another_tenant_asks_anew(door: Door, upstream: ScriptedUpstream) -> None:
    await door.read(await submit(door))
    theirs = await submit(door, who=MALLORY)
    assert [update.type async for update in door.stream(theirs, MALLORY)][-1] == "STREAM_END"
    assert len(upstream.witness.calls) == 2
