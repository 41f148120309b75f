"""What limits cost per request: `python -m bench.limits redis://127.0.0.1:6379`.

In this process, without HTTP: a request is submitted, answered with one word by the scripted upstream and read to its end. CPU
is that of this process and of Redis, per request; the variants take turns, and of all their turns the median counts. The Redis
should have nothing else to do.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from orchestrator import assembly
from orchestrator.catalog import ModelEntry
from orchestrator.clock import SystemClock
from orchestrator.engine import Engine, Submission
from orchestrator.limits.limits import Limits, Unlimited
from orchestrator.limits.quota import Allowance, Budget
from orchestrator.limits.redis import RedisLimits
from orchestrator.limits.terms import Policy
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Principal
from orchestrator.store.memory import MemoryRuns
from orchestrator.streamlog.redis import RedisLog
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.workflows.worker import TemporalAddress

TURNS = 7
REQUESTS = 1000
AT_ONCE = 10
ALICE = Principal("acme", "alice")
QUESTION = Submission("demo", {"messages": [{"role": "user", "content": '/script say "Hello"'}]})

_RATE = Allowance(requests_per_minute=10**9)
_RUNS = Allowance(requests_per_minute=10**9, runs=10**6)
_ALL = Allowance(
    requests_per_minute=10**9,
    tokens_per_minute=10**11,
    runs=10**6,
    day=Budget(10**12, 10**15),
    month=Budget(10**12, 10**15),
)
VARIANTS: Mapping[str, Policy | None] = {
    "none": None,
    "nothing configured": Policy(),
    "requests per minute of the key": Policy(key=_RATE),
    "the same and runs, of key and tenant": Policy(key=_RUNS, tenant=_RUNS),
    "everything, of key and tenant": Policy(key=_ALL, tenant=_ALL),
}


class Cost(msgspec.Struct):
    """Of one turn: µs of CPU per request, here and in Redis, and the milliseconds that submitting took."""

    here_us: float
    redis_us: float
    submit_p50_ms: float
    submit_p99_ms: float


async def turn(engine: Engine, redis: Redis) -> Cost:
    waits: list[float] = []

    async def ask() -> None:
        for _ in range(REQUESTS // AT_ONCE):
            began = time.perf_counter()
            run = await engine.submit(ALICE, QUESTION)
            waits.append((time.perf_counter() - began) * 1000)
            async with engine.subscribe(ALICE, run.id, answers=True) as subscription:
                while not subscription.ended:
                    await subscription.next(10.0)

    there, here = await _redis_cpu(redis), time.process_time()
    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    here = time.process_time() - here
    there = await _redis_cpu(redis) - there
    waits.sort()
    at = {p: waits[int(len(waits) * p / 100)] for p in (50, 99)}
    return Cost(here / REQUESTS * 1e6, there / REQUESTS * 1e6, at[50], at[99])


async def _redis_cpu(redis: Redis) -> float:
    info = await redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def _engine(stack: AsyncExitStack, url: str, policy: Policy | None, tokens: Tokenizer) -> Engine:
    prefix = f"bench{secrets.token_hex(4)}"
    log = await stack.enter_async_context(RedisLog(url, prefix=prefix, admission_s=30.0))
    limits: Limits = Unlimited()
    if policy is not None:
        limits = await stack.enter_async_context(RedisLimits(log.connection, policy, prefix=prefix, wait_s=30.0))
    config = assembly.Configuration(
        data_dir=Path("unused"),
        redis=None,
        temporal=None,
        postgres=None,
        upstreams={"demo": ScriptedConfig(kind="scripted")},
        models={"demo": ModelEntry.model_validate({"plan": {"agent": {"upstream": "demo"}}, "durability": "none"})},
    )
    parts = assembly.Parts(
        log=log,
        store=MemoryRuns(),
        upstreams={"demo": ScriptedUpstream("demo")},
        temporal=TemporalAddress("127.0.0.1:1"),
        metrics=NoMetrics(),
        clock=SystemClock(),
        tokens=tokens,
        owner=prefix,
        limits=limits,
        temporal_wait_s=0.0,
    )
    return await stack.enter_async_context(assembly.engine(config, parts))


async def measure(url: str) -> dict[str, Cost]:
    tokens = Tokenizer()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis.from_url(url))
        engines = {name: await _engine(stack, url, policy, tokens) for name, policy in VARIANTS.items()}
        costs: dict[str, list[Cost]] = {name: [] for name in engines}
        for number in range(TURNS + 1):
            for name, engine in engines.items():
                cost = await turn(engine, redis)
                if number:  # the first one warms up
                    costs[name].append(cost)
    return {name: _median(turns) for name, turns in costs.items()}


def _median(turns: list[Cost]) -> Cost:
    return Cost(*(round(statistics.median(getattr(cost, field) for cost in turns), 3) for field in Cost.__struct_fields__))


if __name__ == "__main__":
    found = asyncio.run(measure(sys.argv[1]))
    print(json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False))
