"""The fan-out: who is watched and for how long, what heals, and what one reader costs another: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.clock import SystemClock
from orchestrator.errors import RunNotFound
from orchestrator.events import Gap
from orchestrator.runs import Run, RunRequest
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import LogUnavailable, Position
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from tests.orchestrator.streamlog.readers import ENDING, RUN_ID, Readers, Shelf, body, read
from tests.orchestrator.streamlog.simulation import VirtualLoop


class Watched(MemoryLog):
    """A log that tells which runs are watched now, and how often that was begun. Notifications come when told to."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, manual=True)
        self.now: list[str] = []
        self.begun = 0

    def watch(self, run_id: str) -> None:
        assert run_id not in self.now, "watched twice"
        self.now.append(run_id)
        self.begun += 1
        super().watch(run_id)

    def unwatch(self, run_id: str) -> None:
        self.now.remove(run_id)
        super().unwatch(run_id)


class Process:
    def __init__(self, store: MemoryStore, *, linger_s: float = 5.0) -> None:
        self.log = Watched(store)
        self.fanout = Fanout(self.log, Shelf(), linger_s=linger_s, watch_delay_s=0.025)

    async def calm(self) -> None:
        """Until nothing is being fetched."""
        await asyncio.gather(*self.fanout._tasks)

    @property
    def channels(self) -> list[str]:
        return list(self.fanout._channels)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(SystemClock().time)


async def opened(process: Process, *, hold: bool = True) -> None:
    if hold:
        process.fanout.hold(RUN_ID, "acme")
    await process.log.open(Run(RUN_ID, "acme", "m", "agent", 1), RunRequest("m", "m", {}, {}), [body(1)])


async def append(process: Process, number: int, *, ends: bool = False) -> None:
    await process.log.append(RUN_ID, "w", 1, number, ENDING if ends else [body(number)], ends=ends)


