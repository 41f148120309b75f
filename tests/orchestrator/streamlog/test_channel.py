"""The ring of recent entries: what it takes, what it can tell, and what it forgets."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from orchestrator.events import Entry, Event, encode
from orchestrator.streamlog.channel import Channel
from orchestrator.streamlog.log import Batch, Tail

AT = "2026-01-01T00:00:00.000Z"
SIZE = len(encode(Event("X", AT)))


def entry(seq: int, ms: int = 0, kind: str = "X") -> Entry:
    return Entry(seq, ms or seq * 10, encode(Event(kind, AT)))


def batch(first: int, last: int, prev_ms: int | None = None) -> Batch:
    return Batch("r", first - 1, (first - 1) * 10 if prev_ms is None else prev_ms, [entry(seq) for seq in range(first, last + 1)])


def channel(ring_bytes: int = 1 << 20, seq: int = 0, ms: int = 0) -> Channel:
    return Channel("r", ring_bytes, seq=seq, ms=ms)


def seqs(channel: Channel, seq: int, ms: int | None = None, limit: int = 100) -> list[int] | None:
    found = channel.since(seq, ms, limit)
    return None if found is None else [entry.seq for entry in found]


@pytest.mark.parametrize(
    ("fed", "taken", "tail"),
    [
        (batch(4, 6), True, 6),
        (batch(3, 3), True, 3),
        (batch(1, 3), True, 3),
        (batch(2, 5), True, 5),
        (batch(5, 6), False, 3),
        (batch(4, 6, prev_ms=31), False, 3),
        (Batch("r", 2, 20, [entry(3, 99)]), False, 3),
        (Batch("r", 2, 20, [entry(3, 99), entry(4)]), False, 3),
    ],
    ids=["next", "known", "all known", "overlap", "hole", "after another event", "contradiction", "overlap that contradicts"],
)
def test_it_takes_only_what_follows(fed: Batch, taken: bool, tail: int) -> None:
    ring = channel()
    assert ring.feed(batch(1, 3))
    assert ring.feed(fed) is taken
    assert ring.tail_seq == tail
    assert seqs(ring, 0) == list(range(1, tail + 1))


def test_what_the_ring_no_longer_holds_cannot_be_contradicted() -> None:
    ring = channel(seq=5, ms=50)
    assert ring.feed(Batch("r", 1, 10, [entry(2, 99)]))
    assert ring.tail_seq == 5


@pytest.mark.parametrize(
    ("seq", "ms", "answer"),
    [
        (0, None, [1, 2, 3]),
        (1, 10, [2, 3]),
        (1, None, [2, 3]),
        (3, 30, []),
        (1, 11, None),
        (3, 31, None),
        (4, None, None),
    ],
    ids=["beginning", "inside", "by number", "at the tail", "another event", "another event at the tail", "ahead"],
)
def test_what_follows_a_place(seq: int, ms: int | None, answer: list[int] | None) -> None:
    ring = channel()
    ring.feed(batch(1, 3))
    assert seqs(ring, seq, ms) == answer


def test_a_delivery_has_a_limit() -> None:
    ring = channel()
    ring.feed(batch(1, 9))
    assert seqs(ring, 2, limit=3) == [3, 4, 5]


def test_it_is_bounded_in_bytes_and_keeps_the_newest() -> None:
    ring = channel(ring_bytes=4 * SIZE)
    ring.feed(batch(1, 5))
    assert seqs(ring, 1) is None
    assert seqs(ring, 2, 20) == [3, 4, 5]
    assert seqs(ring, 2, 21) is None, "the event before the ring is known by its time"
    tiny = channel(ring_bytes=1)
    tiny.feed(batch(1, 3))
    assert seqs(tiny, 2) == [3]


def test_a_restart_forgets_and_wakes_nobody_to_the_wrong_events() -> None:
    ring = channel()
    ring.feed(batch(1, 5))
    ring.restart(Tail(2, 77, 1, True))
    assert (ring.tail_seq, ring.tail_ms, ring.closed) == (2, 77, True)
    assert seqs(ring, 2, 77) == []
    assert seqs(ring, 2, 20) is None
    assert seqs(ring, 5, 50) is None


def test_a_lost_log_tells_nothing() -> None:
    ring = channel()
    ring.feed(batch(1, 3))
    ring.lose()
    assert seqs(ring, 0) is None


def test_the_end_closes_it() -> None:
    ring = channel()
    ring.feed(Batch("r", 0, 0, [entry(1), entry(2, kind="STREAM_END")]))
    assert ring.closed


async def test_waiting_ends_with_news_or_with_time() -> None:
    ring = channel()
    assert not await ring.wait(0)
    waiting = [asyncio.create_task(ring.wait(5.0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    ring.feed(batch(1, 1))
    await asyncio.wait(waiting)
    assert waiting[0].cancelled()
    assert [task.result() for task in waiting[1:]] == [True, True]


async def test_each_waits_for_as_long_as_it_said() -> None:
    """They share one timer: it is brought forward for whoever is less patient, and goes on for the others."""
    ring = channel()
    patient = asyncio.create_task(ring.wait(5.0))
    await asyncio.sleep(0)
    assert not await ring.wait(0.01)
    assert not await ring.wait(0.01)
    assert not patient.done()
    ring.feed(batch(1, 1))
    assert await patient


async def test_who_was_woken_waits_anew() -> None:
    """The timer outlives the wait it was set for. When it goes off, whoever has come since then waits on."""
    ring = channel()
    first = asyncio.create_task(ring.wait(0.02))
    await asyncio.sleep(0)
    ring.feed(batch(1, 1))
    assert await first
    second = asyncio.create_task(ring.wait(5.0))
    assert not await ring.wait(0.04)
    assert not second.done()
    ring.feed(batch(2, 2))
    assert await second


async def test_a_channel_that_nobody_waits_for_sets_no_timer() -> None:
    """A run is over long before its last reader's patience is: its ring must not be kept until then."""
    ring = channel()
    kept = weakref.ref(ring)
    waiting = asyncio.create_task(ring.wait(5.0))
    await asyncio.sleep(0)
    ring.dismiss()
    assert not waiting.done()
    ring.feed(batch(1, 1))
    assert await waiting
    ring.dismiss()
    del ring, waiting
    gc.collect()
    assert kept() is None
