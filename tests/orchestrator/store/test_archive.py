"""P10: every run that ended reaches the archive once, without its deltas, whatever happens to PostgreSQL meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from orchestrator.endings import completed
from orchestrator.events import Entry, Event, encode
from orchestrator.metrics import NoMetrics
from orchestrator.runs import ALL_RUNS, Run, RunRequest, RunState
from orchestrator.store.postgres import Postgres
from orchestrator.streamlog.archive import Archive
from orchestrator.streamlog.memory import MemoryLog, MemoryStore

if TYPE_CHECKING:
    from tests.orchestrator.store.conftest import Wire

pytestmark = pytest.mark.local

_AT = "2025-01-01T00:00:00.000Z"
_DELTAS = 1500
"""More than a page of what the archive reads at once."""


class Backlog(NoMetrics):
    """What the archive said of itself."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.done = 0
        self._said = asyncio.Event()

    def archive_backlog(self, runs: int) -> None:
        self.seen.append(runs)
        self._said.set()

    def archived(self, runs: int) -> None:
        self.done += runs

    async def reaches(self, runs: int, within_s: float = 20) -> None:
        """Wait until a round that begins after this call finds so many runs waiting."""
        async with asyncio.timeout(within_s):
            while True:
                self._said.clear()
                await self._said.wait()
                if self.seen[-1] == runs:
                    return


@pytest.fixture
def backlog() -> Backlog:
    return Backlog()


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore(time.time)


@pytest.fixture
def event_log(memory: MemoryStore) -> MemoryLog:
    return MemoryLog(memory)


async def start(log: MemoryLog, number: int) -> Run:
    run = Run(f"task-{number:032x}", "acme", "m", ("agent",), created_ms=1000 + number)
    await log.open(run, RunRequest("m", "m", {}, {}), [encode(Event("WORKFLOW_STARTED", _AT))])
    return run


async def play(log: MemoryLog, number: int, deltas: int = 3, text: str = "xxx") -> str:
    """A run from its beginning to its end."""
    run = await start(log, number)
    said = [Event("LLM_PARTIAL", _AT, "agent", "x")] * deltas + [Event("LLM_OUTPUT", _AT, "agent", text)]
    await log.append(run.id, "agent", 1, 1, [encode(event) for event in said], state=RunState.RUNNING)
    ending = completed(_AT, text=text, usage={"total_tokens": 1}, finish_reason="stop", duration_ms=1)
    await log.append(run.id, "engine", 1, 0, [encode(event) for event in ending], state=RunState.COMPLETED, ends=True)
    return run.id


async def kept(log: MemoryLog, run_id: str) -> list[Entry]:
    return [entry for entry in await log.read(run_id, 0, 1 << 20) if entry.event.type != "LLM_PARTIAL"]


async def listed(postgres: Postgres, limit: int) -> list[str]:
    runs, _ = await postgres.runs("acme", ALL_RUNS, offset=0, limit=limit)
    return [run.id for run in runs]


async def test_runs_are_archived_without_their_deltas(event_log: MemoryLog, postgres: Postgres, backlog: Backlog) -> None:
    run_ids = [await play(event_log, number, _DELTAS if number == 3 else 3) for number in range(5)]
    async with Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01) as archive:
        await backlog.reaches(0)
        assert [await archive.run(run_id) for run_id in run_ids] == [await event_log.run(run_id) for run_id in run_ids]
        for run_id in run_ids:
            entries = await kept(event_log, run_id)
            assert await archive.entries(run_id, 0, 100) == entries
            assert [await archive.find(run_id, seq) for seq in (1, 2, entries[1].seq)] == [entries[0], None, entries[1]]
        assert [entry.seq for entry in await archive.entries(run_ids[3], 1, 100)] == [_DELTAS + 2, _DELTAS + 3, _DELTAS + 4]
        assert await listed(postgres, 3) == run_ids[:1:-1]
    assert (backlog.seen[0], backlog.seen[-1], backlog.done) == (5, 0, 5)


async def test_an_unfinished_run_is_left_alone(event_log: MemoryLog, postgres: Postgres, backlog: Backlog) -> None:
    open_run = await start(event_log, 1)
    await play(event_log, 2)
    async with Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01) as archive:
        await backlog.reaches(0)
        assert await archive.run(open_run.id) is None


