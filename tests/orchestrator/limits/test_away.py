"""P11: a Redis that is slow or away is waited for briefly; then the configuration decides."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from orchestrator.errors import HeadgateError, LimitsUnavailable, RateLimited
from orchestrator.limits.limits import ADMITTED, Estimate
from orchestrator.limits.quota import Allowance, Budget
from orchestrator.limits.redis import RedisLimits
from orchestrator.limits.terms import Policy
from orchestrator.runs import Principal, Run
from orchestrator.streamlog.redis import RedisLog
from tests.orchestrator.engines import ACME, an_engine, script
from tests.orchestrator.limits.conftest import DAY_MS, World
from tests.orchestrator.streamlog.conftest import Proxy

pytestmark = pytest.mark.local

ALICE = Principal("acme", "alice")
Answer = TypeVar("Answer")

_prefixes = itertools.count(1)


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(redis_url, random.Random(1))
    await proxy.start()
    yield proxy
    await proxy.close()


async def timed(work: Any) -> tuple[Any, float]:
    """What came of it, or the code of the error; and how long it took."""
    began = time.perf_counter()
    try:
        outcome = await work
    except HeadgateError as error:
        outcome = error.code
    return outcome, time.perf_counter() - began


async def insist(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask until there is an answer."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await ask()
            except LimitsUnavailable:
                continue


async def test_closed_refuses_soon_and_takes_back_what_may_have_been_given(world: World, proxy: Proxy) -> None:
    limits = await world.process(url=proxy.url, key=Allowance(runs=1))
    proxy.reply_delay_s = 1.0
    answers = await asyncio.gather(*(timed(limits.admit(ALICE, world.run_id(), DAY_MS, None)) for _ in range(20)))
    assert {outcome for outcome, _ in answers} == {LimitsUnavailable.code}
    assert max(seconds for _, seconds in answers) <= 1.0
    proxy.reply_delay_s = 0.0
    admitted = await insist(lambda: limits.admit(ALICE, world.run_id(), DAY_MS, None))
    assert admitted.hold is not None


async def test_a_repetition_that_was_not_answered_in_time_takes_nothing_from_the_first(world: World, proxy: Proxy) -> None:
    """Two callers with one idempotency key. Had the second one taken back what it was not told of, the first one's run would have
    lost its place and its budget.
    """
    policy = {"key": Allowance(runs=1, day=Budget(1000))}
    here, there = await world.process(**policy), await world.process(url=proxy.url, **policy)
    run_id = world.run_id()
    first = await here.admit(ALICE, run_id, DAY_MS, Estimate(10, 10), may_repeat=True)
    unknown = Run(world.run_id(), "acme", "m", ("agent",), DAY_MS)
    await there.extend(unknown, Estimate(0, 1))
    proxy.reply_delay_s = 1.0
    with pytest.raises(LimitsUnavailable):
        await there.admit(ALICE, run_id, DAY_MS, Estimate(10, 10), may_repeat=True)
    proxy.reply_delay_s = 0.0
    await insist(lambda: there.extend(unknown, Estimate(0, 1)))  # whatever was sent before has arrived
    with pytest.raises(RateLimited):
        await here.admit(ALICE, world.run_id(), DAY_MS, None)
    assert await here.extend(Run(run_id, "acme", "m", ("agent",), DAY_MS, hold=first.hold), Estimate(0, 10)) == 10


@pytest.mark.parametrize("fault", ["slow", "away"])
async def test_open_lets_in_what_cannot_be_counted(world: World, proxy: Proxy, fault: str) -> None:
    limits = await world.process(url=proxy.url, key=Allowance(runs=1, streams=1), when_unavailable="open")
    await limits.admit(ALICE, world.run_id(), DAY_MS, None)
    if fault == "slow":
        proxy.reply_delay_s = 2.0
    else:
        proxy.refusing = True
        proxy.cut()
    admitted, seconds = await timed(limits.admit(ALICE, world.run_id(), DAY_MS, None))
    assert (admitted, seconds <= 1.0) == (ADMITTED, True)
    async with limits.reading(ALICE), limits.reading(ALICE):
        pass


@pytest.mark.parametrize("policy", ["open", "closed"])
async def test_nobody_waits_longer_than_a_second_for_a_slow_redis(redis_url: str, proxy: Proxy, policy: Any) -> None:
    prefix = f"away{next(_prefixes)}"
    rules = Policy(key=Allowance(requests_per_minute=1_000_000), when_unavailable=policy)
    waits: list[float] = []
    async with (
        RedisLog(proxy.url, prefix=prefix) as log,
        RedisLimits(log.connection, rules, prefix=prefix) as limits,
        an_engine(log=log, limits=limits) as engine,
    ):
        assert (await engine.submit(ACME, script('say "Hello"'))).quota is not None
        proxy.reply_delay_s = 2.0

        async def ask(after_s: float) -> None:
            await asyncio.sleep(after_s)
            outcome, seconds = await timed(engine.submit(ACME, script('say "Hello"')))
            assert isinstance(outcome, str)
            waits.append(seconds)

        await asyncio.gather(*(ask(number / 100) for number in range(120)))
        proxy.reply_delay_s = 0.0
    waits.sort()
    assert waits[int(len(waits) * 0.99)] <= 1.0
