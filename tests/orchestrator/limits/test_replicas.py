"""P18: limits hold across processes, and what a process held that was killed comes back by itself. By Redis's own clock."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from orchestrator.errors import TooManyStreams
from orchestrator.limits.redis import RedisLimits
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.link import Address
from tests.orchestrator.limits.replica import ALICE, LAPSE_S, PER_MINUTE, POLICY

pytestmark = pytest.mark.local

_prefixes = itertools.count(1)


@asynccontextmanager
async def replica(url: str, prefix: str, work: str) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "tests.orchestrator.limits.replica", url, prefix, work)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process: Process) -> list[float]:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return [float(word) for word in (await process.stdout.readline()).split()]


async def test_processes_together_let_in_no_more_than_one_would(redis_url: str) -> None:
    """Four processes, 20,000 requests, ten a second are allowed. What is let in is a minute's worth, and what leaks meanwhile."""
    prefix = f"replicas{next(_prefixes)}"
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(replica(redis_url, prefix, "5000")) for _ in range(4)]
        counts = await asyncio.gather(*map(said, processes))
    most = PER_MINUTE + (time.monotonic() - began) * PER_MINUTE / 60
    admitted = sum(count for count, _ in counts)
    assert PER_MINUTE <= admitted <= most


async def test_what_a_killed_process_held_comes_back(redis_url: str) -> None:
    """Its lease is a second here, and nearly thirty where nobody says otherwise."""
    prefix = f"replicas{next(_prefixes)}"
    connection = Connection(Address(redis_url))
    connection.start()
    async with replica(redis_url, prefix, "hold") as process, RedisLimits(connection, POLICY, prefix=prefix) as limits:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"held\n"
        await asyncio.sleep(2 * LAPSE_S)  # it is alive, so it keeps what it has
        with pytest.raises(TooManyStreams):
            async with limits.reading(ALICE):
                raise AssertionError
        process.kill()
        await process.wait()
        killed = time.monotonic()
        async with asyncio.timeout(10):
            while True:
                try:
                    async with limits.reading(ALICE):
                        break
                except TooManyStreams:
                    await asyncio.sleep(0.02)
        assert time.monotonic() - killed <= LAPSE_S + 0.5
    await connection.close()
