"""What the scripts decide, on a real Redis, at times that the tests choose."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from orchestrator.errors import BudgetExceeded, HeadgateError, RateLimited, TooManyStreams
from orchestrator.limits.limits import ADMITTED, Admitted, Estimate, Limits, Used
from orchestrator.limits.quota import Allowance, Budget, Hold, Quota, Rate
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Principal, Run
from orchestrator.spending.money import Price
from tests.orchestrator.limits.conftest import DAY_MS, World

pytestmark = pytest.mark.local

ALICE, BOB = Principal("acme", "alice"), Principal("acme", "bob")
MALLORY = Principal("evil", "mallory")


def started(world: World, principal: Principal, admitted: Admitted, run_id: str | None = None) -> Run:
    return Run(run_id or world.run_id(), principal.tenant, "m", "agent", DAY_MS, key_id=principal.key_id, hold=admitted.hold)


async def begin(
    world: World, limits: Limits, who: Principal = ALICE, estimate: Estimate | None = None, created_ms: int = DAY_MS
) -> Run:
    run_id = world.run_id()
    return started(world, who, await limits.admit(who, run_id, created_ms, estimate), run_id)


async def verdict(world: World, limits: Limits, who: Principal = ALICE, estimate: Estimate | None = None) -> str:
    """`ok`, or how a request was refused: type, and milliseconds until the next try."""
    try:
        await begin(world, limits, who, estimate)
    except HeadgateError as error:
        return error.type if error.retry_after_s is None else f"{error.type} {round(error.retry_after_s * 1000)}"
    return "ok"


async def test_nothing_is_asked_where_nothing_is_limited(world: World, redis: Redis) -> None:
    limits = await world.process(tenants={"evil": Allowance(requests_per_minute=1)})
    assert await limits.admit(ALICE, world.run_id(), DAY_MS, None) == ADMITTED
    async with limits.reading(ALICE):
        assert await redis.keys(f"{world.prefix}:*") == []


class TestRates:
    async def test_a_minute_at_once_then_at_the_rate(self, world: World) -> None:
        limits = await world.process(key=Allowance(requests_per_minute=3))
        assert [await verdict(world, limits) for _ in range(4)] == ["ok", "ok", "ok", "requests 20000"]
        world.clock.pass_s(19.999)
        assert await verdict(world, limits) == "requests 1"
        world.clock.pass_s(0.001)
        assert [await verdict(world, limits) for _ in range(2)] == ["ok", "requests 20000"]
        world.clock.pass_s(3600)
        assert [await verdict(world, limits) for _ in range(4)] == ["ok", "ok", "ok", "requests 20000"]

    @pytest.mark.parametrize("limit", [1, 7, 59, 1000, 999_983])
    async def test_waiting_as_long_as_told_is_enough_and_less_is_not(self, world: World, limit: int) -> None:
        limits = await world.process(key=Allowance(tokens_per_minute=limit))
        assert await verdict(world, limits, estimate=Estimate(limit, 0)) == "ok"
        some = Estimate(max(1, limit // 1000), 0)  # a large limit lets some tokens through in each millisecond
        for _ in range(20):
            wait = await verdict(world, limits, estimate=some)
            assert wait.startswith("tokens ")
            world.clock.pass_s(int(wait.split()[1]) / 1000 - 0.001)
            assert await verdict(world, limits, estimate=some) == "tokens 1"
            world.clock.pass_s(0.001)
            assert await verdict(world, limits, estimate=some) == "ok"

    async def test_the_quota_says_how_it_stands(self, world: World) -> None:
        limits = await world.process(
            key=Allowance(requests_per_minute=4, tokens_per_minute=600), tenant=Allowance(requests_per_minute=100)
        )
        first = await limits.admit(ALICE, world.run_id(), DAY_MS, Estimate(40, 20))
        assert first.quota == Quota(Rate(4, 3, 15_000), Rate(600, 540, 6_000))
        world.clock.pass_s(3)
        with pytest.raises(RateLimited) as refused:
            await limits.admit(ALICE, world.run_id(), DAY_MS, Estimate(560, 20))
        assert refused.value.quota == Quota(Rate(4, 3, 12_000), Rate(600, 570, 3_000))
        assert refused.value.type == "tokens"
        assert refused.value.message == (
            "Rate limit reached for the tokens per minute (TPM) of this key: limit 600. Please try again in 1s."
        )

    async def test_a_refusal_by_one_limit_takes_nothing_from_the_others(self, world: World, redis: Redis) -> None:
        limits = await world.process(
            key=Allowance(requests_per_minute=2, runs=10, day=Budget(tokens=1000)), tenant=Allowance(tokens_per_minute=100)
        )
        await begin(world, limits, ALICE, Estimate(90, 0))
        before = {key: await dump(redis, key) for key in await redis.keys(f"{world.prefix}:*")}
        assert await verdict(world, limits, ALICE, Estimate(11, 0)) == "tokens 600"
        after = {key: await dump(redis, key) for key in await redis.keys(f"{world.prefix}:*")}
        assert after == before
        assert await verdict(world, limits, ALICE, Estimate(10, 0)) == "ok"

    async def test_what_is_larger_than_the_limit_is_not_told_to_wait(self, world: World) -> None:
        limits = await world.process(key=Allowance(tokens_per_minute=100))
        with pytest.raises(RateLimited) as refused:
            await begin(world, limits, ALICE, Estimate(101, 0))
        assert (refused.value.retryable, refused.value.retry_after_s) == (False, None)
        assert await verdict(world, limits, ALICE, Estimate(100, 0)) == "ok"

    async def test_an_answer_that_could_be_longer_than_the_limit_takes_all_there_is(self, world: World) -> None:
        limits = await world.process(key=Allowance(tokens_per_minute=100), tenant=Allowance(tokens_per_minute=5000))
        run = await begin(world, limits, ALICE, Estimate(30, 500))
        assert await verdict(world, limits, ALICE, Estimate(1, 0)) == "tokens 600"
        assert await verdict(world, limits, BOB, Estimate(100, 500)) == "ok"
        await limits.settle(run, Used(40))
        assert await verdict(world, limits, ALICE, Estimate(61, 0)) == "tokens 600"
        assert await verdict(world, limits, ALICE, Estimate(60, 0)) == "ok"

    async def test_keys_share_what_their_tenant_has_and_tenants_share_nothing(self, world: World) -> None:
        limits = await world.process(tenant=Allowance(requests_per_minute=2))
        assert [await verdict(world, limits, who) for who in (ALICE, BOB, ALICE, MALLORY, MALLORY, MALLORY)] == [
            "ok",
            "ok",
            "requests 30000",
            "ok",
            "ok",
            "requests 30000",
        ]

    async def test_a_keys_own_limits_replace_those_for_all_keys_one_by_one(self, world: World) -> None:
        limits = await world.process(key=Allowance(requests_per_minute=1, tokens_per_minute=50))
        trusted = Principal("acme", "trusted", limits=Allowance(requests_per_minute=3))
        assert [await verdict(world, limits, trusted) for _ in range(4)] == ["ok", "ok", "ok", "requests 20000"]
        assert await verdict(world, limits, Principal("acme", "other", limits=Allowance(runs=9)), Estimate(51, 0)) == "tokens"

    async def test_tokens_are_corrected_when_the_run_has_ended(self, world: World) -> None:
        """Estimated 100 of 100, used 40: 60 come back at once. Half a minute later half of them had come back by themselves."""
        limits = await world.process(key=Allowance(tokens_per_minute=100))
        run = await begin(world, limits, ALICE, Estimate(60, 40))
        assert await verdict(world, limits, ALICE, Estimate(1, 0)) == "tokens 600"
        await limits.settle(run, Used(40))
        assert await verdict(world, limits, ALICE, Estimate(61, 0)) == "tokens 600"
        run = await begin(world, limits, ALICE, Estimate(20, 40))
        world.clock.pass_s(30)  # 50 of 100 are in use
        await limits.settle(run, Used(0))
        assert await verdict(world, limits, ALICE, Estimate(81, 0)) == "tokens 600"
        assert await verdict(world, limits, ALICE, Estimate(80, 0)) == "ok"

    async def test_more_than_was_estimated_is_owed(self, world: World) -> None:
        limits = await world.process(key=Allowance(tokens_per_minute=60))
        run = await begin(world, limits, ALICE, Estimate(1, 0))
        await limits.settle(run, Used(121))
        assert await verdict(world, limits, ALICE, Estimate(1, 0)) == "tokens 62000"

    async def test_a_clock_that_is_set_back_lets_nobody_in_early(self, world: World) -> None:
        limits = await world.process(key=Allowance(requests_per_minute=1))
        await begin(world, limits)
        world.clock.pass_s(-30)
        assert await verdict(world, limits) == "requests 60000"


class TestRuns:
    async def test_so_many_at_a_time(self, world: World, redis: Redis) -> None:
        limits = await world.process(key=Allowance(runs=2), tenant=Allowance(runs=3))
        first = await begin(world, limits)
        assert first.hold is not None
        assert (len(first.hold.places), first.hold.reserved) == (2, False)
        assert [await verdict(world, limits, who) for who in (ALICE, ALICE, BOB, BOB)] == ["ok", "runs 1000", "ok", "runs 1000"]
        for place in first.hold.places:
            await redis.zrem(place, first.id)
        assert [await verdict(world, limits, who) for who in (BOB, ALICE)] == ["ok", "runs 1000"]

    async def test_places_lapse_unless_they_are_renewed(self, world: World) -> None:
        limits = await world.process(key=Allowance(runs=2))
        kept, _ = await begin(world, limits), await begin(world, limits)
        world.clock.pass_s(20)
        await limits.renew([kept])
        world.clock.pass_s(7.999)
        assert await verdict(world, limits) == "runs 1000"
        world.clock.pass_s(0.001)
        assert [await verdict(world, limits) for _ in range(2)] == ["ok", "runs 1000"]

    async def test_a_run_that_has_left_is_not_brought_back_by_a_late_renewal(self, world: World) -> None:
        limits = await world.process(key=Allowance(runs=1))
        run = await begin(world, limits)
        limits.cancel(run)
        await limits.renew([run])
        assert await verdict(world, limits) == "ok"

    async def test_admitting_a_run_again_is_admitting_it_once(self, world: World) -> None:
        """Two callers with one idempotency key, neither of whom finds the run there, both try to begin it."""
        here, there = [
            await world.process(key=Allowance(requests_per_minute=2, runs=1, day=Budget(tokens=100))) for _ in range(2)
        ]
        run_id = world.run_id()
        first = await here.admit(ALICE, run_id, DAY_MS, Estimate(40, 60), may_repeat=True)
        again = await there.admit(ALICE, run_id, DAY_MS, Estimate(40, 60), may_repeat=True)
        assert (first, again) == (first, first)
        here.cancel(started(world, ALICE, first, run_id))
        assert await verdict(world, here, estimate=Estimate(100, 0)) == "ok"

    async def test_admitting_a_run_that_has_ended_meanwhile_holds_nothing_for_it(self, world: World) -> None:
        """The slower of two callers was let in after the faster one's run was over. It found that run, and what it had been let
        in with was nobody's: it lapsed after an hour."""
        limits = await world.process(key=Allowance(requests_per_minute=2, runs=1, day=Budget(tokens=100)))
        run_id = world.run_id()
        first = await limits.admit(ALICE, run_id, DAY_MS, Estimate(40, 60), may_repeat=True)
        limits.cancel(started(world, ALICE, first, run_id))
        await limits.admit(ALICE, run_id, DAY_MS, Estimate(40, 60), may_repeat=True)
        assert await verdict(world, limits, estimate=Estimate(100, 0)) == "ok"


