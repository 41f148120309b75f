"""What an agent's call is taken to cost before it is made: as when the run was let in, where that was the very prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from orchestrator.agents.expenses import Expenses
from orchestrator.agents.job import Job
from orchestrator.agents.voice import Voice
from orchestrator.events import Timestamps
from orchestrator.limits.limits import Unlimited
from orchestrator.limits.quota import Hold
from orchestrator.metrics import NoMetrics
from orchestrator.spending.meter import Meter
from orchestrator.spending.purses import LimitsPurse
from orchestrator.streamlog.writer import EventWriter
from orchestrator.upstreams.tokens import Tokenizer
from tests.orchestrator.agents.world import World

LET_IN, COUNTED = 40, 77
TOOLS = [{"type": "function", "function": {"name": "look_up"}}]


class Tokens(Tokenizer):
    async def count_messages(self, model: str, body: Mapping[str, Any]) -> int:
        return COUNTED


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


async def begun(world: World, job: Job) -> int:
    """The prompt as it is paid for before the first call."""
    writer = EventWriter(
        world.log,
        job.run.id,
        job.writer,
        1,
        lease_ms=0,
        metrics=NoMetrics(),
        clock=world.clock,
        on_refused=lambda error: None,
        max_bytes=1 << 20,
    )
    voice = Voice(writer, job.step.name, Timestamps(world.clock.time))
    meter = Meter([LimitsPurse(Unlimited(), job.run, None)], lambda: None)
    await Expenses(job, meter, Tokens(), voice).begin(job.call(""))
    return meter.usage.prompt_tokens


@pytest.mark.parametrize(
    ("hold", "body", "step", "expected"),
    [
        (Hold(prompt_tokens=LET_IN), {}, {}, LET_IN),
        (Hold(prompt_tokens=LET_IN), {"tools": TOOLS, "max_tokens": 5}, {"parameters": {"temperature": 0}}, LET_IN),
        (Hold(prompt_tokens=LET_IN), {}, {"model": "of-the-same-vocabulary"}, LET_IN),
        (Hold(prompt_tokens=LET_IN), {}, {"model": "gpt-4"}, COUNTED),
        (Hold(prompt_tokens=LET_IN), {}, {"parameters": {"tools": TOOLS}}, COUNTED),
        (Hold(prompt_tokens=LET_IN), {"tools": TOOLS}, {"name": "not-the-one-that-answers"}, COUNTED),
        (Hold(places=("a",)), {}, {}, COUNTED),
        (None, {}, {}, COUNTED),
    ],
)
async def test_a_prompt_is_counted_once(world: World, hold: Hold | None, body: Any, step: Any, expected: int) -> None:
    job = await world.job("say 5 words", body=body, **step)
    job = msgspec.structs.replace(job, run=msgspec.structs.replace(job.run, hold=hold))
    assert await begun(world, job) == expected


async def test_a_prompt_that_the_agent_adds_to_is_counted_again(world: World) -> None:
    job = await world.job("say 5 words")
    run = msgspec.structs.replace(job.run, hold=Hold(prompt_tokens=LET_IN))
    job = msgspec.structs.replace(job, run=run, system="You are brief.")
    assert await begun(world, job) == COUNTED
