"""What somebody outside may put into a run's log, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from orchestrator.engine import Engine, Publication, PublishedEvent
from orchestrator.errors import InvalidRequest, RunNotFound
from orchestrator.runs import Run, RunState
from orchestrator.streamlog.log import AppendSkipped, Fenced, LogClosed
from tests.orchestrator.apart import Shape
from tests.orchestrator.engines import ACME, OTHER, an_engine, script, until


@pytest.fixture
async def engine(shape: Shape) -> AsyncIterator[Engine]:
    async with an_engine() as engine, shape(engine) as reached:
        yield reached


@pytest.fixture
async def run(engine: Engine) -> Run:
    run = await engine.submit(ACME, script("hang"))
    await until(engine, run.id, "AGENT_STARTED")
    return run


def publication(*types: str, seq: int = 1, attempt: int = 1, writer: str = "w") -> Publication:
    return Publication(writer, attempt, seq, [PublishedEvent(event_type) for event_type in types])


async def test_events_get_positions_and_a_repetition_gets_the_same(engine: Engine, run: Run) -> None:
    first = await engine.publish(ACME, run.id, publication("PROGRESS", "HEARTBEAT", "X_MINE"))
    again = await engine.publish(ACME, run.id, publication("PROGRESS", "HEARTBEAT", "X_MINE"))
    assert [position and position.seq for position in first.positions] == [3, None, 4]
    assert (first.repeated, again.repeated) == (False, True)
    assert again.positions == first.positions
    page = await engine.history(ACME, run.id, after_seq=2)
    assert [entry.event.type for entry in page.entries] == ["PROGRESS", "X_MINE"]


async def test_writers_do_not_disturb_each_other_and_fences_hold(engine: Engine, run: Run) -> None:
    await engine.publish(ACME, run.id, publication("PROGRESS", writer="a"))
    await engine.publish(ACME, run.id, publication("PROGRESS", writer="b", attempt=2))
    with pytest.raises(Fenced):
        await engine.publish(ACME, run.id, publication("PROGRESS", writer="b", attempt=1))
    with pytest.raises(AppendSkipped):
        await engine.publish(ACME, run.id, publication("PROGRESS", writer="a", seq=3))


async def test_an_ending_closes_the_log(engine: Engine, run: Run) -> None:
    ending = PublishedEvent("WORKFLOW_COMPLETED", payload={"result": "done"})
    await engine.publish(ACME, run.id, Publication("w", 1, 1, [PublishedEvent("PROGRESS"), ending]))
    details = await engine.details(ACME, run.id)
    assert (details.run.state, details.result) == (RunState.COMPLETED, "done")
    assert [event.type for event in await until(engine, run.id, "STREAM_END")][-2:] == ["WORKFLOW_COMPLETED", "STREAM_END"]
    with pytest.raises(LogClosed):
        await engine.publish(ACME, run.id, publication("PROGRESS", seq=2))


@pytest.mark.parametrize(
    "wrong",
    [
        publication("NOT_A_TYPE"),
        publication("x_mine"),
        publication("STREAM_END"),
        publication("STREAM_GAP"),
        publication("WORKFLOW_STARTED"),
        publication("WORKFLOW_COMPLETED", "PROGRESS"),
        publication("APPROVAL_REQUESTED"),
        publication("WORKFLOW_FAILED"),
        Publication("w", 1, 1, [PublishedEvent("WORKFLOW_FAILED", payload={"error": {"code": "x"}})]),
        publication(),
        publication("PROGRESS", seq=0),
        publication("PROGRESS", attempt=0),
        publication("PROGRESS", writer="a b"),
        Publication("w", 1, 1, [PublishedEvent("PROGRESS", timestamp="yesterday")]),
        Publication("w", 1, 1, [PublishedEvent("PROGRESS", message="x" * 2_000_000)]),
    ],
)
async def test_what_is_wrong_is_refused_and_leaves_nothing(engine: Engine, run: Run, wrong: Publication) -> None:
    before = await engine.history(ACME, run.id)
    with pytest.raises(InvalidRequest):
        await engine.publish(ACME, run.id, wrong)
    assert await engine.history(ACME, run.id) == before


async def test_a_foreign_run_is_a_missing_one(engine: Engine, run: Run) -> None:
    with pytest.raises(RunNotFound):
        await engine.publish(OTHER, run.id, publication("PROGRESS"))


async def test_a_run_that_stands_still_goes_on_only_when_it_says_so(engine: Engine, run: Run) -> None:
    """Any word published into a paused run made it RUNNING in lists, although it still stood still."""
    await engine.publish(ACME, run.id, publication("WORKFLOW_PAUSED"))
    await engine.publish(ACME, run.id, publication("PROGRESS", seq=2))
    assert (await engine.get(ACME, run.id)).state is RunState.PAUSED
    await engine.publish(ACME, run.id, publication("WORKFLOW_RESUMED", seq=3))
    assert (await engine.get(ACME, run.id)).state is RunState.RUNNING


async def test_a_published_time_out_is_one(engine: Engine, run: Run) -> None:
    late = PublishedEvent("WORKFLOW_FAILED", payload={"error": {"code": "timeout", "message": "too late"}})
    await engine.publish(ACME, run.id, Publication("w", 1, 1, [late]))
    details = await engine.details(ACME, run.id)
    assert details.run.state is RunState.TIMEOUT
    assert details.failure is not None
    assert details.failure.message == "too late"