async def test_more_runs_than_a_batch_and_more_bytes_than_a_batch(
    event_log: MemoryLog, postgres: Postgres, backlog: Backlog
) -> None:
    run_ids = [await play(event_log, number, text="x" * 1_000_000 if number < 20 else "x") for number in range(450)]
    async with Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01):
        await backlog.reaches(0)
        assert await listed(postgres, 1000) == run_ids[::-1]


async def test_a_log_that_vanished_is_settled_and_the_others_are_kept(
    event_log: MemoryLog, memory: MemoryStore, postgres: Postgres, backlog: Backlog
) -> None:
    """Its id came back with every batch, for ever; with as many of them as a batch holds, nothing else was archived."""
    lost, found = await play(event_log, 1), await play(event_log, 2)
    del memory.records[lost]
    async with Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01) as archive:
        await backlog.reaches(0)
        assert await archive.run(lost) is None
        assert await archive.run(found) == await event_log.run(found)


async def test_a_run_that_the_database_refuses_does_not_hold_up_the_others(
    event_log: MemoryLog, postgres: Postgres, backlog: Backlog
) -> None:
    run_ids = [await play(event_log, number) for number in range(3)]
    bad = Run("task-" + "f" * 32, "acme", "m", ("agent",), created_ms=1 << 70)
    await event_log.open(bad, RunRequest("m", "m", {}, {}), [])
    end = [encode(event) for event in completed(_AT, text="", usage={}, finish_reason="stop", duration_ms=1)]
    await event_log.append(bad.id, "engine", 1, 0, end, state=RunState.COMPLETED, ends=True)
    async with Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01):
        await backlog.reaches(0)
        assert await listed(postgres, 10) == run_ids[::-1]


async def test_a_crash_between_the_two_stores_repeats_without_effect(
    event_log: MemoryLog, memory: MemoryStore, postgres: Postgres, backlog: Backlog
) -> None:
    run_id = await play(event_log, 1)
    async with Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01):
        await backlog.reaches(0)
    memory.archive[run_id] = None  # as if the process had died before it told the log
    async with Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01) as archive:
        await backlog.reaches(0)
        assert await archive.entries(run_id, 0, 100) == await kept(event_log, run_id)


async def test_two_replicas_share_the_work_by_lease(
    event_log: MemoryLog, memory: MemoryStore, postgres: Postgres, backlog: Backlog
) -> None:
    other = Backlog()
    async with (
        Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01),
        Archive(MemoryLog(memory), postgres, "two", metrics=other, poll_s=0.01),
    ):
        for number in range(20):
            await play(event_log, number)
        await backlog.reaches(0)
    assert sorted([backlog.done, other.done]) == [0, 20]


@pytest.mark.parametrize("outage", ["cut", "freeze"])
async def test_an_outage_delays_the_archive_and_loses_nothing(
    event_log: MemoryLog, wire: Wire, outage: str, backlog: Backlog
) -> None:
    """P10, small: runs go on ending while the database is away, and the backlog is empty soon after it is back."""
    async with (
        Postgres(wire.url, bound_s=0.2) as postgres,
        Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01) as archive,
    ):
        run_ids = [await play(event_log, 0)]
        await backlog.reaches(0)
        await break_off(wire, outage)
        run_ids += [await play(event_log, number) for number in range(1, 30)]
        await backlog.reaches(29)
        await backlog.reaches(29)
        await wire.mend()
        await backlog.reaches(0, within_s=30)
        assert await listed(postgres, 100) == run_ids[::-1]
        assert await archive.entries(run_ids[7], 0, 100) == await kept(event_log, run_ids[7])
    assert max(backlog.seen) == 29


async def break_off(wire: Wire, outage: str) -> None:
    if outage == "cut":
        await wire.cut()
    else:
        wire.freeze()


async def test_leaving_while_the_database_is_away_takes_no_time(event_log: MemoryLog, wire: Wire, backlog: Backlog) -> None:
    await wire.cut()
    await play(event_log, 1)
    async with Postgres(wire.url) as postgres, Archive(event_log, postgres, "one", metrics=backlog, poll_s=0.01):
        await backlog.reaches(1)
        left = time.monotonic()
    assert time.monotonic() - left < 1
