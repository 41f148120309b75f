"""P7 in small: another process takes over from an attempt that stopped anywhere, and readers end with one true text."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.events import Event, encode, timestamp
from orchestrator.runs import RunState
from tests.orchestrator.agents.world import World, said, types

SCRIPT = 'reason "Hm. "; say "one two three "; once hang; say "four five"'


async def abandoned(world: World, job: Job, deltas: int) -> None:
    """An attempt that said so many deltas and was then gone, as after kill -9: nothing given back, nothing ended."""
    work = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL", deltas) if deltas else await world.upstream.witness.nth(0)
    work.cancel()
    with pytest.raises(Interrupted):
        await work
    world.lapse()


def second(job: Job) -> Job:
    return msgspec.structs.replace(job, attempt=2)


@pytest.mark.parametrize("policy", ["continue", "regenerate"])
async def test_the_next_attempt_goes_on_where_the_lost_one_stopped(world: World, policy: str) -> None:
    job = await world.job('say "one two three "; once hang; say "four five"', on_cut=policy)
    await abandoned(world, job, 3)
    result = await world.another().work(second(job))
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert said(events) == "one two three four five"
    assert types(events) == [
        "WORKFLOW_STARTED",
        "AGENT_STARTED",
        "LLM_PARTIAL",
        "LLM_OUTPUT",
        "AGENT_RETRYING",
        "LLM_PARTIAL",
        "LLM_OUTPUT",
        "AGENT_COMPLETED",
        "WORKFLOW_COMPLETED",
        "STREAM_END",
    ]


async def test_attempts_are_counted_as_people_count(world: World) -> None:
    """What ranks attempts of a parallel step above each other was shown once: `attempt` was 1002001 of a second one."""
    job = await world.job('say "one two three "; once hang; say "four five"')
    await abandoned(world, job, 3)
    await world.another().work(msgspec.structs.replace(job, attempt=1_002_001))
    (retry,) = [event for event in await world.events(job.run.id) if event.type == "AGENT_RETRYING"]
    assert retry.payload == {"attempt": 2, "error": "worker_lost", "delay_s": 0}


@pytest.mark.parametrize("resumed", [False, True])
async def test_the_time_of_a_step_is_that_of_all_its_attempts(world: World, resumed: bool) -> None:
    """Each attempt once had the whole of it, so that a step which lost its workers could take several times as long.

    Time that a run stood still is not the step's.
    """
    world.clock.ahead_s = -3600.0
    job = await world.job('say "one two three "; once hang; say "four five"', timeout_s=300.0)
    await abandoned(world, job, 3)
    world.clock.ahead_s = 0.0
    if resumed:
        now = timestamp(int(world.clock.time() * 1000))
        await world.log.append(job.run.id, "control", 1, 0, [encode(Event("WORKFLOW_RESUMED", now))])
    result = await world.another().work(second(job))
    assert result.state is (RunState.COMPLETED if resumed else RunState.TIMEOUT)


async def test_what_the_lost_call_used_is_counted_too(world: World) -> None:
    job = await world.job('say "one two three "; once hang; say "four five"; usage 10 20', on_cut="regenerate")
    await abandoned(world, job, 3)
    await world.another().work(second(job))
    events = await world.events(job.run.id)
    lost, last = (event.payload for event in events if event.type == "LLM_OUTPUT")
    assert lost is not None
    assert last is not None
    assert lost["aborted"]
    assert lost["usage"]["estimated"]
    total = events[-2].payload
    assert total is not None
    assert total["usage"]["completion_tokens"] == lost["usage"]["completion_tokens"] + 20


async def test_an_attempt_lost_before_its_first_token_leaves_no_trace_in_the_text(world: World) -> None:
    job = await world.job('once hang; say "one two"')
    await abandoned(world, job, 0)
    result = await world.another().work(second(job))
    assert result.state is RunState.COMPLETED
    assert said(await world.events(job.run.id)) == "one two"


async def test_reasoning_and_text_are_repeated_silently(world: World) -> None:
    job = await world.job(SCRIPT)
    await abandoned(world, job, 4)
    await world.another().work(second(job))
    events = await world.events(job.run.id)
    assert said(events) == "one two three four five"
    assert "OUTPUT_RESET" not in types(events)
    assert "".join((event.payload or {}).get("reasoning", "") for event in events if event.type == "LLM_PARTIAL") == "Hm. "


async def test_a_live_attempt_is_waited_for_and_not_disturbed(world: World) -> None:
    """P9: Temporal was away, believes the attempt dead, and sends another while the first is well."""
    job = await world.job('say "one "; wait 300ms; say "two"')
    first = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL")
    second_result = await world.another().work(second(job))
    assert (await first).state is RunState.COMPLETED
    assert (second_result.state, second_result.ended) == (RunState.COMPLETED, True)
    events = await world.events(job.run.id)
    assert said(events) == "one two"
    assert len(world.upstream.witness.calls) == 1
    assert types(events).count("STREAM_END") == 1


async def test_a_released_writer_is_taken_over_at_once(world: World) -> None:
    job = await world.job('say "one "; once hang; say "two"', lease_ms=60_000)
    work = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL")
    world.desk.stop_all(Stop("shutdown"))
    with pytest.raises(Interrupted):
        await work
    result = await world.another().work(second(job))
    assert result.state is RunState.COMPLETED
    assert said(await world.events(job.run.id)) == "one two"
