"""A process with limits of its own over a Redis that it shares: `python -m tests.orchestrator.limits.replica URL PREFIX WORK`.

WORK is `hold`: one run and one stream, for as long as it lives; or a number: so many requests, as fast as they are answered.
Prints a line when it holds them, or how many were let in and the seconds that it took.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from contextlib import suppress

from orchestrator.errors import RateLimited
from orchestrator.limits.quota import Allowance
from orchestrator.limits.redis import RedisLimits
from orchestrator.limits.terms import Policy
from orchestrator.runs import Principal, new_run_id
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.link import Address

ALICE = Principal("acme", "alice")
PER_MINUTE = 600
LAPSE_S = 1.0
POLICY = Policy(key=Allowance(requests_per_minute=PER_MINUTE, runs=2_000, streams=1), tenant=Allowance(runs=2_000))
AT_ONCE = 50


async def requests(limits: RedisLimits, count: int) -> int:
    """How many of them were let in."""
    admitted = 0

    async def ask(number: int) -> None:
        nonlocal admitted
        for _ in range(number, count, AT_ONCE):
            with suppress(RateLimited):
                await limits.admit(ALICE, new_run_id(0, secrets.token_bytes), 0, None)
                admitted += 1

    await asyncio.gather(*map(ask, range(AT_ONCE)))
    return admitted


async def main(url: str, prefix: str, work: str) -> None:
    connection = Connection(Address(url), call_timeout_s=60.0)
    connection.start()
    async with RedisLimits(connection, POLICY, prefix=prefix, wait_s=60.0, lapse_s=LAPSE_S) as limits:
        if work == "hold":
            await limits.admit(ALICE, "task-held", 0, None)
            async with limits.reading(ALICE):
                print("held", flush=True)
                await asyncio.Event().wait()
        began = time.monotonic()
        admitted = await requests(limits, int(work))
        print(admitted, time.monotonic() - began, flush=True)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
