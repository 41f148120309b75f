"""What runs hold, from their beginning to their end, in a log and limits that are real."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from orchestrator.embedded import Addresses
from orchestrator.errors import RateLimited, RunConflict
from orchestrator.events import Event, EventType, encode, timestamp
from orchestrator.limits.keeper import Keeper
from orchestrator.limits.quota import Allowance, Budget
from orchestrator.limits.redis import RedisLimits
from orchestrator.limits.terms import Policy
from orchestrator.runs import Principal, Run, RunRequest, RunState
from orchestrator.streamlog.log import Fenced
from orchestrator.streamlog.redis import RedisLog
from tests.orchestrator.engines import ACME, an_engine, script
from tests.orchestrator.limits.conftest import DAY_MS, Clock

pytestmark = pytest.mark.local

ALICE = Principal("acme", "alice")
REQUEST = RunRequest("m", "m", {}, {})
BODY = encode(Event(EventType.WORKFLOW_STARTED, timestamp(DAY_MS)))
_prefixes = itertools.count(1)


class House:
    """A key that may have one run at a time."""

    def __init__(self, log: RedisLog, limits: RedisLimits, clock: Clock) -> None:
        self.log = log
        self.limits = limits
        self.clock = clock
        self.keeper = Keeper(log.run, limits)
        self._numbers = itertools.count(1)

    async def begin(self) -> Run:
        run_id = f"task-{next(self._numbers):032x}"
        admitted = await self.limits.admit(ALICE, run_id, DAY_MS, None)
        run = Run(run_id, "acme", "m", ("agent",), DAY_MS, hold=admitted.hold)
        await self.log.open(run, REQUEST, [BODY])
        return run

    async def end(self, run: Run, attempt: int = 1) -> None:
        await self.log.append(run.id, "agent", attempt, 0, [BODY], state=RunState.COMPLETED, ends=True)


@pytest.fixture
async def house(backends: Addresses) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        prefix, clock = f"keeping{next(_prefixes)}", Clock()
        log = await stack.enter_async_context(RedisLog(backends.redis, prefix=prefix))
        policy = Policy(key=Allowance(runs=1))
        limits = await stack.enter_async_context(RedisLimits(log.connection, policy, prefix=prefix, now_us=clock))
        yield House(log, limits, clock)


async def test_the_end_of_a_run_gives_back_its_place(house: House) -> None:
    run = await house.begin()
    with pytest.raises(RateLimited):
        await house.begin()
    await house.end(run)
    await house.begin()


async def test_an_ending_that_is_refused_gives_nothing_back(house: House) -> None:
    """A zombie that says its run has ended, while a later attempt goes on with it, made room for a second run."""
    run = await house.begin()
    await house.log.claim(run.id, "agent", 2, 60_000)
    with pytest.raises(Fenced):
        await house.end(run, attempt=1)
    with pytest.raises(RateLimited):
        await house.begin()


async def test_what_active_runs_hold_is_kept_by_whoever_looks_after_them(house: House) -> None:
    run = await house.begin()
    for _ in range(4):
        house.clock.pass_s(20)
        await house.keeper.keep(await house.log.active())
    with pytest.raises(RateLimited):
        await house.begin()
    house.clock.pass_s(30)
    await house.begin()
    await house.end(run)


async def test_each_run_is_looked_up_once(house: House) -> None:
    run = await house.begin()
    asked: list[str] = []

    async def look_up(run_id: str) -> Run | None:
        asked.append(run_id)
        return await house.log.run(run_id)

    keeper = Keeper(look_up, house.limits)
    for active in ([run.id], [run.id], [], [run.id]):
        await keeper.keep(active)
    assert asked == [run.id, run.id]


async def test_a_run_that_there_is_already_is_not_let_in_again(backends: Addresses) -> None:
    """Whoever chose the id of a run that goes on was charged for it, and that run's reservation was forgotten by the conflict."""
    prefix = f"keeping{next(_prefixes)}"
    every = Allowance(requests_per_minute=10, day=Budget(tokens=5_000))
    async with (
        RedisLog(backends.redis, prefix=prefix) as log,
        RedisLimits(log.connection, Policy(key=every), prefix=prefix) as limits,
        an_engine(log=log, limits=limits) as engine,
    ):
        chosen = script('say "Hello"; hang', run_id=f"task-{1:032x}")
        first = await engine.submit(ACME, chosen)
        for _ in range(3):
            with pytest.raises(RunConflict):
                await engine.submit(ACME, chosen)
        assert first.quota is not None
        assert first.quota.requests is not None
        second = await engine.submit(ACME, script('say "Hello"'))
        assert second.quota is not None
        assert second.quota.requests is not None
        assert (first.quota.requests.remaining, second.quota.requests.remaining) == (9, 8)
        await engine.cancel(ACME, first.id)