class TestBudgets:
    async def test_what_is_left_is_given_and_then_nothing(self, world: World) -> None:
        limits = await world.process(key=Allowance(day=Budget(tokens=100)), tenant=Allowance(month=Budget(tokens=150)))
        run = await begin(world, limits, ALICE, Estimate(30, 50))
        assert run.hold == Hold(reserved=True, output_tokens=50, prompt_tokens=30)
        assert await limits.extend(run, Estimate(0, 50)) == 20
        assert await limits.extend(run, Estimate(0, 50)) == 0
        assert await verdict(world, limits, ALICE, Estimate(1, 1)) == "insufficient_quota"
        other = await begin(world, limits, BOB, Estimate(49, 100))
        assert other.hold == Hold(reserved=True, output_tokens=1, prompt_tokens=49)

    async def test_money(self, world: World) -> None:
        """A thousand nano-dollars a token of the prompt, 3000 of the answer; a budget of 100,000."""
        limits = await world.process(key=Allowance(day=Budget(nano=100_000)))
        price = Price(1000, 3000, 100)
        run = await begin(world, limits, ALICE, Estimate(10, 20, price))
        assert run.hold == Hold(reserved=True, output_tokens=20, prompt_tokens=10)
        assert await limits.extend(run, Estimate(0, 50, price)) == 10
        assert await verdict(world, limits, ALICE, Estimate(0, 1, price)) == "insufficient_quota"
        await limits.settle(run, Used(40, 70_000))
        assert await verdict(world, limits, ALICE, Estimate(30, 0, price)) == "ok"
        assert await verdict(world, limits, ALICE, Estimate(1, 0, price)) == "insufficient_quota"
        assert await verdict(world, limits, ALICE, Estimate(1, 1)) == "ok"  # what has no price costs nothing

    async def test_settling_twice_is_settling_once(self, world: World) -> None:
        here, there = [await world.process(key=Allowance(day=Budget(tokens=100))) for _ in range(2)]
        run = await begin(world, here, ALICE, Estimate(50, 50))
        await here.settle(run, Used(60))
        await there.settle(run, Used(60))
        assert await there.extend(run, Estimate(0, 10)) == 0
        assert await verdict(world, here, ALICE, Estimate(41, 0)) == "insufficient_quota"
        assert await verdict(world, here, ALICE, Estimate(40, 0)) == "ok"

    async def test_a_run_counts_in_the_period_in_which_it_was_created(self, world: World) -> None:
        limits = await world.process(key=Allowance(day=Budget(tokens=100), month=Budget(tokens=150)))
        late, tomorrow = DAY_MS, DAY_MS + 86_400_000
        run = await begin(world, limits, ALICE, Estimate(50, 40), late)
        await begin(world, limits, ALICE, Estimate(20, 0), tomorrow)
        assert await limits.extend(run, Estimate(0, 40)) == 10
        await limits.settle(run, Used(30))
        with pytest.raises(BudgetExceeded) as refused:
            await begin(world, limits, ALICE, Estimate(81, 0), tomorrow)
        assert refused.value.message == (
            "You exceeded your current quota: this key's budget for the day (UTC), 100 tokens, has no room for this request."
        )
        assert (refused.value.status, refused.value.retryable, refused.value.code) == (429, False, "insufficient_quota")
        await begin(world, limits, ALICE, Estimate(80, 0), tomorrow)

    async def test_reservations_of_runs_that_vanished_come_back_and_their_use_is_counted_when_it_is_told(
        self, world: World
    ) -> None:
        limits = await world.process(key=Allowance(day=Budget(tokens=100)))
        run, kept = await begin(world, limits, ALICE, Estimate(10, 40)), await begin(world, limits, ALICE, Estimate(10, 10))
        world.clock.pass_s(3599)
        await limits.renew([kept])
        assert await verdict(world, limits, ALICE, Estimate(31, 0)) == "insufficient_quota"
        world.clock.pass_s(1)
        assert await verdict(world, limits, ALICE, Estimate(31, 0)) == "ok"
        await limits.settle(run, Used(20))
        await limits.settle(run, Used(20))
        assert await verdict(world, limits, ALICE, Estimate(30, 0)) == "insufficient_quota"
        assert await verdict(world, limits, ALICE, Estimate(29, 0)) == "ok"