def in_virtual_time(test: object) -> None:
    """Run an async test on a loop whose time passes only when nothing else can happen."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(test)  # type: ignore[arg-type]
    finally:
        loop.close()


class TestWatching:
    """No subscription is leaked, and none is made that is not needed: most runs are read where they are written."""

    def test_a_run_that_is_written_and_read_here_is_never_watched(self, store: MemoryStore) -> None:
        async def story() -> None:
            here = Process(store)
            await opened(here)
            with here.fanout.writing(RUN_ID):
                async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
                    await asyncio.sleep(1.0)
                    await append(here, 1)
                    await append(here, 2, ends=True)
                    assert await read(cursor, 4) == [1, 2, 3, 4]
            assert here.log.begun == 0
            assert here.channels == []

        in_virtual_time(story())

    def test_a_held_run_that_nobody_writes_here_is_watched_after_a_moment(self, store: MemoryStore) -> None:
        async def story() -> None:
            here = Process(store)
            await opened(here)
            assert here.log.now == []
            await asyncio.sleep(0.03)
            assert here.log.now == [RUN_ID]
            with here.fanout.writing(RUN_ID):
                assert here.log.now == []
            assert here.log.now == [RUN_ID]
            await asyncio.sleep(5.0)
            assert (here.log.now, here.channels) == ([], [])

        in_virtual_time(story())

    def test_readers_share_one_and_the_last_one_lingers(self, store: MemoryStore) -> None:
        async def story() -> None:
            here = Process(store, linger_s=5.0)
            await opened(here, hold=False)
            async with here.fanout.subscribe(RUN_ID, Position(0)):
                async with here.fanout.subscribe(RUN_ID, Position(0)):
                    assert here.log.now == [RUN_ID]
                await asyncio.sleep(60.0)
                assert here.log.now == [RUN_ID]
            await asyncio.sleep(4.0)
            async with here.fanout.subscribe(RUN_ID, Position(0)):
                await asyncio.sleep(60.0)
                assert here.log.now == [RUN_ID]
            await asyncio.sleep(5.1)
            assert (here.log.now, here.channels) == ([], [])
            assert here.log.begun == 1

        in_virtual_time(story())

    def test_an_ended_run_is_dropped_with_its_last_reader(self, store: MemoryStore) -> None:
        async def story() -> None:
            here = Process(store)
            await opened(here, hold=False)
            await append(here, 1, ends=True)
            async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
                assert here.log.now == []
                assert await read(cursor, 3) == [1, 2, 3]
            assert here.channels == []

        in_virtual_time(story())

    def test_two_writers_here(self, store: MemoryStore) -> None:
        async def story() -> None:
            here = Process(store)
            await opened(here, hold=False)
            async with here.fanout.subscribe(RUN_ID, Position(0)):
                with here.fanout.writing(RUN_ID):
                    with here.fanout.writing(RUN_ID):
                        assert here.log.now == []
                    assert here.log.now == []
                assert here.log.now == [RUN_ID]
            await here.fanout.close()
            assert (here.log.now, here.channels) == ([], [])

        in_virtual_time(story())


@pytest.fixture
async def pair(store: MemoryStore) -> AsyncIterator[tuple[Process, Process]]:
    here, there = Process(store), Process(store)
    await opened(here, hold=False)
    yield here, there
    for process in (here, there):
        await process.fanout.close()
        assert process.log.now == []


async def test_a_notification_in_time_is_all_it_takes(pair: tuple[Process, Process]) -> None:
    here, there = pair
    async with there.fanout.subscribe(RUN_ID, Position(0)) as cursor:
        there.log.deliver()
        assert await read(cursor, 1) == [1]
        waiting = asyncio.create_task(cursor.next(60.0))
        await append(here, 1)
        there.log.deliver()
        assert [entry.seq for entry in await waiting] == [2]  # type: ignore[union-attr]


async def test_a_lost_notification_heals_with_the_next_one(pair: tuple[Process, Process]) -> None:
    here, there = pair
    async with there.fanout.subscribe(RUN_ID, Position(0)) as cursor:
        there.log.deliver()
        assert await read(cursor, 1) == [1]
        await append(here, 1)
        there.log.lose()
        await append(here, 2)
        there.log.deliver()
        assert await read(cursor, 2) == [2, 3]


async def test_lost_notifications_heal_on_the_keepalive(pair: tuple[Process, Process]) -> None:
    here, there = pair
    async with there.fanout.subscribe(RUN_ID, Position(0)) as cursor:
        there.log.deliver()
        assert await read(cursor, 1) == [1]
        await there.calm()
        await append(here, 1)
        await append(here, 2, ends=True)
        there.log.lose(2)
        assert await cursor.next(0.001) == ()
        assert await read(cursor, 3) == [2, 3, 4]
        assert cursor.ended


async def test_what_was_appended_while_the_subscription_was_made_is_fetched(pair: tuple[Process, Process]) -> None:
    here, there = pair
    async with there.fanout.subscribe(RUN_ID, Position(1)) as cursor:
        there.log._flowing.clear()  # asked for, and not in effect yet
        await append(here, 1)
        there.log.deliver()  # it is now
        assert await read(cursor, 1) == [2]


async def test_an_outage_while_catching_up_is_made_up_for_on_the_keepalive(pair: tuple[Process, Process]) -> None:
    here, there = pair
    store = there.log._store

    async def away(operation: str, point: str) -> None:
        raise LogUnavailable

    async with there.fanout.subscribe(RUN_ID, Position(0)) as cursor:
        there.log.deliver()
        assert await read(cursor, 1) == [1]
        await there.calm()
        await append(here, 1)
        there.log.lose()
        store.checkpoint = away
        assert await cursor.next(0.001) == ()
        await there.calm()
        store.checkpoint = None
        assert await cursor.next(0.001) == ()
        assert await read(cursor, 1) == [2]


class TestOver:
    """Waiting for the end of a run without reading it."""

    async def test_of_a_run_that_ends_here_or_elsewhere(self, pair: tuple[Process, Process]) -> None:
        here, there = pair
        waiting = [asyncio.create_task(each.fanout.over(RUN_ID)) for each in (here, there)]
        for number in (1, 2):
            await append(here, number)
        there.log.deliver()
        await there.calm()
        assert not [task for task in waiting if task.done()]
        await append(here, 3, ends=True)
        there.log.deliver()
        async with asyncio.timeout(5.0):
            await asyncio.gather(*waiting)
            await here.fanout.over(RUN_ID)
        assert here.log.now == there.log.now == []

    async def test_of_one_that_nobody_knows(self, store: MemoryStore) -> None:
        process = Process(store)
        await process.fanout.over(RUN_ID)
        assert process.channels == []

    def test_of_one_that_says_nothing_for_a_long_time(self, store: MemoryStore) -> None:
        """Longer than a channel without readers is kept; and its end is told by a notification that is lost."""

        async def told() -> None:
            here, there = Process(store, linger_s=5.0), Process(store)
            await opened(here)
            waiting = asyncio.create_task(here.fanout.over(RUN_ID))
            await asyncio.sleep(60.0)
            assert here.channels == [RUN_ID]
            await append(there, 1, ends=True)
            here.log.lose()
            await asyncio.wait_for(waiting, 15.0)
            for process in (here, there):
                await process.fanout.close()

        in_virtual_time(told())


async def test_a_tail_that_is_asked_for_at_once_by_many_readers_makes_one_channel(pair: tuple[Process, Process]) -> None:
    _, there = pair

    async def first() -> list[object]:
        async with there.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            return list(await read(cursor, 1))

    assert await asyncio.gather(*(first() for _ in range(20))) == [[1]] * 20
    assert there.log.begun == 1


async def test_a_run_that_nobody_knows(store: MemoryStore) -> None:
    here = Process(store)
    with pytest.raises(RunNotFound):
        async with here.fanout.subscribe(RUN_ID, Position(0)):
            pass
    assert here.channels == []


async def test_whose_run_it_is_is_known_only_where_it_was_opened(store: MemoryStore) -> None:
    here, there = Process(store), Process(store)
    await opened(here)
    assert here.fanout.tenant(RUN_ID) == "acme"
    assert there.fanout.tenant(RUN_ID) is None
    await here.fanout.close()


async def test_a_frozen_reader_costs_its_place_and_others_nothing() -> None:
    """P15 in small: the ring is bounded, the frozen reader reads on from the log later."""
    here = Readers(ring_bytes=2000)
    await here.open()
    async with here.fanout.subscribe(RUN_ID, Position(0)) as frozen, here.fanout.subscribe(RUN_ID, Position(0)) as brisk:
        assert await read(frozen, 1) == [1]
        assert await read(brisk, 1) == [1]
        for number in range(2, 502):
            await here.append(number)
            assert await read(brisk, 1) == [number]
        assert here.fanout._channels[RUN_ID]._size <= 2000
        assert await read(frozen, 500) == list(range(2, 502))
    await here.close()


async def test_a_crowd_that_comes_back_reads_in_turn() -> None:
    """A hundred readers asked for the whole of a run at once. Their pages stood in line before everybody else's questions to the
    log, which took that for an outage and refused new readers."""
    here = Readers(ring_bytes=1)
    await here.open()
    await here.append(*range(2, 1200))
    reading = most = 0

    async def look(operation: str, point: str) -> None:
        nonlocal reading, most
        if operation == "read":
            reading += 1 if point == "sent" else -1
            most = max(most, reading)
            await asyncio.sleep(0)

    async def everything() -> list[int | Gap]:
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            return await read(cursor, 1199)

    here.store.checkpoint = look
    assert await asyncio.gather(*(everything() for _ in range(100))) == [list(range(1, 1200))] * 100
    assert most == 8
    await here.close()
