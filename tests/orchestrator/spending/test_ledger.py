"""P17 in the whole: what budgets gave out, what tasks say that they used and what the ledger says is one sum, and within budget.

Over a real Redis and a real PostgreSQL, in two processes' worth of engines, with runs that complete, fail, are cancelled, hit the
wall, or lose their worker.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from orchestrator import assembly
from orchestrator.catalog import ModelEntry
from orchestrator.clock import SystemClock
from orchestrator.embedded import Addresses
from orchestrator.engine import Engine, Submission
from orchestrator.errors import BudgetExceeded
from orchestrator.events import Event, encode
from orchestrator.limits.limits import Estimate
from orchestrator.limits.quota import Allowance, Budget
from orchestrator.limits.redis import RedisLimits
from orchestrator.limits.terms import Policy
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Principal, Run, RunRequest, RunState, Scope, new_run_id
from orchestrator.spending.money import Price
from orchestrator.spending.report import UsageQuery, UsageReport
from orchestrator.store.postgres import Postgres
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.link import Address
from orchestrator.streamlog.redis import RedisLog
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.engines import NOWHERE, TOKENIZER
from tests.orchestrator.store.conftest import database

__all__ = ["database"]

pytestmark = pytest.mark.local

SPENDERS = 60
CRASHED = 6
AT_ONCE = 6
TOKENS, NANO = 4_000, 20_000_000
PRICE = Price(1000, 2000)
OUTCOMES = ("say {} words", "no limit; say {} words", "say {} words; cut", "say {} words; hang", "rate 2000/s; say {} words")
ADMIN = Principal("acme", "admin", frozenset(Scope))

_prefixes = itertools.count(1)


class Replica:
    def __init__(self, engine: Engine, log: RedisLog, limits: RedisLimits) -> None:
        self.engine, self.log, self.limits = engine, log, limits


@asynccontextmanager
async def replica(backends: Addresses, dsn: str, prefix: str) -> AsyncIterator[Replica]:
    model = {"plan": {"agent": {"upstream": "demo"}}, "durability": "none", "price": {"input": 1, "output": 2}}
    config = assembly.Configuration(
        data_dir=Path("unused"),
        redis=None,
        temporal=None,
        postgres=None,
        upstreams={"demo": ScriptedConfig(kind="scripted")},
        models={"demo": ModelEntry.model_validate(model)},
        drain_s=0.0,
        janitor_s=0.5,
    )
    policy = Policy(key=Allowance(day=Budget(tokens=TOKENS)), tenant=Allowance(day=Budget(nano=NANO)))
    async with AsyncExitStack() as stack:
        connection = Connection(Address(backends.redis), call_timeout_s=10.0)
        connection.start()
        stack.push_async_callback(connection.close)
        limits = await stack.enter_async_context(RedisLimits(connection, policy, prefix=prefix, wait_s=10.0))
        log = await stack.enter_async_context(RedisLog(backends.redis, prefix=prefix, call_timeout_s=10.0, admission_s=10.0))
        parts = assembly.Parts(
            log=log,
            store=await stack.enter_async_context(Postgres(dsn)),
            upstreams={"demo": ScriptedUpstream("demo")},
            temporal=NOWHERE,
            metrics=NoMetrics(),
            clock=SystemClock(),
            owner=f"{prefix}-{id(log)}",
            tokens=TOKENIZER,
            limits=limits,
            temporal_wait_s=0.0,
        )
        yield Replica(await stack.enter_async_context(assembly.engine(config, parts)), log, limits)


async def spend(where: Replica, principal: Principal, script: str) -> str:
    """A run to its end. Raises BudgetExceeded."""
    body = {"messages": [{"role": "user", "content": f"/script\n{script}"}]}
    run = await where.engine.submit(principal, Submission("demo", body))
    async with where.engine.subscribe(principal, run.id) as events:
        while not events.ended:
            if not await events.next(0.3):
                await where.engine.cancel(principal, run.id)
    return run.id


async def lose(where: Replica, principal: Principal, words: int) -> str:
    """A run whose process is killed when it has said so many words: nobody reports them, and nobody settles."""
    run_id = new_run_id(int(time.time() * 1000), random.randbytes)
    now_ms = int(time.time() * 1000)
    admitted = await where.limits.admit(principal, run_id, now_ms, Estimate(20, 512, PRICE))
    run = Run(
        run_id,
        principal.tenant,
        "demo",
        ("agent",),
        now_ms,
        durable=False,
        key_id=principal.key_id,
        price=PRICE,
        hold=admitted.hold,
    )
    assert run.hold is not None
    words = min(words, run.hold.output_tokens or 0)
    request = RunRequest("demo", "demo", {}, {"messages": [{"role": "user", "content": "Hello"}]})
    said = [Event("LLM_PARTIAL", "2026-01-01T00:00:00.000Z", "agent", " the") for _ in range(words)]
    await where.log.open(run, request, [encode(Event("WORKFLOW_STARTED", "2026-01-01T00:00:00.000Z"))])
    await where.log.append(run_id, "agent", 1, 1, [encode(event) for event in said], state=RunState.RUNNING, lease_ms=1)
    return run_id


async def given(url: str, prefix: str) -> dict[str, tuple[int, int]]:
    """What each day's budget has given out."""
    found = {}
    async with Redis.from_url(url, decode_responses=True) as redis:
        async for key in redis.scan_iter(f"{prefix}:*:day:*"):
            tokens, nano = await redis.hmget(key, "tokens", "nano")
            found[key.split("}:")[1].split(":day")[0]] = (int(tokens or 0), int(nano or 0))
    return found


