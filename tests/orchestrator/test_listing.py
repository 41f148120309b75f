"""Looking back: results, histories, lists and sessions, from the log and from the archive alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.engine import Engine, SessionListing
from orchestrator.errors import RunNotFound, SessionNotFound
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Principal, Run, RunFilter, RunState, Scope
from orchestrator.spending.report import UsageQuery
from orchestrator.store.memory import MemoryRuns
from tests.orchestrator.apart import Shape
from tests.orchestrator.engines import ACME, OTHER, an_engine, script, until


class Archived(NoMetrics):
    """Counts what was archived, and can be waited for."""

    def __init__(self) -> None:
        self._runs = 0
        self._more = asyncio.Event()

    def archived(self, runs: int) -> None:
        self._runs += runs
        self._more.set()

    async def reaches(self, runs: int) -> None:
        async with asyncio.timeout(10):
            while self._runs < runs:
                self._more.clear()
                await self._more.wait()


class OwnClock:
    """Real time, which a test can put forward: runs of one millisecond have no order that a test could know."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def time(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def archive() -> Archived:
    return Archived()


@pytest.fixture
def clock() -> OwnClock:
    return OwnClock()


@pytest.fixture
async def engine(archive: Archived, clock: OwnClock, shape: Shape) -> AsyncIterator[Engine]:
    async with an_engine(archive=MemoryRuns(), metrics=archive, clock=clock) as engine, shape(engine) as reached:
        yield reached


async def ended(engine: Engine, text: str, **more: str) -> Run:
    run = await engine.submit(ACME, script(text, **more))
    await until(engine, run.id, "STREAM_END")
    return run


async def test_details_of_every_ending(engine: Engine) -> None:
    done = await engine.details(ACME, (await ended(engine, 'say "yes"; usage 3 4')).id)
    assert (done.run.state, done.result, done.failure) == (RunState.COMPLETED, "yes", None)
    assert done.usage is not None
    assert done.usage.total_tokens == 7
    assert done.run.query == '/script\nsay "yes"; usage 3 4'
    failed = await engine.details(ACME, (await ended(engine, "status 429 retry-after 7")).id)
    assert failed.failure is not None
    assert (failed.run.state, failed.result, failed.failure.status) == (RunState.FAILED, None, 429)
    running = await engine.submit(ACME, script("hang"))
    assert (await engine.details(ACME, running.id)).result is None


async def test_history_in_pages_and_by_type(engine: Engine) -> None:
    run = await ended(engine, 'say "one two three"')
    whole = await engine.history(ACME, run.id, limit=1000)
    assert whole.complete
    pages = []
    after = 0
    while not (page := await engine.history(ACME, run.id, after_seq=after, limit=2)).complete:
        pages += page.entries
        after = page.next_after
    assert [*pages, *page.entries] == list(whole.entries)
    only = await engine.history(ACME, run.id, types={"LLM_OUTPUT", "STREAM_END"}, limit=1)
    assert [entry.event.type for entry in only.entries] == ["LLM_OUTPUT"]
    rest = await engine.history(ACME, run.id, types={"LLM_OUTPUT", "STREAM_END"}, after_seq=only.next_after)
    assert ([entry.event.type for entry in rest.entries], rest.complete) == (["STREAM_END"], True)
    with pytest.raises(RunNotFound):
        await engine.history(OTHER, run.id)


async def test_a_run_that_goes_on_is_not_complete(engine: Engine) -> None:
    run = await engine.submit(ACME, script("hang"))
    await until(engine, run.id, "AGENT_STARTED")
    page = await engine.history(ACME, run.id)
    assert (len(page.entries), page.complete) == (2, False)


async def test_lists_join_what_goes_on_and_what_is_archived(engine: Engine, archive: Archived, clock: OwnClock) -> None:
    runs = []
    for number in range(1, 4):
        clock.ahead_s += 0.001
        runs.append(await ended(engine, f"say {number} words"))
    await archive.reaches(3)
    running = await engine.submit(ACME, script("hang"))
    ids = [running.id, *(run.id for run in reversed(runs))]
    listing = await engine.list(ACME)
    assert ([run.id for run in listing.runs], listing.total) == (ids, 4)
    for offset in range(5):
        page = await engine.list(ACME, offset=offset, limit=2)
        assert ([run.id for run in page.runs], page.total) == (ids[offset : offset + 2], 4)
    only = await engine.list(ACME, RunFilter(state=RunState.COMPLETED))
    assert ([run.id for run in only.runs], only.total) == (ids[1:], 3)
    assert (await engine.list(OTHER)).total == 0


