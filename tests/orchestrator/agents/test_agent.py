"""One attempt from beginning to end: what it says, and how it ends."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from orchestrator.agents.job import Interrupted, Stop
from orchestrator.events import Event, EventType, encode
from orchestrator.runs import RunState
from orchestrator.streamlog.log import Fenced, LogUnavailable, Position
from tests.orchestrator.agents.world import WAIT_S, World, said, types


async def test_a_plain_run_says_what_the_contract_lists(world: World) -> None:
    job = await world.job('say "Hello there"')
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert (result.state, result.ended) == (RunState.COMPLETED, True)
    assert types(events) == [
        "WORKFLOW_STARTED",
        "AGENT_STARTED",
        "LLM_PARTIAL",
        "LLM_OUTPUT",
        "AGENT_COMPLETED",
        "WORKFLOW_COMPLETED",
        "STREAM_END",
    ]
    output = next(event for event in events if event.type == EventType.LLM_OUTPUT)
    assert output.message == "Hello there" == said(events)
    assert output.payload is not None
    assert output.payload["finish_reason"] == "stop"
    assert output.payload["upstream"] == "demo"
    ending = events[-2].payload
    assert ending is not None
    assert ending["result"] == "Hello there"
    assert ending["usage"] == output.payload["usage"]


async def test_a_refusing_upstream_fails_the_run_before_the_first_delta(world: World) -> None:
    job = await world.job("status 429 retry-after 7")
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.FAILED
    assert types(events) == ["WORKFLOW_STARTED", "AGENT_STARTED", "AGENT_FAILED", "WORKFLOW_FAILED", "STREAM_END"]
    assert result.failure is not None
    assert (result.failure.status, result.failure.retry_after_s) == (429, 7.0)


async def test_a_cut_answer_is_a_failure_and_keeps_what_was_said(world: World) -> None:
    job = await world.job('say "one two three"; cut')
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.FAILED
    assert types(events)[-5:] == ["LLM_PARTIAL", "LLM_OUTPUT", "AGENT_FAILED", "WORKFLOW_FAILED", "STREAM_END"]
    output = events[-4].payload
    assert output is not None
    assert output["aborted"] is True
    assert output["usage"]["completion_tokens"] > 0
    assert "finish_reason" not in output


@pytest.mark.parametrize("policy", ["continue", "regenerate"])
async def test_policy_may_let_a_cut_answer_go_on(world: World, policy: str) -> None:
    job = await world.job('say "one two "; once cut; say "three four"', on_cut=policy)
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert said(events) == "one two three four"
    assert types(events).count("AGENT_RETRYING") == 1
    assert EventType.OUTPUT_RESET not in types(events)
    assert [call.ending for call in world.upstream.witness.calls] == ["cut", "completed"]


async def test_a_regenerated_answer_that_differs_unsays_the_old_one(world: World) -> None:
    job = await world.job('once say "one two"; once cut; say "one three"', on_cut="regenerate")
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert said(events) == "one three"
    reset = next(event for event in events if event.type == EventType.OUTPUT_RESET)
    assert reset.payload is not None
    assert reset.payload["offset"] == len("one t")


async def test_a_cancel_while_the_ending_is_being_written_comes_too_late(world: World) -> None:
    """Two endings in one log: the answer was complete and its ending queued behind an append in flight, when a client left. The
    cancelled ending was queued after the other, and one append took both."""
    job = await world.job('say "one "; wait 1ms; say "two"')
    arrived, let = asyncio.Event(), asyncio.Event()

    async def gate(operation: str, point: str) -> None:
        if (operation, point) == ("append", "sent"):
            arrived.set()
            await let.wait()

    world.store.checkpoint = gate
    work = asyncio.create_task(world.work(job))
    await arrived.wait()
    call = await world.upstream.witness.nth(0)
    await call.closed.wait()
    while not any(agent._ending for agent in world.desk._agents):  # noqa: ASYNC110 - nothing else tells that it is queued
        await asyncio.sleep(0)
    assert world.desk.stop(job.run.id, Stop("cancelled", "too late", "key"))
    work.cancel()
    await asyncio.sleep(0)
    let.set()
    result = await work
    assert (result.state, result.ended) == (RunState.COMPLETED, True)
    assert types(await world.events(job.run.id))[-3:] == ["AGENT_COMPLETED", "WORKFLOW_COMPLETED", "STREAM_END"]


async def test_what_was_asked_before_a_durable_run_began_is_in_the_log(world: World) -> None:
    """Temporal was away when the run was cancelled, and the worker that had it is gone: nobody but the log remembers."""
    job = await world.job('say "one"')
    asked = Event(EventType.WORKFLOW_CANCELLING, "2026-01-01T00:00:00.000Z", payload={"reason": "enough", "by": "key"})
    await world.log.append(job.run.id, "@cancel", 1, 1, [encode(asked)])
    result = await world.work(msgspec.structs.replace(job, run=msgspec.structs.replace(job.run, durable=True)))
    events = await world.events(job.run.id)
    assert (result.state, result.ended) == (RunState.CANCELLED, True)
    assert types(events) == ["WORKFLOW_STARTED", "WORKFLOW_CANCELLING", "WORKFLOW_CANCELLED", "STREAM_END"]
    assert events[-2].payload == {"reason": "enough", "by": "key"}
    assert not world.upstream.witness.calls


async def test_whoever_passes_a_cancellation_on_need_not_know_its_words(world: World) -> None:
    job = await world.job("hang")
    work = asyncio.create_task(world.desk.work(job, cancelled=lambda: Stop("cancelled")))
    await world.upstream.witness.nth(0)
    asked = Event(EventType.WORKFLOW_CANCELLING, "2026-01-01T00:00:00.000Z", payload={"reason": "enough", "by": "key"})
    await world.log.append(job.run.id, "@cancel", 1, 1, [encode(asked)])
    work.cancel()
    result = await work
    assert (result.state, result.reason) == (RunState.CANCELLED, "enough")


async def test_an_outage_of_the_log_before_an_attempt_is_waited_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to fail the attempt, and five failures within two seconds failed the run."""
    monkeypatch.setattr("orchestrator.agents.desk.TICK_S", 0.0)
    job = await world.job('say "one"')
    failures = iter([LogUnavailable] * 20)

    async def away(operation: str, point: str) -> None:
        if error := next(failures, None):
            raise error

    world.store.checkpoint = away
    result = await world.work(msgspec.structs.replace(job, attempt=2))
    assert result.state is RunState.COMPLETED


