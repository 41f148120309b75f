"""Limits over a real Redis, with a clock that tests own, and as many processes as a test asks for."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from orchestrator.embedded import Addresses
from orchestrator.limits.redis import RedisLimits
from orchestrator.limits.terms import Policy
from orchestrator.metrics import Metrics
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.link import Address

DAY_MS = 1_700_000_000_000
"""2023-11-14, 22:13:20 UTC."""

_prefixes = itertools.count(1)


class Clock:
    """Microseconds, as Redis counts them. Only moves when told to."""

    def __init__(self) -> None:
        self.us = DAY_MS * 1000

    def __call__(self) -> int:
        return self.us

    def pass_s(self, seconds: float) -> None:
        self.us += round(seconds * 1_000_000)


class World:
    """Processes that share a Redis and a clock."""

    def __init__(self, url: str, prefix: str, exits: AsyncExitStack) -> None:
        self.url = url
        self.prefix = prefix
        self.clock = Clock()
        self._exits = exits
        self._numbers = itertools.count(1)

    async def process(
        self, *, wait_s: float | None = None, url: str | None = None, metrics: Metrics | None = None, **policy: Any
    ) -> RedisLimits:
        connection = Connection(Address(url or self.url), call_timeout_s=max(2.0, wait_s or 0.0))
        connection.start()
        self._exits.push_async_callback(connection.close)
        limits = RedisLimits(connection, Policy(**policy), prefix=self.prefix, wait_s=wait_s, metrics=metrics, now_us=self.clock)
        return await self._exits.enter_async_context(limits)

    def run_id(self) -> str:
        return f"task-{next(self._numbers):032x}"


@pytest.fixture
def redis_url(backends: Addresses) -> str:
    return backends.redis


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as exits:
        yield World(redis_url, f"limits{next(_prefixes)}", exits)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
