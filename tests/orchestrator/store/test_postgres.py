"""What was written comes back to the byte, once, in order; and a database that is away costs a bounded wait."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest

from orchestrator.events import Entry, Event, encode
from orchestrator.runs import ALL_RUNS, Cached, ChatOptions, Run, RunFilter, RunState
from orchestrator.store.postgres import Postgres, Record, StoreRefused, StoreUnavailable
from orchestrator.store.schema import load_migrations

if TYPE_CHECKING:
    from tests.orchestrator.store.conftest import Wire

pytestmark = pytest.mark.local

_AT = "2025-01-01T00:00:00.000Z"


def make_run(number: int = 1, *, created_ms: int = 1_700_000_000_000, tenant: str = "acme", **changes: object) -> Run:
    facts: dict[str, object] = {"state": RunState.COMPLETED, "started_ms": created_ms + 5, "ended_ms": created_ms + 9} | changes
    return Run(f"task-{number:032x}", tenant, "headgate-demo", ("agent",), created_ms, **facts)  # type: ignore[arg-type]


def make_record(run: Run, *events: Event) -> Record:
    completed = {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, "finish_reason": "stop"}
    said = events or (
        Event("WORKFLOW_STARTED", _AT),
        Event("LLM_OUTPUT", _AT, "agent", "hällo\0\u2028", {"call_id": "c"}),
        Event("WORKFLOW_COMPLETED", _AT, payload=completed),
        Event("STREAM_END", _AT),
    )
    entries = [Entry(3 * seq, run.created_ms + seq, encode(event)) for seq, event in enumerate(said, 1)]
    return Record(run, entries, entries[-1])


async def fetch(url: str, query: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_a_run_and_its_entries_come_back_as_they_were(postgres: Postgres) -> None:
    run = make_run(
        session_id="s", metadata={"a": ["\0", 1.5, None]}, options=ChatOptions(include_usage=True), durable=False, deadline_ms=9
    )
    record = make_record(run)
    await postgres.write([record])

    assert await postgres.run(run.id) == run
    assert await postgres.entries(run.id, 0, 100) == record.entries
    assert await postgres.entries(run.id, 3, 2) == record.entries[1:3]
    assert await postgres.find(run.id, 6) == record.entries[1]
    assert await postgres.find(run.id, 5) is None
    assert await postgres.run("task-" + "f" * 32) is None
    assert await postgres.entries("task-" + "f" * 32, 0, 100) == []


async def test_a_run_that_said_again_what_another_had_said_spent_nothing(postgres: Postgres, database: str) -> None:
    run = make_run(session_id="s", cached=Cached("task-" + "a" * 32, 0.97))
    await postgres.write([make_record(run), make_record(make_run(2, session_id="s", cached=Cached("task-" + "b" * 32)))])
    assert await postgres.run(run.id) == run
    assert await fetch(database, "SELECT cached->>'run_id', total_tokens FROM runs WHERE id = '" + run.id + "'") == [
        ("task-" + "a" * 32, None)
    ]
    assert [(row.runs, row.tokens) for row in await postgres.sessions("acme", limit=10)] == [(2, 0)]


async def test_the_ending_is_readable_in_sql(postgres: Postgres, database: str) -> None:
    failed = Event("WORKFLOW_FAILED", _AT, payload={"error": {"code": "upstream_cut", "message": "cut"}})
    odd = Event("WORKFLOW_COMPLETED", _AT, payload={"usage": {"prompt_tokens": "many"}, "finish_reason": 7})
    end = Event("STREAM_END", _AT)
    await postgres.write(
        [
            make_record(make_run(1)),
            make_record(make_run(2, state=RunState.FAILED), failed, end),
            make_record(make_run(3), odd, end),
        ]
    )
    columns = "state, finish_reason, error->>'code', prompt_tokens, completion_tokens, total_tokens, usage_estimated, last_seq"
    assert await fetch(database, f"SELECT {columns} FROM runs ORDER BY id") == [
        ("COMPLETED", "stop", None, 3, 4, 7, False, 12),
        ("FAILED", None, "upstream_cut", None, None, None, None, 6),
        ("COMPLETED", None, None, None, None, None, None, 6),
    ]
    reason = "convert_from(body, 'UTF8')::json->'payload'->>'finish_reason'"
    endings = f"SELECT {reason} FROM events WHERE type = 'WORKFLOW_COMPLETED' ORDER BY run_id"
    assert await fetch(database, endings) == [("stop",), ("7",)]


async def test_writing_again_changes_nothing(postgres: Postgres, database: str) -> None:
    first = make_record(make_run(1))
    await postgres.write([first])
    again = Record(make_run(1, state=RunState.FAILED), [Entry(3, 1, encode(Event("X_OTHER", _AT)))], first.last)
    await postgres.write([again, make_record(make_run(2))])

    assert await postgres.run(first.run.id) == first.run
    assert await postgres.entries(first.run.id, 0, 100) == first.entries
    assert await fetch(database, "SELECT count(*) FROM runs") == [(2,)]


async def test_replicas_that_write_the_same_runs_at_once_do_not_disturb_each_other(database: str) -> None:
    """Inserted in different orders, two transactions with the same keys wait for each other: PostgreSQL calls it a deadlock."""
    records = [make_record(make_run(number)) for number in range(60)]
    async with Postgres(database) as one, Postgres(database) as two:
        await asyncio.gather(*(store.write(part) for store in (one, two) for part in (records, records[::-1], records)))
        assert (await one.runs("acme", ALL_RUNS, offset=0, limit=100))[1] == 60


async def test_a_tenants_runs_are_paged_newest_first_with_ties(postgres: Postgres) -> None:
    runs = [make_run(number, created_ms=1000 + number // 3) for number in range(10)]
    await postgres.write([make_record(run) for run in runs] + [make_record(make_run(99, tenant="other"))])

    pages = [await postgres.runs("acme", ALL_RUNS, offset=offset, limit=4) for offset in (0, 4, 8, 12)]
    assert pages == [(runs[:5:-1], 10), (runs[5:1:-1], 10), (runs[1::-1], 10), ([], 10)]
    without = [run.id for run in runs[2:]]
    assert await postgres.runs("acme", ALL_RUNS, offset=0, limit=4, without=without) == (runs[1::-1], 2)


async def test_runs_of_a_session_and_in_a_state(postgres: Postgres) -> None:
    failed = make_run(2, session_id="s", state=RunState.FAILED)
    runs = [make_run(1, session_id="s"), failed, make_run(3)]
    await postgres.write([make_record(run) for run in runs])
    assert await postgres.runs("acme", RunFilter(session_id="s"), offset=0, limit=10) == (runs[1::-1], 2)
    assert await postgres.runs("acme", RunFilter("s", RunState.FAILED), offset=0, limit=10) == ([failed], 1)


async def test_a_deleted_session_is_forgotten_with_its_runs_until_it_is_used_again(postgres: Postgres) -> None:
    old, new = make_run(1, session_id="s", created_ms=1000), make_run(2, session_id="s", created_ms=3000)
    await postgres.write([make_record(old)])
    await postgres.title_session("acme", "s", "About trees")
    (session,) = await postgres.sessions("acme", limit=10)
    assert [await postgres.count_sessions("acme", but=but) for but in ([], ["s"])] == [1, 0]
    assert await postgres.count_sessions("acme", but=[], without=[old.id]) == 0
    assert (session.id, session.title, session.runs, session.created_ms) == ("s", "About trees", 1, 1000)
    await postgres.delete_session("acme", "s", 2000)
    assert await postgres.sessions("acme", limit=10) == []
    assert await postgres.count_sessions("acme", but=[]) == 0
    assert await postgres.runs("acme", ALL_RUNS, offset=0, limit=10) == ([], 0)
    await postgres.write([make_record(new)])
    (session,) = await postgres.sessions("acme", only=["s"], limit=1)
    assert (session.title, session.runs) == (None, 1)
    assert await postgres.runs("acme", ALL_RUNS, offset=0, limit=10) == ([new], 1)


async def test_text_that_postgresql_cannot_hold_does_not_stop_a_batch(postgres: Postgres) -> None:
    """A client chooses the model's name; with a NUL in it, the whole batch was refused and the archive stood still."""
    run = make_run(1)
    await postgres.write([make_record(Run(run.id, "acme", "a\0b\ud800\nc", ("agent",), 1, state=RunState.COMPLETED))])
    kept = await postgres.run(run.id)
    assert kept is not None
    assert kept.model == "a\ufffdb?\nc"