async def test_a_beat_that_fails_lets_nobody_elses_lease_lapse(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.agents.desk.TICK_S", 0.01)
    renewed = asyncio.Event()

    async def watch(operation: str, point: str) -> None:
        if operation == "claim":
            renewed.set()

    def broken() -> None:
        raise RuntimeError("no such activity")

    job = await world.job("hang", lease_ms=30)
    world.store.checkpoint = watch
    work = asyncio.create_task(world.desk.work(job, beat=broken))
    async with asyncio.timeout(WAIT_S), world.desk.ticking():
        await renewed.wait()
        world.desk.stop(job.run.id, Stop("cancelled"))
        await work


async def test_a_run_that_has_ended_is_not_begun(world: World) -> None:
    job = await world.job('say "one"')
    await world.work(job)
    run = await world.log.run(job.run.id)
    assert run is not None
    result = await world.work(msgspec.structs.replace(job, run=run))
    assert (result.state, result.ended) == (RunState.COMPLETED, True)
    assert len(world.upstream.witness.calls) == 1


async def test_a_second_cut_in_a_regenerated_answer_repeats_nothing(world: World) -> None:
    """The second call had said new words beyond the first one's before it broke off; the third was compared with the first one's
    text only, and so said those words again.
    """
    job = await world.job('say "one two "; once cut; say "three "; twice cut; say "four"', on_cut="regenerate")
    result = await world.work(job)
    assert result.state is RunState.COMPLETED
    assert said(await world.events(job.run.id)) == "one two three four"
    assert [call.ending for call in world.upstream.witness.calls] == ["cut", "cut", "completed"]


async def test_attempts_are_bounded(world: World) -> None:
    job = await world.job('say "one "; cut', on_cut="regenerate", attempts=3)
    result = await world.work(job)
    assert result.state is RunState.FAILED
    assert len(world.upstream.witness.calls) == 3


async def test_cancel_before_the_first_token_closes_the_upstream(world: World) -> None:
    job = await world.job("hang")
    work = asyncio.create_task(world.work(job))
    call = await world.upstream.witness.nth(0)
    assert world.desk.stop(job.run.id, Stop("cancelled", "enough", "key"))
    result = await work
    events = await world.events(job.run.id)
    assert result.state is RunState.CANCELLED
    assert call.ending == "cancelled"
    assert types(events)[-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10, "estimated": True}
    assert events[-2].payload == {"reason": "enough", "by": "key", "usage": usage}


async def test_cancel_in_the_middle_records_the_usage_so_far(world: World) -> None:
    job = await world.job('say "one two three"; hang')
    work = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL", 3)
    world.desk.stop(job.run.id, Stop("cancelled"))
    world.desk.stop(job.run.id, Stop("deadline"))
    assert (await work).state is RunState.CANCELLED
    events = await world.events(job.run.id)
    assert types(events)[-3:] == ["LLM_OUTPUT", "WORKFLOW_CANCELLED", "STREAM_END"]
    output = events[-3]
    assert output.message == "one two three"
    assert output.payload is not None
    assert output.payload["usage"]["estimated"] is True


async def test_a_step_that_takes_too_long_times_out(world: World) -> None:
    job = await world.job("hang", timeout_s=0.05)
    result = await world.work(job)
    assert result.state is RunState.TIMEOUT
    events = await world.events(job.run.id)
    assert events[-2].payload is not None
    assert events[-2].payload["error"]["code"] == "timeout"
    assert world.upstream.witness.calls[0].ending == "cancelled"


async def test_shutdown_gives_the_writer_back_without_an_ending(world: World) -> None:
    job = await world.job('say "one "; hang')
    work = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL")
    world.desk.stop_all(Stop("shutdown"))
    with pytest.raises(Interrupted):
        await work
    assert types(await world.events(job.run.id)) == ["WORKFLOW_STARTED", "AGENT_STARTED", "LLM_PARTIAL"]
    assert await world.log.lease_ms(job.run.id) == 0


async def test_an_attempt_that_was_replaced_stops_reading_its_upstream(world: World) -> None:
    """The zombie: it was taken for dead, another attempt holds the writer, and the first one's next word is refused."""
    job = await world.job('say "one "; wait 50ms; say "two "; hang')
    work = asyncio.create_task(world.work(job))
    await world.until(job.run.id, "LLM_PARTIAL")
    world.lapse()
    await world.log.claim(job.run.id, job.writer, 2, 5000)
    with pytest.raises(Fenced):
        await work
    assert world.upstream.witness.calls[0].ending == "cancelled"
    assert said(await world.events(job.run.id)) == "one "


async def test_a_run_that_ended_meanwhile_gives_the_result_it_has(world: World) -> None:
    job = await world.job('say "done"')
    await world.work(job)
    again = await world.work(job)
    assert (again.state, again.ended) == (RunState.COMPLETED, True)
    assert types(await world.events(job.run.id)).count("STREAM_END") == 1


async def test_readers_of_the_same_process_see_it_live(world: World) -> None:
    job = await world.job('say "one two three"')
    seen = []
    async with world.fanout.subscribe(job.run.id, Position(0)) as cursor:
        work = asyncio.create_task(world.work(job))
        while not cursor.ended:
            seen += [item.event for item in await cursor.next(WAIT_S)]  # type: ignore[union-attr]
        await work
    assert seen == await world.events(job.run.id)
