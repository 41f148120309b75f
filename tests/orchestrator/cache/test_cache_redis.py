"""Answers that are given again from the log in Redis, in whatever batches it was stored; and not when Redis has lost it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from orchestrator.embedded import Addresses
from orchestrator.engine import Engine, Submission
from orchestrator.events import Event
from orchestrator.runs import Cached, Run
from orchestrator.streamlog.redis import RedisLog
from tests.orchestrator.cache.test_cache import ask, models, said
from tests.orchestrator.engines import ACME, an_engine, until

pytestmark = pytest.mark.local


@pytest.fixture
def prefix() -> str:
    return f"cache-{uuid.uuid4().hex}"


@pytest.fixture
async def engine(backends: Addresses, prefix: str) -> AsyncIterator[Engine]:
    async with RedisLog(backends.redis, prefix=prefix) as log, an_engine(log=log, models=models()) as engine:
        yield engine


async def answered(engine: Engine, submission: Submission) -> tuple[Run, list[Event]]:
    run = await engine.submit(ACME, submission)
    return run, await until(engine, run.id, "STREAM_END")


@pytest.mark.parametrize("words", [1, 20, 3000])
async def test_an_answer_of_any_length(engine: Engine, words: int) -> None:
    first, events = await answered(engine, ask(f"say {words} words"))
    for _ in range(2):
        again, repeated = await answered(engine, ask(f"say {words} words"))
        assert again.cached == Cached(first.id)
        assert said(repeated) == said(events)
        assert (await engine.get(ACME, again.id)).cached == again.cached


async def test_a_redis_that_lost_everything(engine: Engine, backends: Addresses, prefix: str) -> None:
    """FLUSHALL, as far as this log is concerned."""
    await answered(engine, ask())
    async with Redis.from_url(backends.redis) as redis:
        async for key in redis.scan_iter(f"{prefix}:*"):
            await redis.delete(key)
    second, _ = await answered(engine, ask())
    assert second.cached is None
    again, _ = await answered(engine, ask())
    assert again.cached == Cached(second.id)


async def test_a_recording_that_is_gone_though_its_name_is_not(engine: Engine, backends: Addresses, prefix: str) -> None:
    first, _ = await answered(engine, ask())
    async with Redis.from_url(backends.redis) as redis:
        assert await redis.delete(f"{prefix}:{{{first.id}}}:events") == 1
    second, _ = await answered(engine, ask())
    assert second.cached is None
    again, _ = await answered(engine, ask())
    assert again.cached == Cached(second.id)
