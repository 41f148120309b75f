"""P3 on real Redis: the stories of the simulation, with real notifications of which some are lost, in real but little time."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from orchestrator.clock import SystemClock
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.redis import RedisLog
from tests.orchestrator.streamlog.simulation import NoHistory, Story

pytestmark = pytest.mark.local

STORIES = 200
AT_ONCE = 20
BOUND_S = 30.0


class LossyLog(RedisLog):
    """A process's log to which every fifth notification does not come."""

    chance: random.Random

    def _notice(self, channel: str, frame: bytes) -> None:
        if self.chance.random() >= 0.2:
            super()._notice(channel, frame)


class RedisStory(Story):
    """One seed, told by two processes on Redis."""

    pace = 0.01

    def __init__(self, seed: int, logs: list[LossyLog]) -> None:
        self.chance = random.Random(seed)
        self.clock = SystemClock()  # type: ignore[assignment]
        self.memory = []
        self.logs = logs
        for log in logs:
            log.chance = self.chance
        ring = self.chance.choice([1, 200, 2000, 1 << 20])
        self.fanouts = [Fanout(log, NoHistory(), ring_bytes=ring, watch_delay_s=0.001) for log in logs]
        self.events = self.chance.randrange(0, 40)
        self.failures = []


async def told(seed: int, url: str) -> list[str]:
    """What went wrong."""
    bounds = {"call_timeout_s": BOUND_S, "wait_s": BOUND_S, "admission_s": BOUND_S}  # the stories are about order, not time
    async with AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(LossyLog(url, prefix=f"story{seed}", **bounds)) for _ in range(2)]
        story = RedisStory(seed, logs)
        async with asyncio.timeout(BOUND_S):
            await story.tell()
        return story.failures


async def test_every_reader_gets_every_event_once_in_order(redis_url: str) -> None:
    wrong = {}
    for first in range(0, STORIES, AT_ONCE):
        seeds = range(first, first + AT_ONCE)
        outcomes = await asyncio.gather(*(told(seed, redis_url) for seed in seeds), return_exceptions=True)
        wrong |= {seed: outcome for seed, outcome in zip(seeds, outcomes, strict=True) if outcome}
    assert wrong == {}