async def test_sessions_group_runs_wherever_they_are(engine: Engine, archive: Archived, clock: OwnClock) -> None:
    first = await ended(engine, 'say "a"', session_id="s")
    await ended(engine, 'say "b"', session_id="t")
    await archive.reaches(2)
    clock.ahead_s += 1
    second = await ended(engine, 'say "c"', session_id="s")
    listing = await engine.sessions(ACME)
    sessions = listing.sessions
    assert [(each.id, each.runs, each.tokens > 0) for each in sessions] == [("s", 2, True), ("t", 1, True)]
    assert (sessions[0].created_ms, sessions[0].updated_ms >= second.created_ms) == (first.created_ms, True)
    assert listing.total == 2
    rest = await engine.sessions(ACME, offset=1)
    assert ([each.id for each in rest.sessions], rest.total) == (["t"], 2)
    await engine.title_session(ACME, "s", "Letters")
    assert (await engine.session(ACME, "s")).title == "Letters"
    with pytest.raises(SessionNotFound):
        await engine.session(OTHER, "s")


async def test_a_deleted_session_is_gone_with_its_runs_and_may_begin_again(engine: Engine, clock: OwnClock) -> None:
    run = await ended(engine, 'say "a"', session_id="s")
    await engine.delete_session(ACME, "s")
    assert await engine.sessions(ACME) == SessionListing([], 0)
    assert (await engine.list(ACME)).total == 0
    with pytest.raises(SessionNotFound):
        await engine.delete_session(ACME, "s")
    clock.ahead_s += 1
    again = await ended(engine, 'say "b"', session_id="s")
    assert again.created_ms > run.created_ms
    assert [(each.id, each.runs) for each in (await engine.sessions(ACME)).sessions] == [("s", 1)]


async def test_an_old_session_that_is_used_again_is_listed_whole(engine: Engine, archive: Archived, clock: OwnClock) -> None:
    """Its archived runs were once missing when the page was full of sessions that had been used since."""
    first = await ended(engine, 'say "a"', session_id="old")
    for name in ("s", "t"):
        clock.ahead_s += 1
        await ended(engine, 'say "b"', session_id=name)
    await archive.reaches(3)
    clock.ahead_s += 1
    running = await engine.submit(ACME, script("hang", session_id="old"))
    listing = await engine.sessions(ACME, limit=1)
    assert [(each.id, each.runs, each.created_ms) for each in listing.sessions] == [("old", 2, first.created_ms)]
    assert listing.total == 3
    await engine.cancel(ACME, running.id)


async def test_usage_is_the_tenants_for_an_administrator_and_ones_own_for_others(archive: Archived, engine: Engine) -> None:
    mine, another = ACME, Principal(ACME.tenant, "key-9")
    admin = Principal(ACME.tenant, "boss", frozenset({Scope.ADMIN}))
    for principal, text in ((mine, 'say "a"; usage 3 4'), (another, 'say "b"; usage 10 20'), (OTHER, 'say "c"; usage 100 200')):
        run = await engine.submit(principal, script(text))
        await until(engine, run.id, "STREAM_END", principal)
    await archive.reaches(3)
    today = datetime.now(UTC).date()
    query = UsageQuery(today - timedelta(days=1), today, ("key",))

    async def seen(principal: Principal) -> list[tuple[str | None, int, int]]:
        report = await engine.usage(principal, query)
        assert not report.truncated
        assert report.as_of_ms <= time.time() * 1000
        return [(row.key_id, row.prompt_tokens, row.completion_tokens) for row in report.rows]

    assert await seen(admin) == [("key-1", 3, 4), ("key-9", 10, 20)]
    assert await seen(mine) == [("key-1", 3, 4)]
    assert await seen(another) == [("key-9", 10, 20)]
    assert await seen(OTHER) == [("key-2", 100, 200)]
