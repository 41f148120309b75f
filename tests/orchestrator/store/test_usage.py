"""What runs used is in the sums once, however often they arrive, and the sums are those of the runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import date
from functools import reduce

import pytest

from orchestrator.events import Event
from orchestrator.runs import Cached, RunState
from orchestrator.spending.money import Price
from orchestrator.spending.report import UsageQuery, UsageRow
from orchestrator.store.memory import MemoryRuns
from orchestrator.store.postgres import Postgres, Record
from orchestrator.store.store import Store
from tests.orchestrator.store.test_postgres import make_record, make_run

pytestmark = pytest.mark.local

_AT = "2025-01-01T00:00:00.000Z"
FIRST_MS = 1_763_596_800_000
"""2025-11-20 00:00 UTC."""
FIRST, ALWAYS = date(2025, 11, 20), (date(2025, 1, 1), date(2025, 12, 31))
EVERYTHING = UsageQuery(*ALWAYS, by=("key", "model", "day"))


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryRuns()
    else:
        async with Postgres(database) as postgres:
            yield postgres


def a_record(number: int, prompt: int, completion: int, *, calls: int = 1, cached: int = 0, **changes: object) -> Record:
    """A run whose ending claims something else than its calls."""
    run = make_run(number, **{"created_ms": FIRST_MS, "key_id": "alice", "price": Price(3, 5, 1), **changes})  # type: ignore[arg-type]
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, "cached": cached}
    outputs = [Event("LLM_OUTPUT", _AT, f"agent-{call}", "said", {"call_id": "c", "usage": usage}) for call in range(calls)]
    failed = Event("WORKFLOW_FAILED", _AT, payload={"error": {"code": "cut", "message": "cut"}, "usage": {"prompt_tokens": 1}})
    return make_record(run, *outputs, failed, Event("STREAM_END", _AT))


async def test_the_sums_are_those_of_the_runs(store: Store) -> None:
    await store.write(
        [
            a_record(1, 10, 20),
            a_record(2, 1, 2, calls=3, cached=1, state=RunState.CANCELLED),
            a_record(3, 100, 200, key_id="bob", price=None),
            a_record(4, 7, 7, created_ms=FIRST_MS - 1),
            a_record(5, 1000, 1000, tenant="other"),
        ]
    )
    assert await store.usage("acme", EVERYTHING, None) == [
        UsageRow("alice", "headgate-demo", date(2025, 11, 19), 1, 7, 7, 0, 7 * 8),
        UsageRow("alice", "headgate-demo", FIRST, 2, 13, 26, 3, 10 * 3 + 20 * 5 + 3 * (0 * 3 + 1 * 1 + 2 * 5)),
        UsageRow("bob", "headgate-demo", FIRST, 1, 100, 200, 0, None),
    ]
    assert await store.usage("acme", UsageQuery(FIRST, FIRST), "bob") == [UsageRow(None, None, None, 1, 100, 200, 0, None)]
    assert await store.usage("acme", UsageQuery(FIRST, FIRST, ("key",)), None) == [
        UsageRow("alice", None, None, 2, 13, 26, 3, 163),
        UsageRow("bob", None, None, 1, 100, 200, 0, None),
    ]
    assert await store.usage("nobody", EVERYTHING, None) == []


async def test_an_answer_that_was_given_again_costs_nothing(store: Store) -> None:
    await store.write([a_record(1, 10, 20)])
    run = make_run(2, created_ms=FIRST_MS, key_id="alice", price=Price(3, 5), cached=Cached("task-1"))
    repeated = make_record(
        run, Event("LLM_OUTPUT", _AT, "agent", "said", {"usage": {"prompt_tokens": 10}}), Event("STREAM_END", _AT)
    )
    await store.write([repeated])
    [row] = await store.usage("acme", UsageQuery(FIRST, FIRST), None)
    assert (row.runs, row.prompt_tokens, row.completion_tokens) == (2, 10, 20)


async def test_a_run_that_arrives_often_counts_once(store: Store) -> None:
    """As when an archiving process dies between the write and telling the log, or two believe that it is their turn."""
    chance = random.Random(7)
    records = [
        a_record(number, chance.randint(0, 9999), chance.randint(0, 9999), key_id=chance.choice("ab")) for number in range(1, 41)
    ]
    await asyncio.gather(*(store.write(chance.sample(records, 30)) for _ in range(6)))
    await store.write(records)
    rows = await store.usage("acme", EVERYTHING, None)
    expected = Price(3, 5, 1)
    spent = [record.usage for record in records]
    assert reduce(UsageRow.plus, rows) == UsageRow(
        runs=40,
        prompt_tokens=sum(usage.prompt_tokens for usage in spent if usage),
        completion_tokens=sum(usage.completion_tokens for usage in spent if usage),
        cost_nano=sum(expected.cost(usage) for usage in spent if usage),
    )


@pytest.mark.parametrize("nonsense", [-1, 10**30, "many", 1.5])
async def test_what_a_users_worker_makes_up_does_not_spoil_the_sums(store: Store, nonsense: object) -> None:
    run = make_run(1, created_ms=FIRST_MS, key_id="alice", price=Price(3, 5))
    made_up = Event("LLM_OUTPUT", _AT, "agent", "said", {"usage": {"prompt_tokens": nonsense, "completion_tokens": 1}})
    await store.write([make_record(run, made_up, Event("STREAM_END", _AT)), a_record(2, 10, 20)])
    [row] = await store.usage("acme", UsageQuery(FIRST, FIRST), None)
    assert (row.runs, row.prompt_tokens, row.completion_tokens) == (2, 10, 20)


async def test_who_asked_and_at_what_price_comes_back_with_the_run(postgres: Postgres) -> None:
    run = make_run(key_id="alice", price=Price(1, 2, 3), budget_tokens=99)
    await postgres.write([make_record(run)])
    assert await postgres.run(run.id) == run
