"""A run's tokens are counted in one place for all its agents, on both implementations of the log."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from orchestrator.streamlog.log import LogMissing, Spent


async def test_what_is_set_aside_never_exceeds_what_there_is(world: Any, ask: Any) -> None:
    here, there = await world.process(), await world.process()
    run = world.run()
    await here.log.open(run, ask, [])
    wanted = [random.Random(7).randint(1, 40) for _ in range(60)]
    answers = await asyncio.gather(
        *((here, there)[number % 2].log.spend(run.id, 0, each, 500) for number, each in enumerate(wanted))
    )
    assert sum(answer.granted for answer in answers) == 500
    assert all(0 <= answer.granted <= each for answer, each in zip(answers, wanted, strict=True))
    assert max(answer.held for answer in answers) == 500


async def test_what_is_given_back_can_be_had_again(world: Any, ask: Any) -> None:
    here = await world.process()
    run = world.run()
    await here.log.open(run, ask, [])
    assert await here.log.spend(run.id, 0, 80, 100) == Spent(80, 0, 80)
    assert await here.log.spend(run.id, 50, 80, 100) == Spent(20, 50, 100)
    assert await here.log.spend(run.id, 10, 1, 100) == Spent(0, 60, 100)
    assert await here.log.spend(run.id, -5, -40, 100) == Spent(-40, 55, 60)
    assert await here.log.spend(run.id, 0, 60, 100) == Spent(40, 55, 100)
    assert await here.log.spend(run.id, 0, 0, 70) == Spent(0, 55, 100)


async def test_there_is_nothing_to_spend_without_a_log(world: Any) -> None:
    here = await world.process()
    with pytest.raises(LogMissing):
        await here.log.spend("task-" + "0" * 32, 0, 1, 100)
