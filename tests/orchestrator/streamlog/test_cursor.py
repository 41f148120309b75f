"""A reader's place: resumed exactly, or told at once that it cannot be (P4, P6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.events import Entry, Gap
from orchestrator.streamlog.log import LogUnavailable, Position
from tests.orchestrator.streamlog.readers import ENDING, RUN_ID, Readers, Shelf, body, read


@pytest.fixture
async def here() -> AsyncIterator[Readers]:
    here = Readers()
    await here.open()
    yield here
    await here.close()


async def position(here: Readers, seq: int) -> Position:
    entry = await here.log.find(RUN_ID, seq)
    assert entry is not None
    return Position(seq, entry.ms)


async def test_from_the_beginning_to_the_end(here: Readers) -> None:
    await here.append(2, 3)
    async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
        assert await read(cursor, 3) == [1, 2, 3]
        await here.append(4, ends=True)
        assert await read(cursor, 3) == [4, 5, 6]
        assert cursor.ended
        assert await cursor.next(60.0) == ()
    assert here.gaps.count == 0


async def test_silence_is_nothing_after_the_timeout(here: Readers) -> None:
    async with here.fanout.subscribe(RUN_ID, Position(1)) as cursor:
        assert await cursor.next(0.001) == ()
        assert not cursor.ended


@pytest.mark.parametrize("exact", [True, False])
async def test_a_resume_continues_after_the_named_event(here: Readers, exact: bool) -> None:
    await here.append(2, 3, 4)
    place = await position(here, 2) if exact else Position(2)
    async with here.fanout.subscribe(RUN_ID, place) as cursor:
        assert await read(cursor, 2) == [3, 4]


async def test_a_resume_at_the_end_ends_without_an_event(here: Readers) -> None:
    await here.append(ends=True)
    async with here.fanout.subscribe(RUN_ID, await position(here, 3)) as cursor:
        assert await cursor.next(5.0) == ()
        assert cursor.ended


@pytest.mark.parametrize("place", [Position(2, 5), Position(9), Position(9, 5)], ids=["another event", "no event", "neither"])
async def test_a_position_that_does_not_exist_is_a_gap_and_then_everything(here: Readers, place: Position) -> None:
    await here.append(2, 3)
    async with here.fanout.subscribe(RUN_ID, place) as cursor:
        assert await read(cursor, 4) == [Gap(place.seq + 1, None, 1), 1, 2, 3]
    assert here.gaps.count == 1


async def test_a_reader_behind_the_ring_reads_the_log() -> None:
    here = Readers(ring_bytes=1)
    await here.open()
    await here.append(*range(2, 2000))
    async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
        assert await read(cursor, 1999) == list(range(1, 2000))
    await here.close()


class TestTrimmed:
    """P6: retention is announced, with the first available position."""

    async def test_the_beginning(self) -> None:
        here = Readers(ring_bytes=1, max_events=3)
        await here.open()
        await here.append(*range(2, 11))
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            assert await read(cursor, 4) == [Gap(1, 7, 8), 8, 9, 10]
        assert here.gaps.count == 1
        await here.close()

    async def test_a_position(self) -> None:
        here = Readers(ring_bytes=1, max_events=3)
        await here.open()
        await here.append(2, 3)
        place = await position(here, 2)
        await here.append(*range(4, 11))
        async with here.fanout.subscribe(RUN_ID, place) as cursor:
            assert await read(cursor, 4) == [Gap(3, 7, 8), 8, 9, 10]
        await here.close()

    async def test_under_a_slow_reader(self) -> None:
        here = Readers(ring_bytes=1, max_events=3)
        await here.open()
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            assert await read(cursor, 1) == [1]
            await here.append(*range(2, 11))
            assert await read(cursor, 4) == [Gap(2, 7, 8), 8, 9, 10]
        await here.close()


class TestRolledBack:
    """P4 where Redis comes back without its latest events. Whatever is written then, no reader gets it as a continuation."""

    async def test_a_connected_reader_is_told_when_the_log_is_written_on(self, here: Readers) -> None:
        await here.append(2, 3, 4)
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            assert await read(cursor, 4) == [1, 2, 3, 4]
            await here.lose_tail(2)
            await here.append("3 again")
            assert await read(cursor, 4) == [Gap(5, None, 1), 1, 2, 3]

    async def test_a_reader_that_waits_is_told_as_soon_as_the_channel_knows(self, here: Readers) -> None:
        """It used to learn of it with the next keepalive after, because its position was looked up before waiting only."""
        await here.append(2, 3, 4)
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            assert await read(cursor, 4) == [1, 2, 3, 4]
            waiting = asyncio.create_task(cursor.next(60.0))
            await asyncio.sleep(0)
            await here.lose_tail(2)
            await here.append("3 again")
            async with asyncio.timeout(5.0):
                assert await waiting == (Gap(5, None, 1),)

    async def test_a_reader_at_the_tail_of_a_log_rewritten_to_the_same_length(self, here: Readers) -> None:
        await here.append(2, 3)
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            assert await read(cursor, 3) == [1, 2, 3]
            waiting = asyncio.create_task(cursor.next(60.0))
            await asyncio.sleep(0)
            await here.lose_tail(2)
            await here.append("another 3")
            async with asyncio.timeout(5.0):
                assert await waiting == (Gap(4, None, 1),)
            assert await read(cursor, 3) == [1, 2, 3]

    async def test_a_reader_that_was_away(self, here: Readers) -> None:
        await here.append(2, 3, 4)
        place = await position(here, 4)
        await here.lose_tail(2)
        await here.append("3 again", "4 again", "5")
        async with here.fanout.subscribe(RUN_ID, place) as cursor:
            assert await read(cursor, 6) == [Gap(5, None, 1), 1, 2, 3, 4, 5]

    async def test_by_number_alone_it_cannot_be_told_which_is_why_ids_are_preferred(self, here: Readers) -> None:
        await here.append(2, 3)
        await here.lose_tail(2)
        await here.append("another 3", "4")
        async with here.fanout.subscribe(RUN_ID, Position(3)) as cursor:
            assert await read(cursor, 1) == [4]

    async def test_a_keepalive_finds_it_where_nobody_writes(self, here: Readers) -> None:
        await here.append(2, 3, 4)
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            assert await read(cursor, 4) == [1, 2, 3, 4]
            await here.lose_tail(2)
            assert await cursor.next(0.001) == ()  # a keepalive, which compares the tails
            assert await read(cursor, 3) == [Gap(5, None, 1), 1, 2]

    async def test_a_log_that_is_gone_ends_with_a_gap(self, here: Readers) -> None:
        await here.append(2)
        async with here.fanout.subscribe(RUN_ID, Position(0)) as cursor:
            assert await read(cursor, 2) == [1, 2]
            await here.flush()
            assert await cursor.next(0.001) == ()
            assert await read(cursor, 1) == [Gap(3, None, None)]
            assert cursor.ended


async def test_a_position_ahead_of_this_replica_is_waited_for(here: Readers) -> None:
    """The client read from another replica, whose channel was faster. Its place exists; no gap, no repeat."""
    there = Readers(here)
    async with there.fanout.subscribe(RUN_ID, Position(0)) as first:
        assert await read(first, 1) == [1]
        there.log.unwatch(RUN_ID)  # notifications are slow, or lost
        await here.append(2, 3)
        async with there.fanout.subscribe(RUN_ID, await position(here, 3)) as second:
            await here.append(4)
            assert await read(second, 1) == [4]
        assert await read(first, 3) == [2, 3, 4]
    assert there.gaps.count == 0
    await there.close()


async def test_a_log_that_is_away_is_silence_and_not_an_error(here: Readers) -> None:
    await here.append(*range(2, 6))

    async def away(operation: str, point: str) -> None:
        raise LogUnavailable

    async with here.fanout.subscribe(RUN_ID, Position(2)) as cursor:
        here.store.checkpoint = away
        assert await cursor.next(0.001) == ()
        assert not cursor.ended
        here.store.checkpoint = None
        assert await read(cursor, 3) == [3, 4, 5]
    assert here.gaps.count == 0


class TestArchived:
    """A run whose log has expired: no deltas, so positions are missing, which is no gap."""

    async def shelf(self) -> Shelf:
        kept = [Entry(1, 10, body(1, "WORKFLOW_STARTED")), Entry(2, 20, body(2, "AGENT_STARTED"))]
        return Shelf([*kept, Entry(8, 80, ENDING[0]), Entry(9, 80, ENDING[1])])

    @pytest.mark.parametrize(
        ("place", "told"),
        [
            (Position(0), [1, 2, 8, 9]),
            (Position(2, 20), [8, 9]),
            (Position(2), [8, 9]),
            (Position(5, 50), [Gap(6, None, 1), 1, 2, 8, 9]),
            (Position(2, 21), [Gap(3, None, 1), 1, 2, 8, 9]),
            (Position(99), [Gap(100, None, 1), 1, 2, 8, 9]),
        ],
        ids=["beginning", "event", "number", "delta", "another event", "beyond"],
    )
    async def test_positions(self, place: Position, told: list[int | Gap]) -> None:
        here = Readers(shelf=await self.shelf())
        async with here.fanout.subscribe(RUN_ID, place) as cursor:
            assert await read(cursor, len(told)) == told
            assert cursor.ended
            assert await cursor.next(60.0) == ()
        assert here.gaps.count == (1 if isinstance(told[0], Gap) else 0)

    async def test_a_position_on_its_end(self) -> None:
        here = Readers(shelf=await self.shelf())
        async with here.fanout.subscribe(RUN_ID, Position(9, 80)) as cursor:
            assert await cursor.next(60.0) == ()
            assert cursor.ended
