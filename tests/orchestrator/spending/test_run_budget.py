"""A run with a budget, over the memory log and the scripted upstream, where a word is a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.catalog import ModelEntry
from orchestrator.errors import InvalidRequest
from orchestrator.events import Event
from orchestrator.plans.interpreter import StepResult
from orchestrator.runs import RunState
from orchestrator.streamlog.log import Spent
from tests.orchestrator.agents.world import World, said, types
from tests.orchestrator.engines import ACME, TOKENIZER, an_engine, script


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


async def a_job(world: World, script: str, budget: int, *, final: bool = True, **more: Any) -> Job:
    job = await world.job(script, **more)
    run = msgspec.structs.replace(job.run, budget_tokens=budget)
    return msgspec.structs.replace(job, run=run, final=final)


async def prompt_tokens(job: Job) -> int:
    """As it is paid for before the call."""
    return await TOKENIZER.count_messages("model", job.request.body)


def payload(events: Sequence[Event], event_type: str) -> list[dict[str, Any]]:
    return [event.payload or {} for event in events if event.type == event_type]


async def test_an_answer_within_its_budget_is_as_it_would_be_without(world: World) -> None:
    job = await a_job(world, "say 50 words", 1000)
    assert await world.work(job) == StepResult(RunState.COMPLETED, ended=True)
    events = await world.events(job.run.id)
    assert len(said(events).split()) == 50
    assert payload(events, "BUDGET_THRESHOLD") == []
    [ending] = payload(events, "WORKFLOW_COMPLETED")
    assert (ending["finish_reason"], "budget" in ending) == ("stop", False)


async def test_at_the_threshold_it_is_told_and_at_the_wall_it_ends_truly(world: World) -> None:
    job = await a_job(world, "say 500 words", 200)
    paid = await prompt_tokens(job)
    await world.work(job)
    events = await world.events(job.run.id)
    [ending] = payload(events, "WORKFLOW_COMPLETED")
    used = ending["usage"]["total_tokens"]
    assert (ending["finish_reason"], ending["budget"]["code"]) == ("length", "run_budget_exceeded")
    assert len(said(events).split()) == 200 - paid  # an honest upstream stops by itself
    assert used <= 200
    assert payload(events, "BUDGET_THRESHOLD")[-1] == {
        "tokens_used": used,
        "tokens_budget": 200,
        "usage_percent": used / 2,
        "threshold_percent": 100,
    }
    first = payload(events, "BUDGET_THRESHOLD")[0]
    assert first["threshold_percent"] == 80
    assert 160 <= first["tokens_used"] <= 200


async def test_an_upstream_that_goes_on_all_the_same_is_cut_off_within_a_quarter_of_a_second(world: World) -> None:
    """It is told how long it may be in a field that it does not know."""
    job = await a_job(world, "no limit; rate 200/s; say 500 words", 60)
    paid = await prompt_tokens(job)
    await world.work(job)
    events = await world.events(job.run.id)
    [ending] = payload(events, "WORKFLOW_COMPLETED")
    assert ending["finish_reason"] == "length"
    assert ending["usage"]["completion_tokens"] == len(said(events).split()) == 60 - paid
    assert [call.ending for call in world.upstream.witness.calls] == ["cancelled"]


async def test_a_prompt_beyond_the_budget_is_not_even_asked(world: World) -> None:
    job = await a_job(world, "say 5 words", 3)
    await world.work(job)
    events = await world.events(job.run.id)
    assert types(events) == [
        "WORKFLOW_STARTED",
        "AGENT_STARTED",
        "BUDGET_THRESHOLD",
        "AGENT_COMPLETED",
        "WORKFLOW_COMPLETED",
        "STREAM_END",
    ]
    [standing], [ending] = payload(events, "BUDGET_THRESHOLD"), payload(events, "WORKFLOW_COMPLETED")
    assert (standing["tokens_used"], standing["threshold_percent"]) == (0, 100)
    assert (ending["result"], ending["finish_reason"], ending["usage"]["total_tokens"]) == ("", "length", 0)


async def test_agents_of_a_run_share_its_budget_and_never_exceed_it(world: World) -> None:
    """Ten branches in two processes, 100 words each, and half of that to spend."""
    job = await a_job(world, "rate 500/s; say 100 words", 700, final=False)
    other = world.another()
    steps = [job.step.model_copy(update={"name": f"branch-{number}"}) for number in range(10)]
    branches = [msgspec.structs.replace(job, step=step) for step in steps]
    results = await asyncio.gather(*((world, other)[number % 2].work(branch) for number, branch in enumerate(branches)))
    events = await world.events(job.run.id)
    outputs = payload(events, "LLM_OUTPUT")
    used = sum(output["usage"]["total_tokens"] for output in outputs)
    assert used <= 700
    assert {result.failure.code for result in results if result.failure is not None} == {"run_budget_exceeded"}
    assert all(result.ended is False for result in results)
    await other.close()


async def test_what_a_lost_attempt_used_stays_used(world: World) -> None:
    job = await a_job(world, "say 40 words", 120)
    await world.log.spend(job.run.id, 60, 60, 120)
    await world.work(job)
    [ending] = payload(await world.events(job.run.id), "WORKFLOW_COMPLETED")
    assert ending["usage"]["total_tokens"] <= 60


@pytest.mark.parametrize("script", ["cut", "status 503", "wait 1ms; cut", "say 3 words; cut"])
async def test_a_call_that_failed_gives_back_what_it_did_not_use(world: World, script: str) -> None:
    job = await a_job(world, script, 1000, final=False)
    result = await world.work(job)
    assert result.state is RunState.FAILED
    outputs = payload(await world.events(job.run.id), "LLM_OUTPUT")
    used = sum(output["usage"]["total_tokens"] for output in outputs)
    assert await world.log.spend(job.run.id, 0, 0, 1000) == Spent(0, used, used)


async def test_a_step_whose_time_is_up_before_it_said_anything_costs_nothing(world: World) -> None:
    """What had been set aside for it was lost to the steps that follow, and to each time it was tried again."""
    job = await a_job(world, "hang", 1000, final=False, timeout_s=0.5)
    await prompt_tokens(job)  # so that the time is not up before the vocabulary is built
    result = await world.work(job)
    assert result.state is RunState.TIMEOUT
    assert len(world.upstream.witness.calls) == 1
    assert await world.log.spend(job.run.id, 0, 0, 1000) == Spent(0, 0, 0)


async def test_an_attempt_that_hands_over_keeps_nothing_of_the_budget(world: World) -> None:
    """With each restart of a worker the run lost up to a step of what it could still say, and so ended early."""
    job = await a_job(world, "say 20 words; hang", 2000)
    paid = await prompt_tokens(job)
    work = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL", 20)
    world.desk.stop_all(Stop("shutdown"))
    with pytest.raises(Interrupted):
        await work
    assert await world.log.spend(job.run.id, 0, 0, 2000) == Spent(0, paid + 20, paid + 20)


async def test_a_workflow_of_ones_own_cannot_have_a_budget() -> None:
    workflow = {"workflow": {"type": "Theirs", "task_queue": "theirs"}}
    with pytest.raises(ValidationError, match="only a plan can have a budget"):
        ModelEntry.model_validate({**workflow, "budget": {"tokens": 10}})
    async with an_engine(models={"theirs": workflow}) as engine:
        with pytest.raises(InvalidRequest) as refused:
            await engine.submit(ACME, script("say 1 word", "theirs", budget_tokens=10))
    assert (refused.value.code, refused.value.param) == ("budget_not_supported", "budget_tokens")
