"""What a later attempt makes of turns with tools: what is in the log is not done again, and what is not known is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import headgate
from orchestrator.agents.job import Interrupted, Job
from orchestrator.runs import RunState
from tests.orchestrator.agents.test_takeover import second
from tests.orchestrator.agents.test_tools import told
from tests.orchestrator.agents.world import World, said, types

SCRIPT = 'say "Let me see. "; call quick; call slow {"key": "value"}; then; say "All done."'


class Slow:
    """A tool that the first attempt never gets an answer from; and a quick one beside it. Counts their calls."""

    def __init__(self, *, idempotent: bool) -> None:
        self.began = asyncio.Event()
        self.calls: list[str] = []

        @headgate.tool
        async def quick() -> str:
            self.calls.append("quick")
            return "quick's answer"

        @headgate.tool(idempotent=idempotent)
        async def slow(key: str, password: str = "") -> str:
            self.calls.append(f"slow {key} {password}".strip())
            if len(self.calls) == 2:
                self.began.set()
                await asyncio.Event().wait()
            return "slow's answer"

        self.tools: dict[str, Callable[..., Any]] = {"quick": quick, "slow": slow}


async def lost(world: World, job: Job, slow: Slow) -> None:
    """An attempt that is gone while the slow tool runs, after the quick one's answer is in the log."""
    for name, function in slow.tools.items():
        world.tools.register(name, function)
    work = asyncio.create_task(world.work(job))
    await slow.began.wait()
    await world.until(job.run.id, "TOOL_OBSERVATION")
    work.cancel()
    with pytest.raises(Interrupted):
        await work
    world.lapse()


async def test_finished_calls_are_not_made_again_and_the_interrupted_one_is(world: World) -> None:
    slow = Slow(idempotent=True)
    job = await world.job(SCRIPT, tools=("quick", "slow"))
    await lost(world, job, slow)
    result = await world.another().work(second(job))
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert slow.calls == ["quick", "slow value", "slow value"]
    assert said(events) == "Let me see. All done."
    assert types(events) == [
        "WORKFLOW_STARTED",
        "AGENT_STARTED",
        "LLM_PARTIAL",
        "LLM_OUTPUT",
        "TOOL_INVOKED",
        "TOOL_INVOKED",
        "TOOL_OBSERVATION",
        "AGENT_RETRYING",
        "TOOL_INVOKED",
        "TOOL_OBSERVATION",
        "LLM_PARTIAL",
        "LLM_OUTPUT",
        "AGENT_COMPLETED",
        "WORKFLOW_COMPLETED",
        "STREAM_END",
    ]
    assert len(world.upstream.witness.calls) == 2
    results = [message["content"] for message in world.upstream.witness.calls[1].body["messages"][2:]]
    assert results == ["quick's answer", "slow's answer"]


async def test_a_call_that_must_not_be_repeated_is_not(world: World) -> None:
    slow = Slow(idempotent=False)
    job = await world.job(SCRIPT, tools=("quick", "slow"))
    await lost(world, job, slow)
    await world.another().work(second(job))
    assert slow.calls == ["quick", "slow value"]
    kind, message, payload = told(await world.events(job.run.id))[-1]
    assert (kind, payload["code"]) == ("TOOL_ERROR", "interrupted")
    assert world.upstream.witness.calls[1].body["messages"][-1]["content"] == message
    assert message == "The call was interrupted. Whether it took effect is not known, and it was not repeated."


async def test_a_call_with_a_secret_is_not_repeated_without_it(world: World) -> None:
    """The log does not have the password, and a call with `[redacted]` in its place is not the one that the model made."""
    slow = Slow(idempotent=True)
    job = await world.job(SCRIPT.replace('"value"', '"value", "password": "hunter2"'), tools=("quick", "slow"))
    await lost(world, job, slow)
    await world.another().work(second(job))
    assert slow.calls == ["quick", "slow value hunter2"]
    assert told(await world.events(job.run.id))[-1][2]["code"] == "interrupted"
    reminder = world.upstream.witness.calls[1].body["messages"][1]["tool_calls"][1]["function"]["arguments"]
    assert msgspec.json.decode(reminder) == {"key": "value", "password": "[redacted]"}