async def test_what_the_database_will_never_take_is_refused(postgres: Postgres) -> None:
    good, no_number = make_record(make_run(1)), make_record(make_run(2, created_ms=1 << 80))
    no_event = Record(make_run(3), [Entry(1, 1, b"rubbish")], Entry(1, 1, b"rubbish"))
    for bad in (no_number, no_event):
        with pytest.raises(StoreRefused):
            await postgres.write([good, bad])
    assert await postgres.run(good.run.id) is None


async def test_many_starting_at_once_migrate_once(database: str) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(start_and_ping(database))
    known = [(migration.version, migration.name) for migration in load_migrations()]
    assert await fetch(database, "SELECT version, name FROM schema_versions ORDER BY version") == known
    assert [version for version, _ in known] == list(range(1, len(known) + 1))


async def start_and_ping(url: str) -> None:
    async with Postgres(url, bound_s=10) as postgres:
        await postgres.ping()


async def test_a_database_that_was_never_there_is_told_at_once() -> None:
    started = time.monotonic()
    async with Postgres("postgresql://postgres@127.0.0.1:1/none", bound_s=60) as postgres:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await postgres.ping()
    assert time.monotonic() - started < 2


async def test_a_database_that_comes_later_is_taken_up(wire: Wire) -> None:
    await wire.cut()
    async with Postgres(wire.url) as postgres:
        with pytest.raises(StoreUnavailable):
            await postgres.ping()
        await wire.mend()
        await reached(postgres)
        assert await postgres.runs("acme", ALL_RUNS, offset=0, limit=1) == ([], 0)


async def test_a_database_that_stops_answering_costs_the_bound_and_no_more(wire: Wire) -> None:
    """The driver's way to cancel a query is to ask the server, on a new connection, and to wait for the answer."""
    async with Postgres(wire.url, bound_s=0.3) as postgres:
        await reached(postgres)
        wire.freeze()
        for _ in range(6):  # more often than there are connections
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await postgres.run("task-" + "0" * 32)
            assert 0.2 < time.monotonic() - started < 0.6
        await wire.mend()
        await reached(postgres)
        wire.freeze()
        started = time.monotonic()
    assert time.monotonic() - started < 1.0


async def test_a_database_that_restarted_is_used_again(wire: Wire) -> None:
    async with Postgres(wire.url) as postgres:
        await postgres.write([make_record(make_run())])
        await wire.cut()
        with pytest.raises(StoreUnavailable):
            await postgres.run(make_run().id)
        await wire.mend()
        assert await postgres.run(make_run().id) == make_run()


async def reached(postgres: Postgres) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                return await postgres.ping()
            except StoreUnavailable:
                await asyncio.sleep(0.02)
