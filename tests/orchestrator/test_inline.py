"""Runs of models with `durability: none`: whatever becomes of them and of their process, their logs say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.runs import RunState
from orchestrator.streamlog.log import LogUnavailable
from tests.orchestrator.engines import ACME
from tests.orchestrator.processes import WAIT_S, Process, Shared, kinds, payload


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
async def process(shared: Shared) -> AsyncIterator[Process]:
    async with shared.process() as process:
        yield process


async def test_to_the_end(process: Process) -> None:
    run_id = await process.submit('say "one two"', "direct")
    events = await process.events(run_id)
    assert payload(events[-2])["result"] == "one two"
    await asyncio.gather(*process.engine._submissions._inline._tasks)
    assert process.metrics.calls == ["started", "first token", RunState.COMPLETED]


async def test_a_mistake_in_what_was_asked(process: Process) -> None:
    events = await process.events(await process.submit("no statement", "direct"))
    assert payload(events[-2])["error"]["status"] == 400


async def test_a_process_that_goes_down_says_so_in_every_log(shared: Shared) -> None:
    """Also in that of a run whose task had not begun when it was told to stop."""
    async with shared.process() as process:
        working = await process.submit('say "one"; hang', "direct")
        await process.until(working, "LLM_PARTIAL")
        fresh = await process.submit("hang", "direct")
    async with shared.process() as another:
        for run_id in (working, fresh):
            events = await another.events(run_id)
            assert kinds(events)[-2:] == ["WORKFLOW_FAILED", "STREAM_END"]
            assert payload(events[-2])["error"]["code"] == "server_shutdown"
    assert all(call.ending == "cancelled" for call in shared.upstream.witness.calls)


async def test_an_ending_is_insisted_on_while_the_log_is_away(
    shared: Shared, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log loses its tail, which no agent can go on from, and then is away: the ending used to be lost with one try."""
    monkeypatch.setattr("orchestrator.inline._PATIENCE_S", 0.0)
    run_id = await process.submit('say "one"; wait 100ms; say "two"', "direct")
    await process.until(run_id, "LLM_PARTIAL")
    record = shared.store.records[run_id]
    record._writers.clear()  # what a rolled-back log remembers of its writers
    failures = [LogUnavailable() for _ in range(3)]

    async def away(operation: str, point: str) -> None:
        if operation == "append" and not record.closed and failures and record._writers == {}:
            raise failures.pop()

    shared.store.checkpoint = away
    events = await process.events(run_id)
    assert payload(events[-2])["error"]["code"] == "log_rolled_back"
    assert failures == []


async def test_a_log_that_is_gone_ends_the_run_and_its_upstream_call(shared: Shared, process: Process) -> None:
    run_id = await process.submit('say "one"; wait 50ms; say "two"; hang', "direct")
    await process.until(run_id, "LLM_PARTIAL")
    del shared.store.records[run_id]
    async with asyncio.timeout(WAIT_S):
        await shared.upstream.witness.calls[0].closed.wait()
    assert shared.upstream.witness.calls[0].ending == "cancelled"


async def test_a_cancel_before_the_first_token(shared: Shared, process: Process) -> None:
    run_id = await process.submit("hang", "direct")
    await process.engine.cancel(ACME, run_id, "enough")
    events = await process.events(run_id)
    assert kinds(events)[-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    assert [call.ending for call in shared.upstream.witness.calls] in ([], ["cancelled"])


async def test_what_one_branch_is_refused_with_is_no_cancel_for_the_others(shared: Shared) -> None:
    """Another execution may go on with them: they used to give up for good, and told that they had."""
    branch = {"upstream": "demo", "input": '/script\nsay "one"; wait 300ms; say "two"; hang'}
    branches = [
        {"agent": {"name": "a", **branch}},
        {"agent": {"name": "b", "upstream": "demo", "input": '/script\nsay "b"; hang'}},
    ]
    last = {"agent": {"upstream": "demo", "answers": True}}
    team = {"plan": {"sequential": [{"parallel": branches}, last]}, "durability": "none"}
    async with shared.process({"team": team}) as process:
        run_id = await process.submit("", "team")
        await process.until(run_id, "LLM_PARTIAL", 2)
        shared.store.records[run_id]._writers.pop("a")  # as if the log had lost it
        events = await process.events(run_id)
    assert payload(events[-2])["error"]["code"] == "log_rolled_back"
    assert {payload(event)["status"] for event in events if event.type == "PROGRESS"} == {"started"}
    assert [call.ending for call in shared.upstream.witness.calls] == ["cancelled", "cancelled"]
