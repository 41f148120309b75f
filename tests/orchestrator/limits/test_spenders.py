"""P17: a budget is never overspent, whoever crashes, and what it has given out in the end is what was used."""

from __future__ import annotations

import asyncio
import random

import pytest
from redis.asyncio import Redis

from orchestrator.errors import BudgetExceeded
from orchestrator.limits.limits import Estimate, Used
from orchestrator.limits.quota import Allowance, Budget
from orchestrator.limits.redis import RedisLimits
from orchestrator.runs import Principal, Run
from orchestrator.spending.money import Price
from tests.orchestrator.limits.conftest import DAY_MS, World

pytestmark = pytest.mark.local

SPENDERS = 1000
STEP = 50
PRICE = Price(1000, 4000)
TOKENS, NANO = 400_000, 1_000_000_000


class Spender:
    """A run that says so many words, or as many as it may; `used` is what it has said of itself, wherever it has stopped."""

    def __init__(self, principal: Principal, run_id: str, chance: random.Random) -> None:
        self.principal = principal
        self.run = Run(run_id, principal.tenant, "m", ("agent",), DAY_MS, key_id=principal.key_id)
        self.prompt, self.words = chance.randrange(1, 300), chance.randrange(1, 1500)
        self.crashes = chance.random() < 0.1
        self.used = Used()

    async def spend(self, limits: RedisLimits) -> None:
        """Raises BudgetExceeded."""
        estimate = Estimate(self.prompt, min(self.words, STEP), PRICE)
        admitted = await limits.admit(self.principal, self.run.id, DAY_MS, estimate)
        assert admitted.hold is not None
        assert admitted.hold.output_tokens is not None
        self.run = Run(self.run.id, self.run.tenant, "m", ("agent",), DAY_MS, hold=admitted.hold)
        paid = admitted.hold.output_tokens
        self._say(min(self.words, paid))
        while paid < self.words and (more := await limits.extend(self.run, Estimate(0, STEP, PRICE))):
            paid += more
            self._say(min(self.words, paid))
            if self.crashes and paid > self.words // 2:
                return
        if not self.crashes:
            await limits.settle(self.run, self.used)

    def _say(self, words: int) -> None:
        self.used = Used(self.prompt + words, self.prompt * PRICE.input + words * PRICE.output)


async def given(redis: Redis, world: World) -> dict[str, tuple[int, int]]:
    """What each budget has given out."""
    found = {}
    async for key in redis.scan_iter(f"{world.prefix}:*:day:*"):
        tokens, nano = await redis.hmget(key, "tokens", "nano")
        found[key.split("}:")[1].split(":day")[0]] = (int(tokens), int(nano))
    return found


async def test_a_thousand_spenders_of_whom_a_tenth_crash(world: World, redis: Redis) -> None:
    policy = {"key": Allowance(day=Budget(TOKENS)), "tenant": Allowance(day=Budget(nano=NANO))}
    replicas = [await world.process(wait_s=60.0, **policy) for _ in range(4)]
    chance = random.Random(17)
    keys = [Principal("acme", name) for name in ("a", "b", "c")]
    spenders = [Spender(keys[n % 3], world.run_id(), chance) for n in range(SPENDERS)]
    at_once = asyncio.Semaphore(200)

    async def spend(number: int) -> None:
        async with at_once:
            await spenders[number].spend(replicas[number % 4])

    outcomes = await asyncio.gather(*map(spend, range(SPENDERS)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert {type(outcome) for outcome in refused} == {BudgetExceeded}
    assert 10 < len(refused) < SPENDERS - 10

    before = await given(redis, world)
    assert before["tenant"][1] <= NANO
    assert all(before[f"key:{key.key_id}"][0] <= TOKENS for key in keys)

    for limits in replicas[:2]:  # an archiving process settles what it finds, and so does the next one that has its place
        await asyncio.gather(*(limits.settle(spender.run, spender.used) for spender in spenders))
    spent = [spender.used for spender in spenders]
    after = await given(redis, world)
    assert after["tenant"] == (sum(used.tokens for used in spent), sum(used.nano for used in spent))
    assert after["tenant"][1] <= NANO
    assert sum(after[f"key:{key.key_id}"][0] for key in keys) == after["tenant"][0]
