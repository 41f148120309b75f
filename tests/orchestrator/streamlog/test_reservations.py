"""Names that are reserved for runs, on both implementations of the log."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.streamlog.log import ANY_RUN, Reservation


def wanted(number: int, digest: str = "d" * 64) -> Reservation:
    return Reservation(f"task-{number:032x}", digest)


async def test_of_many_callers_in_two_processes_one_gets_what_it_wanted(world: Any) -> None:
    here, there = await world.process(), await world.process()
    asked = [wanted(number) for number in range(50)]
    answers = await asyncio.gather(
        *((here, there)[number % 2].log.reserve("acme", "k", each) for number, each in enumerate(asked))
    )
    assert set(answers) <= set(asked)
    assert len(set(answers)) == 1
    assert await here.log.reserve("acme", "k", wanted(99, "e" * 64)) == answers[0]


async def test_a_name_is_one_tenants_own_and_may_be_any_text(world: Any) -> None:
    here = await world.process()
    names = [
        ("acme", "k"),
        ("other", "k"),
        ("acme", "k "),
        ("acme", "k:"),
        ("acme:k", ""),
        ("acme", "x" * 10_000),
        ("acme", "é*{}\n"),
    ]
    for number, (tenant, name) in enumerate(names):
        assert await here.log.reserve(tenant, name, wanted(number)) == wanted(number)
    for number, (tenant, name) in enumerate(names):
        assert await here.log.reserve(tenant, name, wanted(99)) == wanted(number)


async def test_a_run_that_still_has_the_name_can_lose_it_once(world: Any) -> None:
    """Two callers find the run failed; both want to begin another, and one of them may."""
    here, there = await world.process(), await world.process()
    first, second, third = wanted(1), wanted(2), wanted(3)
    await here.log.reserve("acme", "k", first)
    assert await here.log.reserve("acme", "k", second, instead_of=first.run_id) == second
    assert await there.log.reserve("acme", "k", third, instead_of=first.run_id) == second


async def test_taking_a_name_from_whoever_has_it(world: Any) -> None:
    here = await world.process()
    for each in (wanted(1), wanted(2, "e" * 64)):
        assert await here.log.reserve("acme", "k", each, instead_of=ANY_RUN) == each
    assert await here.log.reserve("acme", "k", wanted(3)) == wanted(2, "e" * 64)


async def test_a_name_is_forgotten_when_its_time_is_up(world: Any) -> None:
    here = await world.process(retention_ms=world.fast_ms)
    await here.log.reserve("acme", "k", wanted(1))
    assert await here.log.reserve("acme", "k", wanted(2)) == wanted(1)
    await world.pass_ms(world.fast_ms)
    assert await here.log.reserve("acme", "k", wanted(2)) == wanted(2)


async def test_a_name_may_be_forgotten_sooner_than_a_log(world: Any) -> None:
    here = await world.process()
    assert await here.log.reserve("acme", "k", wanted(1), keep_ms=world.fast_ms) == wanted(1)
    assert await here.log.reserve("acme", "k", wanted(2), keep_ms=world.fast_ms) == wanted(1)
    await world.pass_ms(world.fast_ms)
    assert await here.log.reserve("acme", "k", wanted(2), keep_ms=world.fast_ms) == wanted(2)


async def test_a_name_that_is_remembered_lasts_longer_and_one_that_is_not_does_not_come_back(world: Any) -> None:
    here = await world.process(retention_ms=world.fast_ms)
    await here.log.reserve("acme", "k", wanted(1))
    await world.pass_ms(world.fast_ms * 2 // 3)
    await here.log.remember("acme", "k")
    await world.pass_ms(world.fast_ms * 2 // 3)
    assert await here.log.reserve("acme", "k", wanted(2)) == wanted(1)
    await world.pass_ms(world.fast_ms)
    await here.log.remember("acme", "k")
    assert await here.log.reserve("acme", "k", wanted(2)) == wanted(2)