async def counted(engine: Engine, query: UsageQuery, runs: int) -> UsageReport:
    """What was used, once so many runs are in it: the archive follows by itself, and nobody is told."""
    async with asyncio.timeout(20):
        while True:
            report = await engine.usage(ADMIN, query)
            if sum(row.runs for row in report.rows) == runs:
                return report
            await asyncio.sleep(0.1)


async def test_budgets_ledger_and_tasks_agree_and_nobody_spent_too_much(backends: Addresses, database: str) -> None:
    prefix = f"ledger{next(_prefixes)}"
    chance = random.Random(17)
    today = datetime.now(UTC).date()
    keys = [Principal("acme", name) for name in ("a", "b", "c")]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def begin(where: Replica, key: Principal, script: str) -> str:
        async with at_once:
            return await spend(where, key, script)

    async with replica(backends, database, prefix) as here, replica(backends, database, prefix) as there:
        lost = [await lose(here, keys[n % 3], chance.randrange(1, 300)) for n in range(CRASHED)]
        begun = await asyncio.gather(
            *(
                begin((here, there)[n % 2], keys[n % 3], OUTCOMES[n % len(OUTCOMES)].format(chance.randrange(1, 400)))
                for n in range(SPENDERS)
            ),
            return_exceptions=True,
        )
        refused = [outcome for outcome in begun if isinstance(outcome, BaseException)]
        assert {type(outcome) for outcome in refused} == {BudgetExceeded}
        runs = [*lost, *(outcome for outcome in begun if isinstance(outcome, str))]
        query = UsageQuery(today - timedelta(days=1), today, ("key",))
        report = await counted(here.engine, query, len(runs))
        told = [await here.engine.details(ADMIN, run_id) for run_id in runs]
    assert {details.run.state for details in told} == {RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED}
    assert any(details.failure and details.failure.code == "worker_lost" for details in told)

    out = await given(backends.redis, prefix)
    for row in report.rows:
        mine = [details for details in told if details.run.key_id == row.key_id]
        prompts, answers = ([getattr(d.usage, f"{what}_tokens") for d in mine if d.usage] for what in ("prompt", "completion"))
        assert (row.runs, row.prompt_tokens, row.completion_tokens) == (len(mine), sum(prompts), sum(answers))
        assert row.cost_nano == sum(details.cost_nano or 0 for details in mine)
        assert row.prompt_tokens + row.completion_tokens == out[f"key:{row.key_id}"][0] <= TOKENS
    assert sum(row.cost_nano or 0 for row in report.rows) == out["tenant"][1] <= NANO
    assert refused
    assert out["tenant"][1] > NANO // 2