@pytest.mark.parametrize("policy", ["continue", "regenerate"])
async def test_an_attempt_lost_in_a_later_turn_goes_on_in_that_turn(world: World, policy: str) -> None:
    slow = Slow(idempotent=True)
    world.tools.register("quick", slow.tools["quick"])
    script = 'say "One. "; call quick; then; say "two "; twice hang; say "three."'
    job = await world.job(script, tools=("quick",), on_cut=policy)
    work = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL", 4)
    work.cancel()
    with pytest.raises(Interrupted):
        await work
    world.lapse()
    result = await world.another().work(second(job))
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert said(events) == "One. two three."
    assert slow.calls == ["quick"]
    assert [event.message for event in events if event.type == "LLM_OUTPUT"] == ["One. ", None, "two three."]
    ending = events[-2].payload
    assert ending is not None
    assert ending["result"] == "One. two three."


async def test_a_pause_breaks_off_what_can_be_repeated(world: World) -> None:
    slow = Slow(idempotent=True)
    for name, function in slow.tools.items():
        world.tools.register(name, function)
    job = await world.job(SCRIPT, tools=("quick", "slow"))
    work = asyncio.create_task(world.work(job))
    await slow.began.wait()
    await world.until(job.run.id, "TOOL_OBSERVATION")
    world.desk.pause(job.run.id)
    assert (await work).state is RunState.PAUSED
    result = await world.work(second(job))
    assert result.state is RunState.COMPLETED
    assert slow.calls == ["quick", "slow value", "slow value"]


async def test_a_pause_waits_for_what_must_not_be_repeated(world: World) -> None:
    let = asyncio.Event()
    began = asyncio.Event()

    @headgate.tool(idempotent=False)
    async def pays() -> str:
        began.set()
        await let.wait()
        return "paid"

    world.tools.register("pays", pays)
    job = await world.job('call pays; then; say "Thanks."', tools=("pays",))
    work = asyncio.create_task(world.work(job))
    await began.wait()
    world.desk.pause(job.run.id)
    let.set()
    assert (await work).state is RunState.PAUSED
    assert types(await world.events(job.run.id))[-2:] == ["TOOL_INVOKED", "TOOL_OBSERVATION"]
    assert len(world.upstream.witness.calls) == 1
    result = await world.work(second(job))
    assert result.state is RunState.COMPLETED
    assert said(await world.events(job.run.id)) == "Thanks."


LONG = (
    'rate 300/s; reason "Hm. "; say "One two. "; call quick; then; rate 300/s; reason "So. "; say "Three four. "; call quick; '
    'then; rate 300/s; say "Five six."'
)


@pytest.mark.parametrize("policy", ["continue", "regenerate"])
async def test_wherever_an_attempt_is_lost_the_answer_is_the_same(world: World, policy: str) -> None:
    """P7: after every event of a run with two turns of tools, and each turn's reasoning is said once."""
    slow = Slow(idempotent=True)
    world.tools.register("quick", slow.tools["quick"])
    whole = await world.job(LONG, tools=("quick",), on_cut=policy)
    await world.work(whole)
    count = len(await world.events(whole.run.id))
    lost = 0
    for place in range(2, count - 3):
        job = await world.job(LONG, tools=("quick",), on_cut=policy)
        work = asyncio.create_task(world.work(job))
        await world.until(job.run.id, count=place)
        work.cancel()
        await asyncio.wait([work])
        world.lapse()
        if isinstance(work.exception(), Interrupted):
            lost += 1
            assert (await world.another().work(second(job))).state is RunState.COMPLETED
        events = await world.events(job.run.id)
        assert said(events) == "One two. Three four. Five six.", place
        reasoning = [(event.payload or {}).get("reasoning", "") for event in events if event.type == "LLM_PARTIAL"]
        assert "".join(reasoning) == "Hm. So. ", place
        assert [event.message for event in events if event.type == "LLM_OUTPUT" and event.message is not None] == [
            "One two. ",
            "Three four. ",
            "Five six.",
        ], place
        assert types(events).count("TOOL_OBSERVATION") == 2, place
    assert lost > count // 2, "the attempts were not lost, so nothing was shown"
