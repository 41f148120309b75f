"""Saying progress: once, in order, and also where an earlier execution, or a log that lost its end, has said some of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from orchestrator.plans.progress import Progress
from orchestrator.stage import PLAN
from tests.orchestrator.engines import ACME
from tests.orchestrator.processes import Process, Shared, payload

ONE, TWO = Progress("one", 0, "agent", "completed", 0.25), Progress("two", 0, "agent", "completed", 0.5)


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    async with Shared().process() as process:
        yield process


async def told(process: Process, run_id: str) -> list[tuple[str, float]]:
    await process.engine.cancel(ACME, run_id)
    events = [payload(event) for event in await process.events(run_id) if event.type == "PROGRESS"]
    return [(event["step_name"], event["progress"]) for event in events]


async def test_saying_it_again_has_no_second_effect(process: Process) -> None:
    run_id, stage = await process.submit("hang", "direct"), process.engine._submissions._inline._stage
    for number, one in ((1, ONE), (1, ONE), (2, TWO), (2, TWO)):
        await stage.tell(run_id, PLAN, 1, number, [one])
    assert await told(process, run_id) == [("one", 0.25), ("two", 0.5)]


async def test_a_later_execution_says_what_is_new_and_does_not_fall_behind(process: Process) -> None:
    """It finds the branches that had ended one after the other, and the one that ends first may not be the first that had."""
    run_id, stage = await process.submit("hang", "direct"), process.engine._submissions._inline._stage
    await stage.tell(run_id, PLAN, 1, 1, [TWO])
    late = Progress("three", 0, "agent", "completed", 0.25)
    await stage.tell(run_id, PLAN, 2, 1, [TWO, late], again=True)
    assert await told(process, run_id) == [("two", 0.5), ("three", 0.5)]


async def test_a_log_that_has_lost_what_was_said_is_told_once_more(process: Process) -> None:
    """The workflow would have tried for ever: the log refused a number that it thought skipped."""
    run_id, stage = await process.submit("hang", "direct"), process.engine._submissions._inline._stage
    await stage.tell(run_id, PLAN, 1, 7, [ONE, TWO])
    await stage.tell(run_id, PLAN, 1, 8, [ONE])
    assert await told(process, run_id) == [("one", 0.25), ("two", 0.5)]


async def test_a_run_that_has_ended_needs_no_progress(process: Process) -> None:
    run_id, stage = await process.submit('say "x"', "direct"), process.engine._submissions._inline._stage
    await process.events(run_id)
    await stage.tell(run_id, PLAN, 1, 1, [ONE])