class TestStreams:
    async def test_so_many_at_a_time(self, world: World) -> None:
        here, there = [await world.process(key=Allowance(streams=2), tenant=Allowance(streams=3)) for _ in range(2)]
        async with here.reading(ALICE), there.reading(BOB):
            async with there.reading(ALICE):
                with pytest.raises(TooManyStreams):
                    async with here.reading(BOB):
                        raise AssertionError
                with pytest.raises(TooManyStreams):
                    async with here.reading(ALICE):
                        raise AssertionError
            async with there.reading(ALICE):
                pass
            async with there.reading(ALICE):
                pass

    async def test_those_of_a_dead_process_lapse_and_those_of_a_living_one_do_not(self, world: World) -> None:
        here = await world.process(key=Allowance(streams=2))
        dead = await world.process(key=Allowance(streams=2))
        async with here.reading(ALICE):
            lost = dead.reading(ALICE)
            await lost.__aenter__()
            world.clock.pass_s(20)
            await here.readers.renew()
            world.clock.pass_s(10)
            async with here.reading(ALICE):
                with pytest.raises(TooManyStreams):
                    async with here.reading(ALICE):
                        raise AssertionError
            await lost.__aexit__(None, None, None)


async def dump(redis: Redis, key: str) -> Any:
    match await redis.type(key):
        case "string":
            return await redis.get(key)
        case "hash":
            return await redis.hgetall(key)
        case "zset":
            return await redis.zrange(key, 0, -1, withscores=True)
    raise AssertionError(key)


