"""Ending runs from outside: once, with the words in which it was asked for, and without disturbing an ending that is there."""

from __future__ import annotations

import pytest

from orchestrator.clock import SystemClock
from orchestrator.ender import Ender
from orchestrator.endings import TIMEOUT, WORKER_LOST
from orchestrator.events import Event, EventType, encode
from orchestrator.limits.limits import Unlimited
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.spending.spending import Spending
from orchestrator.streamlog.log import LogUnavailable
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from tests.orchestrator.engines import TOKENIZER
from tests.orchestrator.processes import Counted

AT = "2026-01-01T00:00:00.000Z"
RUN_ID = "task-" + "0" * 32


class World:
    def __init__(self) -> None:
        self.clock = SystemClock()
        self.store = MemoryStore(self.clock.time)
        self.log = MemoryLog(self.store)
        self.metrics = Counted()
        self.ender = Ender(self.log, self.metrics, self.clock, Spending(self.log, Unlimited(), TOKENIZER))

    async def open(self) -> None:
        now_ms = int(self.clock.time() * 1000)
        started = encode(Event(EventType.WORKFLOW_STARTED, AT))
        await self.log.open(Run(RUN_ID, "t", "m", "agent", now_ms), RunRequest("m", "m", {}, {}), [started])

    async def events(self) -> list[Event]:
        return [entry.event for entry in await self.log.read(RUN_ID, 1, 100)]

    async def state(self) -> RunState:
        run = await self.log.run(RUN_ID)
        assert run is not None
        return run.state


@pytest.fixture
async def world() -> World:
    world = World()
    await world.open()
    return world


async def test_once_and_never_again(world: World) -> None:
    assert await world.ender.fail(RUN_ID, WORKER_LOST)
    assert not await world.ender.fail(RUN_ID, TIMEOUT)
    assert not await world.ender.cancel(RUN_ID, "late", "key")
    assert [event.type for event in await world.events()] == ["WORKFLOW_FAILED", "STREAM_END"]
    assert await world.state() is RunState.FAILED
    assert world.metrics.calls == [RunState.FAILED]
    assert await world.log.active() == []


async def test_a_time_out_is_a_state_of_its_own(world: World) -> None:
    await world.ender.fail(RUN_ID, TIMEOUT)
    assert await world.state() is RunState.TIMEOUT


async def test_a_log_that_is_gone_is_taken_off_the_list(world: World) -> None:
    del world.store.records[RUN_ID]
    assert not await world.ender.fail(RUN_ID, WORKER_LOST)
    assert await world.log.active() == []


async def test_who_asked_is_in_the_log(world: World) -> None:
    asked = Event(EventType.WORKFLOW_CANCELLING, AT, payload={"reason": "enough", "by": "key-1"})
    await world.log.append(RUN_ID, "said:cancelling", 1, 1, [encode(asked)])
    assert await world.ender.cancel(RUN_ID, "what Temporal remembers", None)
    assert (await world.events())[1].payload == {"reason": "enough", "by": "key-1"}


async def test_an_agent_by_any_name_is_not_mistaken_for_it(world: World) -> None:
    """An agent called `ender` fenced the ender off: its second attempt outranked the ender's only one."""
    await world.log.append(RUN_ID, "ender", 2, 1, [encode(Event(EventType.LLM_PARTIAL, AT))])
    assert await world.ender.fail(RUN_ID, WORKER_LOST)


async def test_an_ending_stands_although_the_log_goes_away_right_after(world: World) -> None:
    async def away(operation: str, point: str) -> None:
        if operation == "run":
            raise LogUnavailable

    world.store.checkpoint = away
    assert await world.ender.fail(RUN_ID, WORKER_LOST)
    assert world.metrics.calls == [RunState.FAILED]


async def test_a_log_that_is_away_is_told(world: World) -> None:
    async def away(operation: str, point: str) -> None:
        raise LogUnavailable

    world.store.checkpoint = away
    with pytest.raises(LogUnavailable):
        await world.ender.fail(RUN_ID, WORKER_LOST)