async def test_replicas_admit_no_more_than_one_would(world: World) -> None:
    """P18: 100,000 admissions that come over eight connections at once."""
    policy = {"key": Allowance(requests_per_minute=30_000), "tenant": Allowance(requests_per_minute=50_000)}
    limits = [await world.process(wait_s=60.0, **policy) for _ in range(8)]
    outcomes: Counter[str] = Counter()

    async def ask(number: int) -> None:
        for turn in range(125):
            who = (ALICE, BOB)[turn % 2]
            outcomes[f"{who.key_id} {(await verdict(world, limits[number % 8], who)).split()[0]}"] += 1

    await asyncio.gather(*map(ask, range(800)))
    assert outcomes["alice ok"] + outcomes["bob ok"] == 50_000
    assert max(outcomes["alice ok"], outcomes["bob ok"]) <= 30_000
    assert outcomes.total() == 100_000


class Counted(NoMetrics):
    def __init__(self) -> None:
        self.by: list[str] = []

    def limited(self, by: str) -> None:
        self.by.append(by)


async def test_what_is_refused_is_counted_by_its_limit(world: World) -> None:
    counted = Counted()
    every = {"requests_per_minute": 3, "tokens_per_minute": 100, "runs": 1, "streams": 1, "day": Budget(90)}
    limits = await world.process(metrics=counted, key=Allowance(**every))
    await begin(world, limits)
    for estimate in (Estimate(95, 0), Estimate(0, 0)):
        await verdict(world, limits, estimate=estimate)
    free = Principal("acme", "free", limits=Allowance(runs=1000, day=Budget(1000)))
    for estimate in (Estimate(100, 0), Estimate(1, 0), Estimate(0, 0), Estimate(0, 0), Estimate(0, 0)):
        await verdict(world, limits, free, estimate)
    async with limits.reading(ALICE):
        with pytest.raises(TooManyStreams):
            async with limits.reading(ALICE):
                raise AssertionError
    assert counted.by == ["budgets", "runs", "tokens", "requests", "streams"]


def test_limits_travel_with_their_principal() -> None:
    principal = Principal("acme", "alice", limits=Allowance(runs=2, day=Budget(nano=5)))
    assert msgspec.json.decode(msgspec.json.encode(principal), type=Principal) == principal
